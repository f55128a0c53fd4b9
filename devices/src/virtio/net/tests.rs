use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use proptest::prelude::any;
use proptest::proptest;
use proptest::test_runner::Config;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF,
};
use vm_memory::{Bytes, GuestAddress};

use super::backend::send_frame;
use super::header::LONGEST;
use super::*;
use crate::limiter::BucketConfig;
use crate::virtio::conformance::ring::{Part, Ring};
use crate::virtio::conformance::{self, BUFFERS, Machine, NEEDS_RESET, Request, Subject, VERSION_1};
use crate::virtio::queue::{Datagram, GuestIo};

mod bursts;
mod mmds;
mod pairs;
mod receive;
mod stream;

/// Queues of the only pair.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x2a];
const MERGEABLE: u64 = VERSION_1 | 1 << VIRTIO_NET_F_MRG_RXBUF;
const LONG: u64 = MERGEABLE | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;

/// A cable whose other end is in the test's hand.
struct Cable {
    socket: UnixDatagram,
    /// What sending fails with.
    fault: Arc<Mutex<Option<i32>>>,
}

impl NetBackend for Cable {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
    }

    fn start(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn receives_by(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }

    fn sends_by(&self) -> Option<BorrowedFd<'_>> {
        self.fault.lock().unwrap().is_none().then_some(self.fd())
    }

    fn send(&mut self, header: &Header, begin: &[u8], frame: &mut GuestIo) -> io::Result<()> {
        if let Some(errno) = *self.fault.lock().unwrap() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        send_frame(self.fd(), header, begin, frame)
    }
}

/// The other end.
struct End {
    socket: UnixDatagram,
    fault: Arc<Mutex<Option<i32>>>,
}

impl End {
    fn take(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1 << 17];
        let len = self.socket.recv(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    /// Sends the guest a frame of `len` bytes, the header among them, that begin with `first`.
    fn give(&self, first: u8, len: usize) -> Vec<u8> {
        let mut frame = vec![0; HEADER];
        frame.extend((HEADER..len).map(|at| first.wrapping_add((at / 7) as u8)));
        self.socket.send(&frame).unwrap();
        frame
    }
}

fn cable() -> (Cable, End) {
    let (ours, other) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    other.set_nonblocking(true).unwrap();
    let fault = Arc::new(Mutex::new(None));
    let cable = Cable {
        socket: ours,
        fault: fault.clone(),
    };
    (cable, End { socket: other, fault })
}

fn card() -> (Net, End) {
    let (cable, end) = cable();
    (Net::new(Box::new(cable), MAC), end)
}

fn machine(features: u64) -> (Machine, Ring, Ring, End) {
    let (net, end) = card();
    let machine = Machine::new(Box::new(net));
    let mut rings = machine.bring_up(features).into_iter();
    let (receive, transmit) = (rings.next().unwrap(), rings.next().unwrap());
    (machine, receive, transmit, end)
}

/// Where the test puts buffer `number`.
fn at(number: usize) -> u64 {
    BUFFERS + 0x2_0000 * number as u64
}

fn bytes(machine: &Machine, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    machine.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes
}

/// Posts receive buffers of `len` bytes each, numbered from `first` on.
fn post(machine: &Machine, ring: &mut Ring, numbers: std::ops::Range<usize>, len: u32) {
    for number in numbers {
        ring.add(&[Part::Write(BUFFERS + 0x1000 * number as u64, len)]);
    }
    machine.notify(RECEIVE);
}

/// What lies in receive buffer `number` and as many behind it as the device says: the frame.
fn received(machine: &Machine, ring: &mut Ring, number: usize) -> Option<(u16, Vec<u8>)> {
    received_around(machine, ring, number, usize::MAX)
}

/// The same where the driver posts the first `count` buffers again and again.
fn received_around(
    machine: &Machine,
    ring: &mut Ring,
    number: usize,
    count: usize,
) -> Option<(u16, Vec<u8>)> {
    let mut frame = Vec::new();
    let mut used = 0;
    let mut wanted = 1;
    while used < wanted {
        let (_, len) = ring.take_used()?;
        let addr = BUFFERS + 0x1000 * ((number + usize::from(used)) % count) as u64;
        frame.extend(bytes(machine, addr, len as usize));
        used += 1;
        wanted = u16::from_le_bytes([frame[10], frame[11]]);
    }
    frame[10..12].fill(0);
    Some((used, frame))
}

/// A card that `make` makes, and frames that it sends. `drain` forgets what was sent so far, `verify` compares what comes next with a
/// frame.
fn sending(
    make: impl Fn() -> Net + 'static,
    drain: impl Fn() + 'static,
    verify: impl Fn(&[u8]) + 'static,
) -> Subject {
    let frame = |number: u32| (0..60).map(|at| at ^ number as u8).collect::<Vec<u8>>();
    Subject {
        make: Box::new(move || Box::new(make())),
        request: Request {
            queue: TRANSMIT,
            prepare: Box::new(move |memory, base, number| {
                // What a hostile driver sent before is nobody's.
                drain();
                memory.write_slice(&[0; HEADER], GuestAddress(base)).unwrap();
                memory
                    .write_slice(&frame(number), GuestAddress(base + 0x100))
                    .unwrap();
                vec![
                    Part::Read(base, HEADER as u32),
                    Part::Read(base + 0x100, 20),
                    Part::Read(base + 0x114, 40),
                ]
            }),
            verify: Box::new(move |_, _, number, written| {
                assert_eq!(written, 0);
                verify(&frame(number));
            }),
        },
    }
}

/// A card that `make` puts on a cable.
fn subject(make: fn(Cable) -> Net) -> Subject {
    let end: Arc<Mutex<Option<End>>> = Arc::default();
    let (made, drained) = (end.clone(), end.clone());
    sending(
        move || {
            let (cable, end) = cable();
            *made.lock().unwrap() = Some(end);
            make(cable)
        },
        move || while drained.lock().unwrap().as_ref().unwrap().take().is_some() {},
        move |frame| {
            let sent = end.lock().unwrap().as_ref().unwrap().take().unwrap();
            assert_eq!((&sent[..HEADER], &sent[HEADER..]), (&[0; HEADER][..], frame));
        },
    )
}

#[test]
fn conforms() {
    conformance::run(&subject(|cable| Net::new(Box::new(cable), MAC)));
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn survives_any_driver(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        let (net, end) = card();
        for len in [60, 1514, 9000, 65000] {
            end.give(0, len);
        }
        conformance::fuzz_mmio(Box::new(net), &data);
        let (net, end) = card();
        for len in [60, 1514, 9000, 65000] {
            end.give(0, len);
        }
        conformance::fuzz_queue(Box::new(net), &data);
    }
}

fn limits(frames: u64, refill_ms: u64) -> LimiterConfig {
    let ops = BucketConfig {
        size: frames,
        refill_ms,
        burst: 0,
    };
    LimiterConfig {
        bandwidth: None,
        ops: Some(ops),
    }
}

#[test]
fn conforms_with_limits() {
    conformance::run(&subject(|cable| {
        let net = Net::new(Box::new(cable), MAC);
        net.controlled(limits(3, 1), limits(3, 1)).unwrap().0
    }));
}

#[test]
fn frames_beyond_the_limits_wait_and_none_is_lost() {
    let (net, end) = card();
    let (net, handle) = net.controlled(limits(2, 40), limits(3, 40)).unwrap();
    let machine = Machine::new(Box::new(net));
    let mut rings = machine.bring_up(MERGEABLE).into_iter();
    let (mut receive, mut transmit) = (rings.next().unwrap(), rings.next().unwrap());
    post(&machine, &mut receive, 0..10, 0x1000);
    let start = std::time::Instant::now();
    let frames: Vec<_> = (0..6).map(|number| end.give(number, 200)).collect();
    machine.device.pump();
    assert_eq!(receive.used_index(), 2);
    machine.device.wait(|| receive.used_index() == 6);
    assert!(start.elapsed().as_millis() >= 80, "four more at 20 ms each");
    for (number, frame) in frames.into_iter().enumerate() {
        assert_eq!(received(&machine, &mut receive, number), Some((1, frame)));
    }
    for _ in 0..6 {
        transmit.add(&[Part::Read(at(2), 100)]);
    }
    machine.notify(TRANSMIT);
    assert_eq!(transmit.used_index(), 3);
    let unlimited = LimiterConfig {
        bandwidth: None,
        ops: Some(BucketConfig::default()),
    };
    machine
        .device
        .serve_while(|| handle.set_limits(LimiterConfig::default(), unlimited))
        .unwrap();
    assert_eq!(transmit.used_index(), 6);
    assert_eq!(std::iter::from_fn(|| end.take()).count(), 6);
}

#[test]
fn the_configuration_shows_address_link_and_mtu() {
    let (net, _) = card();
    let mut data = [0xff; 16];
    net.read_config(0, &mut data);
    assert_eq!(data, [2, 0, 0, 0, 0, 0x2a, 1, 0, 1, 0, 0xdc, 0x05, 0, 0, 0, 0]);
    for _ in 0..100 {
        let mac = random_mac().unwrap();
        assert_eq!(mac[0] & 3, 2, "local, and not multicast");
    }
    assert_ne!(random_mac().unwrap(), random_mac().unwrap());
}

#[test]
fn a_saved_card_that_goes_on_with_another_address_says_that_it_changed() {
    const CONFIG_CHANGE: u32 = 2;
    let (saved, ..) = machine(MERGEABLE);
    saved.transport.pause();
    let state = saved.transport.save().unwrap();
    for (mac, change) in [(MAC, 0), ([2, 0, 0, 0, 0, 9], CONFIG_CHANGE)] {
        let (mut net, _end) = card();
        net.config[..6].copy_from_slice(&mac);
        let other = Machine::with_memory(Box::new(net), saved.memory.clone());
        other.transport.restore(&state).unwrap();
        other.transport.resume();
        assert_eq!(other.read(0x104) as u16, u16::from_le_bytes([mac[4], mac[5]]));
        assert_eq!(other.acknowledge() & CONFIG_CHANGE, change, "{mac:?}");
    }
    card()
        .0
        .restore(&DeviceState::none())
        .expect("what was saved before addresses were");
}

#[test]
fn a_flood_of_frames_leaves_the_transmit_queue_its_turn() {
    const FLOOD: u32 = 2000;

    /// Gives frames without end, and a driver that posts a buffer for each at once.
    struct Flood {
        socket: UnixDatagram,
        ring: Arc<Mutex<Option<Ring>>>,
        given: u32,
        given_at_send: Arc<Mutex<Option<u32>>>,
    }

    impl NetBackend for Flood {
        fn fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }

        fn features(&self) -> u64 {
            0
        }

        fn start(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn receive(&mut self, to: &mut GuestIo, _: &mut [u8]) -> io::Result<Datagram> {
            if self.given == FLOOD {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.given += 1;
            if let Some(ring) = &mut *self.ring.lock().unwrap() {
                ring.offer(0);
            }
            let len = to.copy_from(&[0; 100]);
            Ok(Datagram { len, in_place: len })
        }

        fn send(&mut self, _: &Header, _: &[u8], _: &mut GuestIo) -> io::Result<()> {
            *self.given_at_send.lock().unwrap() = Some(self.given);
            Ok(())
        }
    }

    let (socket, _other) = UnixDatagram::pair().unwrap();
    let (ring, given_at_send) = (Arc::default(), Arc::default());
    let flood = Flood {
        socket,
        ring: Arc::clone(&ring),
        given: 0,
        given_at_send: Arc::clone(&given_at_send),
    };
    let machine = Machine::new(Box::new(Net::new(Box::new(flood), MAC)));
    let mut rings = machine.bring_up(MERGEABLE);
    let mut transmit = rings.remove(1);
    let mut receive = rings.remove(0);
    receive.add(&[Part::Write(at(0), 200)]);
    *ring.lock().unwrap() = Some(receive);
    transmit.add(&[Part::Read(at(1), 100)]);
    machine.write(0x50, TRANSMIT.into());
    machine.notify(RECEIVE);
    let given = given_at_send.lock().unwrap().expect("the frame was sent");
    assert!(given < FLOOD / 2, "sent only after {given} frames had come");
    assert_eq!(
        u32::from(ring.lock().unwrap().as_ref().unwrap().used_index()),
        FLOOD
    );
}

#[test]
fn malformed_frames_are_dropped_and_the_next_one_is_sent() {
    let features = VERSION_1 | 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
    let (machine, _, mut transmit, end) = machine(features);
    let header = |bytes: &[u8]| {
        let mut header = [0; HEADER];
        header[..bytes.len()].copy_from_slice(bytes);
        machine.memory.write_slice(&header, GuestAddress(at(0))).unwrap();
    };
    let mut heads = Vec::new();
    for (len, bytes) in [
        (0, &[][..]),
        (13, &[]),
        (LONGEST + 1, &[]),
        (0x10_0000, &[]),
        (60, &[1, 0, 0, 0, 0, 0, 0xff, 0xff]),
        (60, &[1, 1]),
        (60, &[0, 1, 0, 0, 100, 0]),
        (60, &[1, 4, 0, 0, 100, 0]),
        (60, &[1, 7, 0, 0, 100, 0]),
    ] {
        header(bytes);
        heads.push(transmit.add(&[Part::Read(at(0), HEADER as u32), Part::Read(at(1), len)]));
        machine.notify(TRANSMIT);
    }
    heads.push(transmit.add(&[Part::Read(at(0), 5)]));
    heads.push(transmit.add(&[Part::Write(at(0), 50)]));
    machine.notify(TRANSMIT);
    assert_eq!(end.take(), None);
    header(&[1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 7, 7]);
    machine
        .memory
        .write_slice(&[0x5a; 3000], GuestAddress(at(0) + 12))
        .unwrap();
    heads.push(transmit.add(&[Part::Read(at(0), 3012)]));
    machine.notify(TRANSMIT);
    let sent = end.take().unwrap();
    assert_eq!(sent[..HEADER], [1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0]);
    assert_eq!(sent[HEADER..], [0x5a; 3000]);
    let used: Vec<_> = std::iter::from_fn(|| transmit.take_used()).collect();
    let expected: Vec<_> = heads.iter().map(|head| (u32::from(*head), 0)).collect();
    assert_eq!(used, expected, "each is given back");
    assert_eq!(machine.status() & NEEDS_RESET, 0);
}

#[test]
fn frames_that_the_host_refuses_are_lost_as_on_a_cable() {
    let (machine, _, mut transmit, end) = machine(VERSION_1);
    for errno in [libc::EIO, libc::ENOBUFS, libc::EINVAL, libc::ENOMEM] {
        *end.fault.lock().unwrap() = Some(errno);
        transmit.add(&[Part::Read(at(0), 100)]);
        machine.notify(TRANSMIT);
        assert!(transmit.take_used().is_some());
        assert_eq!(end.take(), None);
    }
    *end.fault.lock().unwrap() = None;
    transmit.add(&[Part::Read(at(0), 100)]);
    machine.notify(TRANSMIT);
    assert!(end.take().is_some());
}

#[test]
fn frames_that_the_host_cannot_take_now_wait_in_order() {
    let (machine, _, mut transmit, end) = machine(VERSION_1);
    *end.fault.lock().unwrap() = Some(libc::EAGAIN);
    for number in 0..3u8 {
        let frame = [number; 100];
        let addr = at(usize::from(number));
        machine
            .memory
            .write_slice(&[0; HEADER], GuestAddress(addr))
            .unwrap();
        machine
            .memory
            .write_slice(&frame, GuestAddress(addr + 12))
            .unwrap();
        transmit.add(&[Part::Read(addr, 112)]);
        machine.notify(TRANSMIT);
    }
    assert_eq!(transmit.take_used(), None);
    machine.transport.pause();
    let state = machine.transport.save().unwrap();
    let at = state.queues[usize::from(TRANSMIT)].1.unwrap();
    assert_eq!((at.next_avail, at.next_used), (0, 0), "nothing is in flight");
    machine.transport.resume();
    *end.fault.lock().unwrap() = None;
    // What the event loop does when the backend is writable.
    machine.device.poke();
    for number in 0..3u8 {
        assert_eq!(end.take().unwrap()[HEADER..], [number; 100]);
        assert!(transmit.take_used().is_some());
    }
}

#[test]
fn a_backend_that_is_gone_pulls_the_cable() {
    struct Gone(UnixDatagram);

    impl NetBackend for Gone {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn features(&self) -> u64 {
            0
        }

        fn start(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn receive(&mut self, _: &mut GuestIo, _: &mut [u8]) -> io::Result<Datagram> {
            Err(io::Error::from_raw_os_error(libc::EBADFD))
        }
    }

    let (socket, _other) = UnixDatagram::pair().unwrap();
    let machine = Machine::new(Box::new(Net::new(Box::new(Gone(socket)), MAC)));
    let mut rings = machine.bring_up(MERGEABLE);
    assert_eq!(machine.read(0x104) >> 16 & 1, 1);
    post(&machine, &mut rings[0], 0..1, 2000);
    machine.device.poke();
    assert_eq!(machine.read(0x104) >> 16 & 1, 0);
    assert_eq!(machine.acknowledge(), 2);
    assert_eq!(machine.interrupts(), 1, "it is said once");
}
