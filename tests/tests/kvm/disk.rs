//! Disks: what the guest writes is what the host reads, and nothing acknowledged is lost.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use berth_tests::invocation::script;
use berth_tests::tools;
use rustix::process::Signal;
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// A disk of `mib` MiB full of a pattern.
fn disk(mib: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    fs::write(&path, pattern(mib * MIB, 1)).unwrap();
    (folder, path)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * seed + at * 3) as u8).collect()
}

#[test]
fn a_guest_reads_and_writes_disks_byte_for_byte() {
    let (_first, writable) = disk(4);
    let (_second, read_only) = disk(2);
    let sent = pattern(512 * 3, 5);
    // The guest copies one disk's start over the other's middle, adds what came on its input, and discards a part.
    let outcome = script(
        "set -e
         cat >/tmp/input
         dd if=/dev/vdc of=/dev/vdb bs=64k seek=16 count=8 conv=notrunc,fsync 2>/dev/null
         dd if=/tmp/input of=/dev/vdb bs=512 seek=5000 conv=notrunc,fsync 2>/dev/null
         blkdiscard -o 0 -l 65536 /dev/vdb || true
         echo $(cat /sys/block/vdb/serial) $(cat /sys/block/vdb/size /sys/block/vdc/ro)
         dd if=/dev/zero of=/dev/vdc bs=512 count=1 2>/dev/null && echo 'wrote to a read-only disk'
         true",
    )
    .args(["--disk", &format!("{},serial=data-1", writable.display())])
    .args(["--disk", &format!("{},ro", read_only.display())])
    .input(sent.clone())
    .finish();
    outcome.expect_code(0);
    assert_eq!(outcome.out(), "data-1 8192 1\n", "{outcome}");

    let mut expected = pattern(4 * MIB, 1);
    let copied = 16 * 65536..24 * 65536;
    expected[copied].copy_from_slice(&pattern(2 * MIB, 1)[..8 * 65536]);
    expected[5000 * 512..5000 * 512 + sent.len()].copy_from_slice(&sent);
    let found = fs::read(&writable).unwrap();
    assert_eq!(found.len(), expected.len(), "the disk changed its size");
    // What is discarded has no value that the guest may count on.
    assert!(
        found[65536..] == expected[65536..],
        "the disk differs from what the guest wrote"
    );
    assert!(
        fs::read(&read_only).unwrap() == pattern(2 * MIB, 1),
        "a read-only disk was written"
    );
}

#[test]
fn a_guest_reads_and_writes_a_qcow2_disk_that_stands_on_another() {
    let (folder, _) = disk(4);
    let qemu = |line: &str| {
        let words = line.replace('@', folder.path().to_str().unwrap());
        tools::run("qemu-img", words.split_whitespace());
    };
    qemu("convert -q -c -f raw -O qcow2 @/disk.img @/base.qcow2");
    qemu("create -q -f qcow2 -b base.qcow2 -F qcow2 @/disk.qcow2");
    let before = fs::read(folder.path().join("base.qcow2")).unwrap();
    let sent = pattern(512 * 3, 5);
    let outcome = script(
        "set -e
         cat >/tmp/input
         dd if=/tmp/input of=/dev/vdb bs=512 seek=5000 conv=notrunc,fsync 2>/dev/null
         dd if=/dev/vdb bs=512 skip=5000 count=3 iflag=direct 2>/dev/null | cmp - /tmp/input
         dd if=/dev/vdb bs=64k count=8 iflag=direct 2>/dev/null | dd of=/dev/vdb bs=64k seek=16 conv=notrunc,fsync 2>/dev/null
         cat /sys/block/vdb/size",
    )
    .args(["--disk", &format!("{}/disk.qcow2,format=qcow2", folder.path().display())])
    .input(sent.clone())
    .finish();
    outcome.expect_code(0);
    assert_eq!(outcome.out(), "8192\n", "{outcome}");

    let mut expected = pattern(4 * MIB, 1);
    expected.copy_within(..8 * 65536, 16 * 65536);
    expected[5000 * 512..5000 * 512 + sent.len()].copy_from_slice(&sent);
    qemu("check -q -f qcow2 @/disk.qcow2");
    qemu("convert -q -f qcow2 -O raw @/disk.qcow2 @/found");
    assert!(
        fs::read(folder.path().join("found")).unwrap() == expected,
        "it differs from what the guest wrote"
    );
    assert!(
        fs::read(folder.path().join("base.qcow2")).unwrap() == before,
        "what it stands on was written"
    );
}

#[test]
fn every_engine_stores_what_the_guest_writes() {
    // Not in memory: there the page cache is the medium, and nothing waits.
    let here = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(here.parent().unwrap()).unwrap();
    let numbers = (1..).flat_map(|number| format!("{number}\n").into_bytes());
    let sent: Vec<u8> = numbers.take(MIB / 4).collect();
    let mut berth = script(
        "set -e
         seq 1 100000 | head -c 262144 >/tmp/input
         for disk in b c d e; do
             dd if=/tmp/input of=/dev/vd$disk bs=64k conv=notrunc 2>/dev/null &
         done
         wait
         sync
         for disk in b c d e; do
             dd if=/dev/vd$disk bs=64k count=4 iflag=direct 2>/dev/null | cmp - /tmp/input
             ls /sys/block/vd$disk/mq | wc -l
         done
         cat /sys/block/vdc/queue/write_cache",
    )
    .args(["--cpus", "2"]);
    let uses = [
        "queues=2",
        "engine=io_uring,direct,cache=writethrough",
        "engine=threads,direct,queues=2",
        "engine=sync",
    ];
    for (number, how) in uses.iter().enumerate() {
        let path = folder.path().join(number.to_string());
        fs::write(&path, pattern(2 * MIB, 1)).unwrap();
        berth = berth.args(["--disk", &format!("{},{how}", path.display())]);
    }
    let outcome = berth.finish();
    outcome.expect_code(0);
    assert_eq!(outcome.out(), "2\n1\n2\n1\nwrite through\n", "{outcome}");
    for (number, how) in uses.iter().enumerate() {
        let found = fs::read(folder.path().join(number.to_string())).unwrap();
        assert!(found[..sent.len()] == sent, "{how}");
        assert!(found[sent.len()..] == pattern(2 * MIB, 1)[sent.len()..], "{how}");
    }
}

#[test]
fn a_limit_slows_a_disk_down_and_changes_no_byte() {
    let (_folder, path) = disk(1);
    let mut running = script(
        "echo begin
         dd if=/dev/vdb of=/tmp/data bs=256k count=2 2>/dev/null
         echo end
         sha256sum </tmp/data",
    )
    .args(["--disk", &format!("{},ro,bandwidth=256K", path.display())])
    .start();
    running.wait_for("begin");
    let begin = Instant::now();
    running.wait_for("end");
    // One bucket is there, the other takes a second to fill. Of that the guest's own start has taken a little.
    assert!(
        begin.elapsed() >= Duration::from_millis(700),
        "{:?}",
        begin.elapsed()
    );
    let outcome = running.finish();
    let sum = tools::feed("sha256sum", [] as [&str; 0], &pattern(MIB / 2, 1));
    let sum = String::from_utf8_lossy(&sum.stdout).into_owned();
    assert!(outcome.out().contains(&sum), "{outcome}");
}

#[test]
fn nothing_that_the_guest_has_synced_is_lost_when_the_monitor_is_killed() {
    let (_folder, path) = disk(1);
    let mut running = script(
        "for n in 1 2 3 4 5 6 7 8; do
             printf 'record %d.' $n | dd of=/dev/vdb bs=512 seek=$n conv=notrunc,fsync 2>/dev/null
             echo synced $n
         done
         sleep 1000",
    )
    .args(["--disk", path.to_str().unwrap()])
    .start();
    running.wait_for("synced 8");
    running.signal(Signal::KILL);
    running.finish();
    let mut bytes = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
    for n in 1..=8 {
        let record = format!("record {n}.");
        let found = &bytes[n * 512..n * 512 + record.len()];
        assert_eq!(String::from_utf8_lossy(found), record);
    }
}
