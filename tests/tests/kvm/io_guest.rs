//! The I/O bench guest under Berth: it drives devices in every way it knows, and what it reads is what was written.

use std::fs::File;
use std::path::PathBuf;

use berth_tests::invocation::{Invocation, run};
use berth_tests::netns::Netns;
use berth_tests::{guests, program};
use serde_json::Value;
use tempfile::TempDir;

const EVENT_IDX: u64 = 1 << 29;
const INDIRECT_DESC: u64 = 1 << 28;

/// An empty disk of 8 MiB.
fn disk() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    (folder, path)
}

/// The line that the guest prints for these words with this disk, and its status.
#[track_caller]
fn line(words: &str, code: i32) -> Value {
    let (_folder, path) = disk();
    let outcome = run(["--memory", "128M", "--kernel"])
        .arg(guests::io())
        .args(["--disk", path.to_str().unwrap(), "--cmdline", words])
        .finish();
    outcome.expect_code(code);
    serde_json::from_str(outcome.out().trim_end()).unwrap_or_else(|error| panic!("{error}: {outcome}"))
}

#[track_caller]
fn results(words: &str) -> Value {
    line(&format!("bench=blk tsc_khz=1000000 {words}"), 0)
}

#[test]
fn every_block_operation_does_as_many_as_asked_and_finds_what_was_written() {
    for (op, bs, depth) in [
        ("randread", "4K", 4),
        ("randwrite", "4K", 16),
        ("randrw", "512", 128),
        ("seqread", "128K", 2),
        ("seqwrite", "1M", 3),
    ] {
        let results = results(&format!("op={op} bs={bs} depth={depth} count=150 verify=1"));
        assert_eq!(results["operations"], 150, "{results}");
        assert_eq!(results["depth"], depth, "{results}");
        assert!(results["verified"].as_u64().unwrap() > 0, "{results}");
    }
    for op in ["flush", "id"] {
        assert_eq!(results(&format!("op={op} count=20"))["operations"], 20);
    }
}

#[test]
fn completions_come_by_interrupt_as_well() {
    let results = results("op=randrw depth=4 count=100 verify=1 wait=irq");
    assert_eq!(results["operations"], 100, "{results}");
    assert_eq!(results["wait"], "irq", "{results}");
}

#[test]
fn features_of_the_ring_are_taken_only_as_asked() {
    for (event_idx, indirect) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let words = format!("op=randrw depth=8 count=50 verify=1 event_idx={event_idx} indirect={indirect}");
        let results = results(&words);
        let features = results["features"].as_u64().unwrap();
        let expected = (EVENT_IDX * event_idx) | (INDIRECT_DESC * indirect);
        assert_eq!(features & (EVENT_IDX | INDIRECT_DESC), expected, "{results}");
        assert_eq!(results["operations"], 50, "{results}");
    }
}

#[test]
fn a_disk_with_what_the_guest_did_not_write_is_told() {
    let (_folder, path) = disk();
    std::fs::write(&path, vec![7; 8 << 20]).unwrap();
    let outcome = run(["--memory", "64M", "--kernel"])
        .arg(guests::io())
        .args(["--disk", path.to_str().unwrap()])
        .args(["--cmdline", "bench=blk op=randread verify=1"])
        .finish();
    outcome.expect_code(1);
    assert!(outcome.out().contains("holds what is not its"), "{outcome}");
}

#[test]
fn what_cannot_be_is_said_and_ends_the_guest() {
    for (words, expected) in [
        ("bench=disk", "bench=disk: it must be blk or net"),
        (
            "bench=blk op=tx",
            "op=tx: it must be an operation of what bench= says",
        ),
        ("bench=blk dev=1", "there is no such device"),
        ("bench=blk bs=1M depth=256", "do not fit in memory"),
    ] {
        let error = line(words, 1)["error"].as_str().unwrap().to_owned();
        assert!(error.contains(expected), "{words}: {error}");
    }
}

#[test]
fn the_runner_measures_every_case_under_berth_and_on_the_host_and_all_content_is_right() {
    let (folder, path) = disk();
    let json = folder.path().join("out.json");
    let outcome = Invocation::of(program::io_bench())
        .args(["--runs", "1", "--ms", "20", "--words", "verify=1", "--berth"])
        .arg(program::berth())
        .arg("--file")
        .arg(path)
        .arg("--json")
        .arg(&json)
        .finish();
    outcome.expect_code(0);
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let cases = report["cases"].as_array().unwrap();
    assert!(cases.len() >= 10, "{outcome}");
    for case in cases {
        for monitor in case["monitors"].as_array().unwrap() {
            let line = &monitor["samples"][0]["line"];
            assert!(line["operations"].as_u64() > Some(0), "{case}: {outcome}");
            let compares =
                ["read", "answer", "received"].map(|word| case["case"].as_str().unwrap().contains(word));
            if monitor["name"] == "Berth" && compares.contains(&true) {
                assert!(line["verified"].as_u64() > Some(0), "{case}: {outcome}");
            }
        }
    }
}

#[test]
fn the_runner_makes_the_file_that_it_is_to_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made.img");
    let outcome = Invocation::of(program::io_bench())
        .args([
            "--runs",
            "1",
            "--ms",
            "20",
            "--size",
            "2",
            "--only",
            "4k random read, depth 1",
            "--berth",
        ])
        .arg(program::berth())
        .arg("--file")
        .arg(&path)
        .finish();
    outcome.expect_code(0);
    assert_eq!(path.metadata().unwrap().len(), 2 << 20, "{outcome}");
}

#[test]
fn frames_are_sent_by_every_pair_of_queues() {
    let netns = Netns::new();
    netns.ip("tuntap add dev tap0 mode tap multi_queue");
    netns.ip("link set tap0 up");
    for (how, threads) in [("queues=3", "1"), ("queues=3,spread", "3")] {
        for wait in ["poll", "irq"] {
            let words = format!("bench=net op=tx depth=30 count=600 queues=3 tsc_khz=1000000 wait={wait}");
            let outcome = run(["--memory", "64M", "--io-threads", threads, "--kernel"])
                .arg(guests::io())
                .args(["--net", &format!("tap=tap0,{how}"), "--cmdline", &words])
                .inside(&netns)
                .finish();
            outcome.expect_code(0);
            let results: Value = serde_json::from_str(outcome.out().trim_end()).unwrap();
            assert_eq!(results["operations"], 600, "{how}: {outcome}");
        }
    }
    let outcome = run(["--memory", "64M", "--kernel"])
        .arg(guests::io())
        .args(["--net", "tap=tap0", "--cmdline", "bench=net op=tx queues=2"])
        .inside(&netns)
        .finish();
    outcome.expect_code(1);
    assert!(outcome.out().contains("not so many pairs"), "{outcome}");
}
