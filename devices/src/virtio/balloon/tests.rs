use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use proptest::arbitrary::any;
use proptest::collection::vec;
use proptest::proptest;
use proptest::test_runner::Config;
use vm_memory::{Bytes, GuestAddress};

use super::pages::ranges;
use super::*;
use crate::Memory;
use crate::virtio::conformance::ring::{Part, Ring};
use crate::virtio::conformance::{self, BUFFERS, MEMORY_END, Machine, Request, Subject, VERSION_1};

/// Makes what is given back read as zeros, and remembers it.
#[derive(Clone, Default)]
struct Returned(Arc<Mutex<Vec<Range<u64>>>>);

impl Returned {
    fn take(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl PageReturner for Returned {
    fn give_back(&self, memory: &Memory, addr: GuestAddress, len: u64) -> io::Result<()> {
        assert_eq!((addr.0 % PAGE, len % PAGE), (0, 0), "whole pages");
        let zeros = vec![0; len as usize];
        memory.write_slice(&zeros, addr).map_err(io::Error::other)?;
        self.0.lock().unwrap().push(addr.0..addr.0 + len);
        Ok(())
    }
}

const EVERYTHING: BalloonConfig = BalloonConfig {
    target_pages: 7,
    deflate_on_oom: true,
    // The tests ring themselves.
    stats_interval: Duration::from_secs(1_000_000),
    free_page_reporting: true,
    free_page_hinting: true,
};
const OWN: u64 = DEFLATE_ON_OOM | STATS | HINTING | REPORTING;

fn balloon() -> Box<dyn VirtioDevice> {
    Box::new(Balloon::new(EVERYTHING, Box::new(Returned::default())).unwrap().0)
}

/// A started balloon with all its queues.
struct Bench {
    machine: Machine,
    rings: Vec<Ring>,
    returned: Returned,
    handle: BalloonHandle,
}

fn bench(config: BalloonConfig, features: u64) -> Bench {
    let returned = Returned::default();
    let (balloon, handle) = Balloon::new(config, Box::new(returned.clone())).unwrap();
    let machine = Machine::new(Box::new(balloon));
    let rings = machine.bring_up(VERSION_1 | features);
    Bench {
        machine,
        rings,
        returned,
        handle,
    }
}

impl Bench {
    /// Gives `bytes` to the driver's queue `index` and returns what is given back of it.
    fn send(&mut self, index: usize, bytes: &[u8]) -> Option<(u32, u32)> {
        self.machine
            .memory
            .write_slice(bytes, GuestAddress(BUFFERS))
            .unwrap();
        self.rings[index].add(&[Part::Read(BUFFERS, bytes.len() as u32)]);
        self.machine.notify(index as u16);
        self.rings[index].take_used()
    }

    /// Runs a call of the handle's while the device works.
    fn control<T: Send>(&self, call: impl FnOnce(&BalloonHandle) -> T + Send) -> T {
        self.machine.device.serve_while(|| call(&self.handle))
    }

    fn config(&self, at: u64) -> u32 {
        self.machine.read(0x100 + at)
    }
}

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

#[test]
fn conforms() {
    conformance::run(&Subject {
        make: Box::new(balloon),
        request: Request {
            queue: 0,
            prepare: Box::new(|memory, base, number| {
                let page = base + PAGE;
                memory.write_slice(&[0xaa; 2 * 4096], GuestAddress(page)).unwrap();
                // The list is cut in the middle of a number.
                let list = numbers(&[(page / PAGE) as u32, number.wrapping_mul(0x9e37_79b9) | 1 << 31]);
                memory.write_slice(&list, GuestAddress(base)).unwrap();
                vec![Part::Read(base, 3), Part::Read(base + 3, 5)]
            }),
            verify: Box::new(|memory, base, _, written| {
                assert_eq!(written, 0);
                let mut bytes = [0; 2 * 4096];
                memory.read_slice(&mut bytes, GuestAddress(base + PAGE)).unwrap();
                assert_eq!(bytes[..4096], [0; 4096], "the page that was given up");
                assert_eq!(bytes[4096..], [0xaa; 4096], "its neighbour");
            }),
        },
    });
}

#[test]
fn neighbouring_pages_are_given_back_together_and_only_ram_is() {
    let mut bench = bench(EVERYTHING, OWN);
    let end = (MEMORY_END / PAGE) as u32;
    bench.send(
        0,
        &numbers(&[
            258,
            end,
            257,
            u32::MAX,
            256,
            end - 1,
            257,
            300,
            0x1000 + 0x100,
            0x1000 + 0xff,
        ]),
    );
    // The last one named is the end of the region apart.
    let apart = 0x100_0000 + 0xff * PAGE;
    assert_eq!(
        bench.returned.take(),
        [
            256 * PAGE..259 * PAGE,
            300 * PAGE..301 * PAGE,
            MEMORY_END - PAGE..MEMORY_END,
            apart..apart + PAGE
        ]
    );
    // Taking back needs nothing but an answer.
    assert!(bench.send(1, &numbers(&[256])).is_some());
    assert_eq!(bench.returned.take(), []);
}

#[test]
fn a_request_with_too_many_pages_is_answered_and_taken_in_part() {
    let mut bench = bench(EVERYTHING, OWN);
    let pages: Vec<u32> = (0..MOST_PAGES as u32 + 10).map(|n| 0x4000 + n).collect();
    let len = pages.len() as u32 * 4;
    let list = numbers(&pages);
    let inside = numbers(&[300]);
    bench
        .machine
        .memory
        .write_slice(&list, GuestAddress(BUFFERS))
        .unwrap();
    bench
        .machine
        .memory
        .write_slice(&inside, GuestAddress(BUFFERS + u64::from(len)))
        .unwrap();
    bench.rings[0].add(&[Part::Read(BUFFERS, len + 4)]);
    bench.machine.notify(0);
    assert!(bench.rings[0].take_used().is_some());
    assert_eq!(bench.returned.take(), [], "none of the first ones is RAM");
    assert!(bench.send(0, &inside).is_some(), "the next request is served");
}

#[test]
fn the_target_reaches_the_driver_and_its_answer_the_handle() {
    let bench = bench(EVERYTHING, OWN);
    assert_eq!(bench.config(0), 7);
    bench.control(|handle| handle.set_target(1000)).unwrap();
    assert_eq!((bench.config(0), bench.machine.acknowledge()), (1000, 2));
    bench.machine.write(0x104, 999);
    let status = bench.control(BalloonHandle::status).unwrap();
    assert_eq!((status.target_pages, status.actual_pages), (1000, 999));
    // The rest of the configuration is not the driver's.
    bench.machine.write(0x100, 5);
    assert_eq!(bench.config(0), 1000);
}

#[test]
fn a_target_set_while_the_queues_stand_still_is_told_afterwards() {
    let bench = bench(EVERYTHING, OWN);
    bench.machine.transport.pause();
    bench.control(|handle| handle.set_target(1)).unwrap();
    bench.machine.acknowledge();
    bench.machine.transport.resume();
    assert_eq!(bench.machine.acknowledge() & 2, 2);
}

/// A report of two statistics and one that nobody knows.
fn report(free: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (tag, value) in [(4_u16, free), (99, 1), (5, 1 << 40)] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([4, 0, 1]);
    bytes
}

#[test]
fn a_report_stays_with_the_device_until_the_next_one_is_due() {
    let mut bench = bench(EVERYTHING, OWN);
    assert_eq!(bench.send(2, &report(100)), None);
    let stats = bench.control(BalloonHandle::status).unwrap().stats;
    let expected = BalloonStats {
        free_memory: Some(100),
        total_memory: Some(1 << 40),
        ..BalloonStats::default()
    };
    assert_eq!(stats, expected);
    // A pause does not cost the driver its buffer.
    bench.machine.transport.pause();
    bench.machine.transport.resume();
    assert_eq!(bench.rings[2].take_used(), None);
    let used = bench.rings[2].used_index();
    bench
        .control(|handle| handle.set_stats_interval(Duration::from_millis(1)))
        .unwrap();
    bench.machine.device.wait(|| bench.rings[2].used_index() != used);
    assert!(bench.rings[2].take_used().is_some());
    bench.send(2, &report(50));
    let stats = bench.control(BalloonHandle::status).unwrap().stats;
    assert_eq!(stats.free_memory, Some(50));
}

#[test]
fn a_second_report_frees_the_first_ones_buffer() {
    let mut bench = bench(EVERYTHING, OWN);
    assert_eq!(bench.send(2, &report(1)), None);
    assert_eq!(bench.send(2, &report(2)), Some((0, 0)));
    bench.machine.transport.pause();
    let state = bench.machine.transport.save().unwrap();
    let at = state.queues[2].1.unwrap();
    assert_eq!(at.next_avail, at.next_used);
}

#[test]
fn statistics_stay_as_the_device_was_made() {
    let without = BalloonConfig {
        stats_interval: Duration::ZERO,
        ..EVERYTHING
    };
    let interval = |handle: &BalloonHandle, seconds| handle.set_stats_interval(Duration::from_secs(seconds));
    assert_eq!(
        bench(without, 0).control(|handle| interval(handle, 1)),
        Err(BalloonError::NoStats)
    );
    assert_eq!(
        bench(EVERYTHING, 0).control(|handle| interval(handle, 0)),
        Err(BalloonError::StatsStay)
    );
}

#[test]
fn queues_are_counted_over_what_was_negotiated() {
    let roles = |features| [0, 1, 2, 3, 4, 5].map(|index| role(index, OWN, features));
    let (stats, hinting, reporting) = (Some(Role::Stats), Some(Role::Hinting), Some(Role::Reporting));
    let unused = Some(Role::Unused);
    assert_eq!(roles(OWN)[2..], [stats, hinting, reporting, None]);
    assert_eq!(
        roles(HINTING | REPORTING)[2..],
        [hinting, reporting, unused, None]
    );
    assert_eq!(roles(REPORTING)[2..], [reporting, unused, unused, None]);
    assert_eq!(
        role(2, RING_FEATURES, u64::MAX),
        None,
        "queues that the device has not"
    );
}

#[test]
fn reported_pages_are_given_back_whole() {
    let mut bench = bench(EVERYTHING, OWN);
    bench.rings[4].add(&[
        Part::Write(BUFFERS + 100, 3 * PAGE as u32),
        Part::Write(BUFFERS + 0x10_0000, PAGE as u32),
        Part::Write(BUFFERS, 4095),
    ]);
    bench.machine.notify(4);
    assert_eq!(bench.rings[4].take_used(), Some((0, 0)));
    assert_eq!(
        bench.returned.take(),
        [
            BUFFERS + PAGE..BUFFERS + 3 * PAGE,
            BUFFERS + 0x10_0000..BUFFERS + 0x10_0000 + PAGE
        ]
    );
}

#[test]
fn hinted_pages_are_given_back_only_while_host_and_guest_agree_on_the_run() {
    let mut bench = bench(EVERYTHING, OWN);
    let page = [Part::Write(BUFFERS + 0x10_0000, 2 * PAGE as u32)];
    let hint = |bench: &mut Bench| {
        bench.rings[3].add(&page);
        bench.machine.notify(3);
        assert!(bench.rings[3].take_used().is_some());
        bench.returned.take().len()
    };
    assert_eq!(hint(&mut bench), 0, "before a run");
    bench.control(|handle| handle.start_hinting(false)).unwrap();
    let run = bench.config(8);
    assert_eq!(run, 2);
    assert_eq!(hint(&mut bench), 0, "before the guest has seen the run");
    bench.send(3, &run.to_le_bytes());
    assert_eq!(hint(&mut bench), 1);
    bench.send(3, &CMD_STOP.to_le_bytes());
    assert_eq!(bench.config(8), run, "the guest's pages are not released yet");
    assert_eq!(hint(&mut bench), 0, "after the guest's end");
    bench.control(BalloonHandle::stop_hinting).unwrap();
    assert_eq!(bench.config(8), CMD_DONE);

    bench.control(|handle| handle.start_hinting(true)).unwrap();
    bench.send(3, &3_u32.to_le_bytes());
    bench.send(3, &[0]);
    bench.send(3, &CMD_STOP.to_le_bytes());
    assert_eq!(bench.config(8), CMD_DONE, "released by itself");
    let hinting = bench.control(BalloonHandle::hinting).unwrap();
    let expected = Hinting {
        host_cmd: CMD_DONE,
        guest_cmd: Some(CMD_STOP),
    };
    assert_eq!(hinting, expected);
}

#[test]
fn a_balloon_without_hinting_says_so() {
    let config = BalloonConfig {
        free_page_hinting: false,
        ..EVERYTHING
    };
    let bench = bench(config, 0);
    assert_eq!(
        bench.control(|handle| handle.start_hinting(true)),
        Err(BalloonError::NoHinting)
    );
}

#[test]
fn a_restored_balloon_is_as_full_as_before() {
    let first = bench(EVERYTHING, OWN);
    first.control(|handle| handle.set_target(500)).unwrap();
    first.machine.write(0x104, 400);
    first.machine.transport.pause();
    let state = first.machine.transport.save().unwrap();
    let (balloon, handle) = Balloon::new(EVERYTHING, Box::new(Returned::default())).unwrap();
    let machine = Machine::with_memory(Box::new(balloon), first.machine.memory.clone());
    machine.transport.restore(&state).unwrap();
    machine.transport.resume();
    let second = Bench {
        machine,
        rings: Vec::new(),
        returned: Returned::default(),
        handle,
    };
    let status = second.control(BalloonHandle::status).unwrap();
    assert_eq!((status.target_pages, status.actual_pages), (500, 400));
    assert_eq!((second.config(0), second.config(4)), (500, 400));
}

#[test]
fn a_driver_that_begins_anew_has_all_its_memory() {
    let bench = bench(EVERYTHING, OWN);
    bench.machine.write(0x104, 400);
    bench.machine.bring_up(VERSION_1 | OWN);
    assert_eq!(bench.control(BalloonHandle::status).unwrap().actual_pages, 0);
}

proptest! {
    #[test]
    fn ranges_hold_each_page_once(pages in vec(0..40_u32, 0..60)) {
        let mut sorted = pages.clone();
        let found: Vec<_> = ranges(&mut sorted).collect();
        let covered: Vec<u32> =
            found.iter().flat_map(|range| (range.start / PAGE) as u32..(range.end / PAGE) as u32).collect();
        let expected: Vec<u32> = pages.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        assert_eq!(covered, expected);
        assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start), "neighbours are one range");
    }
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn survives_any_driver(data in vec(any::<u8>(), 0..600)) {
        conformance::fuzz_mmio(balloon(), &data);
        conformance::fuzz_queue(balloon(), &data);
    }
}
