//! JUnit's XML, as Jenkins, GitLab and the rest read it: a suite for each file, a case for each case.
#![forbid(unsafe_code)]

use std::time::Duration;

use quick_junit::{NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestRerun, TestSuite};

use super::clean;
use crate::boot_test::verdict::{Failure, Outcome, Verdict};

/// The report. What XML cannot hold is replaced.
pub fn report(verdicts: &[Verdict], took: Duration) -> Result<String, quick_junit::SerializeError> {
    let mut report = Report::new("berth test");
    report.set_time(took);
    let mut suites: Vec<TestSuite> = Vec::new();
    for verdict in verdicts {
        let file = verdict.file.to_string_lossy();
        if suites.last().is_none_or(|suite| suite.name.as_str() != file) {
            suites.push(TestSuite::new(file.as_ref()));
        }
        if let Some(suite) = suites.last_mut() {
            suite.add_test_case(case(verdict));
        }
    }
    for suite in &mut suites {
        let time = suite.test_cases.iter().filter_map(|case| case.time).sum();
        suite.set_time(time);
    }
    report.add_test_suites(suites);
    report.to_string()
}

fn case(verdict: &Verdict) -> TestCase {
    let mut failures = verdict
        .attempts
        .iter()
        .filter_map(|attempt| attempt.failure.as_ref());
    let status = match verdict.outcome {
        Outcome::Passed => TestCaseStatus::success(),
        Outcome::Skipped(why) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(why);
            status
        }
        Outcome::Interrupted => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
            status.set_type("interrupted").set_message("it was interrupted");
            status
        }
        Outcome::Flaky => {
            let mut status = TestCaseStatus::success();
            status.add_reruns(failures.by_ref().map(rerun));
            status
        }
        Outcome::Failed => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            if let Some(failure) = verdict.failure() {
                status
                    .set_type(failure.kind.word())
                    .set_message(clean(&failure.message))
                    .set_description(described(failure));
            }
            let earlier = verdict.attempts.len().saturating_sub(1);
            status.add_reruns(failures.by_ref().take(earlier).map(rerun));
            status
        }
    };
    let mut case = TestCase::new(clean(&verdict.name), status);
    case.set_classname(verdict.file.to_string_lossy().as_ref());
    case.set_time(verdict.took());
    for (name, value) in &verdict.parameters {
        case.add_property(Property::new(name, clean(value)));
    }
    if let Some(folder) = verdict
        .attempts
        .last()
        .and_then(|attempt| attempt.folder.as_ref())
    {
        case.add_property(Property::new("folder", folder.to_string_lossy().as_ref()));
    }
    case
}

fn rerun(failure: &Failure) -> TestRerun {
    let mut rerun = TestRerun::new(NonSuccessKind::Failure);
    rerun
        .set_type(failure.kind.word())
        .set_message(clean(&failure.message))
        .set_description(described(failure));
    rerun
}

/// The sentence and the console's last lines.
fn described(failure: &Failure) -> String {
    let lines = failure.lines.iter().map(|line| clean(line));
    std::iter::once(clean(&failure.message))
        .chain(lines)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_test::testing;

    #[test]
    fn each_outcome_is_what_junit_has_for_it_and_console_bytes_are_cleaned() {
        let text = report(&testing::verdicts(), Duration::from_secs(3)).unwrap();
        for part in [
            "<testsuites name=\"berth test\" tests=\"4\" skipped=\"1\" failures=\"1\" errors=\"0\"",
            "<testcase name=\"boots [memory=1G]\"",
            "<failure message=\"kernel panic: no root\" type=\"panic\">",
            "tail \u{fffd}[2J &amp; &lt;x&gt;",
            "<flakyFailure",
            "<skipped message=\"it is slow\"/>",
            "<property name=\"memory\" value=\"1G\"/>",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        let forbidden = |c: char| c.is_control() && !"\n\t\r".contains(c);
        assert!(!text.contains(forbidden));
    }
}
