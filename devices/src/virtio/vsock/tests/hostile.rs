//! Packets that no driver should send, and the suite that every device passes.

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::proptest;
use proptest::test_runner::Config;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::super::packet::{HEADER, Header};
use super::*;
use crate::virtio::conformance::ring::Part;
use crate::virtio::conformance::{self, NEEDS_RESET, Request, Subject};

#[test]
fn conforms() {
    let place = Place::new();
    conformance::run(&Subject {
        make: Box::new(move || Box::new(Vsock::new(CID, &place.path()).unwrap())),
        request: Request {
            queue: TRANSMIT,
            // An RST for a connection that is none: taken, and nothing follows from it.
            prepare: Box::new(|memory, base, number| {
                let header = Packet::new(op::RST, 1, number).header();
                memory.write_slice(header.as_bytes(), GuestAddress(base)).unwrap();
                vec![Part::Read(base, 20), Part::Read(base + 20, HEADER - 20)]
            }),
            verify: Box::new(|_, _, _, written| assert_eq!(written, 0)),
        },
    });
}

#[test]
fn a_packet_that_fits_no_connection_is_refused_where_it_came_from() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    let good = Packet::new(op::REQUEST, SERVICE, 2000).header();
    let cases: [(&str, Header); 5] = [
        (
            "to another CID",
            Header {
                dst_cid: 7.into(),
                ..good
            },
        ),
        (
            "from another CID",
            Header {
                src_cid: 9.into(),
                ..good
            },
        ),
        (
            "of packets in sequence",
            Header {
                kind: 2.into(),
                ..good
            },
        ),
        (
            "of no type",
            Header {
                kind: 0xffff.into(),
                ..good
            },
        ),
        (
            "of no operation",
            Header {
                op: 77.into(),
                ..good
            },
        ),
    ];
    for (name, header) in cases {
        guest.machine.device.pump();
        let before = guest.receive.used_index();
        guest.send_raw(&header, &[]);
        assert_eq!(guest.receive.used_index(), before.wrapping_add(1), "{name}");
        let at = crate::virtio::conformance::BUFFERS + u64::from(before % 32) * 4096;
        let mut reply = Header::empty();
        guest
            .machine
            .memory
            .read_slice(reply.as_mut_bytes(), GuestAddress(at))
            .unwrap();
        assert_eq!(reply.as_bytes(), header.refusal().as_bytes(), "{name}");
        // An RST is never answered.
        guest.send_raw(
            &Header {
                op: op::RST.into(),
                ..header
            },
            &[],
        );
        assert_eq!(guest.receive.used_index(), before.wrapping_add(1), "{name}");
    }
}

#[test]
fn a_packet_that_its_connection_cannot_have_ends_it() {
    let place = Place::new();
    let mut guest = Guest::new(&place.path());
    for (op, len) in [
        (op::REQUEST, 0),
        (op::RESPONSE, 0),
        (0, 0),
        (99, 0),
        (op::RW, 5),
        (op::RW, u32::MAX),
    ] {
        let (mut stream, ports) = from_guest(&place, &mut guest, 2000);
        let mut header = Packet::new(op, ports.0, ports.1).header();
        header.len = len.into();
        guest.send_raw(&header, b"four");
        guest.expect(op::RST, ports);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "operation {op}");
    }
    // Data for one that was not answered yet.
    let mut stream = UnixStream::connect(place.path()).unwrap();
    stream.write_all(b"CONNECT 5\n").unwrap();
    let request = guest.packet();
    guest.write((request.local, 5), b"early");
    guest.expect(op::RST, (request.local, 5));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn short_packets_are_dropped_and_buffers_without_room_need_a_reset() {
    let place = Place::new();
    let mut guest = Guest::without_buffers(Vsock::new(CID, &place.path()).unwrap());
    guest
        .transmit
        .add(&[Part::Read(crate::virtio::conformance::BUFFERS, HEADER - 1)]);
    guest
        .transmit
        .add(&[Part::Write(crate::virtio::conformance::BUFFERS, HEADER)]);
    guest.machine.notify(TRANSMIT);
    assert!(guest.transmit.take_used().is_some() && guest.transmit.take_used().is_some());
    assert_eq!(guest.machine.status() & NEEDS_RESET, 0);
    guest.send(&Packet::new(op::RW, 1, 1));
    guest
        .receive
        .add(&[Part::Write(crate::virtio::conformance::BUFFERS, HEADER)]);
    guest.machine.notify(RECEIVE);
    assert_ne!(guest.machine.status() & NEEDS_RESET, 0);
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn survives_any_driver(data in vec(any::<u8>(), 0..600)) {
        let place = Place::new();
        conformance::fuzz_mmio(Box::new(Vsock::new(CID, &place.path()).unwrap()), &data);
        conformance::fuzz_queue(Box::new(Vsock::new(CID, &place.path()).unwrap()), &data);
    }

    /// Any packets between few ports, while host programs come, write, end and go.
    #[test]
    fn survives_any_packets(script in vec((0_u16..10, 0_u32..3, 0_u32..3, any::<u32>(), 0_usize..200), 0..200)) {
        let place = Place::new();
        let mut guest = Guest::new(&place.path());
        let listener = UnixListener::bind(place.service(SERVICE)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut streams: Vec<UnixStream> = Vec::new();
        let mut requested = 1 << 30;
        for (op, local, peer, number, len) in script {
            match op {
                0 => {
                    let mut stream = UnixStream::connect(place.path()).unwrap();
                    stream.write_all(format!("CONNECT {peer}\n").as_bytes()).unwrap();
                    streams.push(stream);
                }
                8 => drop(streams.pop()),
                9 => {
                    for stream in &mut streams {
                        stream.set_nonblocking(true).unwrap();
                        let _ = stream.write(&vec![1; len * 50]);
                        if number % 5 == 0 {
                            let _ = stream.shutdown(Shutdown::Write);
                        }
                    }
                }
                _ => {
                    let local = if local == 0 { requested } else { SERVICE + local - 1 };
                    let mut packet = Packet::new(op, local, peer);
                    packet.flags = number & 3;
                    packet.room = number;
                    packet.data = vec![2; len * 100];
                    guest.send(&packet);
                }
            }
            while let Some(packet) = guest.try_packet() {
                if packet.op == op::REQUEST {
                    requested = packet.local;
                }
            }
            while let Ok((stream, _)) = listener.accept() {
                streams.push(stream);
            }
        }
    }
}
