//! Connections from both sides, their data and their ends, against a guest that is a few lines of test.

mod guest;
mod hostile;
mod lifecycle;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::connection::CREDIT;
use super::packet::{BOTH, NO_RECEIVE, NO_SEND, op};
use super::*;
use crate::virtio::conformance::noise;
use guest::{CID, Guest, Packet, Place};

/// A port on which a host program, and one on which a guest program listens.
const SERVICE: u32 = 52;
const GUEST_PORT: u32 = 1024;

fn patient(stream: &UnixStream) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
}

/// A host program's connection to the guest's port, accepted by the guest; and its ports.
fn from_host(place: &Place, guest: &mut Guest) -> (UnixStream, (u32, u32)) {
    let mut stream = UnixStream::connect(place.path()).unwrap();
    patient(&stream);
    writeln!(stream, "CONNECT {GUEST_PORT}").unwrap();
    let request = guest.packet();
    assert_eq!(
        (request.op, request.peer, request.room),
        (op::REQUEST, GUEST_PORT, CREDIT)
    );
    let ports = (request.local, GUEST_PORT);
    guest.send(&Packet::new(op::RESPONSE, ports.0, ports.1));
    assert_eq!(line(&mut stream), format!("OK {}\n", ports.0));
    (stream, ports)
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// The guest's connection to a host program, and the program's end of it.
fn from_guest(place: &Place, guest: &mut Guest, peer: u32) -> (UnixStream, (u32, u32)) {
    let path = place.service(SERVICE);
    let listener = UnixListener::bind(&path).unwrap();
    guest.send(&Packet::new(op::REQUEST, SERVICE, peer));
    let ports = (SERVICE, peer);
    let response = guest.expect(op::RESPONSE, ports);
    assert_eq!(response.room, CREDIT);
    let (stream, _) = listener.accept().unwrap();
    patient(&stream);
    std::fs::remove_file(path).unwrap();
    (stream, ports)
}

#[test]
fn a_host_program_names_a_port_and_talks_to_the_guest_program_there() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (mut stream, ports) = from_host(&place, &mut guest);
    assert!((1 << 30..1 << 31).contains(&ports.0));
    stream.write_all(b"hello").unwrap();
    assert_eq!(guest.receive_data(ports, 5), b"hello");
    guest.write(ports, b"and back");
    let mut back = [0; 8];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"and back");
    // Each has a port of its own.
    let (_second, others) = from_host(&place, &mut guest);
    assert_ne!(others.0, ports.0);
}

#[test]
fn what_a_host_program_writes_with_its_first_line_goes_to_the_guest_after_its_answer() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let mut stream = UnixStream::connect(place.path()).unwrap();
    // In pieces, in any case, with more behind it.
    stream.write_all(b"con").unwrap();
    guest.expect_nothing();
    stream.write_all(b"nect 7\nearly").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let request = guest.packet();
    assert_eq!((request.op, request.peer), (op::REQUEST, 7));
    guest.expect_nothing();
    let ports = (request.local, 7);
    guest.send(&Packet::new(op::RESPONSE, ports.0, ports.1));
    assert_eq!(guest.receive_data(ports, 5), b"early");
    assert_eq!(guest.expect(op::SHUTDOWN, ports).flags, NO_SEND);
}

#[test]
fn a_guest_that_refuses_and_a_line_that_says_nothing_close_the_socket() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let mut stream = UnixStream::connect(place.path()).unwrap();
    stream.write_all(b"CONNECT 9\n").unwrap();
    let request = guest.packet();
    guest.send(&Packet::new(op::RST, request.local, 9));
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    for nonsense in [
        "\n",
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT -1\n",
        "CONNECT 4294967296\n",
        "CONNECT 1 2\n",
        "GET / HTTP/1.1\r\n",
        "a line of more than thirty-two bytes without an end",
        "\u{e9}\n",
    ] {
        let mut stream = UnixStream::connect(place.path()).unwrap();
        patient(&stream);
        stream.write_all(nonsense.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut end = Ok(1);
        guest.machine.device.wait(|| {
            end = stream.read(&mut [0; 8]);
            !matches!(&end, Err(cause) if cause.kind() == ErrorKind::WouldBlock)
        });
        assert!(
            matches!(&end, Ok(0))
                || end
                    .as_ref()
                    .is_err_and(|cause| cause.kind() == ErrorKind::ConnectionReset),
            "{nonsense:?}: {end:?}"
        );
    }
    guest.expect_nothing();
}

#[test]
fn a_guest_program_reaches_the_host_program_of_its_port_or_is_refused() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    guest.send(&Packet::new(op::REQUEST, SERVICE, 2000));
    guest.expect(op::RST, (SERVICE, 2000));
    // A socket file that nobody listens on is the same.
    drop(UnixListener::bind(place.service(SERVICE)).unwrap());
    guest.send(&Packet::new(op::REQUEST, SERVICE, 2000));
    guest.expect(op::RST, (SERVICE, 2000));
    std::fs::remove_file(place.service(SERVICE)).unwrap();
    let (mut stream, ports) = from_guest(&place, &mut guest, 2000);
    guest.write(ports, b"ping");
    let mut data = [0; 4];
    stream.read_exact(&mut data).unwrap();
    stream.write_all(&data).unwrap();
    assert_eq!(guest.receive_data(ports, 4), b"ping");
}

#[test]
fn a_host_program_that_does_not_read_stops_the_guest_and_loses_nothing() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (mut stream, ports) = from_guest(&place, &mut guest, 2000);
    let data = noise(3 << 20);
    let (mut sent, mut forwarded, mut stalls) = (0, 0, 0);
    let mut read = Vec::new();
    while sent < data.len() {
        let credit = CREDIT as usize - (sent - forwarded as usize);
        let len = credit.min(60_000).min(data.len() - sent);
        if len > 0 {
            guest.write(ports, &data[sent..sent + len]);
            sent += len;
        }
        while let Some(packet) = guest.try_packet() {
            assert_eq!((packet.op, packet.room), (op::CREDIT_UPDATE, CREDIT));
            forwarded = packet.forwarded;
        }
        if len == 0 {
            // The guest may not send and the host did not read: now it does.
            stalls += 1;
            let mut piece = vec![0; 300_000];
            let count = stream.read(&mut piece).unwrap();
            read.extend_from_slice(&piece[..count]);
        }
    }
    assert!(stalls > 3, "the guest was stopped {stalls} times");
    guest.shut_down(ports, BOTH);
    let reader = std::thread::spawn(move || {
        stream.read_to_end(&mut read).unwrap();
        read
    });
    while guest.packet().op != op::RST {}
    let read = reader.join().unwrap();
    assert!(read == data, "{} of {} bytes, or others", read.len(), data.len());
}

#[test]
fn a_guest_that_sends_more_than_its_credit_is_cut_off() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (_stream, ports) = from_guest(&place, &mut guest, 2000);
    let most = 2 * CREDIT as usize / 60_000 + 8;
    let cut = (0..most).find_map(|_| {
        guest.write(ports, &vec![7; 60_000]);
        std::iter::from_fn(|| guest.try_packet()).find(|packet| packet.op == op::RST)
    });
    assert!(cut.is_some(), "credit ignored for {most} packets");
}

#[test]
fn a_guest_without_credit_stops_the_host_program_and_loses_nothing() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (stream, ports) = from_host(&place, &mut guest);
    let mut credit = Packet::new(op::CREDIT_UPDATE, ports.0, ports.1);
    credit.room = 10_000;
    guest.send(&credit);
    let data = noise(1 << 20);
    let mut writer = stream.try_clone().unwrap();
    let copy = data.clone();
    let thread = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    let mut received = Vec::new();
    while received.len() < data.len() {
        let packet = guest.packet();
        match packet.op {
            op::RW => received.extend(packet.data),
            op::CREDIT_REQUEST => {
                assert_eq!(
                    received.len() as u32 - credit.forwarded,
                    10_000,
                    "no byte beyond the credit"
                );
                guest.expect_nothing();
                credit.forwarded = received.len() as u32;
                guest.send(&credit);
            }
            _ => panic!("{packet:?}"),
        }
    }
    thread.join().unwrap();
    assert!(received == data);
    // Credit is used up to the last byte, and still the end is seen.
    credit.forwarded = received.len() as u32;
    credit.room = 3;
    guest.send(&credit);
    (&stream).write_all(b"end").unwrap();
    assert_eq!(guest.expect(op::RW, ports).data, b"end");
    drop(stream);
    let mut last = guest.packet();
    if last.op == op::CREDIT_REQUEST {
        last = guest.packet();
    }
    assert_eq!((last.op, last.flags), (op::SHUTDOWN, BOTH));
}

#[test]
fn lies_about_credit_harm_only_the_liar() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (mut stream, ports) = from_host(&place, &mut guest);
    for (room, forwarded) in [(0, u32::MAX), (10, 1 << 31), (u32::MAX, 77), (1 << 20, 0)] {
        let mut lie = Packet::new(op::CREDIT_UPDATE, ports.0, ports.1);
        (lie.room, lie.forwarded) = (room, forwarded);
        stream.write_all(b"x").unwrap();
        guest.send(&lie);
        guest.work();
    }
    while let Some(packet) = guest.try_packet() {
        assert_eq!((packet.local, packet.peer), ports);
    }
    let (mut other, others) = from_host(&place, &mut guest);
    other.write_all(b"fine").unwrap();
    assert_eq!(guest.receive_data(others, 4), b"fine");
}

#[test]
fn each_side_may_end_its_half_and_the_other_goes_on() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    // The host ends first.
    let (mut stream, ports) = from_host(&place, &mut guest);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive_data(ports, 8), b"question");
    assert_eq!(guest.expect(op::SHUTDOWN, ports).flags, NO_SEND);
    guest.write(ports, b"answer");
    guest.shut_down(ports, BOTH);
    guest.expect(op::RST, ports);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    // The guest ends first.
    let (mut stream, ports) = from_guest(&place, &mut guest, 2000);
    guest.write(ports, b"question");
    guest.shut_down(ports, NO_SEND);
    let mut question = String::new();
    stream.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    guest.expect_nothing();
    stream.write_all(b"answer").unwrap();
    drop(stream);
    assert_eq!(guest.receive_data(ports, 6), b"answer");
    assert_eq!(guest.expect(op::SHUTDOWN, ports).flags, BOTH);
    guest.send(&Packet::new(op::RST, ports.0, ports.1));
    guest.expect_nothing();
}

#[test]
fn a_side_that_no_longer_reads_is_known_to_the_other() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (mut stream, ports) = from_host(&place, &mut guest);
    guest.shut_down(ports, NO_RECEIVE);
    let refused = stream.write_all(b"unwanted").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BrokenPipe);
    guest.write(ports, b"still");
    let mut data = [0; 5];
    stream.read_exact(&mut data).unwrap();
    drop(stream);
    assert_eq!(guest.expect(op::SHUTDOWN, ports).flags, BOTH);

    let (stream, ports) = from_guest(&place, &mut guest, 2000);
    stream.shutdown(Shutdown::Read).unwrap();
    guest.write(ports, b"unwanted");
    assert_eq!(guest.expect(op::SHUTDOWN, ports).flags, NO_RECEIVE);
    (&stream).write_all(b"still").unwrap();
    assert_eq!(guest.receive_data(ports, 5), b"still");
}

#[test]
fn data_after_its_end_ends_the_connection() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let (mut stream, ports) = from_guest(&place, &mut guest, 2000);
    guest.shut_down(ports, NO_SEND);
    guest.write(ports, b"more");
    guest.expect(op::RST, ports);
    assert_eq!(stream.read(&mut [0; 4]).unwrap(), 0);
}
