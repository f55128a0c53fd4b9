//! Tables and JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::measure::{Measured, Sample, Setting};
use crate::monitor::Monitor;

pub(crate) const HEAD: &str = "\
| case | who | operations/s | p50 µs | p99 µs | kick µs | CPU µs/operation | switches/operation | Berth's rate to its | Berth's p50 to its |
|---|---|---|---|---|---|---|---|---|---|";

/// A row for each monitor: medians, and the medians of ratios within rounds.
pub(crate) fn rows(measured: &Measured) -> String {
    let mut text = String::new();
    let berth = &measured.monitors[0].samples;
    for runs in &measured.monitors {
        let _ = write!(text, "| {} | {} |", measured.case, runs.name);
        if let Some(failure) = runs.failure.as_ref().filter(|_| runs.samples.is_empty()) {
            let _ = writeln!(text, " {failure} | | | | | | | |");
            continue;
        }
        let of = |value: fn(&Sample) -> f64| median(runs.samples.iter().map(value).collect());
        let ratio = |value: fn(&Sample) -> f64| {
            let pairs = berth.iter().zip(&runs.samples);
            let ratio = median(pairs.map(|(ours, theirs)| value(ours) / value(theirs)).collect());
            if ratio.is_finite() {
                format!("{ratio:.2}")
            } else {
                "–".to_owned()
            }
        };
        let p50 = |sample: &Sample| sample.line.p50_ns as f64 / 1e3;
        let _ = writeln!(
            text,
            " {:.0} | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} | {} | {} |",
            of(Sample::per_second),
            of(p50),
            of(|sample| sample.line.p99_ns as f64 / 1e3),
            of(|sample| sample.line.kick_p50_ns as f64 / 1e3),
            of(Sample::cpu_per_operation),
            of(Sample::switches_per_operation),
            ratio(Sample::per_second),
            ratio(p50),
        );
    }
    text
}

/// A table of system calls per operation.
pub(crate) fn calls(all: &[Measured]) -> String {
    let mut text = "\n| case | who | system calls/operation |\n|---|---|---|\n".to_owned();
    for measured in all {
        for runs in &measured.monitors {
            if let Some(calls) = &runs.calls {
                let _ = writeln!(text, "| {} | {} | {calls} |", measured.case, runs.name);
            }
        }
    }
    text
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// All that was measured.
pub(crate) fn json(all: &[Measured], monitors: &[Monitor], setting: &Setting) -> Value {
    let monitors: Vec<_> = monitors
        .iter()
        .map(|monitor| json!({ "name": monitor.name, "path": monitor.path, "version": monitor.version() }))
        .collect();
    json!({ "setting": setting, "monitors": monitors, "cases": all })
}
