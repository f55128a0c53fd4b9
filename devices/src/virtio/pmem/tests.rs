//! Flushes: when they are answered, how often the host is asked, and what a guest is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use proptest::arbitrary::any;
use proptest::proptest;
use proptest::test_runner::Config;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::limiter::BucketConfig;
use crate::storage::{Engine, FileDisk, FileOptions};
use crate::virtio::conformance::ring::{Part, Ring};
use crate::virtio::conformance::{self, BUFFERS, Machine, NEEDS_RESET, Request, Subject, VERSION_1};

const START: u64 = 1 << 32;

/// What a host does with flushes, as the test says.
#[derive(Clone, Default)]
struct Host(Arc<Mutex<Desk>>);

#[derive(Default)]
struct Desk {
    /// Flushes that were begun.
    begun: usize,
    /// How those that are under way end; empty while nothing has.
    ends: VecDeque<bool>,
    event: Option<Arc<EventFd>>,
}

impl Host {
    /// Ends the flush that is under way.
    fn end(&self, well: bool) {
        let mut desk = self.0.lock().unwrap();
        desk.ends.push_back(well);
        desk.event.as_ref().unwrap().write(1).unwrap();
    }

    fn begun(&self) -> usize {
        self.0.lock().unwrap().begun
    }
}

impl DiskBackend for Host {
    fn name(&self) -> String {
        "a file".to_owned()
    }

    fn size(&self) -> u64 {
        1000
    }

    fn writable(&self) -> bool {
        true
    }

    fn notify(&mut self, event: Arc<EventFd>) {
        self.0.lock().unwrap().event = Some(event);
    }

    fn submit(&mut self, _: u16, operation: Operation<'_>) -> Option<io::Result<()>> {
        assert!(matches!(operation, Operation::Flush));
        self.0.lock().unwrap().begun += 1;
        None
    }

    fn completed(&mut self, _: bool) -> Option<(u16, io::Result<()>)> {
        let well = self.0.lock().unwrap().ends.pop_front()?;
        Some((
            TOKEN,
            if well {
                Ok(())
            } else {
                Err(io::ErrorKind::StorageFull.into())
            },
        ))
    }
}

/// A device on `host`, and its queue.
fn device(host: &Host, limits: LimiterConfig) -> (Machine, Ring, PmemHandle) {
    let (device, handle) = Pmem::new(Box::new(host.clone()), START, ALIGNMENT)
        .controlled(limits)
        .unwrap();
    let machine = Machine::new(Box::new(device));
    let ring = machine.bring_up(VERSION_1).remove(0);
    (machine, ring, handle)
}

/// Asks for something, by its type.
fn ask(machine: &Machine, ring: &mut Ring, number: u64, kind: u32) {
    let base = BUFFERS + number * 16;
    machine
        .memory
        .write_obj(kind.to_le(), GuestAddress(base))
        .unwrap();
    machine.memory.write_obj(77_u32, GuestAddress(base + 8)).unwrap();
    ring.add(&[Part::Read(base, 4), Part::Write(base + 8, 4)]);
}

/// What the device answered to request `number`.
fn answer(machine: &Machine, number: u64) -> u32 {
    u32::from_le(
        machine
            .memory
            .read_obj(GuestAddress(BUFFERS + number * 16 + 8))
            .unwrap(),
    )
}

fn subject(make: impl Fn(Pmem) -> Pmem + 'static) -> Subject {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(ALIGNMENT).unwrap();
    Subject {
        make: Box::new(move || {
            let options = FileOptions {
                engine: Engine::Threads,
                ..FileOptions::default()
            };
            let disk = FileDisk::open_with(file.path(), options).unwrap();
            Box::new(make(Pmem::new(Box::new(disk), START, ALIGNMENT)))
        }),
        request: Request {
            queue: 0,
            prepare: Box::new(|memory, base, _| {
                memory.write_obj(FLUSH.to_le(), GuestAddress(base)).unwrap();
                memory.write_obj(77_u32, GuestAddress(base + 8)).unwrap();
                vec![Part::Read(base, 4), Part::Write(base + 8, 4)]
            }),
            verify: Box::new(|memory, base, _, written| {
                assert_eq!(written, 4);
                let answer: u32 = memory.read_obj(GuestAddress(base + 8)).unwrap();
                assert_eq!(u32::from_le(answer), SUCCESS);
            }),
        },
    }
}

#[test]
fn conforms() {
    conformance::run(&subject(|device| device));
}

#[test]
fn conforms_with_a_thread_that_flushes_and_limits() {
    let bucket = |size| {
        Some(BucketConfig {
            size,
            refill_ms: 2,
            burst: 0,
        })
    };
    let limits = LimiterConfig {
        bandwidth: bucket(ALIGNMENT * 100),
        ops: bucket(50),
    };
    conformance::run(&subject(move |device| device.controlled(limits).unwrap().0));
}

#[test]
fn the_configuration_says_where_the_memory_is() {
    let device = Pmem::new(Box::new(Host::default()), START, 3 * ALIGNMENT);
    let mut config = [0; 16];
    device.read_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), START);
    assert_eq!(u64::from_le_bytes(config[8..].try_into().unwrap()), 3 * ALIGNMENT);
}

#[test]
fn a_flush_is_answered_when_the_host_is_done_and_no_sooner() {
    let host = Host::default();
    let (machine, mut ring, _handle) = device(&host, LimiterConfig::default());
    ask(&machine, &mut ring, 0, FLUSH);
    machine.notify(0);
    assert_eq!((host.begun(), ring.used_index()), (1, 0));
    host.end(true);
    machine.device.pump();
    assert_eq!(
        (ring.take_used().map(|(_, written)| written), answer(&machine, 0)),
        (Some(4), SUCCESS)
    );
}

#[test]
fn flushes_that_wait_together_are_one_and_later_ones_another() {
    let host = Host::default();
    let (machine, mut ring, _handle) = device(&host, LimiterConfig::default());
    for number in 0..3 {
        ask(&machine, &mut ring, number, FLUSH);
    }
    machine.notify(0);
    for number in 3..5 {
        ask(&machine, &mut ring, number, FLUSH);
        machine.notify(0);
    }
    // What was asked for after a flush began must not be answered by it.
    assert_eq!(host.begun(), 1);
    host.end(true);
    machine.device.pump();
    assert_eq!((host.begun(), ring.used_index()), (2, 3));
    host.end(true);
    machine.device.pump();
    assert_eq!((host.begun(), ring.used_index()), (2, 5));
}

#[test]
fn the_guest_is_told_when_the_host_could_not_flush() {
    let host = Host::default();
    let (machine, mut ring, _handle) = device(&host, LimiterConfig::default());
    for number in 0..2 {
        ask(&machine, &mut ring, number, FLUSH);
    }
    machine.notify(0);
    host.end(false);
    machine.device.pump();
    assert_eq!([0, 1].map(|number| answer(&machine, number)), [FAILURE; 2]);
    ask(&machine, &mut ring, 2, FLUSH);
    machine.notify(0);
    host.end(true);
    machine.device.pump();
    assert_eq!(answer(&machine, 2), SUCCESS);
}

#[test]
fn what_is_no_flush_fails_and_what_has_no_room_for_an_answer_needs_a_reset() {
    let host = Host::default();
    let (machine, mut ring, _handle) = device(&host, LimiterConfig::default());
    ask(&machine, &mut ring, 0, 1);
    machine
        .memory
        .write_obj(77_u32, GuestAddress(BUFFERS + 24))
        .unwrap();
    ring.add(&[Part::Read(BUFFERS, 3), Part::Write(BUFFERS + 24, 4)]);
    machine.notify(0);
    assert_eq!([0, 1].map(|number| answer(&machine, number)), [FAILURE; 2]);
    ring.add(&[Part::Read(BUFFERS, 4), Part::Write(BUFFERS + 24, 3)]);
    machine.notify(0);
    assert_ne!(machine.status() & NEEDS_RESET, 0);
    assert_eq!(host.begun(), 0);
}

#[test]
fn limits_put_flushes_off_until_they_change() {
    let once = BucketConfig {
        size: 1,
        refill_ms: 1_000_000,
        burst: 0,
    };
    let limits = LimiterConfig {
        bandwidth: None,
        ops: Some(once),
    };
    let host = Host::default();
    let (machine, mut ring, handle) = device(&host, limits);
    for number in 0..2 {
        ask(&machine, &mut ring, number, FLUSH);
        machine.notify(0);
        host.end(true);
        machine.device.pump();
    }
    assert_eq!((host.begun(), ring.used_index()), (1, 1));
    let none = BucketConfig {
        size: 0,
        refill_ms: 0,
        burst: 0,
    };
    let change = LimiterChange {
        bandwidth: None,
        ops: Some(none),
    };
    machine
        .device
        .serve_while(move || handle.set_limits(change).unwrap());
    // Its end was told before it began.
    machine.device.wait(|| ring.used_index() == 2);
}

#[test]
fn a_state_of_another_size_or_place_is_refused() {
    let saved = Pmem::new(Box::new(Host::default()), START, ALIGNMENT).save();
    for (start, size, fits) in [
        (START, ALIGNMENT, true),
        (START, 2 * ALIGNMENT, false),
        (2 * START, ALIGNMENT, false),
    ] {
        let mut device = Pmem::new(Box::new(Host::default()), start, size);
        assert_eq!(device.restore(&saved).is_ok(), fits);
    }
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn survives_any_driver(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        let subject = subject(|device| device.controlled(LimiterConfig::default()).unwrap().0);
        conformance::fuzz_mmio((subject.make)(), &data);
        conformance::fuzz_queue((subject.make)(), &data);
    }
}
