//! Disks at full load while the VM is paused and resumed as fast as its API takes it: no request is lost, done twice or torn.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use berth_tests::invocation::{Invocation, Outcome, berth, run};
use berth_tests::served::{Connection, Served};
use berth_tests::{guests, tools};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "../../guests/io/pattern.rs"]
#[allow(dead_code, unreachable_pub)]
mod pattern;

const BLOCK: usize = 4096;
/// Pauses that a disk must have seen. One run of the guest has some hundreds, and fewer on a busy host.
const PAUSES: usize = 200;

/// A folder whose file system has direct I/O, which that of temporary files need not have.
fn folder() -> TempDir {
    let here = std::env::current_exe().unwrap();
    tempfile::tempdir_in(here.parent().unwrap()).unwrap()
}

fn empty(folder: &Path) -> PathBuf {
    let path = folder.join("disk");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    path
}

/// The guest with this disk: it reads and writes all of it at random, `count` times.
fn loaded(disk: &str, count: u32) -> Invocation {
    let words = format!("bench=blk op=randrw bs={BLOCK} depth=128 verify=1 count={count}");
    run(["--memory", "64M", "--kernel"])
        .arg(guests::io())
        .args(["--disk", disk, "--cmdline", &words])
}

/// Pauses and resumes until the VM is gone or there were so many pauses, and returns how many there were.
fn pause_until_the_end(api: &mut Connection, most: usize) -> usize {
    let mut told = |state: &str| {
        let answer = api.ask_while_there("PATCH", "/vm", &json!({ "state": state }));
        // A guest that has just ended is there for a moment more.
        answer.is_some_and(|(status, _)| status == 204)
    };
    (0..most)
        .take_while(|_| told("Paused") && told("Resumed"))
        .count()
}

/// The guest found every byte right, and so it is in the disk's raw bytes.
#[track_caller]
fn judge(outcome: &Outcome, raw: &Path) {
    outcome.expect_code(0);
    let line: Value = serde_json::from_str(outcome.out().trim_end()).unwrap();
    assert!(line["verified"].as_u64() > Some(0), "{outcome}");
    let bytes = fs::read(raw).unwrap();
    let words = bytes.chunks_exact(8);
    let words: Vec<u64> = words
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    let found = pattern::sum(&words, BLOCK / 8)
        .unwrap_or_else(|(sector, word)| panic!("sector {sector} holds {word:#x}: {outcome}"));
    assert_eq!(
        line["content"].as_u64(),
        Some(found),
        "the file is not what the guest wrote: {outcome}"
    );
}

/// Runs the guest on the disk that `make` makes in a folder, the words behind its path being `how`, as often as it takes for so many
/// pauses, and judges by the raw bytes that `raw` finds.
#[track_caller]
fn survives(how: &str, count: u32, make: fn(&Path) -> PathBuf, raw: fn(&Path) -> PathBuf) {
    let mut pauses = 0;
    while pauses < PAUSES {
        let folder = folder();
        let path = make(folder.path());
        let served = Served::start(loaded(&format!("{}{how}", path.display()), count));
        let mut api = Connection::open(&served.socket());
        let more = pause_until_the_end(&mut api, usize::MAX);
        judge(&served.running.finish(), &raw(&path));
        assert!(more > 0, "{how}: the guest was never paused");
        pauses += more;
    }
}

#[test]
fn every_engine_keeps_every_byte_of_a_raw_disk_through_pauses_without_end() {
    for engine in ["auto", "io_uring", "threads", "sync"] {
        for direct in ["", ",direct"] {
            survives(
                &format!(",engine={engine}{direct}"),
                20_000,
                empty,
                Path::to_owned,
            );
        }
    }
}

/// A new qcow2 image that stands on a raw one, and is `disk` in the folder.
fn qcow2(folder: &Path) -> PathBuf {
    let base = empty(folder);
    fs::rename(base, folder.join("base")).unwrap();
    let path = folder.join("disk");
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base"];
    tools::run("qemu-img", create.map(Path::new).into_iter().chain([&*path]));
    path
}

/// The raw bytes of a qcow2 image without faults.
fn raw_of(image: &Path) -> PathBuf {
    let raw = image.with_file_name("raw");
    let check = ["check", "-q", "-f", "qcow2"];
    tools::run("qemu-img", check.map(Path::new).into_iter().chain([image]));
    let convert = ["convert", "-q", "-f", "qcow2", "-O", "raw"];
    tools::run(
        "qemu-img",
        convert.map(Path::new).into_iter().chain([image, &raw]),
    );
    raw
}

#[test]
fn every_engine_keeps_every_byte_of_a_qcow2_disk_through_pauses_without_end() {
    for engine in ["auto", "threads", "sync"] {
        survives(&format!(",format=qcow2,engine={engine}"), 10_000, qcow2, raw_of);
    }
}

#[test]
fn a_guest_saved_at_full_load_again_and_again_goes_on_with_every_byte_right() {
    for (how, raw) in [
        (",engine=io_uring,direct", None),
        (",engine=threads,queues=1", None),
        (",format=qcow2", Some(raw_of as fn(&Path) -> PathBuf)),
    ] {
        let folder = folder();
        let path = match raw {
            Some(_) => qcow2(folder.path()),
            None => empty(folder.path()),
        };
        let mut served = Served::start(loaded(&format!("{}{how}", path.display()), 60_000));
        let mut saved = 0;
        while saved < 4 {
            let mut api = Connection::open(&served.socket());
            pause_until_the_end(&mut api, 10);
            let snapshot = folder.path().join(format!("snapshot{}", saved % 2));
            let body = json!({"path": snapshot, "kind": "full", "resume": false});
            let answer = api.ask_while_there("POST", "/berth/v1/snapshot", &body);
            if answer.is_none_or(|(status, _)| status >= 300) {
                // A guest that is fast has finished, and its verdict says so.
                break;
            }
            served.running.signal(Signal::KILL);
            drop(served);
            served = Served::start(berth(["run", "--restore"]).arg(&snapshot));
            saved += 1;
        }
        assert!(saved > 0, "{how}: it was never saved");
        let outcome = served.running.finish();
        judge(&outcome, &raw.map_or(path.clone(), |raw| raw(&path)));
    }
}
