mod control;
mod failures;
mod qcow2;
mod requests;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::arbitrary::any;
use proptest::proptest;
use proptest::test_runner::Config;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::limiter::LimiterConfig;
use crate::storage::{Engine, FileDisk, ImageFormat, OverlayDisk, StaticDisk};
use crate::virtio::conformance::ring::Part;
use crate::virtio::conformance::{self, Request, Subject};

const SECTORS: u64 = 64;

type Answer = (u16, io::Result<()>);

/// A disk in memory that can be told to fail or to answer later, and remembers what it was asked.
#[derive(Clone, Default)]
struct TestDisk(Arc<Mutex<TestState>>);

#[derive(Default)]
struct TestState {
    bytes: Vec<u8>,
    log: Vec<&'static str>,
    /// Errors for the next operations.
    errors: VecDeque<io::Error>,
    /// Answers come later: they wait here, last first.
    later: Option<Vec<Answer>>,
    event: Option<Arc<EventFd>>,
}

impl TestDisk {
    fn new() -> Self {
        let bytes = vec![0; (SECTORS * SECTOR) as usize];
        Self(Arc::new(Mutex::new(TestState {
            bytes,
            ..Default::default()
        })))
    }

    fn later() -> Self {
        let disk = Self::new();
        disk.0.lock().unwrap().later = Some(Vec::new());
        disk
    }

    fn fail(&self, errors: &[i32]) {
        self.0
            .lock()
            .unwrap()
            .errors
            .extend(errors.iter().map(|errno| io::Error::from_raw_os_error(*errno)));
    }

    fn log(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }
}

impl TestState {
    fn run(&mut self, operation: Operation<'_>) -> io::Result<()> {
        let (name, result) = match operation {
            Operation::Read { offset, mut to } => {
                to.copy_from(&self.bytes[offset as usize..]);
                ("read", Ok(()))
            }
            Operation::Write { offset, mut from } => {
                from.copy_to(&mut self.bytes[offset as usize..]);
                ("write", Ok(()))
            }
            Operation::Flush => ("flush", Ok(())),
            Operation::Discard { .. } => ("discard", Ok(())),
            Operation::WriteZeroes { offset, len, .. } => {
                self.bytes[offset as usize..][..len as usize].fill(0);
                ("write zeroes", Ok(()))
            }
        };
        self.log.push(name);
        self.errors.pop_front().map_or(result, Err)
    }
}

impl DiskBackend for TestDisk {
    fn name(&self) -> String {
        "test".to_owned()
    }
    fn size(&self) -> u64 {
        SECTORS * SECTOR
    }
    fn writable(&self) -> bool {
        true
    }
    fn submit(&mut self, token: u16, operation: Operation<'_>) -> Option<io::Result<()>> {
        let mut state = self.0.lock().unwrap();
        let result = state.run(operation);
        let state = &mut *state;
        let (Some(answers), Some(event)) = (&mut state.later, &state.event) else {
            return Some(result);
        };
        answers.push((token, result));
        event.write(1).unwrap();
        None
    }
    fn notify(&mut self, event: Arc<EventFd>) {
        self.0.lock().unwrap().event = Some(event);
    }
    fn completed(&mut self, _: bool) -> Option<Answer> {
        self.0.lock().unwrap().later.as_mut()?.pop()
    }
}

/// A disk that `backend` can answer later.
fn disk(backend: impl DiskBackend + 'static, config: BlockConfig) -> Box<dyn VirtioDevice> {
    let block = Block::new(Box::new(backend), config).controlled(LimiterConfig::default());
    Box::new(block.unwrap().0)
}

/// Writes a sector, then reads it back, and so on.
fn write_then_read() -> Request {
    requests(|number| u64::from(number / 2) % SECTORS)
}

/// Writes to the first half of the disk and reads from the other, which is full of patterns: for disks that answer in any order.
fn write_or_read() -> Request {
    const HALF: u64 = SECTORS / 2;
    requests(|number| u64::from(number / 2) % HALF + u64::from(number % 2) * HALF)
}

fn pattern(number: u32) -> [u8; SECTOR as usize] {
    [(number / 2 % (SECTORS / 2) as u32) as u8 ^ 0x5a; SECTOR as usize]
}

/// Even requests write and odd ones read, at the sector that `at` says.
fn requests(at: impl Fn(u32) -> u64 + 'static) -> Request {
    Request {
        queue: 0,
        prepare: Box::new(move |memory, base, number| {
            let data = base + 0x1000;
            header(memory, base, 1 - number % 2, at(number));
            memory.write_slice(&[0xff], GuestAddress(base + 0x2000)).unwrap();
            let (data, len) = if number.is_multiple_of(2) {
                memory.write_slice(&pattern(number), GuestAddress(data)).unwrap();
                (Part::Read(data, 300), 212)
            } else {
                memory
                    .write_slice(&[0; SECTOR as usize], GuestAddress(data))
                    .unwrap();
                (Part::Write(data, 300), 212)
            };
            let rest = match data {
                Part::Read(at, done) => Part::Read(at + u64::from(done), len),
                Part::Write(at, done) => Part::Write(at + u64::from(done), len),
            };
            vec![Part::Read(base, 16), data, rest, Part::Write(base + 0x2000, 1)]
        }),
        verify: Box::new(move |memory, base, number, written| {
            assert_eq!(
                memory.read_obj::<u8>(GuestAddress(base + 0x2000)).unwrap(),
                0,
                "status"
            );
            let mut data = [0; SECTOR as usize];
            memory.read_slice(&mut data, GuestAddress(base + 0x1000)).unwrap();
            assert_eq!(data, pattern(number));
            assert_eq!(written, if number.is_multiple_of(2) { 1 } else { 513 });
        }),
    }
}

fn header(memory: &crate::Memory, at: u64, kind: u32, sector: u64) {
    memory.write_slice(&kind.to_le_bytes(), GuestAddress(at)).unwrap();
    memory.write_slice(&[0; 4], GuestAddress(at + 4)).unwrap();
    memory
        .write_slice(&sector.to_le_bytes(), GuestAddress(at + 8))
        .unwrap();
}

fn image(path: &Path) {
    File::create(path).unwrap().set_len(SECTORS * SECTOR).unwrap();
}

fn on_file(path: &Path) -> Box<dyn VirtioDevice> {
    let disk = FileDisk::open(path, false).unwrap();
    Box::new(Block::new(Box::new(disk), BlockConfig::default()))
}

#[test]
fn a_disk_in_a_file_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    image(&path);
    conformance::run(&Subject {
        make: Box::new(move || on_file(&path)),
        request: write_then_read(),
    });
}

#[test]
fn a_disk_that_answers_later_conforms() {
    let disk = TestDisk::later();
    conformance::run(&Subject {
        make: Box::new(move || self::disk(disk.clone(), BlockConfig::default())),
        request: write_then_read(),
    });
}

#[test]
fn a_disk_with_several_queues_conforms() {
    for number in 0..3 {
        let disk = TestDisk::later();
        let config = BlockConfig {
            queues: 3,
            ..Default::default()
        };
        conformance::run(&Subject {
            make: Box::new(move || self::disk(disk.clone(), config)),
            request: Request {
                queue: number,
                ..write_then_read()
            },
        });
    }
}

#[test]
fn every_engine_conforms_past_the_page_cache_and_through_it() {
    // A file system with direct I/O, which that of temporary files need not be.
    let here = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(here.parent().unwrap()).unwrap();
    for engine in [Engine::Auto, Engine::Ring, Engine::Threads, Engine::Sync] {
        for direct in [false, true] {
            let path = folder.path().join("disk");
            image(&path);
            let half: Vec<u8> = (0..SECTORS as u32).step_by(2).flat_map(pattern).collect();
            let disk_file = File::options().write(true).open(&path).unwrap();
            disk_file.write_all_at(&half, half.len() as u64).unwrap();
            let options = FileOptions {
                direct,
                engine,
                ..Default::default()
            };
            conformance::run(&Subject {
                make: Box::new(move || {
                    disk(
                        FileDisk::open_with(&path, options).unwrap(),
                        BlockConfig::default(),
                    )
                }),
                request: write_or_read(),
            });
        }
    }
}

#[test]
fn an_overlay_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    image(&base);
    let path = folder.path().join("overlay");
    conformance::run(&Subject {
        make: Box::new(move || {
            let disk = OverlayDisk::open(&base, ImageFormat::Raw, &path).unwrap();
            Box::new(Block::new(Box::new(disk), BlockConfig::default()))
        }),
        request: write_then_read(),
    });
}

#[test]
fn a_disk_that_is_part_of_the_program_conforms() {
    static IMAGE: [u8; 1000] = [0xab; 1000];
    let request = Request {
        queue: 0,
        prepare: Box::new(|memory, base, number| {
            header(memory, base, 0, u64::from(number % 2));
            memory.write_slice(&[0xff; 600], GuestAddress(base + 16)).unwrap();
            vec![Part::Read(base, 16), Part::Write(base + 16, 513)]
        }),
        verify: Box::new(|memory, base, number, written| {
            let mut data = [0; 514];
            memory.read_slice(&mut data, GuestAddress(base + 16)).unwrap();
            let image = if number.is_multiple_of(2) { 512 } else { 1000 - 512 };
            assert!(data[..image].iter().all(|byte| *byte == 0xab));
            assert!(
                data[image..512].iter().all(|byte| *byte == 0),
                "the rest of the last sector"
            );
            assert_eq!((&data[512..], written), (&[0, 0xff][..], 513));
        }),
    };
    let make = || -> Box<dyn VirtioDevice> {
        Box::new(Block::new(
            Box::new(StaticDisk::new(&IMAGE)),
            BlockConfig::default(),
        ))
    };
    conformance::run(&Subject {
        make: Box::new(make),
        request,
    });
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn survives_any_driver(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        for disk in [TestDisk::new(), TestDisk::later()] {
            let config = BlockConfig { queues: 2, ..Default::default() };
            let device = || self::disk(disk.clone(), config);
            conformance::fuzz_mmio(device(), &data);
            conformance::fuzz_queue(device(), &data);
        }
    }
}
