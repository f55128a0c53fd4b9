//! Saves and restores a guest under I/O load, many times in a row: `soak --rounds 200`. Fails if a byte is wrong.
#![forbid(unsafe_code)]

use berth_tests::soak;
use clap::Parser;

/// Saves and restores a guest under I/O load, many times in a row.
#[derive(Parser)]
struct Options {
    /// Times to save and restore.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Virtual CPUs of the guest.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// What the times between follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() {
    let options = Options::parse();
    let report = soak::run(options.rounds, options.cpus, options.seed);
    println!("{}", serde_json::to_string_pretty(&report).expect("plain data"));
}
