//! One port: bytes to and from the host's end, and what the driver is to be told of it.

#![forbid(unsafe_code)]

use std::io;

use serde::{Deserialize, Serialize};

use super::backend::PortBackend;
use super::message::{Event, Message};
use crate::virtio::queue::{DeviceQueue, RequestChain};
use crate::warn_guest;

/// Bytes that are read from the host's end, or copied from the guest, at once.
const CHUNK: usize = 4096;
/// What a guest may have written of one request that waits for room.
const BACKLOG: usize = 1 << 20;

/// What a port remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortState {
    /// The driver has set it up.
    ready: bool,
    /// Somebody in the guest has opened it.
    open: bool,
    /// Whether the driver was last told that the host's end is open.
    told_open: bool,
    /// What the driver is to be told, in this order.
    tell: Vec<Event>,
    /// Bytes from the host's end that the guest has not taken.
    input: Vec<u8>,
    /// Bytes of a request of the guest's that was answered, for which there was no room yet.
    output: Vec<u8>,
}

impl PortState {
    /// Whether the driver knows all.
    pub(super) fn is_told(&self) -> bool {
        self.tell.is_empty()
    }
}

/// A port.
pub(super) struct Port {
    pub(super) name: String,
    pub(super) backend: Box<dyn PortBackend>,
    pub(super) state: PortState,
}

impl Port {
    pub(super) fn new(name: String, backend: Box<dyn PortBackend>) -> Self {
        Self {
            name,
            backend,
            state: PortState::default(),
        }
    }

    /// A driver begins: what was before is forgotten, but for what waits for the host's end. Without control messages the port is open from the start.
    pub(super) fn begin(&mut self, multiport: bool) {
        self.state = PortState {
            open: !multiport,
            output: std::mem::take(&mut self.state.output),
            ..PortState::default()
        };
    }

    /// Becomes what was saved. The other end may have come or gone since.
    pub(super) fn restore(&mut self, state: PortState) {
        self.state = state;
        self.look();
    }

    /// The driver is to be told of `event`, after all that it does not know yet.
    pub(super) fn tell(&mut self, event: Event) {
        if !self.state.tell.contains(&event) {
            self.state.tell.push(event);
        }
    }

    /// The next message to the driver about this port, which has the number `id`, if there is one.
    pub(super) fn message(&self, id: u32, (columns, rows): (u16, u16)) -> Option<Message> {
        let event = *self.state.tell.first()?;
        let mut message = Message {
            id,
            event,
            value: 1,
            rest: Vec::new(),
        };
        match event {
            Event::PortOpen => message.value = self.backend.connected().into(),
            Event::PortName => message.rest = self.name.as_bytes().to_vec(),
            Event::Resize => message.rest = [columns.to_le_bytes(), rows.to_le_bytes()].concat(),
            _ => {}
        }
        Some(message)
    }

    /// The driver has been told.
    pub(super) fn told(&mut self) {
        self.state.tell.remove(0);
    }

    /// The driver says something about the port.
    pub(super) fn hear(&mut self, message: &Message, console: bool, sized: bool) {
        match message.event {
            Event::PortReady => {
                self.state.ready = message.value == 1;
                if self.state.ready {
                    if console {
                        self.tell(Event::ConsolePort);
                        if sized {
                            self.tell(Event::Resize);
                        }
                    }
                    if !self.name.is_empty() {
                        self.tell(Event::PortName);
                    }
                    self.tell(Event::PortOpen);
                    self.state.told_open = self.backend.connected();
                }
            }
            Event::PortOpen => {
                let before = std::mem::replace(&mut self.state.open, message.value == 1);
                if before && !self.state.open {
                    self.state.input.clear();
                    self.flush();
                    self.backend.hang_up();
                    self.look();
                }
            }
            _ => warn_guest!(
                "virtio-console: a message that is not a driver's ({:?})",
                message.event
            ),
        }
    }

    /// Looks who is at the other end, and has the driver told if that changed.
    pub(super) fn look(&mut self) {
        self.backend.look();
        let connected = self.backend.connected();
        if self.state.ready && connected != self.state.told_open {
            self.state.told_open = connected;
            self.tell(Event::PortOpen);
        }
        if !connected {
            self.state.output.clear();
        }
    }

    /// Writes what waits. Whether nothing is left.
    pub(super) fn flush(&mut self) -> bool {
        let mut output = std::mem::take(&mut self.state.output);
        let done = self.write(&output);
        output.drain(..done);
        self.state.output = output;
        self.state.output.is_empty()
    }

    /// Writes as much of `bytes` as there is room for; returns how much that is. Whoever is gone takes all.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            match self.backend.write(&bytes[done..]) {
                Ok(written) => done += written.max(1),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return done,
                Err(cause) => {
                    if self.backend.connected() {
                        warn_guest!("virtio-console: port {:?}: output is lost: {cause}", self.name);
                    }
                    return bytes.len();
                }
            }
        }
        done.min(bytes.len())
    }

    /// Takes one request's bytes to the other end. False if there is none, or the last one's have to go first.
    pub(super) fn send(&mut self, queue: &mut DeviceQueue, chain: &mut RequestChain) -> bool {
        if !self.flush() {
            queue.end_turn();
            return false;
        }
        if !queue.pop(chain) {
            return false;
        }
        let len = chain.readable_len();
        let mut bytes = [0; CHUNK];
        let mut offset = 0;
        while offset < len {
            let read = chain.read_at(offset, &mut bytes);
            if read == 0 {
                break;
            }
            offset += read as u32;
            let done = if self.state.output.is_empty() {
                self.write(&bytes[..read])
            } else {
                0
            };
            let room = BACKLOG - self.state.output.len();
            let rest = &bytes[done..read];
            if rest.len() > room {
                warn_guest!(
                    "virtio-console: port {:?}: {len} bytes at once; what does not fit is lost",
                    self.name
                );
            }
            self.state.output.extend(&rest[..rest.len().min(room)]);
        }
        queue.complete(chain.head(), 0);
        if self.state.told_open && !self.backend.connected() {
            self.look();
        }
        true
    }

    /// One byte that the driver writes before it has queues.
    pub(super) fn emergency(&mut self, byte: u8) {
        if self.flush() {
            self.write(&[byte]);
        }
    }

    /// Fills one buffer of the guest's. False if there is none, or nothing to fill it with.
    pub(super) fn receive(&mut self, queue: &mut DeviceQueue, chain: &mut RequestChain) -> bool {
        if !self.has_input() {
            queue.end_turn();
            return false;
        }
        if !queue.pop(chain) {
            return false;
        }
        let written = chain.write_at(0, &self.state.input);
        self.state.input.drain(..written);
        queue.complete(chain.head(), written as u32);
        true
    }

    /// Whether there is input for the guest, which is read for as long as somebody there listens.
    fn has_input(&mut self) -> bool {
        while self.state.open && self.state.input.is_empty() {
            let mut bytes = [0; CHUNK];
            match self.backend.read(&mut bytes) {
                Ok(read) => {
                    self.state.input.extend(&bytes[..read]);
                    if read == 0 {
                        self.look();
                        return false;
                    }
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => {
                    if cause.kind() != io::ErrorKind::WouldBlock {
                        self.look();
                    }
                    return false;
                }
            }
        }
        self.state.open
    }
}
