//! System calls of a monitor per operation, as strace counts them: two runs that differ in how much they do, so that start and end
//! fall out.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde::Serialize;

use crate::case::Case;
use crate::measure::{self, Setting};
use crate::monitor::Monitor;

const FEW: u64 = 2_000;
const MANY: u64 = 12_000;

/// System calls per operation, by name.
#[derive(Serialize)]
pub(crate) struct Calls(BTreeMap<String, f64>);

/// Counts for one monitor and one case.
pub(crate) fn count(case: &Case, monitor: &Monitor, setting: &Setting) -> Result<Calls, String> {
    let few = traced(case, monitor, setting, FEW)?;
    let mut calls = BTreeMap::new();
    for (name, many) in traced(case, monitor, setting, MANY)? {
        let more = many.saturating_sub(few.get(&name).copied().unwrap_or(0));
        calls.insert(name, more as f64 / (MANY - FEW) as f64);
    }
    Ok(Calls(calls))
}

fn traced(
    case: &Case,
    monitor: &Monitor,
    setting: &Setting,
    count: u64,
) -> Result<BTreeMap<String, u64>, String> {
    let file = tempfile::NamedTempFile::new().expect("the temporary folder can be written");
    let words = format!(
        "{} count={count} tsc_khz={} {}",
        case.words, setting.tsc_khz, setting.words
    );
    measure::sample(monitor, &words, setting, |command| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-o"]).arg(file.path());
        strace.arg(command.get_program()).args(command.get_args());
        strace
    })?;
    let text = fs::read_to_string(file.path()).map_err(|error| format!("strace: {error}"))?;
    Ok(parse(&text))
}

/// Lines such as ` 51.02    0.000100           1        99         2 read`: calls in the fourth place, the name last.
fn parse(text: &str) -> BTreeMap<String, u64> {
    let lines = text.lines().filter_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let name = words.last().filter(|name| **name != "total")?;
        Some(((*name).to_owned(), words.get(3)?.parse().ok()?))
    });
    lines.collect()
}

impl std::fmt::Display for Calls {
    /// The sum, and what makes up most of it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sum: f64 = self.0.values().sum();
        write!(f, "{sum:.2}")?;
        let mut parts: Vec<_> = self.0.iter().filter(|(_, calls)| **calls >= 0.01).collect();
        parts.sort_by(|one, other| other.1.total_cmp(one.1));
        for (index, (name, calls)) in parts.iter().take(6).enumerate() {
            write!(f, "{} {name} {calls:.2}", if index == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}
