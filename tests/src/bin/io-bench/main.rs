//! How fast devices are: the I/O bench guest under Berth, under other monitors and, as the floor, no monitor at all.
//!
//! ```text
//! cargo run --release -p berth-tests --bin io-bench -- --qemu qemu-system-x86_64
//! cargo run --release -p berth-tests --bin io-bench -- --baseline old/berth --only 4k --runs 9
//! ```
//!
//! All run in turn, round by round, and ratios are taken within a round, so that a host that gets slower or faster meanwhile
//! favours nobody. `docs/performance.md` says what the figures mean.
// Counts and nanoseconds here stay far below 2^52.
#![allow(clippy::cast_precision_loss)]

mod calls;
mod case;
mod floor;
mod floor_net;
mod measure;
mod monitor;
#[path = "../../../guests/io/options.rs"]
#[allow(dead_code, unreachable_pub)]
mod options;
mod partner;
mod process;
mod report;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use berth_tests::program;
use clap::Parser;

use case::Case;
use monitor::{Kind, Monitor};

/// How fast devices are under Berth, under others and without a monitor.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    bench: BenchOptions,
}

#[derive(clap::Subcommand)]
enum What {
    /// Does without a monitor what the guest would do, and prints the same line.
    Floor(floor::Options),
}

#[derive(clap::Args)]
struct BenchOptions {
    /// Berth's program; the workspace's is built and taken if there is none.
    #[arg(long)]
    berth: Option<PathBuf>,
    /// Another Berth to compare with.
    #[arg(long)]
    baseline: Option<PathBuf>,
    #[arg(long)]
    firecracker: Option<PathBuf>,
    #[arg(long)]
    cloud_hypervisor: Option<PathBuf>,
    /// qemu-system-x86_64, for its microvm machine.
    #[arg(long)]
    qemu: Option<PathBuf>,
    /// Leaves the floor out.
    #[arg(long)]
    no_floor: bool,
    /// Rounds.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Milliseconds of measuring in each run.
    #[arg(long, default_value_t = 1000)]
    ms: u64,
    /// The disk's file, made and kept if it is not there; one in memory (/dev/shm) without it. What it holds is lost.
    #[arg(long)]
    file: Option<PathBuf>,
    /// MiB of the file, if it is to be made.
    #[arg(long, default_value_t = 256)]
    size: u64,
    /// Goes past the host's page cache, where the monitor can.
    #[arg(long)]
    direct: bool,
    /// What follows the path in Berth's --disk, such as `,direct=on`.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    berth_disk: String,
    /// The same for the baseline.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    baseline_disk: String,
    /// Only the cases whose names have this in them.
    #[arg(long)]
    only: Vec<String>,
    /// Words for the guest, as a case of its own instead of those that are built in.
    #[arg(long)]
    case: Vec<String>,
    /// Words that every guest gets in addition, such as `event_idx=0`.
    #[arg(long, default_value = "")]
    words: String,
    /// Counts each monitor's system calls too, in runs of their own under strace.
    #[arg(long)]
    calls: bool,
    /// Writes all that was measured, run by run, to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() {
    let options = Options::parse();
    match options.what {
        Some(What::Floor(options)) => floor::main(&options),
        None => bench(&options.bench),
    }
}

fn bench(options: &BenchOptions) {
    let (disk, _made) = disk(options);
    let cases: Vec<Case> = if options.case.is_empty() {
        case::built_in()
            .into_iter()
            .filter(|case| {
                options.only.is_empty() || options.only.iter().any(|part| case.name.contains(part))
            })
            .collect()
    } else {
        options.case.iter().map(|words| Case::of(words)).collect()
    };
    let (monitors, absent) = monitors(options);
    for line in &absent {
        eprintln!("io-bench: {line}");
    }
    let setting = measure::Setting {
        runs: options.runs.max(1),
        ms: options.ms,
        disk,
        direct: options.direct,
        words: options.words.clone(),
        tsc_khz: measure::tsc_khz(),
        calls: options.calls,
    };
    let mut all = Vec::new();
    println!("{}", report::HEAD);
    for case in &cases {
        let measured = measure::measure(case, &monitors, &setting);
        print!("{}", report::rows(&measured));
        all.push(measured);
    }
    if options.calls {
        print!("{}", report::calls(&all));
    }
    if let Some(path) = &options.json {
        let text =
            serde_json::to_string_pretty(&report::json(&all, &monitors, &setting)).expect("plain data");
        fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// Who takes part, Berth first, and a sentence for each that does not.
fn monitors(options: &BenchOptions) -> (Vec<Monitor>, Vec<String>) {
    let berth = options
        .berth
        .clone()
        .unwrap_or_else(|| program::berth().to_owned());
    let mut found = vec![Monitor::new(Kind::Berth, "Berth", &berth, &options.berth_disk)];
    let mut absent = Vec::new();
    for (kind, name, flag, path, disk) in [
        (
            Kind::Berth,
            "baseline",
            "baseline",
            &options.baseline,
            options.baseline_disk.as_str(),
        ),
        (
            Kind::Firecracker,
            "Firecracker",
            "firecracker",
            &options.firecracker,
            "",
        ),
        (
            Kind::CloudHypervisor,
            "Cloud Hypervisor",
            "cloud-hypervisor",
            &options.cloud_hypervisor,
            "",
        ),
        (Kind::Qemu, "QEMU microvm", "qemu", &options.qemu, ""),
    ] {
        match path {
            Some(path) => found.push(Monitor::new(kind, name, path, disk)),
            None if flag == "baseline" => (),
            None => absent.push(format!("{name} takes no part: name its program with --{flag}")),
        }
    }
    if !options.no_floor {
        let own = std::env::current_exe().expect("the system names the running program");
        found.push(Monitor::new(Kind::Floor, "floor", &own, ""));
    }
    (found, absent)
}

/// The disk's file, and what takes it away at the end if it was made for this run alone.
fn disk(options: &BenchOptions) -> (PathBuf, Option<tempfile::TempPath>) {
    let Some(path) = &options.file else {
        let made = in_memory(options.size).into_temp_path();
        return (made.to_path_buf(), Some(made));
    };
    match File::create_new(path) {
        Ok(file) => fill(&file, path, options.size),
        Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {}
        Err(cause) => panic!("{}: it cannot be made: {cause}", path.display()),
    }
    (path.clone(), None)
}

fn in_memory(mib: u64) -> tempfile::NamedTempFile {
    let folder = Path::new("/dev/shm");
    let folder = if folder.is_dir() {
        folder.to_owned()
    } else {
        std::env::temp_dir()
    };
    let file = tempfile::NamedTempFile::new_in(&folder)
        .unwrap_or_else(|error| panic!("a disk in {}: {error}", folder.display()));
    fill(file.as_file(), &folder, mib);
    file
}

/// Writes all of a new file, so that its blocks are there.
fn fill(mut file: &File, place: &Path, mib: u64) {
    let chunk = berth_tests::noise(1 << 20);
    for _ in 0..mib {
        file.write_all(&chunk)
            .unwrap_or_else(|error| panic!("a disk of {mib} MiB at {}: {error}", place.display()));
    }
}
