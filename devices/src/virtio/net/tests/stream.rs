//! Frames by a stream: however it is cut, whoever is slow, and when it ends.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::virtio::net::stream::Incoming;

/// A frame of `len` bytes that begin with `first`.
fn frame(first: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| first.wrapping_add((at / 7) as u8)).collect()
}

/// A frame as the stream has it.
fn streamed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

/// The frames that come of `pieces`, and whether the stream is still good.
fn arriving<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, bool) {
    let mut incoming = Incoming::new();
    let mut frames = Vec::new();
    for mut piece in pieces {
        loop {
            match incoming.next() {
                Ok(Some(frame)) => {
                    assert_eq!(frame[..HEADER], [0; HEADER]);
                    frames.push(frame[HEADER..].to_vec());
                    continue;
                }
                Ok(None) if piece.is_empty() => break,
                Ok(None) => {}
                Err(_) => return (frames, false),
            }
            incoming.fill(|room| piece.read(room)).unwrap();
        }
    }
    (frames, true)
}

#[test]
fn frames_arrive_whole_wherever_the_stream_is_cut() {
    let frames = [frame(1, 14), frame(2, 15), frame(3, 60)];
    let bytes: Vec<_> = frames.iter().flat_map(|frame| streamed(frame)).collect();
    for first in 0..=bytes.len() {
        for second in first..=bytes.len() {
            let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
            assert_eq!(arriving(pieces.into_iter()), (frames.to_vec(), true));
        }
    }
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn frames_of_any_length_arrive_in_order(
        lengths in proptest::collection::vec(proptest::prop_oneof![14..100_usize, 1400..1600_usize, 60_000..=65_535_usize], 1..12),
        piece in 1..200_000_usize,
    ) {
        let frames: Vec<_> = lengths.iter().zip(0..).map(|(&len, first)| frame(first, len)).collect();
        let bytes: Vec<_> = frames.iter().flat_map(|frame| streamed(frame)).collect();
        let (arrived, good) = arriving(bytes.chunks(piece));
        proptest::prop_assert!(good && arrived == frames);
    }

    #[test]
    fn a_guest_lives_with_any_stream(data in proptest::collection::vec(any::<u8>(), 0..600), zeros in any::<bool>()) {
        let (machine, mut receive, _, mut end) = connected();
        // Lengths that can be are rare among all.
        let data: Vec<u8> = if zeros { data.chunks(40).flat_map(streamed).collect() } else { data };
        post(&machine, &mut receive, 0..4, 0x1000);
        end.write_all(&data).unwrap();
        machine.device.poke();
        drop(end);
        machine.device.poke();
        assert_eq!(machine.status() & NEEDS_RESET, 0);
    }
}

/// A card at the end of a stream, and the other end.
fn connected() -> (Machine, Ring, Ring, UnixStream) {
    let (ours, end) = UnixStream::pair().unwrap();
    end.set_nonblocking(true).unwrap();
    let net = Net::new(Box::new(Stream::new(ours).unwrap()), MAC);
    let machine = Machine::new(Box::new(net));
    let mut rings = machine.bring_up(MERGEABLE).into_iter();
    let (receive, transmit) = (rings.next().unwrap(), rings.next().unwrap());
    (machine, receive, transmit, end)
}

/// Whether the guest sees its cable in place.
fn is_linked(machine: &Machine) -> bool {
    machine.read(0x104) >> 16 & 1 == 1
}

/// What the guest has sent that is there now.
fn drain(end: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = end.read_to_end(&mut bytes);
    bytes
}

#[test]
fn a_card_by_a_stream_conforms() {
    let end: Arc<Mutex<Option<UnixStream>>> = Arc::default();
    let (made, drained) = (end.clone(), end.clone());
    conformance::run(&sending(
        move || {
            let (ours, end) = UnixStream::pair().unwrap();
            end.set_nonblocking(true).unwrap();
            *made.lock().unwrap() = Some(end);
            Net::new(Box::new(Stream::new(ours).unwrap()), MAC)
        },
        move || drop(drain(drained.lock().unwrap().as_mut().unwrap())),
        move |frame| {
            let mut bytes = [0; 64];
            end.lock()
                .unwrap()
                .as_mut()
                .unwrap()
                .read_exact(&mut bytes)
                .unwrap();
            assert_eq!(bytes[..], streamed(frame));
        },
    ));
}

#[test]
fn frames_of_one_read_go_to_the_guest_one_by_one() {
    let (machine, mut receive, _, mut end) = connected();
    let frames = [frame(1, 60), frame(2, 9000), frame(3, 14)];
    let bytes: Vec<_> = frames.iter().flat_map(|frame| streamed(frame)).collect();
    let (most, last) = bytes.split_at(bytes.len() - 1);
    end.write_all(most).unwrap();
    post(&machine, &mut receive, 0..30, 0x1000);
    let mut number = 0;
    let mut take = |receive: &mut Ring| {
        let (count, frame) = received(&machine, receive, number)?;
        number += usize::from(count);
        Some(frame[HEADER..].to_vec())
    };
    assert_eq!(take(&mut receive).as_ref(), Some(&frames[0]));
    assert_eq!(take(&mut receive).as_ref(), Some(&frames[1]));
    assert_eq!(take(&mut receive), None, "its last byte is not there");
    end.write_all(last).unwrap();
    machine.device.poke();
    assert_eq!(take(&mut receive).as_ref(), Some(&frames[2]));
    assert!(is_linked(&machine));
}

#[test]
fn a_slow_reader_gets_every_frame_whole_and_in_order() {
    let (machine, _, mut transmit, mut end) = connected();
    let (mut expected, mut arrived) = (Vec::new(), Vec::new());
    let mut waited = false;
    for number in 0..40_u8 {
        let (addr, frame) = (at(usize::from(number) % 8), frame(number, 60_000));
        machine
            .memory
            .write_slice(&[0; HEADER], GuestAddress(addr))
            .unwrap();
        machine
            .memory
            .write_slice(&frame, GuestAddress(addr + 12))
            .unwrap();
        transmit.add(&[Part::Read(addr, 60_012)]);
        machine.notify(TRANSMIT);
        expected.extend(streamed(&frame));
        // A frame that found no room stays in the ring until there is some.
        while transmit.take_used().is_none() {
            waited = true;
            let mut some = [0; 10_000];
            let count = end.read(&mut some).unwrap();
            arrived.extend_from_slice(&some[..count]);
            machine.device.poke();
        }
    }
    assert!(waited);
    // The end of the last frame goes without another frame or a receive buffer.
    while arrived.len() < expected.len() {
        let more = drain(&mut end);
        assert!(!more.is_empty(), "{} of {} bytes", arrived.len(), expected.len());
        arrived.extend(more);
        machine.device.poke();
    }
    assert!(arrived == expected);
}

#[test]
fn the_end_of_the_stream_pulls_the_cable() {
    let (machine, mut receive, mut transmit, mut end) = connected();
    post(&machine, &mut receive, 0..2, 0x1000);
    end.write_all(&streamed(&frame(1, 60))).unwrap();
    drop(end);
    machine.device.poke();
    let (_, last) = received(&machine, &mut receive, 0).expect("what came before the end");
    assert_eq!(last[HEADER..], frame(1, 60));
    assert!(!is_linked(&machine));
    transmit.add(&[Part::Read(at(0), 100)]);
    machine.notify(TRANSMIT);
    assert!(transmit.take_used().is_some(), "lost as without a cable");
}

#[test]
fn a_length_that_no_frame_has_ends_the_stream() {
    for len in [0, 13, 65_536, u32::MAX] {
        let (machine, mut receive, _, mut end) = connected();
        post(&machine, &mut receive, 0..2, 0x1000);
        end.write_all(&len.to_be_bytes()).unwrap();
        machine.device.poke();
        assert!(!is_linked(&machine), "{len}");
        assert_eq!(receive.take_used(), None);
    }
}
