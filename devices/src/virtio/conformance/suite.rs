//! The suite itself: one function per promise, all driven through the registers.

use std::collections::HashMap;

use super::hostile;
use super::machine::{
    ACKNOWLEDGE, BUFFERS, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, MEMORY_END, Machine, NEEDS_RESET, VERSION_1,
};
use super::ring::{INDIRECT, NEXT, Part, RawDescriptor, Ring, WRITE};
use crate::Memory;
use crate::bus::BusDevice;
use crate::virtio::device::VirtioDevice;
use crate::virtio::queue::RING_FEATURES;

/// Bytes of guest memory that one request may use from the address it is given.
pub const REQUEST_SPACE: u64 = 0x4000;
/// Requests in flight at most: each has at most 4 buffers of a ring of 64, and its own space.
const AT_ONCE: u32 = 16;

/// Memory, address and number of a request.
type Prepare = Box<dyn Fn(&Memory, u64, u32) -> Vec<Part>>;
/// The same, and the bytes that the device says it wrote.
type Verify = Box<dyn Fn(&Memory, u64, u32, u32)>;
type Damage<'a> = &'a dyn Fn(&mut Ring);

/// A request that the device answers by itself, without anything happening outside.
pub struct Request {
    /// The queue it goes to.
    pub queue: u16,
    /// Writes what request `number` needs to memory at `base` and returns its buffers, 4 at most.
    pub prepare: Prepare,
    /// Panics unless request `number` at `base` was answered as it should be; the last argument is the bytes written.
    pub verify: Verify,
}

/// A device to be put through the suite.
pub struct Subject {
    /// Makes the device. Made again after a restore, when the one before is gone.
    pub make: Box<dyn Fn() -> Box<dyn VirtioDevice>>,
    /// What to ask of it.
    pub request: Request,
}

impl Subject {
    pub(super) fn machine(&self) -> Machine {
        Machine::new((self.make)())
    }

    /// Offers request `number`, without notifying; returns its head.
    fn offer(&self, machine: &Machine, ring: &mut Ring, number: u32) -> u16 {
        let parts = (self.request.prepare)(&machine.memory, base(number), number);
        ring.add(&parts)
    }

    /// Checks the answer to request `number`, which must be the next one.
    fn check(&self, machine: &Machine, ring: &mut Ring, number: u32) {
        let used = ring.take_used();
        let (_, written) = used.unwrap_or_else(|| panic!("request {number} was not answered"));
        (self.request.verify)(&machine.memory, base(number), number, written);
    }

    /// Asks for requests `numbers` and checks the answers, which may come in any order.
    fn ask(&self, machine: &Machine, ring: &mut Ring, numbers: std::ops::Range<u32>) {
        let wanted = ring.used_index().wrapping_add(numbers.len() as u16);
        let offer = |number| (u32::from(self.offer(machine, ring, number)), number);
        let mut open: HashMap<u32, u32> = numbers.map(offer).collect();
        machine.write(0x50, self.request.queue.into());
        machine.device.wait(|| ring.used_index() == wanted);
        while let Some((head, written)) = ring.take_used() {
            let number = open.remove(&head);
            let number =
                number.unwrap_or_else(|| panic!("an answer for {head}, which was not asked or twice"));
            (self.request.verify)(&machine.memory, base(number), number, written);
        }
        assert!(open.is_empty(), "no answer to {open:?}");
    }

    /// Brings the device up anew and has it answer a request.
    pub(super) fn works(&self, machine: &Machine) {
        let mut rings = machine.bring_up(VERSION_1);
        self.ask(machine, &mut rings[usize::from(self.request.queue)], 0..3);
        assert_eq!(
            machine.status() & NEEDS_RESET,
            0,
            "no reset needed after a decent request"
        );
    }
}

fn base(number: u32) -> u64 {
    BUFFERS + u64::from(number % AT_ONCE) * REQUEST_SPACE
}

/// Puts a device through everything. Panics at the first promise it breaks.
pub fn run(subject: &Subject) {
    registers_say_what_the_device_is(subject);
    the_handshake_has_an_order(subject);
    requests_are_answered(subject);
    malformed_chains_need_a_reset_and_no_more(subject);
    reset_forgets_and_a_driver_may_come_again(subject);
    calls_without_reason_do_nothing(subject);
    a_pause_loses_nothing(subject);
    a_restored_machine_goes_on(subject);
    one_queue_can_be_taken_back(subject);
    for seed in 0..32 {
        hostile::seeded(subject, seed);
    }
}

fn registers_say_what_the_device_is(subject: &Subject) {
    let device = (subject.make)();
    let traits = device.traits();
    assert_eq!(traits, device.traits(), "traits are constant");
    for size in &traits.queue_sizes {
        assert!(size.is_power_of_two(), "queue size {size} is a power of two");
    }
    let machine = Machine::new(device);
    assert_eq!(
        [machine.read(0), machine.read(4), machine.read(8)],
        [0x7472_6976, 2, traits.kind]
    );
    assert_eq!(machine.offered(), traits.features | VERSION_1);
    machine.write(0x14, 2);
    assert_eq!(machine.read(0x10), 0, "no features beyond 64");
    for (index, size) in (0..).zip(&traits.queue_sizes) {
        assert_eq!(machine.queue_max(index), u32::from(*size));
    }
    assert_eq!(machine.queue_max(traits.queue_sizes.len() as u16), 0);
    // Configuration space: any width reads the same bytes, and zeros follow its end.
    let len = traits.config_len as usize;
    let byte = |at: usize| {
        let mut data = [0xff];
        machine.transport.read(0x100 + at as u64, &mut data);
        data[0]
    };
    let bytes: Vec<u8> = (0..len + 16).map(byte).collect();
    assert!(
        bytes[len..].iter().all(|byte| *byte == 0),
        "zeros past the configuration's end"
    );
    for width in 1..=8 {
        for at in 0..len + 8 {
            let mut data = vec![0xff; width];
            machine.transport.read(0x100 + at as u64, &mut data);
            assert_eq!(
                data,
                bytes[at..at + width],
                "{width} bytes of configuration at {at}"
            );
        }
    }
}

fn the_handshake_has_an_order(subject: &Subject) {
    let machine = subject.machine();
    machine.write(0x70, DRIVER_OK);
    machine.write(0x70, FEATURES_OK | DRIVER);
    assert_eq!(machine.status(), 0, "nothing before ACKNOWLEDGE");
    assert!(!machine.negotiate(0), "VERSION_1 is needed");
    assert_eq!(machine.status(), ACKNOWLEDGE | DRIVER);
    let unknown = !machine.offered();
    assert!(
        !machine.negotiate(VERSION_1 | unknown & unknown.wrapping_neg()),
        "a feature not offered"
    );
    machine.add_status(DRIVER_OK);
    assert_eq!(
        machine.status(),
        ACKNOWLEDGE | DRIVER,
        "no DRIVER_OK before FEATURES_OK"
    );
    assert!(
        machine.negotiate(machine.offered()),
        "all that is offered can be had"
    );
    machine.choose(0);
    machine.write(0x70, ACKNOWLEDGE);
    assert_eq!(
        machine.status(),
        ACKNOWLEDGE | DRIVER | FEATURES_OK,
        "only a reset takes bits back"
    );
    machine.add_status(FAILED);
    machine.add_status(DRIVER_OK);
    assert_eq!(
        machine.status() & DRIVER_OK,
        0,
        "a driver that gave up does not start"
    );
    assert_eq!(machine.interrupts(), 0, "no interrupt before DRIVER_OK");
    subject.works(&machine);
}

fn requests_are_answered(subject: &Subject) {
    let machine = subject.machine();
    let queue = usize::from(subject.request.queue);
    for features in [VERSION_1, VERSION_1 | RING_FEATURES & machine.offered()] {
        let mut rings = machine.bring_up(features);
        let ring = &mut rings[queue];
        // Past the ring's end several times.
        for batch in 0..40 {
            // With the event index: the next answer is to be told of.
            ring.set_used_event(ring.used_index());
            subject.ask(&machine, ring, batch * 7..batch * 7 + 7);
            assert!(machine.interrupts() > 0, "batch {batch} was told of");
            assert_eq!(machine.acknowledge(), 1, "interrupt status: used buffer");
            assert_eq!(machine.read(0x60), 0, "acknowledged");
        }
        if features & 1 << 29 == 0 {
            ring.set_avail_flags(1);
        } else {
            ring.set_used_event(ring.used_index().wrapping_sub(1));
        }
        subject.ask(&machine, ring, 0..3);
        assert_eq!(
            machine.interrupts(),
            0,
            "an interrupt that the driver did not want"
        );
        // A request whose buffers are listed elsewhere.
        if features & 1 << 28 != 0 {
            let parts = (subject.request.prepare)(&machine.memory, base(0), 0);
            let used = ring.used_index();
            ring.add_indirect(BUFFERS - 0x1000, &parts);
            machine.notify(subject.request.queue);
            machine.device.wait(|| ring.used_index() != used);
            subject.check(&machine, ring, 0);
        }
    }
}

fn malformed_chains_need_a_reset_and_no_more(subject: &Subject) {
    let machine = subject.machine();
    let queue = subject.request.queue;
    let indirect = machine.offered() & 1 << 28;
    let size = machine.bring_up(VERSION_1)[usize::from(queue)].size;
    let d = |addr, len, flags, next| RawDescriptor {
        addr,
        len,
        flags,
        next,
    };
    let table = BUFFERS - 0x1000;
    let mut cases = vec![
        ("loop", vec![d(BUFFERS, 16, NEXT, 1), d(BUFFERS, 16, NEXT, 0)]),
        ("loop of writable buffers", vec![d(BUFFERS, 16, NEXT | WRITE, 0)]),
        ("next outside the table", vec![d(BUFFERS, 16, NEXT, size)]),
        (
            "writable before readable",
            vec![d(BUFFERS, 16, NEXT | WRITE, 1), d(BUFFERS, 16, 0, 0)],
        ),
        ("buffer past the end", vec![d(MEMORY_END - 4, 8, 0, 0)]),
        ("writable buffer in a hole", vec![d(MEMORY_END + 64, 8, WRITE, 0)]),
        ("wrapping buffer", vec![d(u64::MAX - 3, 8, WRITE, 0)]),
        (
            "nested table",
            vec![d(table, 16, INDIRECT, 0), d(table, 16, INDIRECT, 0)],
        ),
        ("empty table", vec![d(table, 0, INDIRECT, 0)]),
        ("crooked table", vec![d(table, 17, INDIRECT, 0)]),
        ("table outside memory", vec![d(MEMORY_END, 16, INDIRECT, 0)]),
    ];
    for (name, descriptors) in cases.drain(..) {
        let rings = &mut machine.bring_up(VERSION_1 | indirect);
        let ring = &mut rings[usize::from(queue)];
        for (index, descriptor) in (0..).zip(&descriptors) {
            ring.descriptor(ring.desc, index, *descriptor);
            // What the nested table holds.
            ring.descriptor(table, index, *descriptor);
        }
        ring.offer(0);
        refused(subject, &machine, ring, name);
    }
    let broken: [(&str, Damage); 3] = [
        ("head outside the table", &|ring| ring.offer(ring.size)),
        ("available index too far", &|ring| {
            ring.set_avail_index(ring.size + 1);
        }),
        ("available index going back", &|ring| {
            ring.set_avail_index(u16::MAX);
        }),
    ];
    for (name, damage) in broken {
        let ring = &mut machine.bring_up(VERSION_1)[usize::from(queue)];
        damage(ring);
        refused(subject, &machine, ring, name);
    }
}

fn refused(subject: &Subject, machine: &Machine, ring: &mut Ring, name: &str) {
    machine.notify(subject.request.queue);
    assert_ne!(
        machine.status() & NEEDS_RESET,
        0,
        "{name}: the driver is told to reset"
    );
    assert_ne!(
        machine.acknowledge() & 2,
        0,
        "{name}: by a configuration interrupt"
    );
    assert_ne!(machine.interrupts(), 0, "{name}: with an edge");
    machine.notify(subject.request.queue);
    assert_eq!(ring.used_index(), 0, "{name}: nothing is given back");
    assert_eq!(machine.interrupts(), 0, "{name}: it is said once");
    subject.works(machine);
}

fn reset_forgets_and_a_driver_may_come_again(subject: &Subject) {
    let machine = subject.machine();
    // Of the kinds that devices make for themselves: eventfds, timers, rings.
    let descriptors = || {
        let all = std::fs::read_dir("/proc/self/fd").expect("procfs");
        let kinds = all.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        kinds
            .filter(|kind| kind.to_string_lossy().starts_with("anon_inode:"))
            .count()
    };
    let mut counts = Vec::new();
    for _ in 0..100 {
        let rings = &mut machine.bring_up(VERSION_1);
        let ring = &mut rings[usize::from(subject.request.queue)];
        subject.offer(&machine, ring, 0);
        // Not notified: the reset comes first.
        machine.reset();
        assert_eq!(
            ring.used_index(),
            0,
            "a request that the driver did not notify of"
        );
        subject.works(&machine);
        counts.push(descriptors());
    }
    // Other tests of the process open and close descriptors too; a leak of ours alone grows at each reset.
    let grows = counts.windows(2).all(|pair| pair[0] < pair[1]);
    assert!(!grows, "descriptors grow with each reset: {counts:?}");
}

fn calls_without_reason_do_nothing(subject: &Subject) {
    let machine = subject.machine();
    machine.device.poke();
    let rings = &mut machine.bring_up(VERSION_1);
    let ring = &mut rings[usize::from(subject.request.queue)];
    machine.device.poke();
    subject.ask(&machine, ring, 0..5);
    machine.interrupts();
    machine.device.poke();
    assert_eq!((ring.take_used(), machine.interrupts()), (None, 0));
    machine.reset();
    machine.device.poke();
    assert_eq!((machine.status(), machine.read(0x60)), (0, 0));
}

fn a_pause_loses_nothing(subject: &Subject) {
    let machine = subject.machine();
    let rings = &mut machine.bring_up(VERSION_1);
    let ring = &mut rings[usize::from(subject.request.queue)];
    for round in 0..20 {
        let first = round * 3;
        subject.ask(&machine, ring, first..first + 1);
        machine.transport.pause();
        machine.transport.pause();
        // A vCPU may have written this just before it stopped.
        subject.offer(&machine, ring, first + 1);
        machine.notify(subject.request.queue);
        assert_eq!(ring.take_used(), None, "a paused device does nothing");
        let state = machine.transport.save().expect("a paused transport saves");
        for (index, (_, at)) in state.queues.iter().enumerate() {
            let at = at.expect("every queue ran");
            assert_eq!(
                at.next_avail, at.next_used,
                "nothing of queue {index} is in flight"
            );
        }
        assert_eq!(
            machine.transport.save().as_ref(),
            Ok(&state),
            "saving changes nothing"
        );
        machine.transport.resume();
        machine.device.wait(|| ring.used_index() == first as u16 + 2);
        subject.check(&machine, ring, first + 1);
        subject.ask(&machine, ring, first + 2..first + 3);
    }
    assert!(
        machine.transport.save().is_err(),
        "a running transport does not save"
    );
    machine.transport.pause();
    machine.reset();
    machine.transport.resume();
    subject.works(&machine);
}

fn a_restored_machine_goes_on(subject: &Subject) {
    for features in [VERSION_1, VERSION_1 | RING_FEATURES] {
        let mut machine = subject.machine();
        let features = features & machine.offered();
        let mut rings = machine.bring_up(features);
        let ring = &mut rings[usize::from(subject.request.queue)];
        let mut number = 0;
        for _ in 0..5 {
            subject.ask(&machine, ring, number..number + 9);
            subject.offer(&machine, ring, number + 9);
            machine.transport.pause();
            let state = machine.transport.save().expect("a paused transport saves");
            let memory = machine.memory.clone();
            drop(machine);
            machine = Machine::with_memory((subject.make)(), memory);
            machine.transport.restore(&state).expect("its own state");
            assert_eq!(
                machine.transport.save(),
                Ok(state),
                "what was restored is what was saved"
            );
            assert_eq!(ring.take_used(), None, "nothing happens before the resume");
            machine.transport.resume();
            machine.device.wait(|| ring.used_index() == number as u16 + 10);
            subject.check(&machine, ring, number + 9);
            assert_ne!(
                machine.interrupts(),
                0,
                "an interrupt that may have been lost is repeated"
            );
            number += 10;
        }
        subject.works(&machine);
    }
}

fn one_queue_can_be_taken_back(subject: &Subject) {
    let machine = subject.machine();
    let queue = subject.request.queue;
    let rings = &mut machine.bring_up(VERSION_1);
    let count = rings.len() as u16;
    let ring = &mut rings[usize::from(queue)];
    subject.ask(&machine, ring, 0..4);
    for other in (0..count).filter(|other| *other != queue) {
        machine.write(0x30, other.into());
        machine.write(0x44, 0);
        assert_eq!(machine.read(0x44), 0);
        subject.ask(&machine, ring, 4..6);
    }
    machine.write(0x30, queue.into());
    machine.write(0x44, 0);
    assert_eq!((machine.read(0x44), machine.attached()), (0, vec![]));
    let used = ring.used_index();
    subject.offer(&machine, ring, 6);
    machine.notify(queue);
    assert_eq!(ring.used_index(), used, "a queue taken back is left alone");
    subject.works(&machine);
}
