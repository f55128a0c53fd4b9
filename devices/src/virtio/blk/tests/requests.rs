//! What each request is answered with.

use super::*;
use crate::virtio::conformance::ring::Ring;
use crate::virtio::conformance::{BUFFERS, Machine, NEEDS_RESET, VERSION_1};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0x8_0000;

struct Driver {
    machine: Machine,
    ring: Ring,
}

impl Driver {
    fn new(disk: &TestDisk) -> Self {
        Self::with(disk, BlockConfig::default(), u64::MAX)
    }

    fn with(disk: &TestDisk, config: BlockConfig, features: u64) -> Self {
        let machine = Machine::new(Box::new(Block::new(Box::new(disk.clone()), config)));
        let features = machine.offered() & features | VERSION_1;
        let ring = machine.bring_up(features).remove(0);
        Self { machine, ring }
    }

    /// Sends a request of `parts` after a header of 16 bytes, a status byte after them, and returns that.
    fn ask(&mut self, kind: u32, sector: u64, parts: &[Part]) -> u8 {
        header(&self.machine.memory, BUFFERS, kind, sector);
        let mut all = vec![Part::Read(BUFFERS, 16)];
        all.extend(parts);
        all.push(Part::Write(STATUS, 1));
        self.send(&all);
        self.machine.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn send(&mut self, parts: &[Part]) -> u32 {
        self.machine
            .memory
            .write_slice(&[0xee], GuestAddress(STATUS))
            .unwrap();
        let used = self.ring.used_index();
        self.ring.add(parts);
        self.machine.notify(0);
        self.machine.device.wait(|| self.ring.used_index() != used);
        self.ring.take_used().unwrap().1
    }

    /// Discards or zeroes a range.
    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let memory = &self.machine.memory;
        memory
            .write_slice(&sector.to_le_bytes(), GuestAddress(DATA))
            .unwrap();
        memory
            .write_slice(&sectors.to_le_bytes(), GuestAddress(DATA + 8))
            .unwrap();
        memory
            .write_slice(&flags.to_le_bytes(), GuestAddress(DATA + 12))
            .unwrap();
        self.ask(kind, 0, &[Part::Read(DATA, 16)])
    }

    fn fill(&self, byte: u8, len: usize) {
        self.machine
            .memory
            .write_slice(&vec![byte; len], GuestAddress(DATA))
            .unwrap();
    }
}

#[test]
fn buffers_may_be_cut_anywhere() {
    let disk = TestDisk::new();
    let mut driver = Driver::new(&disk);
    let data: Vec<u8> = (0..1024).map(|at| (at * 7) as u8).collect();
    driver
        .machine
        .memory
        .write_slice(&data, GuestAddress(DATA))
        .unwrap();
    header(&driver.machine.memory, BUFFERS, OUT, 3);
    // Header in three pieces, the last with data; data in odd pieces.
    driver
        .machine
        .memory
        .write_slice(&data[..5], GuestAddress(BUFFERS + 16))
        .unwrap();
    let parts = [
        Part::Read(BUFFERS, 1),
        Part::Read(BUFFERS + 1, 10),
        Part::Read(BUFFERS + 11, 10),
        Part::Read(DATA + 5, 700),
        Part::Read(DATA + 705, 319),
        Part::Write(STATUS, 1),
    ];
    assert_eq!(driver.send(&parts), 1);
    assert_eq!(disk.0.lock().unwrap().bytes[3 * 512..5 * 512], data);

    header(&driver.machine.memory, BUFFERS, IN, 3);
    let back = DATA + 0x2000;
    // The status byte at the end of the last data buffer.
    let parts = [
        Part::Read(BUFFERS, 16),
        Part::Write(back, 1),
        Part::Write(back + 1, 999),
        Part::Write(back + 1000, 25),
    ];
    assert_eq!(driver.send(&parts), 1025);
    let mut read = vec![0xff; 1025];
    driver
        .machine
        .memory
        .read_slice(&mut read, GuestAddress(back))
        .unwrap();
    assert_eq!((&read[..1024], read[1024]), (&data[..], OK));
}

#[test]
fn requests_outside_the_disk_or_of_broken_sectors_are_errors() {
    let disk = TestDisk::new();
    let mut driver = Driver::new(&disk);
    let read = |len| Part::Write(DATA, len);
    let write = |len| Part::Read(DATA, len);
    let last = SECTORS - 1;
    for (kind, sector, part, status) in [
        (IN, last, read(512), OK),
        (OUT, last, write(512), OK),
        (IN, 0, read(SECTORS as u32 * 512), OK),
        (IN, last, read(1024), IOERR),
        (OUT, last, write(1024), IOERR),
        (IN, SECTORS, read(512), IOERR),
        (OUT, SECTORS, write(512), IOERR),
        (IN, u64::MAX, read(512), IOERR),
        (OUT, u64::MAX / 512, write(512), IOERR),
        (OUT, 1 << 55, write(512), IOERR),
        (IN, 0, read(511), IOERR),
        (OUT, 0, write(513), IOERR),
        (IN, 0, read(1), IOERR),
    ] {
        assert_eq!(
            driver.ask(kind, sector, &[part]),
            status,
            "type {kind} at {sector}: {part:?}"
        );
    }
    disk.log();
    for kind in [2, 3, 5, 9, 10, 12, 14, 16, 24, u32::MAX] {
        assert_eq!(driver.ask(kind, 0, &[read(512)]), UNSUPP, "type {kind}");
    }
    assert!(disk.log().is_empty());
    assert_eq!(driver.machine.status() & NEEDS_RESET, 0);
}

#[test]
fn a_header_that_is_too_short_is_an_error_and_no_status_byte_needs_a_reset() {
    let disk = TestDisk::new();
    let mut driver = Driver::new(&disk);
    for parts in [vec![], vec![Part::Read(BUFFERS, 15)]] {
        let parts: Vec<Part> = parts.into_iter().chain([Part::Write(STATUS, 1)]).collect();
        driver.send(&parts);
        assert_eq!(
            driver
                .machine
                .memory
                .read_obj::<u8>(GuestAddress(STATUS))
                .unwrap(),
            IOERR
        );
    }
    header(&driver.machine.memory, BUFFERS, OUT, 0);
    driver.ring.add(&[Part::Read(BUFFERS, 16), Part::Read(DATA, 512)]);
    driver.machine.notify(0);
    assert_ne!(driver.machine.status() & NEEDS_RESET, 0);
    assert!(
        disk.log().is_empty(),
        "a write that cannot be answered is not done"
    );
    driver.ring = driver.machine.bring_up(VERSION_1).remove(0);
    assert_eq!(driver.ask(IN, 0, &[Part::Write(DATA, 512)]), OK);
}

#[test]
fn errors_of_the_host_reach_the_guest() {
    for disk in [TestDisk::new(), TestDisk::later()] {
        let mut driver = Driver::new(&disk);
        disk.fail(&[libc::EIO, libc::ENOSPC, libc::EIO, libc::ENOSPC, libc::EOPNOTSUPP]);
        assert_eq!(driver.ask(IN, 0, &[Part::Write(DATA, 512)]), IOERR);
        assert_eq!(driver.ask(OUT, 0, &[Part::Read(DATA, 512)]), IOERR);
        assert_eq!(driver.ask(FLUSH, 0, &[]), IOERR);
        assert_eq!(driver.range(WRITE_ZEROES, 0, 8, 0), IOERR);
        assert_eq!(driver.range(DISCARD, 0, 8, 0), UNSUPP);
        assert_eq!(driver.range(DISCARD, 0, 8, 0), OK, "and the disk lives on");
    }
}

#[test]
fn a_flush_is_answered_after_the_flush_and_writes_without_it_last_at_once() {
    for disk in [TestDisk::new(), TestDisk::later()] {
        let mut driver = Driver::new(&disk);
        assert_eq!(driver.ask(OUT, 0, &[Part::Read(DATA, 512)]), OK);
        assert_eq!(driver.ask(FLUSH, 0, &[]), OK);
        assert_eq!(disk.log(), ["write", "flush"]);

        let mut driver = Driver::with(&disk, BlockConfig::default(), !super::super::FLUSH);
        assert_eq!(driver.ask(OUT, 0, &[Part::Read(DATA, 512)]), OK);
        assert_eq!(driver.range(WRITE_ZEROES, 0, 8, 0), OK);
        assert_eq!(driver.ask(IN, 0, &[Part::Write(DATA, 512)]), OK);
        assert_eq!(disk.log(), ["write", "flush", "write zeroes", "flush", "read"]);
        disk.fail(&[libc::EIO]);
        assert_eq!(driver.ask(OUT, 0, &[Part::Read(DATA, 512)]), IOERR);
        assert_eq!(disk.log(), ["write"], "nothing to flush");
    }
}

#[test]
fn a_read_only_disk_says_so_and_refuses_to_change() {
    let disk = TestDisk::new();
    let config = BlockConfig {
        read_only: true,
        ..Default::default()
    };
    let mut driver = Driver::with(&disk, config, u64::MAX);
    let offered = driver.machine.offered();
    assert_ne!(offered & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(
        offered & (super::super::FLUSH | super::super::DISCARD | super::super::WRITE_ZEROES),
        0
    );
    driver.fill(1, 512);
    assert_eq!(driver.ask(OUT, 0, &[Part::Read(DATA, 512)]), IOERR);
    assert_eq!(driver.range(DISCARD, 0, 8, 0), IOERR);
    assert_eq!(driver.range(WRITE_ZEROES, 0, 8, 0), IOERR);
    assert!(disk.log().is_empty());
    assert_eq!(driver.ask(IN, 0, &[Part::Write(DATA, 512)]), OK);
}

#[test]
fn ranges_to_discard_and_zero_are_checked() {
    let disk = TestDisk::new();
    let mut driver = Driver::new(&disk);
    let all = SECTORS as u32;
    for (kind, sector, sectors, flags, status) in [
        (DISCARD, 0, all, 0, OK),
        (DISCARD, 1, all, 0, IOERR),
        (DISCARD, 0, u32::MAX, 0, IOERR),
        (DISCARD, u64::MAX, 1, 0, IOERR),
        (DISCARD, 0, 8, 1, UNSUPP),
        (DISCARD, 0, 8, 2, UNSUPP),
        (WRITE_ZEROES, 0, all, 0, OK),
        (WRITE_ZEROES, 0, all, 1, OK),
        (WRITE_ZEROES, 0, 8, 2, UNSUPP),
        (WRITE_ZEROES, all.into(), 1, 0, IOERR),
        (WRITE_ZEROES, 0, u32::MAX, 0, IOERR),
    ] {
        let answer = driver.range(kind, sector, sectors, flags);
        assert_eq!(
            answer, status,
            "type {kind}, {sectors} sectors at {sector}, flags {flags}"
        );
    }
    for len in [0, 8, 15, 17, 32] {
        assert_eq!(
            driver.ask(DISCARD, 0, &[Part::Read(DATA, len)]),
            IOERR,
            "a range of {len} bytes"
        );
    }
    let without = !(super::super::DISCARD | super::super::WRITE_ZEROES);
    let mut driver = Driver::with(&disk, BlockConfig::default(), without);
    assert_eq!(driver.range(DISCARD, 0, 8, 0), UNSUPP, "not negotiated");
    assert_eq!(driver.range(WRITE_ZEROES, 0, 8, 0), UNSUPP, "not negotiated");
}

#[test]
fn the_serial_number_is_padded_or_cut() {
    let disk = TestDisk::new();
    let config = BlockConfig {
        serial: Some(*b"berth-0001\0\0\0\0\0\0\0\0\0\0"),
        ..Default::default()
    };
    let mut driver = Driver::with(&disk, config, u64::MAX);
    driver.fill(0xff, 64);
    assert_eq!(driver.ask(GET_ID, 0, &[Part::Write(DATA, 20)]), OK);
    let mut id = [0; 21];
    driver
        .machine
        .memory
        .read_slice(&mut id, GuestAddress(DATA))
        .unwrap();
    assert_eq!(&id, b"berth-0001\0\0\0\0\0\0\0\0\0\0\xff");
    driver.fill(0xff, 64);
    assert_eq!(driver.ask(GET_ID, 0, &[Part::Write(DATA, 5)]), OK);
    driver
        .machine
        .memory
        .read_slice(&mut id, GuestAddress(DATA))
        .unwrap();
    assert_eq!(&id[..6], b"berth\xff");
    assert_eq!(driver.ask(GET_ID, 0, &[]), OK);
}

#[test]
fn the_configuration_says_size_and_limits() {
    let driver = Driver::new(&TestDisk::new());
    let word = |at: u64| driver.machine.read(0x100 + at);
    assert_eq!(u64::from(word(0)), SECTORS);
    assert_eq!(
        [word(4), word(8), word(12), word(20)],
        [0, SIZE_MAX, SEG_MAX, 512]
    );
    assert_eq!([word(36), word(40), word(44)], [MAX_DISCARD, 1, 8]);
    assert_eq!([word(48), word(52), word(56)], [MAX_WRITE_ZEROES, 1, 1]);
}

#[test]
fn answers_that_come_later_are_all_there_after_a_stop() {
    let disk = TestDisk::later();
    let mut driver = Driver::new(&disk);
    header(&driver.machine.memory, BUFFERS, IN, 0);
    for at in 0..8 {
        driver.ring.add(&[
            Part::Read(BUFFERS, 16),
            Part::Write(DATA, 512),
            Part::Write(STATUS + at, 1),
        ]);
    }
    driver.machine.write(0x50, 0);
    driver.machine.transport.pause();
    // Started and notified only now, so that the stop finds them in flight.
    driver.machine.transport.resume();
    driver.machine.transport.pause();
    assert_eq!(driver.ring.used_index(), 8);
    assert_ne!(driver.machine.interrupts(), 0);
    let at = driver.machine.transport.save().unwrap().queues[0].1.unwrap();
    assert_eq!((at.next_avail, at.next_used), (8, 8));
}

#[test]
fn a_file_that_shrank_gives_errors_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    image(&path);
    let machine = Machine::new(on_file(&path));
    let ring = &mut machine.bring_up(machine.offered())[0];
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(512)
        .unwrap();
    for (sector, status) in [(0, 0), (1, 1), (0, 0)] {
        header(&machine.memory, BUFFERS, 0, sector);
        ring.add(&[Part::Read(BUFFERS, 16), Part::Write(BUFFERS + 16, 513)]);
        machine.notify(0);
        assert_eq!(
            machine
                .memory
                .read_obj::<u8>(GuestAddress(BUFFERS + 16 + 512))
                .unwrap(),
            status
        );
    }
}
