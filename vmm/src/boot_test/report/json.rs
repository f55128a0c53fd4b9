//! JSON: everything, for programs that compare runs.
#![forbid(unsafe_code)]

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Counts;
use crate::boot_test::verdict::{Attempt, Marks, Outcome, Verdict};

/// The form of the document; another number when a program that reads it must change.
const VERSION: u32 = 1;

/// The report.
pub fn report(verdicts: &[Verdict], took: Duration) -> String {
    let counts = Counts::of(verdicts);
    let document = json!({
        "version": VERSION,
        "berth": env!("CARGO_PKG_VERSION"),
        "seconds": seconds(took),
        "passed": counts.passed,
        "flaky": counts.flaky,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "interrupted": counts.interrupted,
        "cases": verdicts.iter().map(case).collect::<Vec<_>>(),
    });
    pretty(&document)
}

/// One attempt, for its folder.
pub fn attempt(attempt: &Attempt) -> String {
    pretty(&attempt_value(attempt))
}

fn pretty(value: &Value) -> String {
    // It is JSON already: writing it cannot fail.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

fn case(verdict: &Verdict) -> Value {
    let parameters: Map<_, _> = verdict
        .parameters
        .iter()
        .map(|(name, value)| (name.clone(), Value::String(value.clone())))
        .collect();
    let mut case = json!({
        "file": verdict.file.to_string_lossy(),
        "name": verdict.name,
        "parameters": parameters,
        "outcome": word(verdict.outcome),
        "seconds": seconds(verdict.took()),
        "attempts": verdict.attempts.iter().map(attempt_value).collect::<Vec<_>>(),
    });
    if let Outcome::Skipped(why) = verdict.outcome {
        case["why"] = why.into();
    }
    case
}

/// An outcome in a word.
pub(super) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Flaky => "flaky",
        Outcome::Failed => "failed",
        Outcome::Skipped(_) => "skipped",
        Outcome::Interrupted => "interrupted",
    }
}

fn attempt_value(attempt: &Attempt) -> Value {
    let Marks {
        first_output,
        kernel,
        init,
        ready,
    } = attempt.marks;
    let marks = [
        ("first_output", first_output),
        ("kernel_start", kernel),
        ("init_start", init),
        ("ready", ready),
    ];
    let marks: Map<_, _> = marks
        .into_iter()
        .filter_map(|(name, time)| Some((name.to_owned(), seconds(time?))))
        .collect();
    let steps = attempt.steps.iter();
    let steps = steps.map(|step| json!({ "step": step.step, "seconds": seconds(step.took) }));
    let mut value = json!({
        "passed": attempt.has_passed(),
        "seconds": seconds(attempt.took),
        "boot": marks,
        "steps": steps.collect::<Vec<_>>(),
    });
    if let Some(failure) = &attempt.failure {
        value["failure"] = json!({
            "kind": failure.kind.word(),
            "message": failure.message,
            "console": failure.lines,
        });
        if let Some((step, line)) = failure.step {
            value["failure"]["step"] = (step + 1).into();
            value["failure"]["line"] = line.into();
        }
    }
    if let Some(folder) = &attempt.folder {
        value["folder"] = folder.to_string_lossy().into();
    }
    value
}

/// Seconds to the millisecond.
fn seconds(time: Duration) -> Value {
    json!((time.as_secs_f64() * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_test::testing;

    #[test]
    fn the_report_has_outcomes_failures_and_the_boots_marks() {
        let text = report(&testing::verdicts(), Duration::from_millis(2345));
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["seconds"], 2.345);
        assert_eq!(
            (&report["passed"], &report["flaky"], &report["failed"]),
            (&json!(1), &json!(1), &json!(1))
        );
        let failed = &report["cases"][1];
        assert_eq!(failed["outcome"], "failed");
        assert_eq!(failed["attempts"][0]["failure"]["kind"], "panic");
        assert_eq!(failed["attempts"][0]["failure"]["line"], 7);
        let passed = &report["cases"][0];
        assert_eq!(passed["attempts"][0]["boot"]["init_start"], 0.5);
        assert_eq!(passed["parameters"]["memory"], "1G");
        assert_eq!(report["cases"][2]["outcome"], "flaky");
        assert_eq!(report["cases"][2]["attempts"].as_array().unwrap().len(), 2);
        assert_eq!(report["cases"][3]["why"], "it is slow");
    }
}
