//! The device's life: its socket, limits, patience, pauses and restores, and very many connections at once.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

use super::super::connections::Limits;
use super::*;
use crate::virtio::conformance::BUFFERS;
use crate::virtio::conformance::ring::Part;

/// A device with limits that a test can reach.
fn limited(place: &Place, limits: Limits) -> Guest {
    Guest::with(Vsock::with_limits(CID, &place.path(), limits).unwrap())
}

#[test]
fn the_socket_is_its_owners_and_goes_with_the_device() {
    let place = Place::new();
    let device = Vsock::new(CID, &place.path()).unwrap();
    let mode = std::fs::metadata(place.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let refused = Vsock::new(CID, &place.path()).err().unwrap().to_string();
    assert!(
        refused.ends_with("another program listens there, perhaps another VM; choose another path"),
        "{refused}"
    );
    drop(device);
    assert!(!place.path().exists());
    // One that a killed program left is replaced.
    drop(UnixListener::bind(place.path()).unwrap());
    let device = Vsock::new(CID, &place.path()).unwrap();
    UnixStream::connect(place.path()).unwrap();
    // Another's file in its place is left alone.
    std::fs::remove_file(place.path()).unwrap();
    std::fs::write(place.path(), "kept").unwrap();
    drop(device);
    assert_eq!(std::fs::read(place.path()).unwrap(), b"kept");
    let refused = Vsock::new(CID, &place.path()).err().unwrap().to_string();
    assert!(
        refused.contains("v.sock: something that is not a socket stands there"),
        "{refused}"
    );
    std::fs::remove_file(place.path()).unwrap();
    let _datagrams = UnixDatagram::bind(place.path()).unwrap();
    let refused = Vsock::new(CID, &place.path()).err().unwrap().to_string();
    assert!(refused.contains("v.sock: cannot listen there: "), "{refused}");
    let refused = Vsock::new(CID, &place.path().join("deeper"))
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("deeper: cannot listen there: "), "{refused}");
}

#[test]
fn a_pause_keeps_every_connection_and_every_byte() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (mut here, ports) = from_host(&place, &mut guest);
    let (there, others) = from_guest(&place, &mut guest, 2000);
    let data = noise(2 << 20);
    let copy = data.clone();
    let writer = std::thread::spawn(move || {
        here.write_all(&copy).unwrap();
        here
    });
    let mut received = Vec::new();
    let mut kept = Vec::new();
    let mut round = 0_u32;
    while received.len() < data.len() {
        round += 1;
        if round.is_multiple_of(7) {
            // Not read by the host: some of it waits in the device.
            if kept.len() < 400_000 {
                guest.write(others, &vec![round as u8; 40_000]);
                kept.extend_from_slice(&vec![round as u8; 40_000]);
            }
            guest.machine.transport.pause();
            guest.machine.device.pump();
            let state = guest.machine.transport.save().unwrap();
            assert_eq!(guest.machine.transport.save(), Ok(state));
            guest.machine.transport.resume();
        }
        let packet = guest.packet();
        if packet.op == op::RW {
            received.extend(packet.data);
            guest.tell(ports, received.len() as u32);
        }
    }
    let _here = writer.join().unwrap();
    assert!(received == data, "host to guest");
    guest.shut_down(others, BOTH);
    let reader = std::thread::spawn(move || {
        let mut read = Vec::new();
        (&there).read_to_end(&mut read).unwrap();
        read
    });
    while guest.packet().op != op::RST {}
    assert!(reader.join().unwrap() == kept, "guest to host");
}

#[test]
fn what_happens_on_the_host_while_the_guest_is_paused_is_seen_when_it_goes_on() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (mut stream, ports) = from_host(&place, &mut guest);
    guest.machine.transport.pause();
    stream.write_all(b"meanwhile").unwrap();
    let mut second = UnixStream::connect(place.path()).unwrap();
    second.write_all(b"CONNECT 5\n").unwrap();
    guest.machine.device.pump();
    guest.machine.device.poke();
    guest.machine.transport.resume();
    let mut packets = [guest.packet(), guest.packet()];
    packets.sort_by_key(|packet| packet.op);
    assert_eq!((packets[0].op, packets[0].peer), (op::REQUEST, 5));
    assert_eq!(
        (packets[1].op, packets[1].local, &packets[1].data[..]),
        (op::RW, ports.0, &b"meanwhile"[..])
    );
}

#[test]
fn a_restored_guest_hears_that_its_connections_are_gone_and_makes_new_ones() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (stream, ports) = from_host(&place, &mut guest);
    // A request that the guest has no answer to when it is saved: no buffer.
    let listener = UnixListener::bind(place.service(SERVICE)).unwrap();
    let event = guest.events.add(&[Part::Write(BUFFERS + 0x10_0000, 4)]);
    let clone = Place::new();
    let mut guest = guest.restore_into(|| Vsock::new(CID + 1, &clone.path()).unwrap());
    assert_eq!(
        (&stream).read(&mut [0]).unwrap(),
        0,
        "the host program sees the end too"
    );
    guest.machine.notify(EVENT);
    assert_eq!(guest.events.take_used(), Some((event.into(), 4)));
    assert_eq!(guest.machine.read(0x100), CID + 1, "the CID is the new device's");
    guest.events.add(&[Part::Write(BUFFERS + 0x10_0000, 4)]);
    guest.machine.notify(EVENT);
    assert_eq!(guest.events.take_used(), None, "it is said once");
    // What was under way is refused, under the old CID as under the new.
    let mut late = Packet::new(op::RW, ports.0, ports.1);
    late.data = b"late".to_vec();
    guest.send(&late);
    guest.expect(op::RST, ports);
    drop(listener);
    let mut header = late.header();
    header.src_cid = u64::from(CID + 1).into();
    guest.send_raw(&header, b"late");
    guest.expect(op::RST, ports);
    let mut stream = UnixStream::connect(clone.path()).unwrap();
    stream.write_all(b"CONNECT 5\n").unwrap();
    let request = guest.packet();
    // The guest may still have its end of the old connection, and would refuse its ports.
    assert_eq!((request.op, request.local), (op::REQUEST, ports.0 + 1));
}

#[test]
fn a_request_that_had_no_answer_when_the_guest_was_saved_gets_one() {
    let place = Place::new();
    let mut guest = Guest::without_buffers(Vsock::new(CID, &place.path()).unwrap());
    let _listener = UnixListener::bind(place.service(SERVICE)).unwrap();
    guest.send(&Packet::new(op::REQUEST, SERVICE, 2000));
    guest.send(&Packet::new(op::REQUEST, SERVICE + 1, 2001));
    let clone = Place::new();
    let mut guest = guest.restore_into(|| Vsock::new(CID, &clone.path()).unwrap());
    guest.post_all();
    guest.expect(op::RST, (SERVICE, 2000));
    guest.expect(op::RST, (SERVICE + 1, 2001));
    guest.expect_nothing();
}

#[test]
fn a_state_of_another_version_is_refused() {
    let place = Place::new();
    let mut device = Vsock::new(CID, &place.path()).unwrap();
    let state = device.save();
    device.restore(&state).unwrap();
    let newer = DeviceState {
        version: 2,
        ..state.clone()
    };
    assert!(device.restore(&newer).is_err());
    let other = DeviceState::new(1, &"text");
    assert!(device.restore(&other).is_err());
    let mut other = state;
    other.data["last_port"] = 5.into();
    let refused = device.restore(&other).unwrap_err().to_string();
    assert_eq!(
        refused,
        "its state cannot be used: last_port 5 is none of the host's"
    );
}

#[test]
fn a_driver_that_begins_anew_has_no_connections() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (mut stream, _) = from_host(&place, &mut guest);
    guest.machine.reset();
    guest.machine.bring_up(crate::virtio::conformance::VERSION_1);
    guest.machine.device.pump();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn requests_beyond_the_limit_are_refused_and_host_programs_wait() {
    let place = Place::new();
    let limits = Limits {
        connections: 8,
        half_open: 4,
        patience: 3,
        ..Limits::default()
    };
    let mut guest = limited(&place, limits);
    let listener = UnixListener::bind(place.service(SERVICE)).unwrap();
    let mut counts = HashMap::new();
    for peer in 0..20 {
        guest.send(&Packet::new(op::REQUEST, SERVICE, peer));
        *counts.entry(guest.packet().op).or_insert(0) += 1;
    }
    assert_eq!(counts, HashMap::from([(op::RESPONSE, 8), (op::RST, 12)]));
    // A host program waits until there is room.
    let mut stream = UnixStream::connect(place.path()).unwrap();
    stream.write_all(b"CONNECT 5\n").unwrap();
    guest.expect_nothing();
    guest.send(&Packet::new(op::RST, SERVICE, 0));
    assert_eq!(guest.packet().op, op::REQUEST);
    // Those that say nothing keep others out only up to their limit.
    guest.send(&Packet::new(op::RST, SERVICE, 1));
    let silent: Vec<_> = (0..6)
        .map(|_| UnixStream::connect(place.path()).unwrap())
        .collect();
    guest.work();
    drop(silent);
    guest.expect_nothing();
    drop(listener);
}

#[test]
fn an_answer_that_does_not_come_ends_the_wait() {
    let place = Place::new();
    let limits = Limits {
        patience: 2,
        ..Limits::default()
    };
    let mut guest = limited(&place, limits);
    let mut stream = UnixStream::connect(place.path()).unwrap();
    stream.write_all(b"CONNECT 5\n").unwrap();
    let request = guest.packet();
    assert_eq!(request.op, op::REQUEST);
    guest.expect(op::RST, (request.local, 5));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // Nor does the RST of a guest that was told of both ends.
    let (stream, ports) = from_host(&place, &mut guest);
    drop(stream);
    assert_eq!(guest.expect(op::SHUTDOWN, ports).flags, BOTH);
    guest.expect(op::RST, ports);
}

#[test]
fn a_host_program_that_is_slow_to_accept_gets_its_connections_in_time() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(place.service(SERVICE)).unwrap()).unwrap();
    listen(&listener, 0).unwrap();
    let listener = UnixListener::from(listener);
    for peer in 0..4 {
        guest.send(&Packet::new(op::REQUEST, SERVICE, peer));
    }
    let accepted: Vec<_> = (0..4)
        .map(|_| {
            assert_eq!(guest.packet().op, op::RESPONSE);
            listener.accept().unwrap()
        })
        .collect();
    assert_eq!(accepted.len(), 4);
    // One that never accepts is as good as none.
    for peer in 10..13 {
        guest.send(&Packet::new(op::REQUEST, SERVICE, peer));
    }
    drop(listener);
    let answers: Vec<u16> = (0..3).map(|_| guest.packet().op).collect();
    assert!(answers.contains(&op::RST), "{answers:?}");
}

#[test]
fn too_much_kept_for_programs_that_do_not_read_ends_a_connection() {
    let place = Place::new();
    let limits = Limits {
        kept: 100_000,
        ..Limits::default()
    };
    let mut guest = limited(&place, limits);
    let (_stream, ports) = from_guest(&place, &mut guest, 2000);
    let cut = (0..40).any(|_| {
        guest.write(ports, &vec![7; 50_000]);
        std::iter::from_fn(|| guest.try_packet()).any(|packet| packet.op == op::RST)
    });
    assert!(cut);
}

#[test]
fn a_guest_that_takes_no_refusals_may_not_cause_more() {
    let place = Place::new();
    let mut guest = Guest::without_buffers(Vsock::new(CID, &place.path()).unwrap());
    let mut taken = 0;
    while taken < 1000 {
        guest.offer_raw(&Packet::new(op::RW, 1, taken).header(), &[]);
        guest.machine.notify(TRANSMIT);
        if guest.transmit.take_used().is_none() {
            break;
        }
        taken += 1;
    }
    assert_eq!(taken, 256);
    guest.post_all();
    guest.work();
    assert!(guest.transmit.take_used().is_some(), "it goes on with buffers");
    for peer in 0..=taken {
        guest.expect(op::RST, (1, peer));
    }
}

#[test]
fn what_a_guest_sent_before_it_gave_up_is_written_out() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (mut stream, ports) = from_guest(&place, &mut guest, 2000);
    let mut sent = 0;
    // More than the socket takes.
    for _ in 0..8 {
        guest.write(ports, &vec![9; 50_000]);
        sent += 50_000;
    }
    while let Some(packet) = guest.try_packet() {
        assert_eq!(packet.op, op::CREDIT_UPDATE);
    }
    guest.shut_down(ports, BOTH);
    // The end is said when the host has all of it, no earlier; but a guest may not wait for that.
    guest.expect_nothing();
    guest.send(&Packet::new(op::RST, ports.0, ports.1));
    // The ports are free again.
    let (_other, _) = from_guest(&place, &mut guest, 2000);
    let reader = std::thread::spawn(move || {
        let mut read = Vec::new();
        stream.read_to_end(&mut read).unwrap();
        read.len()
    });
    while !reader.is_finished() {
        guest.work();
        std::thread::yield_now();
    }
    assert_eq!(reader.join().unwrap(), sent);
}

#[test]
fn thousands_of_connections_live_side_by_side() {
    const EACH: u32 = 3000;
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let listener = UnixListener::bind(place.service(SERVICE)).unwrap();
    let mut ends = HashMap::new();
    for number in 0..EACH {
        let (stream, ports) = from_host(&place, &mut guest);
        ends.insert(ports, stream);
        guest.send(&Packet::new(op::REQUEST, SERVICE, number));
        guest.expect(op::RESPONSE, (SERVICE, number));
        ends.insert((SERVICE, number), listener.accept().unwrap().0);
    }
    let text = |ports: &(u32, u32)| format!("{}-{}", ports.0, ports.1);
    for (ports, stream) in &mut ends {
        stream.write_all(text(ports).as_bytes()).unwrap();
        guest.write(*ports, text(ports).as_bytes());
        let mut read = vec![0; text(ports).len()];
        stream.read_exact(&mut read).unwrap();
        assert_eq!(read, text(ports).as_bytes());
    }
    let mut heard = 0;
    while heard < ends.len() {
        let packet = guest.packet();
        assert_eq!(packet.data, text(&(packet.local, packet.peer)).as_bytes());
        heard += 1;
    }
    drop(ends);
    for _ in 0..2 * EACH {
        let packet = guest.packet();
        assert_eq!((packet.op, packet.flags), (op::SHUTDOWN, BOTH));
        guest.send(&Packet::new(op::RST, packet.local, packet.peer));
    }
    guest.expect_nothing();
}
