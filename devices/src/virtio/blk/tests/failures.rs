//! What becomes of requests when the file under a qcow2 image fails, or the library.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2;
use vm_memory::{Bytes, GuestAddress};

use super::{disk, header};
use crate::storage::{Engine, Fault, Faults, FileOptions, ImageFormat, Qcow2Disk};
use crate::virtio::blk::BlockConfig;
use crate::virtio::conformance::ring::{Part, Ring};
use crate::virtio::conformance::{BUFFERS, Machine, NEEDS_RESET, VERSION_1};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const FLUSHES: u64 = 1 << 9;
const OK: u8 = 0;
const IOERR: u8 = 1;
const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0x2000;
/// Sectors of a cluster, of which the disk has this many.
const CLUSTER: u64 = 128;
const CLUSTERS: u64 = 64;

/// An empty image.
fn image(folder: &Path) -> PathBuf {
    let path = folder.join("disk");
    let made = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    Qcow2::<imago::file::File>::create_builder(made.try_into().unwrap())
        .size(CLUSTERS * CLUSTER * 512)
        .create()
        .unwrap();
    path
}

fn open(path: &Path, engine: Engine) -> Qcow2Disk {
    let options = FileOptions {
        engine,
        format: ImageFormat::Qcow2,
        ..FileOptions::default()
    };
    Qcow2Disk::open(path, options).unwrap()
}

struct Driver {
    machine: Machine,
    ring: Ring,
}

impl Driver {
    fn new(disk: Qcow2Disk) -> Self {
        let machine = Machine::new(self::disk(disk, BlockConfig::default()));
        let ring = machine.bring_up(VERSION_1 | FLUSHES).remove(0);
        Self { machine, ring }
    }

    fn ask(&mut self, kind: u32, sector: u64, part: Option<Part>) -> u8 {
        let memory = &self.machine.memory;
        header(memory, BUFFERS, kind, sector);
        memory.write_slice(&[0xee], GuestAddress(STATUS)).unwrap();
        let parts = [Part::Read(BUFFERS, 16)];
        let parts = parts.into_iter().chain(part).chain([Part::Write(STATUS, 1)]);
        let used = self.ring.used_index();
        self.ring.add(&parts.collect::<Vec<_>>());
        self.machine.notify(0);
        self.machine.device.wait(|| self.ring.used_index() != used);
        self.ring.take_used().unwrap();
        memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn write(&mut self, sector: u64, byte: u8) -> u8 {
        let memory = &self.machine.memory;
        memory.write_slice(&[byte; 512], GuestAddress(DATA)).unwrap();
        self.ask(OUT, sector, Some(Part::Read(DATA, 512)))
    }

    fn read(&mut self, sector: u64) -> (u8, [u8; 512]) {
        let status = self.ask(IN, sector, Some(Part::Write(DATA, 512)));
        let mut data = [0; 512];
        self.machine
            .memory
            .read_slice(&mut data, GuestAddress(DATA))
            .unwrap();
        (status, data)
    }

    fn flush(&mut self) -> u8 {
        self.ask(FLUSH, 0, None)
    }
}

/// Writes here and there while the file fails as `break_it` says, and returns how many requests failed.
fn works_through(path: &Path, engine: Engine, break_it: impl Fn(&Faults)) -> usize {
    let faults = Faults::for_next();
    let mut driver = Driver::new(open(path, engine));
    let mut acknowledged = BTreeMap::new();
    let mut flushed = BTreeMap::new();
    let mut failed = 0;
    break_it(&faults);
    for round in 0..40_u64 {
        let (sector, byte) = (round * 7 % CLUSTERS * CLUSTER + round % 5, round as u8 + 1);
        match driver.write(sector, byte) {
            OK => drop(acknowledged.insert(sector, byte)),
            status => {
                assert_eq!(status, IOERR);
                failed += 1;
            }
        }
        if round % 8 == 7 {
            match driver.flush() {
                OK => flushed.clone_from(&acknowledged),
                _ => failed += 1,
            }
        }
        assert_eq!(driver.read(sector).0, OK);
    }
    faults.none();
    assert_eq!(driver.machine.status() & NEEDS_RESET, 0);
    for (sector, byte) in &acknowledged {
        assert!(driver.read(*sector) == (OK, [*byte; 512]), "sector {sector}");
    }
    // What could not be written is not said to be there, ever.
    assert_eq!(driver.flush() == OK, failed == 0);
    assert_eq!(driver.write(1, 1) == OK, failed == 0);
    drop(driver);
    let disk = open(path, Engine::Sync);
    for (sector, byte) in flushed {
        let mut data = [0; 512];
        disk.read_at(sector * 512, &mut data).unwrap();
        assert!(data == [byte; 512], "sector {sector} in the file");
    }
    failed
}

#[test]
fn errors_of_the_file_are_the_requests_and_nothing_acknowledged_is_lost() {
    let mut failed = 0;
    for errno in [libc::EIO, libc::ENOSPC] {
        for good in 0..24 {
            for length in [1, 3, 1000] {
                let engine = if good % 2 == 0 { Engine::Sync } else { Engine::Auto };
                let faults = vec![Fault::Errno(errno); length];
                let folder = tempfile::tempdir().unwrap();
                let path = image(folder.path());
                failed += works_through(&path, engine, |file| {
                    if good % 3 == 2 {
                        file.sync(good / 3, &faults);
                    }
                    file.write(good, &faults);
                });
            }
        }
    }
    assert!(failed > 100, "{failed} requests failed");
}

#[test]
fn a_file_that_cannot_be_read_fails_the_request_and_not_the_next() {
    for engine in [Engine::Sync, Engine::Auto] {
        let folder = tempfile::tempdir().unwrap();
        let faults = Faults::for_next();
        let mut driver = Driver::new(open(&image(folder.path()), engine));
        assert_eq!(driver.write(5, 7), OK);
        for errno in [libc::EIO, libc::ESTALE] {
            faults.read(0, &[Fault::Errno(errno)]);
            assert_eq!(driver.read(5).0, IOERR);
            assert_eq!(driver.read(5), (OK, [7; 512]));
        }
    }
}

#[test]
fn a_panic_of_the_library_fails_the_disk_and_nothing_else() {
    for engine in [Engine::Sync, Engine::Auto] {
        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path());
        let faults = Faults::for_next();
        let mut driver = Driver::new(open(&path, engine));
        assert_eq!((driver.write(5, 7), driver.flush()), (OK, OK));
        let before = std::fs::read(&path).unwrap();
        faults.write(0, &[Fault::Panic]);
        assert_eq!(driver.write(2000, 8), IOERR);
        faults.none();
        assert_eq!(driver.read(5).0, IOERR, "nobody knows what was left");
        assert_eq!((driver.write(5, 9), driver.flush()), (IOERR, IOERR));
        assert_eq!(driver.machine.status() & NEEDS_RESET, 0);
        driver.machine.transport.pause();
        driver.machine.transport.resume();
        assert_eq!(driver.read(5).0, IOERR);
        drop(driver);
        assert!(
            std::fs::read(&path).unwrap() == before,
            "what was flushed is there, and no more"
        );
        faults.none();
    }
    // And one that panics when it is opened.
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    Faults::for_next().read(0, &[Fault::Panic]);
    let options = FileOptions {
        format: ImageFormat::Qcow2,
        ..FileOptions::default()
    };
    let error = Qcow2Disk::open(&path, options).unwrap_err().to_string();
    assert!(error.contains("cannot be opened as a qcow2 image"), "{error}");
}
