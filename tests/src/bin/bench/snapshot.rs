//! `bench snapshot`: what saving and restoring cost.
//!
//! - Restore: from starting the program to the first byte that the restored guest writes, which is what it does first. The guest
//!   was saved between two such bytes. Sizes take turns.
//! - Save: from the request to the answer, of a guest with so much memory that it has written, with everything made durable; on the
//!   file system given, a tmpfs by default.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use berth_tests::invocation::{Invocation, run};
use berth_tests::{api, guests, program};
use serde::Serialize;
use serde_json::json;

use super::{Spread, micros, table};

/// What saving and restoring cost.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Restores of each size.
    #[arg(long, default_value_t = 100)]
    restores: usize,
    /// Saves.
    #[arg(long, default_value_t = 20)]
    saves: usize,
    /// Where snapshots lie.
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Times in microseconds.
#[derive(Serialize)]
struct Report {
    restores: usize,
    restore_128_mib: Spread,
    restore_4_gib: Spread,
    /// Of the pairs, 4 GiB / 128 MiB.
    ratio: Spread,
    saves: usize,
    save_1_gib_100_mib_dirty: Spread,
}

pub(crate) fn main(options: &Options) {
    let folder = tempfile::tempdir_in(&options.folder).expect("a temporary folder can be made");
    let sizes = ["128M", "4G"].map(|size| {
        let path = folder.path().join(size);
        let saved = ticking(size, 0, "null")
            .arg("--snapshot-when-ready")
            .arg(&path)
            .finish();
        saved.expect_code(0);
        path
    });
    let runs = options.restores.max(1);
    let pairs: Vec<[f64; 2]> = (0..runs)
        .map(|_| sizes.each_ref().map(|path| restore(path)))
        .collect();
    let of = |which: usize| Spread::of(pairs.iter().map(|pair| pair[which]).collect());
    let report = Report {
        restores: runs,
        restore_128_mib: of(0),
        restore_4_gib: of(1),
        ratio: Spread::of(pairs.iter().map(|pair| pair[1] / pair[0]).collect()),
        saves: options.saves.max(1),
        save_1_gib_100_mib_dirty: save(folder.path(), options.saves.max(1)),
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).expect("plain data"));
        return;
    }
    let ratio = format!("ratio, pair by pair ({runs} pairs)");
    table(&[
        (
            "restore of 128 MiB, exec to the guest's first byte",
            &report.restore_128_mib,
            "ms",
            1e3,
            2,
        ),
        ("the same of 4 GiB", &report.restore_4_gib, "ms", 1e3, 2),
        (&ratio, &report.ratio, "×", 1.0, 2),
        (
            "save of a guest of 1 GiB that has written 100 MiB",
            &report.save_1_gib_100_mib_dirty,
            "ms",
            1e3,
            2,
        ),
    ]);
}

/// The guest that writes bytes without end once it has written `mib` MiB of its memory.
fn ticking(memory: &str, mib: u32, serial: &str) -> Invocation {
    run(["--memory", memory, "--serial", serial, "--cmdline"])
        .arg(format!("do=tick:{mib}"))
        .arg("--kernel")
        .arg(guests::tiny())
}

/// Microseconds from starting the program to the restored guest's first byte.
fn restore(path: &Path) -> f64 {
    let mut command = Command::new(program::berth());
    command
        .args(["run", "--serial", "stdio", "--restore"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().expect("it was just built");
    let mut byte = [0];
    let read = std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut byte);
    let elapsed = started.elapsed();
    child.kill().expect("the child is ours");
    child.wait().expect("the child is ours");
    read.expect("the guest writes");
    assert_eq!(byte, [b'.']);
    micros(elapsed)
}

/// Microseconds that saving takes, of one guest again and again.
fn save(folder: &Path, saves: usize) -> Spread {
    let socket = folder.join("api");
    let mut running = ticking("1G", 100, "stdio").arg("--api-sock").arg(&socket).start();
    running.wait_for(".");
    let request = |path: &str, body| {
        let answer = api::request(&socket, "POST", path, &body);
        assert!(answer.status < 300, "{answer:?}");
    };
    request("/berth/v1/pause", serde_json::Value::Null);
    let times = (0..saves).map(|number| {
        let path = folder.join(format!("save-{number}"));
        let started = Instant::now();
        request("/berth/v1/snapshot", json!({"path": path, "resume": false}));
        let elapsed = micros(started.elapsed());
        std::fs::remove_dir_all(&path).expect("it was just made");
        elapsed
    });
    Spread::of(times.collect())
}
