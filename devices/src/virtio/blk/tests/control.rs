//! What can be changed while a disk runs: limits and the file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_S_IOERR;
use vm_memory::{Bytes, GuestAddress};

use super::super::*;
use super::{SECTORS, TestDisk, header, image, write_then_read};
use crate::limiter::BucketConfig;
use crate::storage::{FileDisk, NO_MEDIUM, StaticDisk};
use crate::virtio::conformance::ring::{Part, Ring};
use crate::virtio::conformance::{self, BUFFERS, Machine, Subject, VERSION_1};

fn bucket(size: u64, refill_ms: u64) -> BucketConfig {
    BucketConfig {
        size,
        refill_ms,
        burst: 0,
    }
}

/// A disk on a file of its own, started.
struct Bench {
    folder: TempDir,
    machine: Machine,
    ring: Ring,
    handle: BlockHandle,
}

impl Bench {
    fn new(limits: LimiterConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("first");
        image(&path);
        let file = FileDisk::open(&path, false).unwrap();
        let block = Block::new(Box::new(file), BlockConfig::default());
        let (block, handle) = block.controlled(limits).unwrap();
        let machine = Machine::new(Box::new(block));
        let ring = machine.bring_up(VERSION_1).remove(0);
        Self {
            folder,
            machine,
            ring,
            handle,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn set_path(&self, path: &Path) -> Result<(), BlockError> {
        self.machine.device.serve_while(|| self.handle.set_path(path))
    }

    /// Asks for the first sector.
    fn read(&mut self) {
        header(&self.machine.memory, BUFFERS, 0, 0);
        self.ring
            .add(&[Part::Read(BUFFERS, 16), Part::Write(BUFFERS + 0x1000, 513)]);
        self.machine.notify(0);
    }

    fn first_byte(&mut self) -> u8 {
        self.read();
        self.ring.take_used().unwrap();
        self.machine
            .memory
            .read_obj(GuestAddress(BUFFERS + 0x1000))
            .unwrap()
    }

    /// Capacity in sectors.
    fn capacity(&self) -> u32 {
        self.machine.read(0x100)
    }
}

#[test]
fn a_limited_disk_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    image(&path);
    conformance::run(&Subject {
        make: Box::new(move || {
            let file = FileDisk::open(&path, false).unwrap();
            let limits = LimiterConfig {
                bandwidth: Some(bucket(3000, 1)),
                ops: Some(bucket(5, 1)),
            };
            let block = Block::new(Box::new(file), BlockConfig::default());
            Box::new(block.controlled(limits).unwrap().0)
        }),
        request: write_then_read(),
    });
}

#[test]
fn requests_beyond_the_limit_wait_in_their_ring_and_are_served_in_time() {
    for limits in [
        LimiterConfig {
            bandwidth: Some(bucket(1024, 40)),
            ops: None,
        },
        LimiterConfig {
            bandwidth: None,
            ops: Some(bucket(2, 40)),
        },
    ] {
        let mut bench = Bench::new(limits);
        let start = Instant::now();
        for _ in 0..6 {
            bench.read();
        }
        assert_eq!(bench.ring.used_index(), 2);
        bench.machine.device.wait(|| bench.ring.used_index() == 6);
        assert!(start.elapsed().as_millis() >= 80, "four more at 20 ms each");
    }
}

#[test]
fn a_pause_leaves_what_waits_in_the_ring() {
    let mut bench = Bench::new(LimiterConfig {
        bandwidth: None,
        ops: Some(bucket(2, 20)),
    });
    for _ in 0..3 {
        bench.read();
    }
    bench.machine.transport.pause();
    let state = bench.machine.transport.save().unwrap();
    let at = state.queues[0].1.unwrap();
    assert_eq!((at.next_avail, at.next_used), (2, 2));
    bench.machine.transport.resume();
    bench.machine.device.wait(|| bench.ring.used_index() == 3);
}

#[test]
fn a_new_limit_frees_what_waits() {
    let mut bench = Bench::new(LimiterConfig {
        bandwidth: None,
        ops: Some(bucket(1, 10_000_000)),
    });
    bench.read();
    bench.read();
    assert_eq!(bench.ring.used_index(), 1);
    let change = LimiterChange {
        bandwidth: None,
        ops: Some(BucketConfig::default()),
    };
    bench
        .machine
        .device
        .serve_while(|| bench.handle.set_limits(change))
        .unwrap();
    assert_eq!(bench.ring.used_index(), 2);
}

#[test]
fn another_file_takes_the_place_of_the_first_and_the_guest_sees_its_size() {
    let mut bench = Bench::new(LimiterConfig::default());
    let second = bench.path("second");
    fs::write(&second, [0x77; 512 * 9]).unwrap();
    assert_eq!((bench.first_byte(), u64::from(bench.capacity())), (0, SECTORS));
    bench.machine.acknowledge();
    bench.set_path(&second).unwrap();
    assert_eq!(
        bench.machine.acknowledge() & 2,
        2,
        "the driver hears of its new size"
    );
    assert_eq!((bench.first_byte(), bench.capacity()), (0x77, 9));
    // The first one can be used by others again.
    FileDisk::open(bench.path("first"), false).unwrap();
}

#[test]
fn a_drive_without_a_medium_has_no_sectors_and_takes_the_next_image() {
    let mut bench = Bench::new(LimiterConfig::default());
    bench.set_path(Path::new(NO_MEDIUM)).unwrap();
    assert_eq!(bench.capacity(), 0);
    // Others can have the image that was in it.
    drop(FileDisk::open(bench.path("first"), false).unwrap());
    bench.read();
    bench.ring.take_used().unwrap();
    let status: u8 = bench
        .machine
        .memory
        .read_obj(GuestAddress(BUFFERS + 0x1000 + 512))
        .unwrap();
    assert_eq!(u32::from(status), VIRTIO_BLK_S_IOERR);
    let first = bench.path("first");
    bench.set_path(&first).unwrap();
    assert_eq!((bench.first_byte(), u64::from(bench.capacity())), (0, SECTORS));
}

#[test]
fn the_same_file_is_measured_anew() {
    let bench = Bench::new(LimiterConfig::default());
    let path = bench.path("first");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(512 * 1000).unwrap();
    assert_eq!(u64::from(bench.capacity()), SECTORS);
    bench.set_path(&path).unwrap();
    assert_eq!(bench.capacity(), 1000);
    file.set_len(700).unwrap();
    let error = bench.set_path(&path).unwrap_err();
    assert!(
        error.to_string().contains("size 700 is not a multiple of 512"),
        "{error}"
    );
    assert_eq!(bench.capacity(), 1000, "it stays as it was");
}

#[test]
fn a_file_that_cannot_be_a_disk_changes_nothing() {
    let mut bench = Bench::new(LimiterConfig::default());
    for (name, content) in [("missing", None), ("empty", Some(&b""[..])), ("odd", Some(b"x"))] {
        let path = bench.path(name);
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        assert!(bench.set_path(&path).is_err(), "{name}");
    }
    assert_eq!((bench.first_byte(), u64::from(bench.capacity())), (0, SECTORS));
}

#[test]
fn a_disk_that_cannot_be_written_takes_no_ones_place_and_one_that_answers_later_does() {
    let mut bench = Bench::new(LimiterConfig::default());
    let replace = |backend: Box<dyn DiskBackend>| {
        bench
            .machine
            .device
            .serve_while(|| bench.handle.replace(backend))
            .map_err(|error| error.to_string())
    };
    let refused = replace(Box::new(StaticDisk::new(&[1; 512])));
    assert!(refused.unwrap_err().contains("is read-only"));
    assert_eq!(replace(Box::new(TestDisk::later())), Ok(()));
    bench.read();
    bench.machine.device.wait(|| bench.ring.used_index() == 1);
}
