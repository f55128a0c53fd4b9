//! Whether a guest that says nothing does something: devices, system calls, page faults.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client;

/// How often a silent guest is looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// How long its API may take to say.
const ANSWER: Duration = Duration::from_secs(5);

/// What is known about a guest's being busy.
pub(super) struct Progress {
    active: Instant,
    next: Instant,
    counters: Option<u64>,
    /// How often it was looked at since it last said something.
    looks: u32,
    /// CPU time of the process when the guest was last active, and now.
    cpu: [Duration; 2],
    /// When `cpu` was first taken.
    since: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            active: now,
            next: now + PERIOD,
            counters: None,
            looks: 0,
            cpu: [Duration::ZERO; 2],
            since: now,
        }
    }

    /// The guest said something.
    pub(super) fn heard(&mut self) {
        self.active = Instant::now();
        self.next = self.active + PERIOD;
        self.counters = None;
        self.looks = 0;
    }

    /// Whether it has been looked at often enough to know.
    pub(super) fn is_known(&self) -> bool {
        self.looks >= 2
    }

    /// When it is to be looked at next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// For how long it has done nothing.
    pub(super) fn idle(&self) -> Duration {
        self.active.elapsed()
    }

    /// Looks at it. One whose API does not answer is as it was.
    pub(super) fn look(&mut self, api: &Path, pid: u32) {
        let answer = client::request(api, "GET", "/berth/v1/metrics.json", None, ANSWER);
        self.next = Instant::now() + PERIOD;
        self.cpu[1] = cpu_time(pid);
        let Ok(answer) = answer else { return };
        if self.looks == 0 {
            self.cpu[0] = self.cpu[1];
            self.since = Instant::now();
        }
        self.looks += 1;
        let counters = activity(&answer);
        if self
            .counters
            .replace(counters)
            .is_some_and(|before| before != counters)
        {
            self.active = Instant::now();
            self.since = self.active;
            self.cpu[0] = self.cpu[1];
        }
    }

    /// What its CPUs have done meanwhile, for a sentence.
    pub(super) fn cpus(&self) -> &'static str {
        let used = self.cpu[1].saturating_sub(self.cpu[0]);
        if used * 8 > self.since.elapsed() {
            "its CPU was busy all the while"
        } else {
            "its CPU stood still"
        }
    }
}

/// The sum of what a guest that only ticks does not do.
fn activity(metrics: &Value) -> u64 {
    let sum = |list: &str, fields: &[&str]| -> u64 {
        let items = metrics[list].as_array().into_iter().flatten();
        items
            .flat_map(|item| fields.iter().filter_map(|field| item[field].as_u64()))
            .fold(0, u64::wrapping_add)
    };
    let exits = sum("vcpus", &["port_read", "port_write", "mmio_read", "mmio_write"]);
    let devices = sum("devices", &["requests", "turns"]);
    // Where kernels are interpreted: system calls and page faults.
    let vcpus = metrics["vcpus"].as_array().into_iter().flatten();
    let calls = vcpus.flat_map(|vcpu| vcpu["assist"].as_array().into_iter().flatten().take(2));
    let calls = calls.filter_map(Value::as_u64).fold(0, u64::wrapping_add);
    exits.wrapping_add(devices).wrapping_add(calls)
}

/// The CPU time of a process (fields 14 and 15 of `/proc/PID/stat`).
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return Duration::ZERO;
    };
    let ticks: u64 = rest
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn timers_are_no_activity_and_everything_else_is() {
        let metrics = |port_write: u64, requests: u64, calls: u64, ticks: u64| {
            json!({
                "vcpus": [{"port_write": port_write, "end_of_interrupt": ticks, "interrupted": ticks, "assist": [calls, 0, ticks, 0, 0, ticks]}],
                "devices": [{"requests": requests}],
            })
        };
        let quiet = activity(&metrics(1, 2, 3, 4));
        assert_eq!(activity(&metrics(1, 2, 3, 5)), quiet);
        for busy in [metrics(2, 2, 3, 4), metrics(1, 3, 3, 4), metrics(1, 2, 4, 4)] {
            assert_ne!(activity(&busy), quiet, "{busy}");
        }
    }

    #[test]
    fn a_process_that_computes_uses_time() {
        let own = std::process::id();
        let (before, mut spent) = (cpu_time(own), 0_u64);
        while cpu_time(own) == before {
            spent = spent.wrapping_add(1);
        }
        assert!(cpu_time(own) > before, "{spent}");
    }
}
