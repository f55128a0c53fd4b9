//! A guest that does anything at all cannot panic, hang or grow the monitor.

use std::fs::File;
use std::time::Duration;

use berth_tests::invocation::{Outcome, tiny};
use berth_tests::memory;
use berth_tests::netns::Netns;

/// KiB by which the monitor may grow while a guest misbehaves: buffers and stacks that honest use needs as well.
const GROWTH: u64 = 8 << 10;

#[track_caller]
fn expect_no_panic(outcome: &Outcome) {
    assert!(
        !outcome.err().contains("fault in Berth itself"),
        "the monitor panicked: {outcome}"
    );
    assert!(outcome.code().is_some(), "a signal ended the monitor: {outcome}");
}

#[test]
fn wild_registers_rings_chains_and_ports_leave_the_devices_serving() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let disk = disk.to_str().unwrap();
    let other = folder.path().join("other");
    File::create(&other).unwrap().set_len(1 << 20).unwrap();
    let read_only = format!("{},ro", other.display());
    let memory_file = folder.path().join("memory");
    File::create(&memory_file).unwrap().set_len(2 << 20).unwrap();
    let memory_file = memory_file.to_str().unwrap();
    let netns = Netns::with_tap("tap0", "10.9.0.1/24");
    let honest = {
        let mut running = tiny("halt").args(["--disk", disk, "--disk", &read_only]).start();
        running.wait_for("halted");
        memory::peak(running.id())
    };
    for seed in 0..4 {
        let mut running = tiny(&format!("hostile:{seed}"))
            .args(["--disk", disk, "--disk", &read_only, "--net", "tap=tap0"])
            .args(["--pmem", memory_file])
            .inside(&netns)
            .open_input()
            .within(Duration::from_secs(60))
            .start();
        running.wait_for("survived");
        let grown = memory::peak(running.id()).saturating_sub(honest);
        running.send("\n");
        let outcome = running.finish();
        expect_no_panic(&outcome);
        outcome.expect_code(0);
        assert!(
            grown <= GROWTH,
            "seed {seed}: the monitor grew by {grown} KiB: {outcome}"
        );
        // What a guest causes is logged, but not without end.
        assert!(
            outcome.stderr.len() < 64 << 10,
            "seed {seed}: {} bytes of messages",
            outcome.stderr.len()
        );
    }
}

#[test]
fn garbage_run_in_ring_0_ends_in_one_of_the_documented_ways() {
    for seed in 0..40 {
        let outcome = tiny(&format!("garbage:{seed}"))
            .args(["--timeout", "1"])
            .within(Duration::from_secs(20))
            .finish();
        expect_no_panic(&outcome);
    }
}
