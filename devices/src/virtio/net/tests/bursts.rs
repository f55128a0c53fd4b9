//! Many frames by one system call: they come whole, in order and once, whatever is among them.

use super::*;

const BUFFER: u32 = 0x600;
/// Buffers that the driver has, as many as its ring.
const COUNT: usize = 64;

/// Frames of all lengths: mostly short ones, some that the host has put together.
fn lengths() -> impl Iterator<Item = usize> {
    (0..).map(|number: usize| match number % 29 {
        11 => 9000,
        23 | 24 => 3000,
        other => 60 + other * 50,
    })
}

/// Takes what the device has given from buffer `number` on, and posts the buffers again; what of the frames is complete.
fn take_all(machine: &Machine, ring: &mut Ring, number: &mut usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((used, frame)) = received_around(machine, ring, *number, COUNT) {
        for _ in 0..used {
            ring.add(&[Part::Write(BUFFERS + 0x1000 * (*number % COUNT) as u64, BUFFER)]);
            *number += 1;
        }
        frames.push(frame);
    }
    frames
}

#[test]
fn frames_of_all_lengths_come_in_order_with_and_without_long_ones() {
    for features in [MERGEABLE, LONG] {
        let (machine, mut receive, _, end) = machine(features);
        post(&machine, &mut receive, 0..COUNT, BUFFER);
        let mut number = 0;
        let mut lengths = lengths();
        for round in 0..20 {
            let given: Vec<_> = lengths
                .by_ref()
                .take(25)
                .map(|len| end.give(round, len))
                .collect();
            machine.device.pump();
            let came = take_all(&machine, &mut receive, &mut number);
            assert_eq!(came, given, "round {round}");
            machine.notify(RECEIVE);
        }
        machine.transport.pause();
        let at = machine.transport.save().unwrap().queues[usize::from(RECEIVE)].1;
        let at = at.unwrap();
        assert_eq!(at.next_avail, at.next_used, "no buffer is lost");
    }
}

#[test]
fn what_is_too_short_for_a_header_is_dropped_and_its_neighbours_come_whole() {
    let (machine, mut receive, _, end) = machine(MERGEABLE);
    post(&machine, &mut receive, 0..40, BUFFER);
    let mut whole = Vec::new();
    for number in 0..20 {
        if number % 5 == 3 {
            end.socket.send(&[0xee; HEADER - 1]).unwrap();
        } else {
            whole.push(end.give(number, 300));
        }
    }
    machine.device.pump();
    for (number, frame) in whole.into_iter().enumerate() {
        assert_eq!(received(&machine, &mut receive, number), Some((1, frame)));
    }
    assert_eq!(receive.take_used(), None);
}

#[test]
fn frames_that_come_while_others_are_read_keep_their_order() {
    let count = 20_000_u32;
    let (machine, mut receive, _, end) = machine(LONG);
    post(&machine, &mut receive, 0..COUNT, BUFFER);
    end.socket.set_nonblocking(false).unwrap();
    let sender = std::thread::spawn(move || {
        for (number, len) in (0..count).zip(lengths()) {
            let mut frame = vec![0; HEADER];
            frame.extend(number.to_le_bytes());
            frame.resize(len, number as u8);
            end.socket.send(&frame).unwrap();
        }
        end
    });
    let (mut number, mut next) = (0, 0_u32);
    while next < count {
        machine.device.wait(|| receive.used_index() != number as u16);
        for frame in take_all(&machine, &mut receive, &mut number) {
            assert_eq!(frame[HEADER..][..4], next.to_le_bytes());
            assert_eq!(frame.len(), lengths().nth(next as usize % 29).unwrap());
            assert!(frame[HEADER + 4..].iter().all(|byte| *byte == next as u8));
            next += 1;
        }
        machine.notify(RECEIVE);
    }
    sender.join().unwrap();
}

#[test]
fn frames_sent_at_once_go_in_order_and_those_the_host_has_no_room_for_wait() {
    let (machine, _, mut transmit, end) = machine(VERSION_1);
    let count = 30_u8;
    for number in 0..count {
        let addr = BUFFERS + 0x1000 * u64::from(number);
        machine
            .memory
            .write_slice(&[0; HEADER], GuestAddress(addr))
            .unwrap();
        machine
            .memory
            .write_slice(&[number; 988], GuestAddress(addr + 12))
            .unwrap();
        // A header that promises what was not negotiated, every ten.
        if number % 10 == 9 {
            machine.memory.write_slice(&[1], GuestAddress(addr)).unwrap();
        }
        transmit.add(&[Part::Read(addr, 1000), Part::Read(at(8), 20_000)]);
    }
    machine.notify(TRANSMIT);
    assert!(
        transmit.used_index() < count.into(),
        "the socket has not so much room"
    );
    machine.transport.pause();
    let at = machine.transport.save().unwrap().queues[usize::from(TRANSMIT)].1;
    let at = at.unwrap();
    assert_eq!(at.next_avail, at.next_used, "nothing is in flight");
    machine.transport.resume();
    let mut sent = Vec::new();
    while transmit.used_index() < count.into() {
        assert_eq!(machine.status() & NEEDS_RESET, 0);
        sent.extend(std::iter::from_fn(|| end.take()));
        machine.device.poke();
    }
    sent.extend(std::iter::from_fn(|| end.take()));
    let expected: Vec<_> = (0..count).filter(|number| number % 10 != 9).collect();
    let order: Vec<_> = sent.iter().map(|frame| frame[HEADER]).collect();
    assert_eq!(order, expected);
    for frame in sent {
        assert_eq!(frame.len(), 21_000);
        assert_eq!(frame[HEADER..1000], [frame[HEADER]; 988]);
    }
}

#[test]
fn a_host_that_reads_and_writes_only_what_waits_has_its_frames_one_by_one() {
    use std::os::fd::OwnedFd;

    /// Frames whose other descriptor is of a kind that the kernel does not keep from waiting.
    struct OneByOne {
        socket: UnixDatagram,
        file: OwnedFd,
    }

    impl NetBackend for OneByOne {
        fn fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }

        fn features(&self) -> u64 {
            0
        }

        fn start(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn receives_by(&self) -> Option<BorrowedFd<'_>> {
            Some(self.file.as_fd())
        }

        fn sends_by(&self) -> Option<BorrowedFd<'_>> {
            Some(self.file.as_fd())
        }
    }

    let (ours, other) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    other.set_nonblocking(true).unwrap();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/proc/self/comm");
    let file = OwnedFd::from(file.unwrap());
    let net = Net::new(Box::new(OneByOne { socket: ours, file }), MAC);
    let machine = Machine::new(Box::new(net));
    let mut rings = machine.bring_up(MERGEABLE).into_iter();
    let (mut receive, mut transmit) = (rings.next().unwrap(), rings.next().unwrap());
    post(&machine, &mut receive, 0..32, 0x1000);
    for number in 0..20 {
        other.send(&[number; 100]).unwrap();
        transmit.add(&[Part::Read(at(20), 100)]);
    }
    machine.notify(TRANSMIT);
    machine.device.pump();
    assert_eq!((receive.used_index(), transmit.used_index()), (20, 20));
    for _ in 0..20 {
        assert_eq!(other.recv(&mut [0; 200]).unwrap(), 100);
    }
}
