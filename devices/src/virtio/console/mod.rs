//! virtio-console: ports that carry bytes (virtio 1.3, section 5.3). Port 0 is a console, `hvc0` in Linux; the others have names,
//! by which a guest's programs find them.
//!
//! | queue | |
//! |---|---|
//! | 0, 1 | port 0: from the host, from the guest |
//! | 2, 3 | control messages, the same way |
//! | 2n + 2, 2n + 3 | port n |
//!
//! ```text
//!   driver: DEVICE_READY ─▶ device: DEVICE_ADD for each port
//!   driver: PORT_READY   ─▶ device: CONSOLE_PORT (port 0), PORT_NAME, PORT_OPEN (is the host's end open?)
//!   either: PORT_OPEN when its end is opened or closed
//! ```
//! A message is made when there is a buffer for it, of how things stand then, so what waits does not grow. Input waits at the
//! host's end until the guest has opened the port and posted buffers; output waits in the guest, but for the rest of one request.

#![forbid(unsafe_code)]

mod backend;
mod message;
mod port;
mod socket;
#[cfg(test)]
mod tests;

use std::io;

use serde::{Deserialize, Serialize};

pub use backend::{FilePort, NullPort, PortBackend, PortError};
pub use socket::SocketPort;

use super::config_change::ConfigChange;
use super::device::{
    DeviceState, DeviceStateError, DeviceTraits, EventSource, QueueResources, QueueState, StartError,
    VirtioDevice, read_config_from,
};
use super::mailbox::{self, Caller, DeviceGone, Mailbox};
use super::queue::{DeviceQueue, RING_FEATURES, RequestChain};
use crate::warn_guest;
use message::{Event, Message};
use port::{Port, PortState};

/// Device type of virtio-console.
const KIND: u32 = 3;
const QUEUE_SIZE: u16 = 64;
/// cols, rows, max_nr_ports, emerg_wr.
const CONFIG_LEN: usize = 12;
const EMERGENCY_WRITE: u64 = 8;
const STATE_VERSION: u32 = 1;
/// Most ports of one device.
pub const MAX_PORTS: usize = 16;

// Feature bits (section 5.3.3).
const SIZE: u64 = 1 << 0;
const MULTIPORT: u64 = 1 << 1;
const EMERGENCY: u64 = 1 << 2;

/// Event source: a call from the control side. Those of ports are their numbers.
const CALL: u32 = MAX_PORTS as u32;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Receive(usize),
    Transmit(usize),
    ControlReceive,
    ControlTransmit,
}

fn role(index: u16) -> Role {
    match usize::from(index) {
        0 => Role::Receive(0),
        1 => Role::Transmit(0),
        2 => Role::ControlReceive,
        3 => Role::ControlTransmit,
        index if index.is_multiple_of(2) => Role::Receive(index / 2 - 1),
        index => Role::Transmit(index / 2 - 1),
    }
}

/// Where a port's queue for input is.
fn receive_queue(port: usize) -> u16 {
    if port == 0 { 0 } else { port as u16 * 2 + 2 }
}

const CONTROL_RECEIVE: u16 = 2;

/// What is saved.
#[derive(Serialize, Deserialize)]
struct State {
    /// Columns and rows of port 0.
    size: (u16, u16),
    ports: Vec<PortState>,
}

/// A console, with all its ports.
pub struct Console {
    ports: Vec<Port>,
    /// Columns and rows of port 0; zeros as long as nobody knows.
    size: (u16, u16),
    queues: Vec<Option<(DeviceQueue, RequestChain)>>,
    multiport: bool,
    change: ConfigChange,
    mailbox: Mailbox<Console>,
}

/// A console for whoever controls the VM.
#[derive(Clone)]
pub struct ConsoleHandle {
    caller: Caller<Console>,
}

impl ConsoleHandle {
    /// The window in which port 0 is shown has so many columns and rows.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<(), DeviceGone> {
        self.caller.call(move |console| console.resize(columns, rows))
    }
}

impl Console {
    /// A console with these ports, [`MAX_PORTS`] at most, each with its name, and the way to it. It fails only if the host has
    /// no descriptor to give.
    pub fn new(ports: Vec<(String, Box<dyn PortBackend>)>) -> io::Result<(Self, ConsoleHandle)> {
        let (caller, mailbox) = mailbox::channel()?;
        let ports: Vec<_> = ports
            .into_iter()
            .take(MAX_PORTS)
            .map(|(name, backend)| Port::new(name, backend))
            .collect();
        let console = Self {
            queues: (0..ports.len().max(1) * 2 + 2).map(|_| None).collect(),
            ports,
            size: (0, 0),
            multiport: false,
            change: ConfigChange::default(),
            mailbox,
        };
        Ok((console, ConsoleHandle { caller }))
    }

    fn resize(&mut self, columns: u16, rows: u16) {
        self.size = (columns, rows);
        self.change.announce();
        if self.multiport
            && let Some(port) = self.ports.first_mut()
        {
            port.tell(Event::Resize);
            self.tell();
        }
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[..2].copy_from_slice(&self.size.0.to_le_bytes());
        config[2..4].copy_from_slice(&self.size.1.to_le_bytes());
        config[4..8].copy_from_slice(&(self.ports.len() as u32).to_le_bytes());
        config
    }

    /// Does what there is to do on queue `index`.
    fn serve(&mut self, index: u16) {
        let slot = usize::from(index);
        let Some((mut queue, mut chain)) = self.queues.get_mut(slot).and_then(Option::take) else {
            return;
        };
        let role = role(index);
        queue.drain_by(|queue| self.step(role, queue, &mut chain));
        self.queues[slot] = Some((queue, chain));
        match role {
            // What the driver said may have an answer, and so may what became of the other end.
            Role::ControlTransmit => {
                for port in 0..self.ports.len() {
                    self.serve(receive_queue(port));
                }
                self.tell();
            }
            Role::Receive(_) | Role::Transmit(_) => self.tell(),
            Role::ControlReceive => {}
        }
    }

    /// One request. False if there is none to be done.
    fn step(&mut self, role: Role, queue: &mut DeviceQueue, chain: &mut RequestChain) -> bool {
        match role {
            Role::Receive(port) => match self.ports.get_mut(port) {
                Some(port) => port.receive(queue, chain),
                None => no_port(queue),
            },
            Role::Transmit(port) => match self.ports.get_mut(port) {
                Some(port) => port.send(queue, chain),
                None => no_port(queue),
            },
            Role::ControlReceive => self.send_message(queue, chain),
            Role::ControlTransmit => {
                let taken = queue.pop(chain);
                if taken {
                    if let Some(message) = Message::read(chain) {
                        self.hear(&message);
                    } else {
                        warn_guest!("virtio-console: a control message that is none");
                    }
                    queue.complete(chain.head(), 0);
                }
                taken
            }
        }
    }

    /// Serves the control queue, if the driver is to be told something.
    fn tell(&mut self) {
        if self.ports.iter().any(|port| !port.state.is_told()) {
            self.serve(CONTROL_RECEIVE);
        }
    }

    fn send_message(&mut self, queue: &mut DeviceQueue, chain: &mut RequestChain) -> bool {
        let size = self.size;
        let next = (0..)
            .zip(&mut self.ports)
            .find_map(|(id, port)| Some((port.message(id, size)?, port)));
        let Some((message, port)) = next else {
            queue.end_turn();
            return false;
        };
        if !queue.pop(chain) {
            return false;
        }
        let written = chain.write_at(0, &message.bytes());
        port.told();
        queue.complete(chain.head(), written as u32);
        true
    }

    /// The driver says something.
    fn hear(&mut self, message: &Message) {
        if message.event == Event::DeviceReady {
            if message.value == 1 {
                for port in &mut self.ports {
                    port.tell(Event::DeviceAdd);
                }
            }
            return;
        }
        let sized = self.size != (0, 0);
        if let Some(port) = self.ports.get_mut(message.id as usize) {
            port.hear(message, message.id == 0, sized);
        } else {
            let id = message.id;
            warn_guest!("virtio-console: a message about port {id}, which is none");
        }
    }
}

/// There is nothing to do for a port that is not there.
fn no_port(queue: &mut DeviceQueue) -> bool {
    queue.end_turn();
    false
}

impl VirtioDevice for Console {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            kind: KIND,
            name: "console",
            features: RING_FEATURES | SIZE | MULTIPORT | EMERGENCY,
            queue_sizes: vec![QUEUE_SIZE; self.queues.len()],
            config_len: CONFIG_LEN as u64,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // The character is the lowest byte of the field.
        if let (EMERGENCY_WRITE, Some(byte), Some(port)) = (offset, data.first(), self.ports.first_mut()) {
            port.emergency(*byte);
        }
    }

    fn start_queue(
        &mut self,
        index: u16,
        queue: QueueResources,
        at: Option<QueueState>,
    ) -> Result<(), StartError> {
        let slot = usize::from(index);
        if slot >= self.queues.len() {
            return Err(StartError::NoSuchQueue { index });
        }
        let (interrupt, multiport) = (queue.interrupt.clone(), queue.features & MULTIPORT != 0);
        let queue = DeviceQueue::new(index, queue, at)?;
        if at.is_none() && self.queues.iter().all(Option::is_none) {
            for port in &mut self.ports {
                port.begin(multiport);
            }
        }
        self.multiport = multiport;
        let chain = queue.new_chain();
        self.queues[slot] = Some((queue, chain));
        self.change.started(interrupt);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let (queue, _) = self.queues.get_mut(usize::from(index))?.take()?;
        if self.queues.iter().all(Option::is_none) {
            self.change.stopped();
        }
        Some(queue.stop())
    }

    fn process_queue(&mut self, index: u16) {
        self.serve(index);
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let ports = (0..).zip(&self.ports).filter_map(|(token, port)| {
            let fd = port.backend.event()?;
            Some(EventSource { fd, token })
        });
        ports.chain([self.mailbox.source(CALL)]).collect()
    }

    fn process_event(&mut self, token: u32) {
        if token == CALL {
            for call in self.mailbox.calls() {
                call(self);
            }
            return;
        }
        let number = token as usize;
        if let Some(port) = self.ports.get_mut(number) {
            port.look();
            // Whatever waits for room, then whatever came.
            self.serve(receive_queue(number) + 1);
            self.serve(receive_queue(number));
        }
    }

    fn save(&self) -> DeviceState {
        let state = State {
            size: self.size,
            ports: self.ports.iter().map(|port| port.state.clone()).collect(),
        };
        DeviceState::new(STATE_VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let State { size, ports } = state.read(STATE_VERSION)?;
        if ports.len() != self.ports.len() {
            return Err(DeviceStateError::Data(format!(
                "it had {} ports, and has {}",
                ports.len(),
                self.ports.len()
            )));
        }
        self.size = size;
        for (port, state) in self.ports.iter_mut().zip(ports) {
            port.restore(state);
        }
        Ok(())
    }
}
