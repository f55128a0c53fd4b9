//! A guest under I/O load that is paused, saved, ended and restored again and again, at moments that it does not choose, and then
//! finishes its job, of which every byte is known.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Serialize;
use serde_json::{Value, json};

use crate::invocation::{Running, berth, script};
use crate::{api, guests};

/// What `guests/load.c` writes: workers, blocks of each, bytes of a block.
const DISK: u64 = 3 * 64 * 16384;

/// What was done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Times that the guest was saved and restored.
    pub rounds: usize,
    /// Blocks that the guest wrote.
    pub blocks: u64,
    /// Median milliseconds from the request to save to the answer.
    pub save: f64,
    /// Median milliseconds from starting the program to its API's first answer.
    pub restore: f64,
}

/// Saves and restores the guest `rounds` times, with a pseudo-random time to run between, then lets it finish.
///
/// # Panics
/// If a byte is wrong anywhere.
pub fn run(rounds: usize, cpus: u32, mut seed: u64) -> Report {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let place = |name: &str| folder.path().join(name);
    let disk = place("disk");
    let file = File::create(&disk).expect("the temporary folder can be written");
    file.set_len(DISK).expect("the temporary folder has room");
    let program = program_disk(folder.path());
    let socket = |round: usize| place(&format!("api-{round}"));

    let mut running = script("cat /dev/vdc >/tmp/load; chmod +x /tmp/load; exec /tmp/load /dev/vdb")
        .args(["--memory", "96M", "--cpus", &cpus.to_string()])
        .arg("--disk")
        .arg(&disk)
        .arg("--disk")
        .arg(format!("{},ro", program.display()))
        .arg("--api-sock")
        .arg(socket(0))
        .open_input()
        .start();
    running.wait_for("working");
    let (mut saves, mut restores) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // The time that the guest runs is what is tried here, not something that is waited for.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        thread::sleep(Duration::from_millis(5 + (seed >> 33) % 100));
        let snapshot = place(if round % 2 == 0 { "even" } else { "odd" });
        let start = Instant::now();
        save(&socket(round), &snapshot);
        saves.push(start.elapsed());
        running.signal(Signal::KILL);
        drop(running);
        let start = Instant::now();
        running = restore(&snapshot, &socket(round + 1));
        api::request(&socket(round + 1), "GET", "/", &Value::Null).expect(200);
        restores.push(start.elapsed());
    }
    running.send("end\n");
    let outcome = running.finish();
    outcome.expect_code(0);
    let said = outcome.out();
    let words: Vec<_> = said.split_ascii_whitespace().collect();
    let ["right", blocks, sum] = words[..] else {
        panic!("the guest found something wrong: {outcome}")
    };
    assert_eq!(
        sum,
        format!("{:016x}", sum_of(&disk)),
        "the disk is not what the guest wrote"
    );
    Report {
        rounds,
        blocks: blocks.parse().expect("it is a number"),
        save: median(saves),
        restore: median(restores),
    }
}

fn save(socket: &Path, snapshot: &Path) {
    let body = json!({"path": snapshot, "kind": "full", "resume": false});
    let answer = api::request(socket, "POST", "/berth/v1/snapshot", &body);
    assert!(answer.status < 300, "{answer:?}");
}

fn restore(snapshot: &Path, socket: &Path) -> Running {
    berth(["run", "--restore"])
        .arg(snapshot)
        .arg("--api-sock")
        .arg(socket)
        .open_input()
        .start()
}

/// The guest's program as a disk: padded to whole sectors.
fn program_disk(folder: &Path) -> PathBuf {
    let path = folder.join("program");
    let mut bytes = fs::read(guests::load()).expect("build.rs made it");
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    fs::write(&path, bytes).expect("the temporary folder has room");
    path
}

/// What the guest makes of its disk: FNV-1a over the words of each worker's blocks, one exclusive or the other.
fn sum_of(disk: &Path) -> u64 {
    let bytes = fs::read(disk).expect("it is there");
    let worker = |part: &[u8]| {
        part.chunks_exact(8).fold(0xcbf2_9ce4_8422_2325_u64, |sum, word| {
            let word = u64::from_le_bytes(word.try_into().expect("8 bytes"));
            (sum ^ word).wrapping_mul(0x0100_0000_01b3)
        })
    };
    bytes
        .chunks_exact(64 * 16384)
        .fold(0, |sum, part| sum ^ worker(part))
}

/// The median in milliseconds; 0 of nothing.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times
        .get(times.len() / 2)
        .map_or(0.0, |time| time.as_secs_f64() * 1e3)
}
