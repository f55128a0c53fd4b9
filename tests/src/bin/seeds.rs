//! Writes a fuzz target's seeds to a folder, for libFuzzer to start from: `seeds TARGET FOLDER`.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use berth_tests::fuzz;
use clap::Parser;

/// Writes a fuzz target's seeds to a folder.
#[derive(Parser)]
struct Options {
    /// Name of the target.
    target: String,
    /// Where to write them.
    folder: PathBuf,
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let Some(target) = fuzz::TARGETS.iter().find(|target| target.name == options.target) else {
        let names: Vec<_> = fuzz::TARGETS.iter().map(|target| target.name).collect();
        eprintln!(
            "seeds: no target is called {}; there are {}",
            options.target,
            names.join(", ")
        );
        std::process::exit(2);
    };
    std::fs::create_dir_all(&options.folder)?;
    for (index, seed) in (target.seeds)().iter().enumerate() {
        std::fs::write(options.folder.join(format!("seed-{index}")), seed)?;
    }
    Ok(())
}
