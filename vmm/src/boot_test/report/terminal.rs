//! The report for people: a line for each case when it is over, what went wrong below it, and on a terminal what runs now.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Counts, clean};
use crate::boot_test::case::{CONSOLE_LOG, shown};
use crate::boot_test::plan::Case;
use crate::boot_test::schedule::Observer;
use crate::boot_test::verdict::{Failure, Outcome, Verdict};

/// How often the lines of running cases are drawn.
const TICK: Duration = Duration::from_millis(200);
/// The line about all cases.
const TOTAL: &str = "{pos}/{len} tests, {elapsed}";
/// The line of a running case.
const RUNNING: &str = "  {elapsed:>4} {prefix}  {wide_msg}";

/// The marks of outcomes.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Whether letters outside ASCII are shown.
    pub unicode: bool,
    /// Whether colours are.
    pub colours: bool,
}

/// Writes a line of a report somewhere.
pub type Say = Box<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

/// Tells people.
pub struct Terminal {
    look: Look,
    say: Say,
    /// Lines of what runs, where they can be drawn.
    live: Option<Live>,
}

struct Live {
    all: MultiProgress,
    total: ProgressBar,
    cases: Mutex<Vec<Option<ProgressBar>>>,
}

impl Terminal {
    /// Tells by `say` of so many cases, and draws on standard error what runs if it is a terminal.
    pub fn new(look: Look, say: Say, live: bool, cases: usize) -> Self {
        let live = live.then(|| {
            let all = MultiProgress::new();
            let total = all.add(ProgressBar::new(cases as u64));
            // A constant, which the tests have read.
            if let Ok(style) = ProgressStyle::with_template(TOTAL) {
                total.set_style(style);
            }
            total.enable_steady_tick(TICK);
            Live {
                all,
                total,
                cases: Mutex::new(vec![None; cases]),
            }
        });
        Self { look, say, live }
    }

    /// The last lines, about all of them.
    pub fn summary(&self, verdicts: &[Verdict], took: Duration) {
        if let Some(live) = &self.live {
            live.total.finish_and_clear();
            // What cannot be drawn over stays.
            let _ = live.all.clear();
        }
        self.print(&summary(verdicts, took));
    }

    fn print(&self, text: &str) {
        // Whoever does not listen any more learns it from the exit code.
        let print = || {
            let _ = (self.say)(text);
        };
        match &self.live {
            Some(live) => live.all.suspend(print),
            None => print(),
        }
    }
}

impl Observer for Terminal {
    fn began(&self, index: usize, case: &Case) {
        let Some(live) = &self.live else { return };
        let bar = live.all.insert_before(&live.total, ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template(RUNNING) {
            bar.set_style(style);
        }
        bar.set_prefix(clean(&case.name));
        bar.enable_steady_tick(TICK);
        live.cases.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(bar);
    }

    fn does(&self, index: usize, what: &str) {
        let Some(live) = &self.live else { return };
        if let Some(bar) = &live.cases.lock().unwrap_or_else(PoisonError::into_inner)[index] {
            bar.set_message(clean(what));
        }
    }

    fn ended(&self, index: usize, verdict: &Verdict) {
        if let Some(live) = &self.live {
            let bar = live.cases.lock().unwrap_or_else(PoisonError::into_inner)[index].take();
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
            live.total.inc(1);
        }
        self.print(&told(verdict, self.look));
    }
}

/// What there is to say about a case that is over.
pub fn told(verdict: &Verdict, look: Look) -> String {
    let (word, mark, colour) = match verdict.outcome {
        Outcome::Passed => ("ok   ", "✓", "32"),
        Outcome::Flaky => ("flaky", "~", "33"),
        Outcome::Failed => ("FAIL ", "✗", "31"),
        Outcome::Skipped(_) => ("skip ", "-", "2"),
        Outcome::Interrupted => ("cut  ", "-", "33"),
    };
    let mark = if look.unicode { mark } else { word };
    let mark = if look.colours {
        format!("\x1b[{colour}m{mark}\x1b[0m")
    } else {
        mark.to_owned()
    };
    let mut text = format!("{mark} {}", clean(&verdict.name));
    // Writing to a string cannot fail.
    match verdict.outcome {
        Outcome::Skipped(why) => {
            let _ = write!(text, ": {why}");
        }
        Outcome::Interrupted => text.push_str(": it was interrupted"),
        Outcome::Flaky => {
            let count = verdict.attempts.len();
            let _ = write!(
                text,
                " ({}): passed at attempt {count} only",
                shown(verdict.took())
            );
        }
        _ => {
            let _ = write!(text, " ({})", shown(verdict.took()));
        }
    }
    text.push('\n');
    for attempt in &verdict.attempts {
        let Some(failure) = &attempt.failure else { continue };
        fail(&mut text, verdict, failure);
        if let Some(folder) = &attempt.folder {
            let _ = writeln!(text, "    kept: {}", folder.join(CONSOLE_LOG).display());
        }
    }
    text
}

fn fail(text: &mut String, verdict: &Verdict, failure: &Failure) {
    let place = match failure.step {
        Some((_, Some(line))) => format!("{}: line {line}", verdict.file.display()),
        _ => verdict.file.display().to_string(),
    };
    let _ = writeln!(text, "    {place}: {}", clean(&failure.message));
    for line in &failure.lines {
        let _ = writeln!(text, "    | {}", clean(line));
    }
}

/// How all of it went, in a line.
fn summary(verdicts: &[Verdict], took: Duration) -> String {
    let counts = Counts::of(verdicts);
    let parts: Vec<_> = [
        (counts.passed, "passed"),
        (counts.flaky, "flaky"),
        (counts.failed, "failed"),
        (counts.skipped, "skipped"),
        (counts.interrupted, "interrupted"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, word)| format!("{count} {word}"))
    .collect();
    format!("{} in {}\n", parts.join(", "), shown(took))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_test::testing;

    #[test]
    fn a_line_says_how_a_case_went_and_the_lines_below_why() {
        let plain = Look {
            unicode: false,
            colours: false,
        };
        let told: String = testing::verdicts()
            .iter()
            .map(|verdict| told(verdict, plain))
            .collect();
        let expected = "\
ok    boots [memory=1G] (1.0 s)
FAIL  panics # early (0.2 s)
    tests/a.test.toml: line 7: kernel panic: no root
    | tail \u{fffd}[2J & <x>
    kept: /tmp/x/console.log
flaky wavers (1.2 s): passed at attempt 2 only
    tests/b.test.toml: line 7: kernel panic: no root
    | tail \u{fffd}[2J & <x>
skip  takes long: it is slow
";
        assert_eq!(told, expected);
        assert_eq!(
            summary(&testing::verdicts(), Duration::from_secs(3)),
            "1 passed, 1 flaky, 1 failed, 1 skipped in 3.0 s\n"
        );
    }

    #[test]
    fn the_lines_of_what_runs_are_templates_that_can_be_read() {
        assert!(ProgressStyle::with_template(TOTAL).is_ok());
        assert!(ProgressStyle::with_template(RUNNING).is_ok());
    }
}
