//! JUnit's XML, as Jenkins, GitLab and the rest read it: a suite for each file, a case for each case. What it may hold
//! for all of them to take it says `tests/junit.xsd`.
#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::{Counts, clean};
use crate::boot_test::verdict::{Failure, Outcome, Verdict};

/// The report. What XML cannot hold is replaced.
pub fn report(verdicts: &[Verdict], took: Duration) -> io::Result<String> {
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let counts = Counted::of(verdicts, took);
    writer
        .create_element("testsuites")
        .with_attribute(("name", "berth test"))
        .with_attributes(counts.attributes())
        .write_inner_content(|writer| {
            for suite in verdicts.chunk_by(|one, next| one.file == next.file) {
                self::suite(writer, suite)?;
            }
            Ok(())
        })?;
    let mut text = String::from_utf8(writer.into_inner()).map_err(io::Error::other)?;
    text.push('\n');
    Ok(text)
}

/// What suites say of how their cases went.
struct Counted([(&'static str, String); 4]);

impl Counted {
    fn of(verdicts: &[Verdict], took: Duration) -> Self {
        let counts = Counts::of(verdicts);
        Self([
            ("tests", verdicts.len().to_string()),
            ("failures", counts.failed.to_string()),
            ("errors", counts.interrupted.to_string()),
            ("time", seconds(took)),
        ])
    }

    fn attributes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

/// The cases of a file.
fn suite(writer: &mut Writer<Vec<u8>>, verdicts: &[Verdict]) -> io::Result<()> {
    let file = verdicts.first().map(|verdict| verdict.file.to_string_lossy());
    let counts = Counted::of(verdicts, verdicts.iter().map(Verdict::took).sum());
    let skipped = Counts::of(verdicts).skipped.to_string();
    writer
        .create_element("testsuite")
        .with_attribute(("name", clean(&file.unwrap_or_default()).as_str()))
        .with_attributes(counts.attributes())
        .with_attribute(("skipped", skipped.as_str()))
        .write_inner_content(|writer| verdicts.iter().try_for_each(|verdict| case(writer, verdict)))?;
    Ok(())
}

fn case(writer: &mut Writer<Vec<u8>>, verdict: &Verdict) -> io::Result<()> {
    writer
        .create_element("testcase")
        .with_attribute(("name", clean(&verdict.name).as_str()))
        .with_attribute(("classname", clean(&verdict.file.to_string_lossy()).as_str()))
        .with_attribute(("time", seconds(verdict.took()).as_str()))
        .write_inner_content(|writer| {
            let failures: Vec<_> = verdict
                .attempts
                .iter()
                .filter_map(|attempt| attempt.failure.as_ref())
                .collect();
            match (verdict.outcome, failures.as_slice()) {
                (Outcome::Skipped(why), _) => {
                    writer
                        .create_element("skipped")
                        .with_attribute(("message", why))
                        .write_empty()?;
                }
                (Outcome::Interrupted, _) => {
                    writer
                        .create_element("error")
                        .with_attribute(("type", "interrupted"))
                        .with_attribute(("message", "it was interrupted"))
                        .write_empty()?;
                }
                (Outcome::Failed, [earlier @ .., last]) => {
                    failed(writer, "failure", last)?;
                    earlier
                        .iter()
                        .try_for_each(|failure| failed(writer, "rerunFailure", failure))?;
                }
                (_, failures) => failures
                    .iter()
                    .try_for_each(|failure| failed(writer, "flakyFailure", failure))?,
            }
            let folders = verdict
                .attempts
                .iter()
                .filter_map(|attempt| attempt.folder.as_ref());
            let folders: Vec<_> = folders
                .map(|folder| format!("kept: {}", clean(&folder.to_string_lossy())))
                .collect();
            if !folders.is_empty() {
                writer
                    .create_element("system-out")
                    .write_text_content(BytesText::new(&folders.join("\n")))?;
            }
            Ok(())
        })?;
    Ok(())
}

fn failed(writer: &mut Writer<Vec<u8>>, element: &str, failure: &Failure) -> io::Result<()> {
    writer
        .create_element(element)
        .with_attribute(("type", failure.kind.word()))
        .with_attribute(("message", clean(&failure.message).as_str()))
        .write_text_content(BytesText::new(&described(failure)))?;
    Ok(())
}

/// The sentence and the console's last lines.
fn described(failure: &Failure) -> String {
    let lines = failure.lines.iter().map(|line| clean(line));
    std::iter::once(clean(&failure.message))
        .chain(lines)
        .collect::<Vec<_>>()
        .join("\n")
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_test::testing;

    #[test]
    fn each_outcome_is_what_junit_has_for_it_and_console_bytes_are_cleaned() {
        let text = report(&testing::verdicts(), Duration::from_millis(3456)).unwrap();
        for part in [
            "<testsuites name=\"berth test\" tests=\"4\" failures=\"1\" errors=\"0\" time=\"3.456\">",
            "<testsuite name=\"tests/b.test.toml\" tests=\"2\" failures=\"0\" errors=\"0\" time=\"1.200\" skipped=\"1\">",
            "<testcase name=\"boots [memory=1G]\" classname=\"tests/a.test.toml\" time=\"1.000\">",
            "<failure type=\"panic\" message=\"kernel panic: no root\">",
            "tail \u{fffd}[2J &amp; &lt;x&gt;",
            "<flakyFailure type=\"panic\"",
            "<skipped message=\"it is slow\"/>",
            "<system-out>kept: /tmp/x</system-out>",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        let forbidden = |c: char| c.is_control() && !"\n\t\r".contains(c);
        assert!(!text.contains(forbidden));
    }

    #[test]
    fn what_xml_cannot_hold_is_not_in_it() {
        let mut verdicts = testing::verdicts();
        verdicts[1].name = "nul \0 quote \" tag < ffff \u{ffff}".to_owned();
        let text = report(&verdicts, Duration::ZERO).unwrap();
        assert!(
            text.contains("name=\"nul \u{fffd} quote &quot; tag &lt; ffff \u{fffd}\""),
            "{text}"
        );
    }
}
