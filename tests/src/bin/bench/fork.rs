//! `bench fork`: what clones of a booted guest cost.
//!
//! - Time: from starting `berth fork` of the shipped guest, booted and at a shell that waits, to its end, when all clones run.
//! - Pause: how long the parent stood still for it, by its own log.
//! - Memory: of each clone a moment later, the pages that no file backs, guest RAM that it has written among them, and its part of
//!   all resident pages (PSS).

use std::fs;
use std::time::Instant;

use berth_tests::fleet::Fleet;
use serde::Serialize;

use super::{Spread, table};

/// What clones of a booted guest cost.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Clones at once.
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// Rounds of them, one after the other, of one parent.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Memory of the guest.
    #[arg(long, default_value = "256M")]
    memory: String,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    count: usize,
    rounds: usize,
    /// Seconds until all run.
    all: Spread,
    /// Milliseconds that the parent stood still.
    pause: Spread,
    /// KiB of each clone that no file backs.
    private: Spread,
    /// KiB of each clone, shared pages counted in parts.
    pss: Spread,
}

pub(crate) fn main(options: &Options) {
    let (count, rounds) = (options.count.max(1), options.rounds.max(1));
    let fleet = Fleet::new();
    let parent = fleet
        .verb([
            "run",
            "--detach",
            "--name",
            "parent",
            "--cold",
            "--log-level",
            "info",
        ])
        .args(["--memory", &options.memory])
        .command(["sh", "-c", "echo up; while read -r line; do eval \"$line\"; done"])
        .finish();
    parent.expect_code(0);
    fleet.attach("parent", "", &["up"]);
    let (mut all, mut private, mut pss) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let name = format!("clone{round}");
        let count = count.to_string();
        let started = Instant::now();
        let names = fleet.good(["fork", "parent", "--count", &count, "--name", &name]);
        all.push(started.elapsed().as_secs_f64());
        let names: Vec<_> = names.lines().collect();
        for clone in fleet
            .json([&["inspect"], &names[..]].concat())
            .as_array()
            .expect("a list")
        {
            assert_eq!(clone["state"], "running", "{clone}");
            let rollup = rollup(clone["pid"].as_u64().expect("a running VM has a process"));
            private.push(sum(&rollup, "Anonymous:"));
            pss.push(sum(&rollup, "Pss:"));
        }
        // The last one answers as its parent would.
        fleet.attach(names[names.len() - 1], "echo $((6 * 7))\n", &["42"]);
        fleet.good([&["rm", "--force"], &names[..]].concat());
    }
    let report = Report {
        count,
        rounds,
        all: Spread::of(all),
        pause: Spread::of(pauses(&fleet.good(["logs", "parent", "--vmm"]))),
        private: Spread::of(private),
        pss: Spread::of(pss),
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).expect("plain data"));
        return;
    }
    let what = format!(
        "{count} clones of the booted shipped guest ({}), until all run ({rounds} rounds)",
        options.memory
    );
    table(&[
        (&what, &report.all, "s", 1.0, 2),
        ("the parent stands still", &report.pause, "ms", 1.0, 2),
        (
            "memory of a clone that no file backs",
            &report.private,
            "MiB",
            1024.0,
            2,
        ),
        (
            "memory of a clone, shared pages counted in parts (PSS)",
            &report.pss,
            "MiB",
            1024.0,
            2,
        ),
    ]);
}

fn rollup(pid: u64) -> String {
    let path = format!("/proc/{pid}/smaps_rollup");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The KiB behind `name` in a summary of mappings.
fn sum(rollup: &str, name: &str) -> f64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    kib.unwrap_or_else(|| panic!("{name} is not in:\n{rollup}"))
}

/// Milliseconds that the guest stood still each time, by its VM's log.
fn pauses(log: &str) -> Vec<f64> {
    let said = log.lines().filter_map(|line| {
        let time = line.split("the guest stood still for ").nth(1)?;
        let time = time.split(" to be saved").next()?;
        let digits = time.trim_end_matches(|c: char| !c.is_ascii_digit());
        let value: f64 = digits.parse().ok()?;
        Some(match &time[digits.len()..] {
            "s" => value * 1e3,
            "ms" => value,
            _ => value / 1e3,
        })
    });
    let pauses: Vec<_> = said.collect();
    assert!(!pauses.is_empty(), "the log says nothing of it:\n{log}");
    pauses
}
