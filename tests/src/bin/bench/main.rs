//! What Berth costs on this host: start-up against the least KVM program, memory beside the guest's, the shipped guest's boot.
//!
//! ```text
//! cargo run --release -p berth-tests --bin bench
//! cargo run --release -p berth-tests --bin bench snapshot
//! cargo run --release -p berth-tests --bin bench fork
//! ```
//!
//! Prints a table in Markdown, or JSON with `--json`. Every figure comes from the release build, which it makes itself.
//!
//! - Start-up: from starting the program to having waited for its end, guest of one vCPU and 128 MiB that writes one byte
//!   to the serial port and ends. Berth and the floor (`floor.rs`) run in turn, and the ratio is taken pair by pair, so
//!   that a host that gets slower or faster meanwhile does not favour either.
//! - Memory: `/proc/PID/smaps` when the guest has stood halted for a second, without the mapping that is guest RAM.
//! - Boot: the shipped guest, from starting the program to the first byte that the guest's command prints, and to the end
//!   of the program. The first user instruction, init's, comes before both.
#![forbid(unsafe_code)]

mod fork;
mod snapshot;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_tests::invocation::{self, Invocation};
use berth_tests::memory::{self, Resident};
use berth_tests::{guests, program};
use clap::Parser;
use serde::Serialize;

/// What Berth costs on this host.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    what: Option<What>,
    /// Pairs of starts, Berth and floor in turn.
    #[arg(long, default_value_t = 200)]
    runs: usize,
    /// Boots of the shipped guest; 0 leaves them out.
    #[arg(long, default_value_t = 3)]
    boots: usize,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum What {
    Fork(fork::Options),
    Snapshot(snapshot::Options),
}

#[derive(Serialize)]
struct Report {
    start: Start,
    resident_kib: Resident,
    boot: Option<Boot>,
    boot_timing: String,
}

/// Times in microseconds.
#[derive(Serialize)]
struct Start {
    runs: usize,
    berth: Spread,
    floor: Spread,
    /// Of the pairs, berth / floor.
    ratio: Spread,
}

#[derive(Serialize)]
struct Boot {
    runs: usize,
    /// Seconds to the first byte of the guest's command.
    first_output: Spread,
    /// Seconds to the end of the program.
    exit: Spread,
}

#[derive(Serialize)]
struct Spread {
    median: f64,
    p10: f64,
    p90: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| values[(values.len() - 1) * percent / 100];
        Self {
            median: at(50),
            p10: at(10),
            p90: at(90),
        }
    }
}

/// A line of a table: what it is of, the figures, their unit, which is so many times that of the values, and how many decimals to show.
type Row<'a> = (&'a str, &'a Spread, &'a str, f64, usize);

fn table(rows: &[Row<'_>]) {
    println!("| what | median | 10 % to 90 % |");
    println!("|---|---|---|");
    for (what, spread, unit, scale, digits) in rows {
        let [median, p10, p90] = [spread.median, spread.p10, spread.p90].map(|value| value / scale);
        println!("| {what} | {median:.digits$} {unit} | {p10:.digits$} to {p90:.digits$} |");
    }
}

fn main() {
    let options = Options::parse();
    match &options.what {
        Some(What::Fork(options)) => return fork::main(options),
        Some(What::Snapshot(options)) => return snapshot::main(options),
        None => {}
    }
    let report = Report {
        start: start(options.runs.max(1)),
        resident_kib: resident(),
        boot: (options.boots > 0).then(|| boot(options.boots)),
        boot_timing: boot_timing(),
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).expect("plain data"));
    } else {
        print(&report);
    }
}

/// `berth run` of the guest that writes a byte.
fn byte_arguments() -> Vec<std::ffi::OsString> {
    let words = ["run", "--cpus", "1", "--memory", "128M", "--kernel"];
    words
        .map(Into::into)
        .into_iter()
        .chain([guests::byte().into()])
        .collect()
}

fn start(runs: usize) -> Start {
    let berth = || {
        let mut command = Command::new(program::berth());
        command.args(byte_arguments());
        command
    };
    let floor = || Command::new(program::floor());
    for (name, mut command) in [("berth", berth()), ("floor", floor())] {
        let output = command.stdin(Stdio::null()).output().expect("it was just built");
        let good = output.status.success() && output.stdout == b"B";
        assert!(good, "{name} does not run its guest: {output:?}");
    }
    let pairs: Vec<_> = (0..runs).map(|_| (time(berth()), time(floor()))).collect();
    Start {
        runs,
        berth: Spread::of(pairs.iter().map(|pair| pair.0).collect()),
        floor: Spread::of(pairs.iter().map(|pair| pair.1).collect()),
        ratio: Spread::of(pairs.iter().map(|pair| pair.0 / pair.1).collect()),
    }
}

/// Microseconds from starting a program to having waited for its end.
fn time(mut command: Command) -> f64 {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let started = Instant::now();
    let status = command.status().expect("it was just built");
    let elapsed = started.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    micros(elapsed)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn resident() -> Resident {
    let mut running = invocation::run([
        "--cpus",
        "1",
        "--memory",
        "128M",
        "--cmdline",
        "do=halt",
        "--kernel",
    ])
    .arg(guests::tiny())
    .start();
    running.wait_for("halted");
    // What only the start needs is given back a moment later.
    std::thread::sleep(Duration::from_secs(1));
    memory::resident(running.id(), 128)
}

fn boot(runs: usize) -> Boot {
    let (mut first, mut exit) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let started = Instant::now();
        let mut running = shipped().start();
        running.wait_for("up");
        first.push(started.elapsed().as_secs_f64());
        let outcome = running.finish();
        outcome.expect_code(0);
        exit.push(outcome.elapsed.as_secs_f64());
    }
    Boot {
        runs,
        first_output: Spread::of(first),
        exit: Spread::of(exit),
    }
}

fn shipped() -> Invocation {
    invocation::run::<&str>([]).command(["echo", "up"])
}

fn boot_timing() -> String {
    let outcome = invocation::berth(byte_arguments()).arg("--boot-timing").finish();
    outcome.expect_code(0);
    outcome.err()
}

fn print(report: &Report) {
    let start = &report.start;
    let ratio = format!("ratio, pair by pair ({} pairs)", start.runs);
    let exec = "exec to exit, one-byte guest, 1 vCPU, 128 MiB: Berth";
    let mut rows: Vec<Row<'_>> = vec![
        (exec, &start.berth, "ms", 1e3, 2),
        ("the same: least KVM program", &start.floor, "ms", 1e3, 2),
        (&ratio, &start.ratio, "×", 1.0, 2),
    ];
    let boots = report.boot.as_ref().map_or(0, |boot| boot.runs);
    let exit = format!("shipped guest, exec to exit ({boots} boots)");
    if let Some(boot) = &report.boot {
        let first = "shipped guest, exec to its command's first byte";
        rows.push((first, &boot.first_output, "s", 1.0, 1));
        rows.push((&exit, &boot.exit, "s", 1.0, 1));
    }
    table(&rows);
    let Resident {
        guest,
        rss,
        pss,
        private,
    } = report.resident_kib;
    println!();
    println!("| memory with a halted guest of 128 MiB | KiB |");
    println!("|---|---|");
    println!("| resident, guest RAM aside (RSS) | {rss} |");
    println!("| the same, shared pages counted in parts (PSS) | {pss} |");
    println!("| of it private and not backed by a file: what one more VM costs | {private} |");
    println!("| guest RAM that the guest has touched | {guest} |");
    println!();
    println!("```text");
    print!("{}", report.boot_timing);
    println!("```");
}
