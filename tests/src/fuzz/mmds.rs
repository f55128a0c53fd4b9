//! The metadata service between a guest that sends any segments and a network behind it.

use std::sync::Arc;

use berth_devices::virtio::conformance::ring::{Part, Ring};
use berth_devices::virtio::conformance::{BUFFERS, Machine, VERSION_1};
use berth_devices::virtio::net::mmds::{DEFAULT_ADDRESS, MetadataStore, Mmds, MmdsConfig};
use berth_devices::virtio::net::{HEADER, Net};
use serde_json::json;
use vm_memory::{Bytes, GuestAddress};

use super::net::Pair;

const SENT: u64 = BUFFERS + 0x10_0000;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PUSH_ACK: u8 = 0x18;

/// What requests are put together from.
const TEXTS: [&str; 8] = [
    "GET / HTTP/1.1\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n",
    "GET /large HTTP/1.0\r\nX-metadata-token: ",
    "Accept: application/json\r\n",
    "Content-Length: 20\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n",
    "\r\n\r\n",
    "GET /a//b/~1/0 HTTP/1.1\r\nConnection: close\r\n\r\n",
];

/// One step: what happens, and the bytes that say more.
const STEP: usize = 6;

/// A guest's side of TCP, as far as it cares.
struct Guest {
    machine: Machine,
    receive: Ring,
    transmit: Ring,
    /// Of each of its ports: the next byte it sends, and the next it has not seen.
    ports: [(u32, u32); 4],
}

/// Plays the bytes, six a step. The first says which version answers.
pub(super) fn run(data: &[u8]) {
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    let config = MmdsConfig {
        address: DEFAULT_ADDRESS,
        tokens: first & 1 != 0,
        imds_compat: first & 2 != 0,
    };
    let store = MetadataStore::default();
    let put = store.put(json!({"a": {"b": {"/": ["x", 1]}}, "large": "x".repeat(40_000)}));
    put.expect("it fits");
    let (pair, host) = Pair::new();
    let mmds = Mmds::new(Box::new(pair), config, Arc::new(store)).expect("descriptors");
    let machine = Machine::new(Box::new(Net::new(Box::new(mmds), [2, 0, 0, 0, 0, 1])));
    let mut rings = machine.bring_up(VERSION_1 | 1).into_iter();
    let (Some(receive), Some(transmit)) = (rings.next(), rings.next()) else {
        return;
    };
    let mut guest = Guest {
        machine,
        receive,
        transmit,
        ports: [(1, 0); 4],
    };
    for step in rest.chunks(STEP) {
        let mut bytes = [0; STEP];
        bytes[..step.len()].copy_from_slice(step);
        guest.step(bytes);
    }
    // Whatever was sent to the service, none of it came out.
    let mut frame = [0; 100];
    while let Ok(len) = host.recv(&mut frame) {
        let to = frame.get(HEADER + 30..HEADER + 34).filter(|_| len >= HEADER + 34);
        let is_ipv4 = frame[HEADER + 12..HEADER + 14] == [8, 0];
        assert!(!is_ipv4 || to != Some(&DEFAULT_ADDRESS.octets()[..]));
    }
}

impl Guest {
    fn step(&mut self, [verb, port, a, b, c, d]: [u8; STEP]) {
        let text = TEXTS[usize::from(a) % TEXTS.len()].as_bytes();
        match verb % 8 {
            0 => self.segment(port, SYN, &[], [0, 0], b),
            1 | 2 => self.segment(port, PUSH_ACK, text, [0, 0], b),
            3 => self.segment(
                port,
                [FIN, RST, FIN | PUSH_ACK][usize::from(a % 3)],
                &[],
                [0, 0],
                b,
            ),
            4 => self.segment(port, a, &text[..usize::from(b) % text.len()], [c, d], d),
            5 => self.post(a % 8),
            6 => {
                self.machine.transport.pause();
                self.machine.transport.resume();
            }
            // Anything in a frame for the service.
            _ => {
                let mut frame = frame(40, 6);
                frame[usize::from(port) % 74] = a;
                frame[usize::from(b) % 74] ^= c;
                frame.truncate(14 + usize::from(d % 61));
                self.send(&frame);
            }
        }
        self.machine.device.pump();
        while let Some((head, len)) = self.receive.take_used() {
            let at = BUFFERS + u64::from(head % 64) * 0x1000;
            let mut frame = vec![0; len as usize];
            self.machine
                .memory
                .read_slice(&mut frame, GuestAddress(at))
                .expect("a posted buffer");
            self.hear(&frame[HEADER..]);
        }
    }

    /// Notes what the service sent.
    fn hear(&mut self, frame: &[u8]) {
        if frame.len() < 54 || frame[12..14] != [8, 0] {
            return;
        }
        let word = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        let length = u32::from(u16::from_be_bytes([frame[16], frame[17]]));
        let data = length.saturating_sub(20 + u32::from(frame[46] >> 4) * 4);
        let counted = u32::from(frame[47] & (SYN | FIN) != 0);
        let port = usize::from(frame[37] % 4);
        self.ports[port].1 = word(38).wrapping_add(data + counted);
    }

    /// A segment that follows on what was said, but for `shift`.
    fn segment(&mut self, port: u8, flags: u8, text: &[u8], shift: [u8; 2], window: u8) {
        let port = port % 4;
        let (next, seen) = &mut self.ports[usize::from(port)];
        let mut frame = frame(20 + text.len() as u16, 6);
        frame[34..38].copy_from_slice(&[100, port, 0, 80]);
        let sequence = next.wrapping_add((u32::from(shift[0])) << (shift[0] % 25));
        frame[38..42].copy_from_slice(&sequence.to_be_bytes());
        frame[42..46].copy_from_slice(&seen.wrapping_sub(shift[1].into()).to_be_bytes());
        frame[46] = 0x50;
        frame[47] = flags;
        frame[48] = window;
        frame[54..].copy_from_slice(text);
        if shift == [0, 0] {
            *next = next.wrapping_add(text.len() as u32 + u32::from(flags & (SYN | FIN) != 0));
        }
        self.send(&frame);
    }

    fn post(&mut self, count: u8) {
        for _ in 0..count {
            // Where a buffer is goes by its descriptor.
            let head = self.receive.chain(&[Part::Write(BUFFERS, 0x1000)]);
            let addr = BUFFERS + u64::from(head) * 0x1000;
            self.receive.descriptor(
                self.receive.desc,
                head,
                berth_devices::virtio::conformance::ring::RawDescriptor {
                    addr,
                    len: 0x1000,
                    flags: berth_devices::virtio::conformance::ring::WRITE,
                    next: 0,
                },
            );
            self.receive.offer(head);
        }
        self.machine.notify(0);
    }

    fn send(&mut self, frame: &[u8]) {
        let memory = &self.machine.memory;
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(frame);
        memory
            .write_slice(&bytes, GuestAddress(SENT))
            .expect("a buffer in memory");
        self.transmit.add(&[Part::Read(SENT, bytes.len() as u32)]);
        self.machine.notify(1);
        while self.transmit.take_used().is_some() {}
    }
}

/// A frame for the service with a payload of `len` bytes.
fn frame(len: u16, protocol: u8) -> Vec<u8> {
    let mut frame = vec![0; 34 + usize::from(len)];
    frame[..14].copy_from_slice(&[6, 1, 35, 69, 103, 1, 2, 0, 0, 0, 0, 1, 8, 0]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&(20 + len).to_be_bytes());
    frame[22..24].copy_from_slice(&[64, protocol]);
    frame[26..30].copy_from_slice(&[10, 0, 0, 2]);
    frame[30..34].copy_from_slice(&DEFAULT_ADDRESS.octets());
    frame
}

/// Connections that ask, are answered, and end.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let buffers = [5, 0, 7, 0, 0, 0];
    let open = |port| [0, port, 0, 0x40, 0, 0];
    let say = |port, text| [1, port, text, 0x40, 0, 0];
    let finish = [3, 0, 2, 0x40, 0, 0];
    vec![
        [
            &[0][..],
            &buffers,
            &open(0),
            &say(0, 0),
            &buffers,
            &say(0, 7),
            &finish,
            &buffers,
        ]
        .concat(),
        [
            &[1][..],
            &buffers,
            &open(0),
            &open(1),
            &say(0, 1),
            &say(1, 2),
            &say(1, 6),
            &buffers,
        ]
        .concat(),
        [
            &[2][..],
            &buffers,
            &open(2),
            &say(2, 2),
            &say(2, 3),
            &say(2, 6),
            &buffers,
            &buffers,
            &buffers,
        ]
        .concat(),
        [
            &[0][..],
            &buffers,
            &open(3),
            &[6; 6],
            &say(3, 0),
            &[7, 0, 0xff, 20, 1, 60],
            &buffers,
        ]
        .concat(),
    ]
}
