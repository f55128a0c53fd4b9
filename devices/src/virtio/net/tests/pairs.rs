//! Cards with several pairs of queues: which pair a frame goes by, and how the driver says how many it uses.

use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use super::*;
use crate::virtio::conformance::LocalHandle;
use crate::virtio::handle::DeviceHandle;

const PAIRS: u16 = 3;
const CONTROL: u16 = 2 * PAIRS;
const CTRL_VQ: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;
const SEVERAL: u64 = MERGEABLE | CTRL_VQ | 1 << VIRTIO_NET_F_MQ;
const OK: u8 = 0;
const ERR: u8 = 1;

/// What the host was told to spread frames over; it can be told to refuse.
#[derive(Clone, Default)]
struct Spreads(Arc<Mutex<(Vec<u16>, bool)>>);

impl Spreads {
    fn log(&self) -> Vec<u16> {
        std::mem::take(&mut self.0.lock().unwrap().0)
    }
}

impl Steering for Spreads {
    fn spread(&mut self, pairs: u16) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.1 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        state.0.push(pairs);
        Ok(())
    }
}

fn several() -> (Net, Vec<End>, Spreads) {
    let (mut backends, mut ends) = (Vec::<Box<dyn NetBackend>>::new(), Vec::new());
    for _ in 0..PAIRS {
        let (cable, end) = cable();
        backends.push(Box::new(cable));
        ends.push(end);
    }
    let spreads = Spreads::default();
    (
        Net::with_pairs(backends, Box::new(spreads.clone()), MAC),
        ends,
        spreads,
    )
}

struct Driver {
    machine: Machine,
    rings: Vec<Ring>,
    ends: Vec<End>,
    spreads: Spreads,
}

impl Driver {
    fn new(features: u64) -> Self {
        let (net, ends, spreads) = several();
        let machine = Machine::new(Box::new(net));
        let rings = machine.bring_up(features);
        Self {
            machine,
            rings,
            ends,
            spreads,
        }
    }

    /// Gives a command of these bytes by queue `index`, and returns the answer.
    fn command(&mut self, index: u16, bytes: &[u8]) -> u8 {
        let ring = &mut self.rings[usize::from(index)];
        let memory = &self.machine.memory;
        memory.write_slice(bytes, GuestAddress(at(0))).unwrap();
        memory.write_slice(&[0xee], GuestAddress(at(1))).unwrap();
        // In two pieces: drivers cut as they like.
        let half = (bytes.len() / 2) as u32;
        let parts = [
            Part::Read(at(0), half),
            Part::Read(at(0) + u64::from(half), bytes.len() as u32 - half),
            Part::Write(at(1), 1),
        ];
        ring.add(if half == 0 { &parts[1..] } else { &parts });
        self.machine.notify(index);
        let (_, written) = ring.take_used().expect("commands are answered at once");
        assert_eq!(written, 1);
        self.machine.memory.read_obj(GuestAddress(at(1))).unwrap()
    }

    fn use_pairs(&mut self, pairs: u16) -> u8 {
        let [low, high] = pairs.to_le_bytes();
        self.command(CONTROL, &[4, 0, low, high])
    }

    /// Whether frames pass both ways by pair `pair`.
    fn passes(&mut self, pair: u16) {
        let (receive, transmit) = (2 * pair, 2 * pair + 1);
        let frame = [pair as u8; 100];
        let memory = &self.machine.memory;
        memory.write_slice(&[0; HEADER], GuestAddress(at(2))).unwrap();
        memory
            .write_slice(&frame, GuestAddress(at(2) + HEADER as u64))
            .unwrap();
        self.rings[usize::from(transmit)].add(&[Part::Read(at(2), 112)]);
        self.machine.notify(transmit);
        assert_eq!(self.ends[usize::from(pair)].take().unwrap()[HEADER..], frame);
        assert!(self.ends.iter().all(|end| end.take().is_none()));
        let ring = &mut self.rings[usize::from(receive)];
        ring.add(&[Part::Write(at(3), 2000)]);
        self.machine.notify(receive);
        let given = self.ends[usize::from(pair)].give(pair as u8, 300);
        self.machine.device.pump();
        let (_, len) = ring.take_used().expect("it came");
        let came = bytes(&self.machine, at(3), len as usize);
        assert_eq!(came[HEADER..], given[HEADER..]);
    }
}

#[test]
fn a_card_with_several_pairs_conforms_whichever_of_its_queues_is_used() {
    for pair in 0..usize::from(PAIRS) {
        let ends: Arc<Mutex<Vec<End>>> = Arc::default();
        let (made, drained) = (ends.clone(), ends.clone());
        let subject = sending(
            move || {
                let (net, ends, _) = several();
                *made.lock().unwrap() = ends;
                net
            },
            move || while drained.lock().unwrap()[pair].take().is_some() {},
            move |frame| assert_eq!(&ends.lock().unwrap()[pair].take().unwrap()[HEADER..], frame),
        );
        let queue = 2 * pair as u16 + TRANSMIT;
        let request = Request {
            queue,
            ..subject.request
        };
        conformance::run(&Subject { request, ..subject });
    }
    conformance::run(&Subject {
        make: Box::new(|| Box::new(several().0)),
        request: Request {
            queue: CONTROL,
            // The suite agrees on several pairs only at times, so what it gives must be no command.
            prepare: Box::new(|memory, base, number| {
                memory
                    .write_slice(&[4, 1, number as u8, 0], GuestAddress(base))
                    .unwrap();
                memory.write_slice(&[0xee], GuestAddress(base + 16)).unwrap();
                vec![Part::Read(base, 4), Part::Write(base + 16, 1)]
            }),
            verify: Box::new(|memory, base, _, written| {
                let answer: u8 = memory.read_obj(GuestAddress(base + 16)).unwrap();
                assert_eq!((answer, written), (ERR, 1));
            }),
        },
    });
}

#[test]
fn several_pairs_are_offered_where_there_are_several() {
    let (one, _) = card();
    assert_eq!(one.traits().features & SEVERAL & !MERGEABLE, 0);
    assert_eq!(one.traits().queue_sizes.len(), 2);
    let (net, ..) = several();
    assert_eq!(net.traits().features & SEVERAL & !VERSION_1, SEVERAL & !VERSION_1);
    assert_eq!(net.traits().queue_sizes.len(), usize::from(CONTROL) + 1);
    let mut pairs = [0; 2];
    net.read_config(8, &mut pairs);
    assert_eq!(u16::from_le_bytes(pairs), PAIRS);
}

#[test]
fn the_driver_says_how_many_pairs_it_uses_and_frames_go_by_each() {
    let mut driver = Driver::new(SEVERAL);
    assert_eq!(driver.spreads.log(), [1], "one until more are asked for");
    for pairs in [2, 3, 1, 3] {
        assert_eq!(driver.use_pairs(pairs), OK);
        assert_eq!(driver.spreads.log(), [pairs]);
    }
    for pair in 0..PAIRS {
        driver.passes(pair);
    }
    // Another driver comes.
    driver.rings = driver.machine.bring_up(SEVERAL);
    assert_eq!(driver.spreads.log(), [1]);
    driver.passes(0);
}

#[test]
fn commands_that_cannot_be_are_answered_with_an_error_and_change_nothing() {
    let mut driver = Driver::new(SEVERAL);
    assert_eq!(driver.use_pairs(2), OK);
    driver.spreads.log();
    for pairs in [0, PAIRS + 1, 0x8000, u16::MAX] {
        assert_eq!(driver.use_pairs(pairs), ERR, "{pairs} pairs");
    }
    for bytes in [
        &[4][..],
        &[4, 0],
        &[4, 0, 1],
        &[4, 0, 1, 0, 0],
        &[4, 1, 1, 0],
        &[0, 0, 1],
        &[1, 1, 2, 0, 0, 0, 0, 1],
        &[0xff; 600],
    ] {
        assert_eq!(driver.command(CONTROL, bytes), ERR, "{bytes:?}");
    }
    driver.spreads.0.lock().unwrap().1 = true;
    assert_eq!(driver.use_pairs(3), ERR, "the host refuses");
    driver.spreads.0.lock().unwrap().1 = false;
    assert_eq!(driver.spreads.log(), [0; 0]);
    // What is kept is what was set before all this.
    driver.machine.transport.pause();
    driver.machine.transport.resume();
    assert_eq!(driver.spreads.log(), [2]);
    driver.rings[usize::from(CONTROL)].add(&[Part::Read(at(0), 4)]);
    driver.machine.notify(CONTROL);
    assert_ne!(driver.machine.status() & NEEDS_RESET, 0, "no room for the answer");
}

#[test]
fn a_driver_that_knows_no_several_pairs_has_the_control_queue_behind_the_first() {
    let mut driver = Driver::new(MERGEABLE | CTRL_VQ);
    assert_eq!(driver.command(2, &[4, 0, 2, 0]), ERR, "it was not agreed on");
    assert_eq!(driver.spreads.log(), [1]);
    driver.passes(0);
    let mut driver = Driver::new(MERGEABLE);
    assert_eq!(driver.use_pairs(2), ERR);
    driver.passes(0);
}

#[test]
fn a_saved_card_goes_on_with_as_many_pairs_as_its_driver_used() {
    let mut driver = Driver::new(SEVERAL);
    assert_eq!(driver.use_pairs(2), OK);
    driver.machine.transport.pause();
    let state = driver.machine.transport.save().unwrap();
    let (net, ends, spreads) = several();
    let other = Machine::with_memory(Box::new(net), driver.machine.memory.clone());
    other.transport.restore(&state).unwrap();
    other.transport.resume();
    assert_eq!(spreads.log(), [2]);
    let mut other = Driver {
        machine: other,
        rings: driver.rings,
        ends,
        spreads,
    };
    for pair in 0..2 {
        other.passes(pair);
    }
    for pairs in [0, PAIRS + 1] {
        let state = DeviceState::new(STATE_VERSION, &State { mac: MAC, pairs });
        let error = several().0.restore(&state).unwrap_err().to_string();
        assert!(
            error.contains(&format!("its driver uses {pairs} pairs")),
            "{error}"
        );
    }
    let (one, _) = card();
    assert_eq!(
        one.save().data,
        serde_json::json!({ "mac": MAC }),
        "one pair is saved as ever"
    );
}

#[test]
fn limits_hold_for_all_pairs_together_and_each_has_its_turn() {
    let (net, ends, _) = several();
    let (net, _handle) = net.controlled(limits(2, 20), limits(2, 20)).unwrap();
    let machine = Machine::new(Box::new(net));
    let mut rings = machine.bring_up(SEVERAL);
    let start = std::time::Instant::now();
    for pair in 0..usize::from(PAIRS) {
        for _ in 0..4 {
            rings[2 * pair].add(&[Part::Write(at(pair), 2000)]);
            rings[2 * pair + 1].add(&[Part::Read(at(3), 100)]);
            ends[pair].give(0, 200);
        }
        machine.notify(2 * pair as u16);
        machine.notify(2 * pair as u16 + 1);
    }
    machine
        .device
        .wait(|| rings[..6].iter().all(|ring| ring.used_index() == 4));
    assert!(
        start.elapsed().as_millis() >= 100,
        "twelve, of which two were free, at 10 ms each"
    );
    for end in &ends {
        assert_eq!(std::iter::from_fn(|| end.take()).count(), 4);
    }
}

/// Each part by a handle of its own, as on threads of their own.
fn in_parts() -> Driver {
    let (mut first, ends, spreads) = several();
    let traits = first.traits();
    let others = first.split_off().into_iter();
    let others: Vec<_> = others
        .map(|part| Arc::new(LocalHandle::new(Box::new(part))))
        .collect();
    let first = Arc::new(LocalHandle::beside(Box::new(first), others.clone()));
    let others = others
        .into_iter()
        .map(|part| part as Arc<dyn DeviceHandle>)
        .collect();
    let card = Arc::new(NetParts::new(first.clone(), others));
    let machine = Machine::behind(traits, Machine::memory(), card, first);
    let rings = machine.bring_up(SEVERAL);
    Driver {
        machine,
        rings,
        ends,
        spreads,
    }
}

#[test]
fn the_parts_of_a_card_are_one_to_its_driver() {
    let mut driver = in_parts();
    assert_eq!(driver.use_pairs(3), OK);
    for pair in 0..PAIRS {
        driver.passes(pair);
    }
    driver.machine.transport.pause();
    let state = driver.machine.transport.save().unwrap();
    assert!(state.queues.iter().all(|(_, at)| at.is_some()));
    driver.machine.transport.resume();
    for pair in 0..PAIRS {
        driver.passes(pair);
    }
    assert_eq!(driver.spreads.log(), [1, 3, 3]);
    // One whose queues are used otherwise.
    driver.rings = driver.machine.bring_up(MERGEABLE | CTRL_VQ);
    assert_eq!(driver.command(2, &[4, 0, 2, 0]), ERR);
    driver.passes(0);
    for seed in 0..16 {
        conformance::play(&driver.machine, &conformance::noise(2000 + seed));
    }
    driver.machine.transport.resume();
    driver.rings = driver.machine.bring_up(SEVERAL);
    while driver.ends.iter().any(|end| end.take().is_some()) {}
    driver.passes(PAIRS - 1);
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn several_pairs_survive_any_driver(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        let device = || {
            let (net, ends, _) = several();
            for end in &ends {
                for len in [60, 1514, 9000] {
                    end.give(0, len);
                }
            }
            (Box::new(net), ends)
        };
        let (net, _ends) = device();
        conformance::fuzz_mmio(net, &data);
        let (net, _ends) = device();
        conformance::fuzz_queue(net, &data);
    }
}
