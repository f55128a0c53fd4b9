//! The guest's side: a driver that sends and receives packets, and knows no more than they say.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use super::super::packet::{HEADER, Header, STREAM, op};
use super::super::*;
use crate::virtio::conformance::ring::{Part, Ring};
use crate::virtio::conformance::{BUFFERS, Machine, VERSION_1};

pub(super) const CID: u32 = 42;
/// Receive buffers are as Linux has them: a page each.
const PAGE: u32 = 4096;
/// One receive buffer per entry; the driver's packets lie behind them.
const POSTED: u64 = 32;
const SENT: u64 = BUFFERS + POSTED * PAGE as u64;

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) op: u16,
    pub(super) local: u32,
    pub(super) peer: u32,
    pub(super) flags: u32,
    pub(super) room: u32,
    pub(super) forwarded: u32,
    pub(super) data: Vec<u8>,
}

impl Packet {
    pub(super) fn new(op: u16, local: u32, peer: u32) -> Self {
        Self {
            op,
            local,
            peer,
            flags: 0,
            room: 1 << 20,
            forwarded: 0,
            data: Vec::new(),
        }
    }

    pub(super) fn header(&self) -> Header {
        Header {
            src_cid: u64::from(CID).into(),
            dst_cid: 2.into(),
            src_port: self.peer.into(),
            dst_port: self.local.into(),
            len: (self.data.len() as u32).into(),
            kind: STREAM.into(),
            op: self.op.into(),
            flags: self.flags.into(),
            buf_alloc: self.room.into(),
            fwd_cnt: self.forwarded.into(),
        }
    }
}

/// A directory for sockets, and the device's among them.
pub(super) struct Place(TempDir);

impl Place {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self) -> PathBuf {
        self.0.path().join("v.sock")
    }

    /// Where a host program listens for the guest's connections to `port`.
    pub(super) fn service(&self, port: u32) -> PathBuf {
        self.0.path().join(format!("v.sock_{port}"))
    }
}

pub(super) struct Guest {
    pub(super) machine: Machine,
    pub(super) receive: Ring,
    pub(super) transmit: Ring,
    pub(super) events: Ring,
    /// Packets taken from the receive queue.
    arrived: VecDeque<Packet>,
    /// Number of the next receive buffer that comes back.
    next: u64,
}

impl Guest {
    /// A guest with buffers posted.
    pub(super) fn new(path: &Path) -> Self {
        Self::with(Vsock::new(CID, path).unwrap())
    }

    pub(super) fn with(device: Vsock) -> Self {
        let mut guest = Self::without_buffers(device);
        guest.post_all();
        guest
    }

    /// One that has posted no receive buffers yet.
    pub(super) fn without_buffers(device: Vsock) -> Self {
        let machine = Machine::new(Box::new(device));
        let mut rings = machine.bring_up(VERSION_1).into_iter();
        let mut ring = || rings.next().unwrap();
        Self {
            receive: ring(),
            transmit: ring(),
            events: ring(),
            machine,
            arrived: VecDeque::new(),
            next: 0,
        }
    }

    pub(super) fn post_all(&mut self) {
        for number in 0..POSTED {
            self.receive
                .add(&[Part::Write(BUFFERS + number * u64::from(PAGE), PAGE)]);
        }
        self.machine.notify(RECEIVE);
    }

    /// Pauses, saves, and goes on in another device over the same memory and rings.
    pub(super) fn restore_into(mut self, device: impl FnOnce() -> Vsock) -> Self {
        self.machine.transport.pause();
        let state = self.machine.transport.save().unwrap();
        let memory = self.machine.memory.clone();
        drop(self.machine);
        self.machine = Machine::with_memory(Box::new(device()), memory);
        self.machine.transport.restore(&state).unwrap();
        assert_eq!(self.machine.transport.save(), Ok(state));
        self.machine.transport.resume();
        self
    }

    /// Sends a raw header and what follows it.
    pub(super) fn send_raw(&mut self, header: &Header, data: &[u8]) {
        self.offer_raw(header, data);
        self.machine.notify(TRANSMIT);
        assert!(self.transmit.take_used().is_some(), "a packet is taken");
    }

    pub(super) fn offer_raw(&mut self, header: &Header, data: &[u8]) {
        let memory = &self.machine.memory;
        memory.write_slice(header.as_bytes(), GuestAddress(SENT)).unwrap();
        memory.write_slice(data, GuestAddress(SENT + 64)).unwrap();
        let head = Part::Read(SENT, HEADER);
        if data.is_empty() {
            self.transmit.add(&[head]);
        } else {
            self.transmit
                .add(&[head, Part::Read(SENT + 64, data.len() as u32)]);
        }
    }

    pub(super) fn send(&mut self, packet: &Packet) {
        self.send_raw(&packet.header(), &packet.data);
    }

    /// Takes what has arrived off the ring, and posts the buffers again.
    pub(super) fn collect(&mut self) {
        let mut any = false;
        while let Some((_, written)) = self.receive.take_used() {
            let at = BUFFERS + self.next * u64::from(PAGE);
            self.next = (self.next + 1) % POSTED;
            let mut bytes = vec![0; written as usize];
            self.machine
                .memory
                .read_slice(&mut bytes, GuestAddress(at))
                .unwrap();
            let (header, data) = Header::read_from_prefix(&bytes).unwrap();
            assert_eq!(data.len(), header.len.get() as usize, "length of {header:?}");
            assert_eq!(
                (header.kind.get(), header.src_cid.get()),
                (STREAM, 2),
                "{header:?}"
            );
            self.arrived.push_back(Packet {
                op: header.op.get(),
                local: header.src_port.get(),
                peer: header.dst_port.get(),
                flags: header.flags.get(),
                room: header.buf_alloc.get(),
                forwarded: header.fwd_cnt.get(),
                data: data.to_vec(),
            });
            self.receive.add(&[Part::Write(at, PAGE)]);
            any = true;
        }
        if any {
            self.machine.notify(RECEIVE);
        }
    }

    /// Lets the device work on what is there, and takes what has arrived.
    pub(super) fn work(&mut self) {
        loop {
            self.machine.device.pump();
            let before = self.arrived.len();
            self.collect();
            if before == self.arrived.len() {
                return;
            }
        }
    }

    /// The next packet, if there is one by now.
    pub(super) fn try_packet(&mut self) -> Option<Packet> {
        if self.arrived.is_empty() {
            self.work();
        }
        self.arrived.pop_front()
    }

    /// The next packet; waits for it.
    pub(super) fn packet(&mut self) -> Packet {
        if self.arrived.is_empty() {
            self.collect();
        }
        if self.arrived.is_empty() {
            let before = self.receive.used_index();
            self.machine.device.wait(|| self.receive.used_index() != before);
            self.collect();
        }
        self.arrived.pop_front().expect("something arrived")
    }

    /// The next packet, which must be of this kind and for this connection.
    pub(super) fn expect(&mut self, op: u16, ports: (u32, u32)) -> Packet {
        let packet = self.packet();
        assert_eq!(
            (packet.op, packet.local, packet.peer),
            (op, ports.0, ports.1),
            "{packet:?}"
        );
        packet
    }

    pub(super) fn expect_nothing(&mut self) {
        assert_eq!(self.try_packet(), None);
    }

    /// Receives data for `ports` until there is `len` of it, or a packet that is none; tells credit as it goes.
    pub(super) fn receive_data(&mut self, ports: (u32, u32), len: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < len {
            let packet = self.packet();
            if packet.op == op::CREDIT_UPDATE {
                continue;
            }
            assert_eq!(
                (packet.op, packet.local, packet.peer),
                (op::RW, ports.0, ports.1),
                "{packet:?}"
            );
            data.extend(packet.data);
            self.tell(ports, data.len() as u32);
        }
        data
    }

    /// Tells that `forwarded` bytes were read.
    pub(super) fn tell(&mut self, ports: (u32, u32), forwarded: u32) {
        let mut packet = Packet::new(op::CREDIT_UPDATE, ports.0, ports.1);
        packet.forwarded = forwarded;
        self.send(&packet);
    }

    /// Sends one packet of data.
    pub(super) fn write(&mut self, ports: (u32, u32), data: &[u8]) {
        let mut packet = Packet::new(op::RW, ports.0, ports.1);
        packet.data = data.to_vec();
        self.send(&packet);
    }

    pub(super) fn shut_down(&mut self, ports: (u32, u32), flags: u32) {
        let mut packet = Packet::new(op::SHUTDOWN, ports.0, ports.1);
        packet.flags = flags;
        self.send(&packet);
    }
}
