//! One connection: a host socket on one side, the guest's packets on the other.
//!
//! ```text
//!  host connects ─▶ Greeting ── "CONNECT port\n" ─▶ Requested ── RESPONSE, "OK port\n" ─▶ Open
//!  guest REQUESTs ─▶ Dialing ── connected: RESPONSE ──────────────────────────────────────▶ Open
//!
//!  Open      each direction ends by itself: end of file ⇄ SHUTDOWN
//!            both ended by the guest: the backlog is written out, then RST, gone
//!            both ended by the host:  Parting (the socket is closed), gone with the guest's RST, or ours after a while
//!            RST after the guest said it was done sending: Lingering (unknown to the guest) until the backlog is written
//!            any other RST: gone
//! ```
//!
//! Data moves straight between the host's socket and the driver's buffers. Only what the socket does not take at once is
//! kept, in a backlog which the guest's credit bounds; the guest gets credit back as the host reads. Towards the guest nothing is
//! kept: without credit or buffers the socket is not read.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::backlog::Backlog;
use super::packet::{BOTH, HEADER, Header, NO_RECEIVE, NO_SEND, Ports, op};
use crate::virtio::queue::{RequestChain, Segments};

/// Bytes that the guest may send ahead of what the host has read.
pub(super) const CREDIT: u32 = 256 << 10;
/// Forwarded bytes after which the guest is told, should no other packet tell it.
const TELL: u32 = CREDIT / 4;
/// Longest payload of a packet for the guest.
const LONGEST: u32 = 64 << 10;
/// Longest first line of a host program.
const LINE: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Greeting,
    Dialing,
    Requested,
    Open,
    Parting,
    Lingering,
}

/// A packet that the connection owes the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    Request = 1,
    Response = 2,
    Credit = 4,
}

/// What becomes of a connection after something happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Stays,
    /// It is gone, and the guest knows or never knew of it.
    Gone,
    /// It is gone, and the guest must be told.
    Reset,
}

/// What a host program's first line said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Greeting {
    /// Not all of it is there.
    Incomplete,
    /// The guest's port.
    Port(u32),
    /// Nothing sensible.
    Nonsense,
}

/// What is known of a socket; it may be less than that.
struct Ready {
    /// There is something to read.
    readable: bool,
    /// There is room to write.
    writable: bool,
    /// The other end is closed.
    hung_up: bool,
}

/// A connection.
pub(super) struct Connection {
    /// None in [`Stage::Parting`].
    socket: Option<OwnedFd>,
    pub(super) stage: Stage,
    pub(super) ports: Ports,
    /// When its patience ends, in ticks.
    pub(super) deadline: Option<u32>,
    /// Bits of [`Owed`].
    owed: u8,
    /// REQUEST went out: the guest knows of it.
    requested: bool,

    ready: Ready,
    /// What each side no longer does, and what the guest was told of the host's: [`NO_RECEIVE`], [`NO_SEND`].
    host_ended: u32,
    told_ended: u32,
    guest_ended: u32,
    /// The socket was told that the guest sends no more.
    write_ended: bool,

    backlog: Backlog,
    /// Bytes from the guest: received, passed on, passed on as it was last told.
    received: u32,
    forwarded: u32,
    forwarded_told: u32,
    /// Bytes to the guest, and its own account of room and progress.
    sent: u32,
    peer_room: u32,
    peer_forwarded: u32,
    /// The guest was asked for credit.
    asked: bool,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, stage: Stage, ports: Ports) -> Self {
        Self {
            socket: Some(socket),
            stage,
            ports,
            deadline: None,
            owed: 0,
            requested: false,
            ready: Ready {
                readable: false,
                writable: true,
                hung_up: false,
            },
            host_ended: 0,
            told_ended: 0,
            guest_ended: 0,
            write_ended: false,
            backlog: Backlog::default(),
            received: 0,
            forwarded: 0,
            forwarded_told: 0,
            sent: 0,
            peer_room: 0,
            peer_forwarded: 0,
            asked: false,
        }
    }

    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Bytes kept for the host.
    pub(super) fn kept(&self) -> usize {
        self.backlog.len()
    }

    /// Whether it counts among those that are not through yet.
    pub(super) fn is_half_open(&self) -> bool {
        matches!(self.stage, Stage::Greeting | Stage::Dialing | Stage::Requested)
    }

    /// Whether the guest waits for the answer to its REQUEST.
    pub(super) fn is_unanswered(&self) -> bool {
        self.stage == Stage::Dialing || self.owes(Owed::Response)
    }

    /// Whether the guest has heard of it.
    pub(super) fn is_known(&self) -> bool {
        match self.stage {
            Stage::Greeting | Stage::Lingering => false,
            Stage::Requested => self.requested,
            Stage::Dialing | Stage::Open | Stage::Parting => true,
        }
    }

    /// Whether the other end of its socket is closed.
    pub(super) fn is_hung_up(&self) -> bool {
        self.ready.hung_up
    }

    /// Whether the guest may answer a REQUEST now.
    pub(super) fn awaits_answer(&self) -> bool {
        self.stage == Stage::Requested && self.requested
    }

    /// The socket became readable, writable, or its other end was closed.
    pub(super) fn ready(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.ready.readable |= readable || hung_up;
        self.ready.writable |= writable || hung_up;
        self.ready.hung_up |= hung_up;
    }

    /// Reads the first line of a host program, and not a byte more.
    pub(super) fn greet(&mut self) -> Greeting {
        let Some(socket) = &self.socket else {
            return Greeting::Nonsense;
        };
        let mut line = [0; LINE];
        let len = match recv(socket, &mut line[..], RecvFlags::PEEK) {
            Ok((len, _)) => len,
            Err(Errno::AGAIN | Errno::INTR) => return Greeting::Incomplete,
            Err(_) => return Greeting::Nonsense,
        };
        let Some(end) = line[..len].iter().position(|byte| *byte == b'\n') else {
            // An end of file shows as a hang-up, or as nothing to read.
            return if len == 0 || len == LINE || self.ready.hung_up {
                Greeting::Nonsense
            } else {
                Greeting::Incomplete
            };
        };
        if recv(socket, &mut line[..=end], RecvFlags::empty()).is_err() {
            return Greeting::Nonsense;
        }
        port(&line[..end]).map_or(Greeting::Nonsense, Greeting::Port)
    }

    /// The guest is to be asked for a connection.
    pub(super) fn request(&mut self, ports: Ports) {
        self.ports = ports;
        self.stage = Stage::Requested;
        self.owe(Owed::Request);
    }

    /// The host's socket is connected: the guest is to be told.
    pub(super) fn respond(&mut self) {
        self.stage = Stage::Open;
        self.owe(Owed::Response);
    }

    /// The guest said yes.
    pub(super) fn answer(&mut self) -> Verdict {
        self.stage = Stage::Open;
        self.deadline = None;
        let line = format!("OK {}\n", self.ports.local);
        let sent = self
            .socket
            .as_ref()
            .map(|socket| send(socket, line.as_bytes(), SendFlags::NOSIGNAL));
        // Nothing was written before, so there is room for all of it; or the program is gone.
        if sent == Some(Ok(line.len())) {
            Verdict::Stays
        } else {
            Verdict::Reset
        }
    }

    /// Takes the guest's account of its credit from any packet of its.
    pub(super) fn account(&mut self, header: &Header) {
        self.peer_room = header.buf_alloc.get();
        self.peer_forwarded = header.fwd_cnt.get();
        if self.credit() > 0 {
            self.asked = false;
            // There may be more in it; nothing else will say so.
            self.ready.readable |= self.ready.hung_up;
        }
    }

    /// The guest wants to know how much it may send.
    pub(super) fn tell_credit(&mut self) {
        self.owe(Owed::Credit);
    }

    /// What the guest can still take. A guest that lies harms only its own connection.
    fn credit(&self) -> u32 {
        self.peer_room
            .saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// Passes on `len` bytes of the guest's, which lie behind the header in `chain`.
    pub(super) fn take(&mut self, chain: &RequestChain, len: u32, segments: &mut Segments) -> Verdict {
        let ahead = self.received.wrapping_sub(self.forwarded);
        if self.stage == Stage::Parting {
            // It has been told that nobody listens, but that crossed this.
            return Verdict::Stays;
        }
        if self.stage != Stage::Open || self.guest_ended & NO_SEND != 0 || len > CREDIT - ahead {
            return Verdict::Reset;
        }
        self.received = self.received.wrapping_add(len);
        let written = if self.backlog.is_empty() && !self.is_deaf() {
            self.write_through(chain, len, segments)
        } else {
            0
        };
        self.forward(written);
        if self.is_deaf() {
            self.forward(len - written);
        } else if written < len {
            self.backlog.append(chain, HEADER + written, len - written);
        }
        Verdict::Stays
    }

    /// Writes from the driver's buffers to the socket; returns how much it took.
    fn write_through(&mut self, chain: &RequestChain, len: u32, segments: &mut Segments) -> u32 {
        let mut from = chain.readable_io(segments, HEADER, len);
        while !from.is_empty() && self.ready.writable {
            let Some(socket) = &self.socket else { break };
            match from.writev(socket.as_fd()) {
                Ok(_) => {}
                Err(cause) => match Errno::from_io_error(&cause) {
                    Some(Errno::INTR) => {}
                    Some(Errno::AGAIN) => self.ready.writable = false,
                    _ => {
                        self.host_ended |= NO_RECEIVE;
                        break;
                    }
                },
            }
        }
        len - from.len() as u32
    }

    /// Writes what was kept, and does what had to wait for that.
    pub(super) fn flush(&mut self) -> Verdict {
        while !self.backlog.is_empty() && self.ready.writable && !self.is_deaf() {
            let Some(socket) = &self.socket else { break };
            match send(socket, self.backlog.bytes(), SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.backlog.consume(count);
                    self.forward(count as u32);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.ready.writable = false,
                Err(_) => self.host_ended |= NO_RECEIVE,
            }
        }
        if self.is_deaf() && !self.backlog.is_empty() {
            let lost = self.backlog.len() as u32;
            self.backlog.clear();
            self.forward(lost);
        }
        self.after_flush()
    }

    fn after_flush(&mut self) -> Verdict {
        if !self.backlog.is_empty() {
            return Verdict::Stays;
        }
        if self.stage == Stage::Lingering {
            return Verdict::Gone;
        }
        if self.guest_ended == BOTH {
            return Verdict::Reset;
        }
        if self.guest_ended & NO_SEND != 0 && !self.write_ended {
            self.write_ended = true;
            self.end(Shutdown::Write);
        }
        Verdict::Stays
    }

    /// The guest's SHUTDOWN.
    pub(super) fn guest_ends(&mut self, flags: u32) -> Verdict {
        if self.stage != Stage::Open && self.stage != Stage::Parting {
            return Verdict::Reset;
        }
        let before = self.guest_ended;
        self.guest_ended |= flags & BOTH;
        if self.guest_ended & !before & NO_RECEIVE != 0 {
            self.end(Shutdown::Read);
        }
        self.flush()
    }

    /// The guest's RST.
    pub(super) fn guest_resets(&mut self) -> Verdict {
        if self.stage == Stage::Open && self.guest_ended & NO_SEND != 0 && !self.backlog.is_empty() {
            self.stage = Stage::Lingering;
            self.deadline = None;
            self.owed = 0;
            return self.flush();
        }
        Verdict::Gone
    }

    /// Whether it has, or may have, a packet for the guest.
    pub(super) fn has_output(&self) -> bool {
        self.owed != 0
            || self.stage == Stage::Open && (self.may_read() || self.ended() & !self.told_ended != 0)
    }

    fn may_read(&self) -> bool {
        self.ready.readable
            && self.host_ended & NO_SEND == 0
            && self.guest_ended & NO_RECEIVE == 0
            && (self.credit() > 0 || !self.asked || self.ready.hung_up)
    }

    /// What the host no longer does, as the guest is to hear it.
    fn ended(&self) -> u32 {
        // Whether anything is left in a socket does not matter if the guest does not want it.
        let at_end = self.host_ended & NO_SEND != 0 || self.guest_ended & NO_RECEIVE != 0;
        if self.ready.hung_up && at_end {
            return BOTH;
        }
        self.host_ended
    }

    /// Makes the next packet for the guest, its payload in `chain` already. None if there is nothing after all.
    pub(super) fn output(&mut self, chain: &RequestChain, segments: &mut Segments) -> Option<Header> {
        for (owed, op) in [
            (Owed::Request, op::REQUEST),
            (Owed::Response, op::RESPONSE),
            (Owed::Credit, op::CREDIT_UPDATE),
        ] {
            if self.owes(owed) {
                self.owed &= !(owed as u8);
                self.requested |= owed == Owed::Request;
                return Some(self.header(op, 0, 0));
            }
        }
        if self.stage != Stage::Open {
            return None;
        }
        if self.may_read() {
            if self.credit() > 0 {
                if let Some(len) = self.read(chain, segments) {
                    self.sent = self.sent.wrapping_add(len);
                    return Some(self.header(op::RW, 0, len));
                }
            } else if self.ready.hung_up && self.is_read_out() {
                self.host_ended |= NO_SEND;
            } else if !self.asked {
                self.asked = true;
                return Some(self.header(op::CREDIT_REQUEST, 0, 0));
            } else {
                // Nothing is written to a socket that hung up, so looking once is enough.
                self.ready.readable = false;
            }
        }
        let ended = self.ended();
        if ended & !self.told_ended == 0 {
            return None;
        }
        self.told_ended = ended;
        if ended == BOTH {
            self.stage = Stage::Parting;
            self.backlog.clear();
            self.socket = None;
        }
        Some(self.header(op::SHUTDOWN, ended, 0))
    }

    /// Reads once from the socket to behind where the header goes.
    fn read(&mut self, chain: &RequestChain, segments: &mut Segments) -> Option<u32> {
        let socket = self.socket.as_ref()?;
        let mut to = chain.writable_io(segments, HEADER, self.credit().min(LONGEST));
        match to.readv(socket.as_fd()) {
            Ok(0) => self.host_ended |= NO_SEND,
            Ok(len) => return Some(len as u32),
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => self.ready.readable = false,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            // The other end was closed before it had read all; what it wrote has been read.
            Err(_) => {
                self.host_ended |= NO_SEND;
                self.ready.hung_up = true;
            }
        }
        None
    }

    fn is_read_out(&self) -> bool {
        self.socket
            .as_ref()
            .is_none_or(|socket| ioctl_fionread(socket) == Ok(0))
    }

    fn header(&mut self, op: u16, flags: u32, len: u32) -> Header {
        self.forwarded_told = self.forwarded;
        self.owed &= !(Owed::Credit as u8);
        Header {
            op: op.into(),
            flags: flags.into(),
            len: len.into(),
            buf_alloc: CREDIT.into(),
            fwd_cnt: self.forwarded.into(),
            ..Header::empty()
        }
    }

    /// `count` more bytes of the guest's are dealt with.
    fn forward(&mut self, count: u32) {
        self.forwarded = self.forwarded.wrapping_add(count);
        let untold = self.forwarded.wrapping_sub(self.forwarded_told);
        if untold >= TELL && self.stage == Stage::Open && self.guest_ended & NO_SEND == 0 {
            self.owe(Owed::Credit);
        }
    }

    fn is_deaf(&self) -> bool {
        self.host_ended & NO_RECEIVE != 0
    }

    fn end(&self, how: Shutdown) {
        if let Some(socket) = &self.socket {
            // A socket whose other end is gone says so elsewhere.
            let _ = shutdown(socket, how);
        }
    }

    fn owe(&mut self, what: Owed) {
        self.owed |= what as u8;
    }

    fn owes(&self, what: Owed) -> bool {
        self.owed & what as u8 != 0
    }
}

/// The port in `CONNECT port`.
fn port(line: &[u8]) -> Option<u32> {
    let mut words = str::from_utf8(line).ok()?.split_whitespace();
    let verb = words.next()?;
    let port = words.next()?.parse().ok()?;
    (verb.eq_ignore_ascii_case("connect") && words.next().is_none()).then_some(port)
}
