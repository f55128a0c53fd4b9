//! All connections of a guest: which there are, which have something for the guest, and who hears of what.
//!
//! Nothing here walks over all connections for a packet or an event. Only a tick of the timer does, which rests unless some
//! connection has a deadline.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::connection::{Connection, Greeting, Stage, Verdict};
use super::listener::{Listener, dial, stream};
use super::packet::{HEADER, HOST_CID, Header, Ports, STREAM, op};
use super::poll::{Happening, Poll};
use crate::virtio::queue::{RequestChain, Segments};
use crate::warn_guest;

/// What a device allows. Beyond it a guest's requests are refused and host programs wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections.
    pub(super) connections: usize,
    /// Connections that are not through yet.
    pub(super) half_open: usize,
    /// Bytes kept for host programs that do not read, all together.
    pub(super) kept: usize,
    /// Ticks for an answer to a REQUEST, and for RST after both sides have ended.
    pub(super) patience: u32,
    /// Ticks for a host program to accept a connection.
    pub(super) dial: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1 << 16,
            half_open: 4096,
            kept: 256 << 20,
            patience: 100,
            dial: 20,
        }
    }
}

/// Refusals that may wait before the guest's packets do.
const CONGESTED: usize = 256;
/// Connections accepted in one turn.
const ACCEPTS: usize = 256;
/// The host's ports for connections that host programs begin.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// A place for a connection.
#[derive(Default)]
struct Slot {
    connection: Option<Box<Connection>>,
    /// Counts the connections that were here, so that an event for an earlier one is known as such.
    generation: u32,
    /// It stands in `ready`, whoever was here when it was put there.
    queued: bool,
}

/// The connections of one device.
pub(super) struct Connections {
    guest_cid: u64,
    limits: Limits,
    listener: Listener,
    poll: Poll,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_ports: HashMap<Ports, u32>,
    /// Slots whose connection may have something for the guest, each once.
    ready: VecDeque<u32>,
    /// RSTs for what is not, or no longer, a connection.
    refusals: VecDeque<Header>,
    half_open: usize,
    kept: usize,
    last_port: u32,
    now: u32,
    /// The listener has, or may have, more.
    accept_later: bool,
    happenings: Vec<Happening>,
    segments: Segments,
}

impl Connections {
    pub(super) fn new(guest_cid: u64, listener: Listener, limits: Limits) -> std::io::Result<Self> {
        Ok(Self {
            guest_cid,
            limits,
            poll: Poll::new(&listener)?,
            listener,
            slots: Vec::new(),
            free: Vec::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            refusals: VecDeque::new(),
            half_open: 0,
            kept: 0,
            last_port: LAST_PORT,
            now: 0,
            accept_later: false,
            happenings: Vec::new(),
            segments: Segments::new(),
        })
    }

    /// Ready when [`look`](Self::look) has something to see.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Drops every connection, without a word to the guest.
    pub(super) fn clear(&mut self) {
        for index in 0..self.slots.len() as u32 {
            self.remove(index, false);
        }
        self.refusals.clear();
    }

    /// The host's port that was given out last.
    pub(super) fn last_port(&self) -> u32 {
        self.last_port
    }

    /// Gives out ports from the one after `last_port` on; false if that is not one of the host's.
    pub(super) fn go_on_from(&mut self, last_port: u32) -> bool {
        let fits = (FIRST_PORT..=LAST_PORT).contains(&last_port);
        if fits {
            self.last_port = last_port;
        }
        fits
    }

    /// Those of the guest's requests that it has no answer to.
    pub(super) fn unanswered(&self) -> Vec<Ports> {
        let connections = self.slots.iter().filter_map(|slot| slot.connection.as_ref());
        let waiting = connections.filter(|connection| connection.is_unanswered());
        let refused = self.refusals.iter().filter(|header| header.kind.get() == STREAM);
        let refused = refused.map(|header| Ports {
            local: header.src_port.get(),
            peer: header.dst_port.get(),
        });
        waiting
            .map(|connection| connection.ports)
            .chain(refused)
            .collect()
    }

    /// Tells the guest that there is no such connection.
    pub(super) fn reset(&mut self, ports: Ports) {
        let header = Header {
            kind: STREAM.into(),
            op: op::RST.into(),
            ..Header::empty()
        };
        let header = self.addressed(header, ports);
        self.refusals.push_back(header);
    }

    /// Whether there is, or may be, something for the guest.
    pub(super) fn has_output(&self) -> bool {
        !self.refusals.is_empty() || !self.ready.is_empty()
    }

    /// Whether the guest must take refusals before it may send more.
    pub(super) fn is_congested(&self) -> bool {
        self.refusals.len() >= CONGESTED
    }

    /// Makes one packet for the guest: its payload, if it has one, into `chain` behind the header. None if the connection
    /// whose turn it was has nothing after all.
    pub(super) fn output(&mut self, chain: &RequestChain) -> Option<Header> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        let index = self.ready.pop_front()?;
        self.slots[index as usize].queued = false;
        let mut made = None;
        self.with(index, |connection, segments| {
            let header = connection.output(chain, segments);
            made = header.map(|header| (header, connection.ports));
            Verdict::Stays
        });
        let (header, ports) = made?;
        Some(self.addressed(header, ports))
    }

    fn addressed(&self, header: Header, ports: Ports) -> Header {
        Header {
            src_cid: HOST_CID.into(),
            dst_cid: self.guest_cid.into(),
            src_port: ports.local.into(),
            dst_port: ports.peer.into(),
            kind: STREAM.into(),
            ..header
        }
    }

    /// Does what a packet of the guest's says.
    pub(super) fn input(&mut self, chain: &RequestChain) {
        let mut header = Header::empty();
        if chain.read_at(0, header.as_mut_bytes()) < HEADER as usize {
            warn_guest!("virtio-vsock: a packet without a whole header is dropped");
            return;
        }
        let to_us = header.src_cid.get() == self.guest_cid && header.dst_cid.get() == HOST_CID;
        if !to_us || header.kind.get() != STREAM {
            self.refuse(&header);
            return;
        }
        match self.by_ports.get(&header.ports()).copied() {
            Some(index) => self.input_for(index, &header, chain),
            None if header.op.get() == op::REQUEST => self.connect(&header),
            None => self.refuse(&header),
        }
    }

    fn input_for(&mut self, index: u32, header: &Header, chain: &RequestChain) {
        let len = header.len.get();
        let present = chain.readable_len() - HEADER;
        self.with(index, |connection, segments| {
            connection.account(header);
            match header.op.get() {
                op::RW if len <= present => connection.take(chain, len, segments),
                op::RESPONSE if connection.awaits_answer() => connection.answer(),
                op::SHUTDOWN => connection.guest_ends(header.flags.get()),
                op::RST => connection.guest_resets(),
                op::CREDIT_UPDATE => Verdict::Stays,
                op::CREDIT_REQUEST => {
                    connection.tell_credit();
                    Verdict::Stays
                }
                _ => {
                    warn_guest!("virtio-vsock: a packet that its connection cannot have ends it");
                    Verdict::Reset
                }
            }
        });
    }

    fn refuse(&mut self, header: &Header) {
        if header.op.get() != op::RST {
            self.refusals.push_back(header.refusal());
        }
    }

    /// The guest's REQUEST: leads to the host program that listens for its port.
    fn connect(&mut self, header: &Header) {
        let ports = header.ports();
        if self.is_full() {
            warn_guest!("virtio-vsock: the guest has too many connections; one more is refused");
            self.refuse(header);
            return;
        }
        let dialed = stream().and_then(|socket| {
            let address = self.listener.service(ports.local)?;
            match dial(&socket, &address) {
                Ok(()) => Ok((socket, true)),
                Err(Errno::AGAIN) => Ok((socket, false)),
                Err(cause) => Err(cause),
            }
        });
        match dialed {
            Ok((socket, connected)) => {
                let index = self.insert(Connection::new(socket, Stage::Dialing, ports));
                self.by_ports.insert(ports, index);
                self.with(index, |connection, _| {
                    connection.account(header);
                    Verdict::Stays
                });
                if connected {
                    self.connected(index);
                } else {
                    self.set_deadline(index, self.limits.dial);
                }
            }
            Err(Errno::NOENT | Errno::CONNREFUSED) => self.refuse(header),
            Err(cause) => {
                warn_guest!("virtio-vsock: port {} cannot be reached: {cause}", ports.local);
                self.refuse(header);
            }
        }
    }

    /// The host program is there: the guest is to hear it.
    fn connected(&mut self, index: u32) {
        let added = self.listen_to(index);
        self.with(index, |connection, _| {
            connection.deadline = None;
            match added {
                Ok(()) => connection.respond(),
                Err(_) => return Verdict::Reset,
            }
            Verdict::Stays
        });
    }

    fn listen_to(&self, index: u32) -> Result<(), Errno> {
        let slot = &self.slots[index as usize];
        let socket = slot
            .connection
            .as_ref()
            .and_then(|connection| connection.socket());
        let name = u64::from(slot.generation) << 32 | u64::from(index);
        socket.map_or(Ok(()), |socket| self.poll.add(socket, name))
    }

    /// Looks at what happened on the host's side.
    pub(super) fn look(&mut self) {
        let mut happenings = std::mem::take(&mut self.happenings);
        self.poll.look(&mut happenings);
        for happening in happenings.drain(..) {
            match happening {
                Happening::Listener => self.accept_later = true,
                Happening::Tick => self.tick(),
                Happening::Socket {
                    name,
                    readable,
                    writable,
                    hung_up,
                } => self.socket_ready(name, |connection| connection.ready(readable, writable, hung_up)),
            }
        }
        self.happenings = happenings;
        if std::mem::take(&mut self.accept_later) {
            self.accept();
        }
    }

    fn socket_ready(&mut self, name: u64, tell: impl FnOnce(&mut Connection)) {
        let index = name as u32;
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return;
        };
        let Some(connection) = &mut slot.connection else {
            return;
        };
        if slot.generation != (name >> 32) as u32 {
            return;
        }
        tell(connection);
        match connection.stage {
            Stage::Greeting => self.greet(index),
            Stage::Requested if connection.is_hung_up() => self.remove(index, true),
            _ => self.with(index, |connection, _| connection.flush()),
        }
    }

    fn greet(&mut self, index: u32) {
        let Some(connection) = &mut self.slots[index as usize].connection else {
            return;
        };
        match connection.greet() {
            Greeting::Incomplete => {}
            Greeting::Nonsense => self.remove(index, false),
            Greeting::Port(peer) => {
                let ports = self.new_ports(peer);
                self.by_ports.insert(ports, index);
                self.with(index, |connection, _| {
                    connection.request(ports);
                    Verdict::Stays
                });
                self.set_deadline(index, self.limits.patience);
            }
        }
    }

    /// A local port for a connection to the guest's port `peer`: fewer are taken than there are.
    fn new_ports(&mut self, peer: u32) -> Ports {
        loop {
            self.last_port = if self.last_port < LAST_PORT {
                self.last_port + 1
            } else {
                FIRST_PORT
            };
            let ports = Ports {
                local: self.last_port,
                peer,
            };
            if !self.by_ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            if self.is_full() {
                warn_guest!("virtio-vsock: too many connections; host programs have to wait");
                return self.accept_at_a_tick();
            }
            match self.listener.accept() {
                Ok(socket) => self.accepted(socket),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(cause) => {
                    warn_guest!("virtio-vsock: a host program has to wait: {cause}");
                    return self.accept_at_a_tick();
                }
            }
        }
        self.accept_later = true;
        self.poll.come_again();
    }

    fn accept_at_a_tick(&mut self) {
        self.accept_later = true;
        self.poll.tick(true);
    }

    fn accepted(&mut self, socket: OwnedFd) {
        let none = Ports { local: 0, peer: 0 };
        let index = self.insert(Connection::new(socket, Stage::Greeting, none));
        if let Err(cause) = self.listen_to(index) {
            warn_guest!("virtio-vsock: a host program cannot be served: {cause}");
            self.remove(index, false);
        }
    }

    fn is_full(&self) -> bool {
        self.half_open >= self.limits.half_open || self.count() >= self.limits.connections
    }

    fn set_deadline(&mut self, index: u32, ticks: u32) {
        if let Some(connection) = &mut self.slots[index as usize].connection {
            connection.deadline = Some(self.now.wrapping_add(ticks));
            self.poll.tick(true);
        }
    }

    fn tick(&mut self) {
        self.now = self.now.wrapping_add(1);
        let mut wait = self.accept_later;
        for index in 0..self.slots.len() as u32 {
            let Some(connection) = &self.slots[index as usize].connection else {
                continue;
            };
            let Some(deadline) = connection.deadline else {
                continue;
            };
            if deadline == self.now {
                self.remove(index, true);
                continue;
            }
            wait = true;
            if connection.stage == Stage::Dialing {
                self.dial_again(index);
            }
        }
        self.poll.tick(wait);
    }

    fn dial_again(&mut self, index: u32) {
        let Some(connection) = &self.slots[index as usize].connection else {
            return;
        };
        let address = self.listener.service(connection.ports.local);
        let dialed = match (connection.socket(), address) {
            (Some(socket), Ok(address)) => dial(socket, &address),
            (_, Err(cause)) => Err(cause),
            (None, _) => return,
        };
        match dialed {
            Ok(()) => self.connected(index),
            Err(Errno::AGAIN) => {}
            Err(_) => self.remove(index, true),
        }
    }

    fn insert(&mut self, connection: Connection) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        self.half_open += usize::from(connection.is_half_open());
        self.slots[index as usize].connection = Some(Box::new(connection));
        index
    }

    /// Lets something happen to a connection, and does what follows from it.
    fn with(&mut self, index: u32, happen: impl FnOnce(&mut Connection, &mut Segments) -> Verdict) {
        let slot = &mut self.slots[index as usize];
        let Some(connection) = &mut slot.connection else {
            return;
        };
        let (kept, half_open) = (connection.kept(), connection.is_half_open());
        let parting = connection.stage == Stage::Parting;
        let mut verdict = happen(connection, &mut self.segments);
        self.kept = self.kept - kept + connection.kept();
        self.half_open -= usize::from(half_open && !connection.is_half_open());
        if self.kept > self.limits.kept && connection.kept() > kept {
            warn_guest!(
                "virtio-vsock: too much is kept for host programs that do not read; one connection ends"
            );
            verdict = Verdict::Reset;
        }
        match verdict {
            Verdict::Gone => self.remove(index, false),
            Verdict::Reset => self.remove(index, true),
            Verdict::Stays => {
                if connection.has_output() && !slot.queued {
                    slot.queued = true;
                    self.ready.push_back(index);
                }
                let ports = connection.ports;
                if connection.stage == Stage::Lingering {
                    self.forget(ports, index);
                } else if connection.stage == Stage::Parting && !parting {
                    self.set_deadline(index, self.limits.patience);
                }
            }
        }
    }

    /// Removes a connection; if `tell`, the guest hears of it where it knew it.
    fn remove(&mut self, index: u32, tell: bool) {
        let slot = &mut self.slots[index as usize];
        let Some(connection) = slot.connection.take() else {
            return;
        };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        self.kept -= connection.kept();
        self.half_open -= usize::from(connection.is_half_open());
        self.forget(connection.ports, index);
        if tell && connection.is_known() {
            self.reset(connection.ports);
        }
    }

    /// The guest's packets for `ports` are no longer for this connection.
    fn forget(&mut self, ports: Ports, index: u32) {
        if self.by_ports.get(&ports) == Some(&index) {
            self.by_ports.remove(&ports);
        }
    }
}
