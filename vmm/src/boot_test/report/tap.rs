//! TAP, the Test Anything Protocol, version 13.
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::{clean, json};
use crate::boot_test::verdict::{Outcome, Verdict};

/// The report.
pub fn report(verdicts: &[Verdict]) -> String {
    let mut text = format!("TAP version 13\n1..{}\n", verdicts.len());
    for (number, verdict) in (1..).zip(verdicts) {
        // A number sign begins a directive.
        let name = clean(&verdict.name).replace('#', "\\#");
        let (mark, directive) = match verdict.outcome {
            Outcome::Passed => ("ok", String::new()),
            Outcome::Flaky => (
                "ok",
                format!(" # flaky: passed at attempt {}", verdict.attempts.len()),
            ),
            Outcome::Failed | Outcome::Interrupted => ("not ok", String::new()),
            Outcome::Skipped(why) => ("ok", format!(" # SKIP {why}")),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{mark} {number} - {name}{directive}");
        for (attempt, failed) in (1..).zip(&verdict.attempts) {
            let Some(failure) = &failed.failure else { continue };
            let _ = writeln!(text, "  ---");
            let _ = writeln!(text, "  file: {}", quoted(&verdict.file.to_string_lossy()));
            let _ = writeln!(text, "  attempt: {attempt}");
            let _ = writeln!(text, "  kind: {}", failure.kind.word());
            let _ = writeln!(text, "  message: {}", quoted(&failure.message));
            if let Some((_, Some(line))) = failure.step {
                let _ = writeln!(text, "  line: {line}");
            }
            if !failure.lines.is_empty() {
                let _ = writeln!(text, "  console:");
                for line in &failure.lines {
                    let _ = writeln!(text, "    - {}", quoted(line));
                }
            }
            let _ = writeln!(text, "  ...");
        }
        if verdict.outcome == Outcome::Interrupted {
            let _ = writeln!(text, "  ---\n  kind: {}\n  ...", json::word(verdict.outcome));
        }
    }
    if verdicts
        .iter()
        .any(|verdict| verdict.outcome == Outcome::Interrupted)
    {
        text.push_str("Bail out! interrupted\n");
    }
    text
}

/// A text as YAML takes it: JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::String(clean(text)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_test::testing;

    #[test]
    fn each_case_is_a_line_and_each_failure_a_block_below() {
        let text = report(&testing::verdicts());
        let expected = [
            "TAP version 13\n1..4\n",
            "\nok 1 - boots [memory=1G]\n",
            "\nnot ok 2 - panics \\# early\n",
            "\n  kind: panic\n",
            "\n    - \"tail \u{fffd}[2J & <x>\"\n",
            "\nok 3 - wavers # flaky: passed at attempt 2\n",
            "\nok 4 - takes long # SKIP it is slow\n",
        ];
        for part in expected {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(!text.contains("Bail out"));
    }
}
