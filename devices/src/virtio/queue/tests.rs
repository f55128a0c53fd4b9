mod wakeups;

use std::os::fd::AsFd;
use std::sync::Mutex;

use super::*;
use crate::virtio::conformance::ring::{INDIRECT, NEXT, Part, RawDescriptor, Ring, WRITE};

const SIZE: u16 = 16;
const RING: u64 = 0x1000;
const TABLE: u64 = 0x4000;
const DATA: u64 = 0x8000;
/// Two regions that touch, then nothing.
const SPLIT: u64 = 0x10_000;
const END: u64 = 0x20_000;

#[derive(Default)]
struct Recorder {
    used: Mutex<Vec<u16>>,
    resets: Mutex<u32>,
}

impl DeviceInterrupt for Recorder {
    fn used_buffer(&self, index: u16) {
        self.used.lock().unwrap().push(index);
    }
    fn config_changed(&self) {}
    fn needs_reset(&self) {
        *self.resets.lock().unwrap() += 1;
    }
}

impl Recorder {
    fn interrupts(&self) -> usize {
        self.used.lock().unwrap().len()
    }
    fn resets(&self) -> u32 {
        *self.resets.lock().unwrap()
    }
}

fn memory() -> Arc<Memory> {
    let regions = [
        (GuestAddress(0), SPLIT as usize),
        (GuestAddress(SPLIT), (END - SPLIT) as usize),
    ];
    Arc::new(Memory::from_ranges(&regions).unwrap())
}

fn resources(ring: &Ring, memory: &Arc<Memory>, features: u64, interrupt: Arc<Recorder>) -> QueueResources {
    let mut queue = Queue::new(ring.size).unwrap();
    queue.try_set_size(ring.size).unwrap();
    queue.try_set_desc_table_address(GuestAddress(ring.desc)).unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(ring.avail))
        .unwrap();
    queue.try_set_used_ring_address(GuestAddress(ring.used)).unwrap();
    queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
    queue.set_ready(true);
    let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    QueueResources {
        memory: memory.clone(),
        queue,
        kick,
        interrupt,
        features,
        counters: Arc::default(),
    }
}

fn queue_with(features: u64) -> (Ring, DeviceQueue, Arc<Recorder>) {
    let memory = memory();
    let ring = Ring::new(memory.clone(), RING, SIZE);
    let interrupt = Arc::new(Recorder::default());
    let queue = DeviceQueue::new(3, resources(&ring, &memory, features, interrupt.clone()), None).unwrap();
    (ring, queue, interrupt)
}

fn set_up() -> (Ring, DeviceQueue, Arc<Recorder>) {
    queue_with(RING_FEATURES)
}

#[test]
fn a_chain_arrives_whole_and_in_order() {
    let (mut ring, mut queue, _) = set_up();
    let head = ring.add(&[Part::Read(DATA, 3), Part::Read(0x9000, 5), Part::Write(0xa000, 7)]);
    queue.memory().write_slice(b"abc", GuestAddress(DATA)).unwrap();
    queue
        .memory()
        .write_slice(b"defgh", GuestAddress(0x9000))
        .unwrap();

    let mut chain = queue.new_chain();
    assert!(queue.pop(&mut chain));
    assert_eq!(
        (chain.head(), chain.readable_len(), chain.writable_len()),
        (head, 8, 7)
    );
    assert_eq!(chain.readable().len(), 2);
    let mut data = [0; 10];
    assert_eq!(chain.read_at(1, &mut data), 7);
    assert_eq!(&data[..7], b"bcdefgh");
    assert_eq!(chain.write_at(2, b"0123456"), 5);
    queue.complete(chain.head(), 7);
    assert_eq!(ring.take_used(), Some((u32::from(head), 7)));
    assert_eq!(ring.take_used(), None);
    assert!(!queue.pop(&mut chain));
    assert!(!queue.is_broken());
}

#[test]
fn an_indirect_table_may_follow_plain_descriptors_and_exceed_the_queue() {
    let (mut ring, mut queue, _) = set_up();
    let count = 40;
    for index in 0..count {
        let flags = if index + 1 < count { NEXT } else { 0 };
        let descriptor = RawDescriptor {
            addr: DATA,
            len: 1,
            flags,
            next: index + 1,
        };
        ring.descriptor(TABLE, index, descriptor);
    }
    ring.descriptor(
        ring.desc,
        4,
        RawDescriptor {
            addr: DATA,
            len: 2,
            flags: NEXT,
            next: 9,
        },
    );
    let len = 16 * u32::from(count);
    ring.descriptor(
        ring.desc,
        9,
        RawDescriptor {
            addr: TABLE,
            len,
            flags: INDIRECT,
            next: 0,
        },
    );
    ring.offer(4);
    let mut chain = queue.new_chain();
    assert!(queue.pop(&mut chain));
    assert_eq!((chain.readable().len(), chain.readable_len()), (41, 42));
}

#[test]
fn a_buffer_across_two_regions_is_one_buffer() {
    let (mut ring, mut queue, _) = set_up();
    ring.add(&[Part::Write(SPLIT - 2, 4)]);
    let mut chain = queue.new_chain();
    assert!(queue.pop(&mut chain));
    assert_eq!(chain.write_at(0, b"wxyz"), 4);
    let mut segments = Segments::new();
    assert_eq!(chain.writable_io(&mut segments, 1, 10).segments().len(), 2);
    let mut back = [0; 4];
    queue
        .memory()
        .read_slice(&mut back, GuestAddress(SPLIT - 2))
        .unwrap();
    assert_eq!(&back, b"wxyz");
}

#[test]
fn empty_buffers_are_skipped_wherever_they_point() {
    let (mut ring, mut queue, _) = set_up();
    ring.add(&[Part::Read(u64::MAX, 0), Part::Read(DATA, 1), Part::Write(0, 0)]);
    let mut chain = queue.new_chain();
    assert!(queue.pop(&mut chain));
    assert_eq!((chain.readable().len(), chain.writable().len()), (1, 0));
}

/// Descriptors of the queue, then of the table at `TABLE`.
type Case = (&'static str, Vec<RawDescriptor>, Vec<RawDescriptor>);

#[test]
fn every_malformed_chain_breaks_the_queue_once_and_is_not_taken() {
    let read = |addr, len, flags, next| RawDescriptor {
        addr,
        len,
        flags,
        next,
    };
    let table = |len| read(TABLE, len, INDIRECT, 0);
    let cases: Vec<Case> = vec![
        ("loop onto itself", vec![read(DATA, 1, NEXT, 0)], vec![]),
        (
            "loop of two",
            vec![read(DATA, 1, NEXT, 1), read(DATA, 1, NEXT, 0)],
            vec![],
        ),
        ("next outside", vec![read(DATA, 1, NEXT, SIZE)], vec![]),
        ("next far outside", vec![read(DATA, 1, NEXT, u16::MAX)], vec![]),
        (
            "readable after writable",
            vec![read(DATA, 1, NEXT | WRITE, 1), read(DATA, 1, 0, 0)],
            vec![],
        ),
        ("past the end", vec![read(END - 1, 2, 0, 0)], vec![]),
        ("in no region", vec![read(END, 1, 0, 0)], vec![]),
        ("wraps", vec![read(u64::MAX - 1, 4, 0, 0)], vec![]),
        ("huge", vec![read(0, u32::MAX, 0, 0)], vec![]),
        ("empty table", vec![table(0)], vec![]),
        (
            "table of half descriptors",
            vec![table(24)],
            vec![read(DATA, 1, 0, 0)],
        ),
        (
            "table too long",
            vec![table(16 * (MAX_INDIRECT + 1))],
            vec![read(DATA, 1, 0, 0)],
        ),
        (
            "table outside memory",
            vec![read(END - 8, 16, INDIRECT, 0)],
            vec![],
        ),
        ("table wraps", vec![read(u64::MAX - 3, 16, INDIRECT, 0)], vec![]),
        (
            "table goes on",
            vec![read(TABLE, 16, INDIRECT | NEXT, 1)],
            vec![read(DATA, 1, 0, 0)],
        ),
        ("table names a table", vec![table(16)], vec![table(16)]),
        (
            "table loops",
            vec![table(32)],
            vec![read(DATA, 1, NEXT, 1), read(DATA, 1, NEXT, 0)],
        ),
        (
            "table's next outside",
            vec![table(16)],
            vec![read(DATA, 1, NEXT, 1)],
        ),
    ];
    for (name, descriptors, indirect) in cases {
        let (mut ring, mut queue, interrupt) = set_up();
        for (index, descriptor) in (0..).zip(descriptors) {
            ring.descriptor(ring.desc, index, descriptor);
        }
        for (index, descriptor) in (0..).zip(indirect) {
            ring.descriptor(TABLE, index, descriptor);
        }
        ring.descriptor(ring.desc, 8, read(DATA, 1, 0, 0));
        ring.offer(0);
        ring.offer(8);
        queue.drain(|_| panic!("{name}: reached the device"));
        queue.drain(|_| panic!("{name}: reached the device"));
        assert!(queue.is_broken(), "{name}");
        assert_eq!((interrupt.resets(), interrupt.interrupts()), (1, 0), "{name}");
        assert_eq!(ring.used_index(), 0, "{name}");
        assert_eq!(
            queue.stop(),
            QueueState {
                next_avail: 0,
                next_used: 0
            },
            "{name}"
        );
    }
}

#[test]
fn four_gigabytes_in_one_chain_are_refused() {
    let (mut ring, mut queue, interrupt) = queue_with(RING_FEATURES);
    let part = END as u32;
    let count = (u64::from(u32::MAX) / END + 1) as u16;
    // More buffers than a table may have would be refused for that.
    assert!(u32::from(count) > MAX_INDIRECT);
    let parts = vec![Part::Read(0, part); MAX_INDIRECT as usize];
    ring.add_indirect(TABLE, &parts);
    let mut chain = queue.new_chain();
    assert!(queue.pop(&mut chain), "134 MB are fine");
    assert_eq!(u64::from(chain.readable_len()), END * u64::from(MAX_INDIRECT));
    assert_eq!(interrupt.resets(), 0);

    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 24)]).unwrap());
    let mut ring = Ring::new(memory.clone(), RING, SIZE);
    let resources = resources(&ring, &memory, RING_FEATURES, interrupt.clone());
    let mut queue = DeviceQueue::new(0, resources, None).unwrap();
    ring.add_indirect(TABLE, &vec![Part::Read(0, 1 << 24); 256]);
    assert!(!queue.pop(&mut queue.new_chain()));
    assert_eq!(interrupt.resets(), 1);
}

#[test]
fn indirect_tables_need_their_feature() {
    let (mut ring, mut queue, interrupt) = queue_with(0);
    ring.add_indirect(TABLE, &[Part::Read(DATA, 1)]);
    assert!(!queue.pop(&mut queue.new_chain()));
    assert_eq!(interrupt.resets(), 1);
}

#[test]
fn a_head_or_an_available_index_out_of_range_breaks_the_queue() {
    for head in [SIZE, SIZE + 1, u16::MAX] {
        let (mut ring, mut queue, interrupt) = set_up();
        ring.offer(head);
        queue.drain(|_| panic!("reached the device"));
        assert_eq!((interrupt.resets(), ring.used_index()), (1, 0));
    }
    for index in [SIZE + 1, 0x8000, u16::MAX] {
        let (mut ring, mut queue, interrupt) = set_up();
        ring.set_avail_index(index);
        queue.drain(|_| panic!("reached the device"));
        assert_eq!((interrupt.resets(), ring.used_index()), (1, 0));
    }
}

#[test]
fn rings_outside_memory_cannot_be_started() {
    let memory = memory();
    let good = Ring::new(memory.clone(), RING, SIZE);
    let start = |desc, avail, used| {
        let mut ring = Ring::new(memory.clone(), RING, SIZE);
        (ring.desc, ring.avail, ring.used) = (desc, avail, used);
        DeviceQueue::new(0, resources(&ring, &memory, 0, Arc::default()), None).is_ok()
    };
    assert!(start(good.desc, good.avail, good.used));
    // A ring may cross regions.
    assert!(start(SPLIT - 32, good.avail, good.used));
    assert!(!start(END - 16, good.avail, good.used));
    assert!(!start(good.desc, END - 2, good.used));
    assert!(!start(good.desc, good.avail, END));
    assert!(!start(!15, good.avail, good.used));
    assert!(!start(good.desc, 0, good.used));
}

#[test]
fn one_interrupt_per_batch_and_only_if_the_driver_wants_it() {
    let (mut ring, mut queue, interrupt) = queue_with(0);
    for round in 1..=3 {
        for _ in 0..5 {
            ring.add(&[Part::Write(DATA, 1)]);
        }
        queue.drain(|_| 1);
        assert_eq!(ring.used_index(), 5 * round);
        // Spurious: nothing to say.
        queue.drain(|_| 1);
    }
    assert_eq!(*interrupt.used.lock().unwrap(), [3, 3, 3]);
    ring.set_avail_flags(1);
    ring.add(&[Part::Write(DATA, 1)]);
    queue.drain(|_| 1);
    assert_eq!(interrupt.interrupts(), 3);
}

#[test]
fn the_event_index_decides_when_to_interrupt() {
    let (mut ring, mut queue, interrupt) = set_up();
    let mut batch = |event: u16, count: u16| {
        ring.set_used_event(event);
        for _ in 0..count {
            ring.add(&[Part::Write(DATA, 1)]);
        }
        queue.drain(|_| 1);
        interrupt.used.lock().unwrap().drain(..).count()
    };
    assert_eq!(batch(0, 1), 1, "the first is the one asked for");
    assert_eq!(batch(0, 4), 0, "the driver has not moved its wish");
    assert_eq!(batch(7, 2), 0, "seven are used, the eighth is asked for");
    assert_eq!(batch(7, 1), 1);
    assert_eq!(batch(10, 5), 1, "passed within the batch");
    assert_eq!(batch(u16::MAX, 3), 0);
}

#[test]
fn the_driver_is_told_when_notifications_are_wanted() {
    let (mut ring, mut queue, _) = queue_with(0);
    queue.disable_kicks();
    assert_eq!(ring.used_flags(), 1);
    ring.add(&[Part::Read(DATA, 1)]);
    assert!(queue.enable_kicks(), "it came before the driver could know");
    assert_eq!(ring.used_flags(), 0);
    queue.drain(|_| 0);
    assert!(!queue.enable_kicks());

    let (mut ring, mut queue, _) = set_up();
    for _ in 0..3 {
        ring.add(&[Part::Read(DATA, 1)]);
    }
    queue.drain(|_| 0);
    assert_eq!(ring.avail_event(), 3);
}

#[test]
fn used_entries_become_visible_together() {
    let (mut ring, mut queue, interrupt) = queue_with(0);
    let heads = [
        ring.add(&[Part::Write(DATA, 1)]),
        ring.add(&[Part::Write(DATA, 1)]),
    ];
    let mut chain = queue.new_chain();
    for _ in heads {
        assert!(queue.pop(&mut chain));
        queue.push_used(chain.head(), 1);
        queue.signal();
    }
    assert_eq!((ring.used_index(), interrupt.interrupts()), (0, 0));
    queue.publish();
    queue.signal();
    assert_eq!((ring.used_index(), interrupt.interrupts()), (2, 1));
}

#[test]
fn a_queue_goes_on_where_it_stopped() {
    let (mut ring, mut queue, interrupt) = set_up();
    let mut seen = Vec::new();
    let mut state = None;
    // More than the ring holds, so that indices wrap in it.
    for round in 0..u32::from(SIZE) * 3 {
        ring.add(&[Part::Read(DATA, round + 1)]);
        ring.add(&[Part::Read(DATA, round + 1)]);
        let mut chain = queue.new_chain();
        assert!(queue.pop(&mut chain));
        seen.push(chain.readable_len());
        queue.complete(chain.head(), 0);
        assert!(queue.pop(&mut chain));
        queue.undo_pop(1);
        let memory = queue.memory().clone();
        let stopped = queue.stop();
        state.replace(stopped);
        let resources = resources(&ring, &memory, RING_FEATURES, interrupt.clone());
        queue = DeviceQueue::new(0, resources, state).unwrap();
        queue.drain(|chain| {
            seen.push(chain.readable_len());
            0
        });
        assert_eq!(ring.used_index() as u32, 2 * round + 2);
    }
    let expected: Vec<u32> = (1..=u32::from(SIZE) * 3).flat_map(|n| [n, n]).collect();
    assert_eq!(seen, expected);
}

#[test]
fn a_driver_that_never_pauses_does_not_keep_the_thread() {
    let (mut ring, mut queue, _) = set_up();
    ring.add(&[Part::Read(DATA, 1)]);
    let mut count = 0;
    queue.drain(|_| {
        count += 1;
        ring.add(&[Part::Read(DATA, 1)]);
        0
    });
    assert_eq!(count, DRAIN_BUDGET);
    assert_eq!(
        queue.kick.read().unwrap(),
        1,
        "it comes back to the rest by itself"
    );
}

#[test]
fn guest_buffers_go_to_and_from_a_file_in_pieces() {
    let (mut ring, mut queue, _) = set_up();
    let file = tempfile::tempfile().unwrap();
    let data: Vec<u8> = (0..=255).cycle().take(3000).collect();
    // 3000 segments of one byte need several calls.
    let parts: Vec<Part> = (0..1000).map(|at| Part::Read(DATA + at * 3, 3)).collect();
    ring.add_indirect(TABLE, &parts);
    queue.memory().write_slice(&data, GuestAddress(DATA)).unwrap();
    let mut chain = queue.new_chain();
    assert!(queue.pop(&mut chain));
    let mut segments = Segments::new();
    chain
        .readable_io(&mut segments, 0, u32::MAX)
        .write_all_at(file.as_fd(), 512)
        .unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3512);

    ring.add(&[Part::Write(SPLIT - 1000, 2000), Part::Write(0xc000, 500)]);
    assert!(queue.pop(&mut chain));
    chain
        .writable_io(&mut segments, 10, 2400)
        .read_exact_at(file.as_fd(), 512)
        .unwrap();
    let mut back = vec![0; 1990];
    queue
        .memory()
        .read_slice(&mut back, GuestAddress(SPLIT - 990))
        .unwrap();
    assert_eq!(back, data[..1990]);
    let cause = chain
        .writable_io(&mut segments, 0, 1000)
        .read_exact_at(file.as_fd(), 3000)
        .unwrap_err();
    assert_eq!(cause.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(
        chain.writable_io(&mut segments, 5, u32::MAX).copy_from(&data),
        2495
    );
}
