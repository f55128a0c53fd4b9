//! What came of the tests, for people and for machines.

pub mod json;
pub mod junit;
pub mod tap;
pub mod terminal;

use super::verdict::{Outcome, Verdict};

/// How many cases went how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Well, flaky ones not among them.
    pub passed: usize,
    /// Well, but not at once.
    pub flaky: usize,
    /// Badly.
    pub failed: usize,
    /// Not run.
    pub skipped: usize,
    /// Cut short.
    pub interrupted: usize,
}

impl Counts {
    /// Counts them.
    pub fn of(verdicts: &[Verdict]) -> Self {
        let mut counts = Self::default();
        for verdict in verdicts {
            *match verdict.outcome {
                Outcome::Passed => &mut counts.passed,
                Outcome::Flaky => &mut counts.flaky,
                Outcome::Failed => &mut counts.failed,
                Outcome::Skipped(_) => &mut counts.skipped,
                Outcome::Interrupted => &mut counts.interrupted,
            } += 1;
        }
        counts
    }
}

/// A text with nothing in it that a terminal or a parser would obey, or XML cannot hold: what guests say may be anything.
pub(crate) fn clean(text: &str) -> String {
    let unfit = |c: char| (c.is_control() && c != '\t') || matches!(c, '\u{fffe}' | '\u{ffff}');
    text.chars()
        .map(|c| if unfit(c) { '\u{fffd}' } else { c })
        .collect()
}
