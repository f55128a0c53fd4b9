//! Rounds of runs, and what each said.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use berth_tests::netns::Netns;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::calls::{self, Calls};
use crate::case::Case;
use crate::monitor::{Given, Kind, Monitor};
use crate::options::{self, Bench, Op, Wait};
use crate::partner::{self, TAP};
use crate::process;

/// What all runs have in common.
#[derive(Serialize)]
pub(crate) struct Setting {
    pub(crate) runs: usize,
    pub(crate) ms: u64,
    pub(crate) disk: PathBuf,
    pub(crate) direct: bool,
    pub(crate) words: String,
    pub(crate) tsc_khz: u64,
    /// Whether to count system calls too.
    pub(crate) calls: bool,
}

/// The part of the guest's line that is used here.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) ns: u64,
    pub(crate) min_ns: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) kicks: u64,
    pub(crate) kick_p50_ns: u64,
    pub(crate) interrupts: u64,
    #[serde(default)]
    pub(crate) verified: u64,
    #[serde(default)]
    pub(crate) lost: u64,
}

/// One run.
#[derive(Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) line: Line,
    /// Processor time of the whole process, start and end included, microseconds.
    pub(crate) cpu_us: u64,
    /// Times that a thread of it left a processor.
    pub(crate) switches: u64,
    pub(crate) elapsed_us: u64,
}

impl Sample {
    pub(crate) fn per_second(&self) -> f64 {
        self.line.operations as f64 * 1e9 / (self.line.ns.max(1) as f64)
    }

    pub(crate) fn cpu_per_operation(&self) -> f64 {
        self.cpu_us as f64 / (self.line.operations.max(1) as f64)
    }

    pub(crate) fn switches_per_operation(&self) -> f64 {
        self.switches as f64 / (self.line.operations.max(1) as f64)
    }
}

/// What one monitor did for one case.
#[derive(Serialize)]
pub(crate) struct Runs {
    pub(crate) name: &'static str,
    pub(crate) samples: Vec<Sample>,
    /// Why there are no more samples.
    pub(crate) failure: Option<String>,
    /// System calls, where they were counted.
    pub(crate) calls: Option<Calls>,
}

/// One case, all monitors; Berth first.
#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) case: String,
    pub(crate) words: String,
    pub(crate) monitors: Vec<Runs>,
}

/// Runs a case in rounds. Who fails once takes no further part in it.
pub(crate) fn measure(case: &Case, monitors: &[Monitor], setting: &Setting) -> Measured {
    let mut all: Vec<_> = monitors
        .iter()
        .map(|monitor| Runs {
            name: monitor.name,
            samples: Vec::new(),
            failure: None,
            calls: None,
        })
        .collect();
    let words = format!(
        "{} ms={} warmup_ms={} tsc_khz={} {}",
        case.words,
        setting.ms,
        setting.ms / 10,
        setting.tsc_khz,
        setting.words
    );
    for _ in 0..setting.runs {
        for (monitor, runs) in monitors.iter().zip(&mut all) {
            if runs.failure.is_some() {
                continue;
            }
            match sample(monitor, &words, setting, |command| command) {
                Ok(sample) => runs.samples.push(sample),
                Err(failure) => runs.failure = Some(failure),
            }
        }
    }
    if setting.calls {
        for (monitor, runs) in monitors.iter().zip(&mut all) {
            match calls::count(case, monitor, setting) {
                Ok(calls) => runs.calls = Some(calls),
                Err(failure) => runs.failure = Some(failure),
            }
        }
    }
    Measured {
        case: case.name.clone(),
        words,
        monitors: all,
    }
}

/// One run, of the command that `wrap` makes of the monitor's.
pub(crate) fn sample(
    monitor: &Monitor,
    words: &str,
    setting: &Setting,
    wrap: impl FnOnce(Command) -> Command,
) -> Result<Sample, String> {
    let asked = options::parse(words).map_err(|problem| problem.to_string())?;
    let netns = (asked.bench == Bench::Net).then(|| Netns::with_tap(TAP, "10.99.0.1/24"));
    let given = Given {
        words,
        disk: &setting.disk,
        direct: setting.direct,
        netns: netns.as_ref(),
    };
    let deadline = Duration::from_secs(30) + 3 * Duration::from_millis(setting.ms);
    let command = wrap(monitor.command(&given));
    let work = || match &netns {
        // What is only sent needs nobody who listens.
        Some(netns) if asked.op != Op::Tx => {
            with_partner(netns, asked.bs as usize, || process::run(command, deadline))
        }
        _ => process::run(command, deadline),
    };
    let finished = if matches!(monitor.kind, Kind::Floor) && asked.op == Op::Rx && asked.wait == Wait::Poll {
        on_all_but_one(work)
    } else {
        work()
    };
    let line = finished
        .stdout
        .lines()
        .find_map(|line| line.find('{').map(|at| &line[at..]))
        .ok_or_else(|| failure(&finished.stderr, "the guest says nothing"))?;
    let line: Line = serde_json::from_str(line).map_err(|_| line.to_owned())?;
    Ok(Sample {
        line,
        cpu_us: finished.cpu_us,
        switches: finished.switches,
        elapsed_us: finished.elapsed.as_micros() as u64,
    })
}

/// Does `work` without one of the processors, if there are several: a guest that polls would have it, and what is read from a tap and its sender
/// share the others.
fn on_all_but_one<T>(work: impl FnOnce() -> T) -> T {
    let all = sched_getaffinity(None).expect("a thread may ask for its processors");
    let mut fewer = all;
    if all.count() > 1
        && let Some(first) = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu))
    {
        fewer.unset(first);
    }
    sched_setaffinity(None, &fewer).expect("a thread may have fewer processors");
    let result = work();
    sched_setaffinity(None, &all).expect("a thread may have its processors back");
    result
}

fn with_partner<T>(netns: &Netns, bs: usize, work: impl FnOnce() -> T) -> T {
    let socket = partner::socket(netns);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| partner::serve(&socket, bs, &stop));
        let result = work();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn failure(stderr: &str, otherwise: &str) -> String {
    stderr.lines().next_back().unwrap_or(otherwise).to_owned()
}

/// The time stamp counter's frequency, measured over a tenth of a second.
pub(crate) fn tsc_khz() -> u64 {
    let (clock, begin) = (Instant::now(), tsc());
    while clock.elapsed() < Duration::from_millis(100) {}
    let (time, end) = (clock.elapsed(), tsc());
    (u128::from(end - begin) * 1_000_000 / time.as_nanos()) as u64
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has a time stamp counter, and Linux lets programs read it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
