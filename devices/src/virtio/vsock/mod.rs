//! virtio-vsock: stream sockets between the guest and host programs (virtio 1.3, section 5.10).
//!
//! The host's side is Unix sockets, as Firecracker has them, so that tools made for it work:
//!
//! - A host program connects to the device's socket, writes `CONNECT <port>\n` and, if a guest program listens on that port,
//!   reads `OK <its own port>\n`; then the connection is the guest program's. If none listens the socket is closed.
//! - A guest program connects to CID 2 and a port; that leads to the Unix socket `<path>_<port>`, where a host program listens.
//!
//! ```text
//!  host sockets ──▶ connections ──▶ queue 0 (receive) ──▶ guest     read only with credit and a buffer: a slow guest
//!       ▲               │  ▲                                        stops the host program
//!       │               ▼  │
//!       └──────── backlog ◀┴─────── queue 1 (transmit) ◀── guest    bounded by credit: a slow host program stops the guest
//!
//!                 restored ───────▶ queue 2 (events) ───▶ guest     TRANSPORT_RESET: its connections are gone
//! ```
//!
//! A pause keeps every connection: the host's sockets wait. A restored device has none, and the guest is told; its listening
//! sockets live on. The CID may be another one then, and the guest reads it anew.
//!
//! | configuration | bytes |
//! |---|---|
//! | the guest's CID | 0 to 7 |

#![forbid(unsafe_code)]

mod backlog;
mod connection;
mod connections;
mod listener;
mod packet;
mod poll;
#[cfg(test)]
mod tests;

use std::os::fd::AsRawFd;
use std::path::Path;

use zerocopy::IntoBytes;

pub use listener::{VsockError, service_path};

use super::device::{
    DeviceState, DeviceStateError, DeviceTraits, EventSource, QueueResources, QueueState, StartError,
    VirtioDevice, read_config_from,
};
use super::queue::{DeviceQueue, RING_FEATURES, RequestChain};
use connections::{Connections, Limits};
use listener::Listener;
use packet::{HEADER, Ports};

/// Device type of virtio-vsock.
const KIND: u32 = 19;
const QUEUE_SIZE: u16 = 256;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;
/// VIRTIO_VSOCK_F_STREAM.
const STREAMS: u64 = 1;
const CONFIG_LEN: u64 = 8;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, an event of four bytes.
const TRANSPORT_RESET: [u8; 4] = [0; 4];
/// The one event source: the host's side.
const HOST: u32 = 0;
/// Packets of one turn, each way; a long one counts as several.
const BUDGET: u32 = 256;
const BUDGET_BYTES: u32 = 1 << 14;
/// Version of [`State`].
const VERSION: u32 = 1;

/// The lowest CID that a guest may have: those below are taken.
pub const FIRST_CID: u32 = 3;

/// Longest path of the device's socket: an address has room for 107 bytes, and `_` and a port go behind it.
pub const SERVICE_PATH_MAX: usize = 107 - "_4294967295".len();

/// The socket device.
pub struct Vsock {
    cid: u64,
    connections: Connections,
    receive: Option<Queue>,
    transmit: Option<Queue>,
    events: Option<Queue>,
    /// The guest is to hear that its connections are gone.
    owes_reset: bool,
    /// A queue was started since the host's side was last looked at.
    fresh: bool,
    /// The guest's packets wait until it has taken refusals.
    congested: bool,
}

/// A started queue.
struct Queue {
    queue: DeviceQueue,
    chain: RequestChain,
}

/// What a restored device needs to know.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct State {
    /// Requests of the guest's to which it has no answer yet; there will be none.
    unanswered: Vec<Ports>,
    /// The host's port that was given out last. A guest may keep the sockets of its dead connections for as long as it likes, and
    /// refuses a new one between the same ports.
    last_port: u32,
}

impl Vsock {
    /// A device for a guest with this CID, whose Unix socket stands at `path` as long as the device lives.
    pub fn new(cid: u32, path: &Path) -> Result<Self, VsockError> {
        Self::with_limits(cid, path, Limits::default())
    }

    fn with_limits(cid: u32, path: &Path, limits: Limits) -> Result<Self, VsockError> {
        let cid = u64::from(cid);
        Ok(Self {
            cid,
            connections: Connections::new(cid, Listener::new(path)?, limits)?,
            receive: None,
            transmit: None,
            events: None,
            owes_reset: false,
            fresh: false,
            congested: false,
        })
    }

    /// Does what is there to do, each way.
    fn run(&mut self) {
        if std::mem::take(&mut self.fresh) && self.is_running() {
            self.connections.look();
        }
        self.take_packets();
        self.give_packets();
        if let Some(Queue { queue, .. }) = &self.transmit
            && self.congested
            && !self.connections.is_congested()
        {
            queue.kick_again();
        }
    }

    fn is_running(&self) -> bool {
        self.receive.is_some() && self.transmit.is_some()
    }

    /// Packets from the guest.
    fn take_packets(&mut self) {
        let Some(Queue { queue, chain }) = &mut self.transmit else {
            return;
        };
        self.congested = false;
        let mut budget = BUDGET;
        queue.disable_kicks();
        loop {
            if self.connections.is_congested() {
                self.congested = true;
                break;
            }
            if budget == 0 {
                queue.kick_again();
                break;
            }
            if !queue.pop(chain) {
                if !queue.enable_kicks() {
                    break;
                }
                queue.disable_kicks();
                continue;
            }
            budget = budget.saturating_sub(1 + chain.readable_len() / BUDGET_BYTES);
            self.connections.input(chain);
            queue.complete(chain.head(), 0);
        }
        queue.signal();
    }

    /// Packets for the guest.
    fn give_packets(&mut self) {
        let Some(Queue { queue, chain }) = &mut self.receive else {
            return;
        };
        let mut budget = BUDGET;
        let mut held = false;
        queue.disable_kicks();
        while self.connections.has_output() {
            if budget == 0 {
                queue.kick_again();
                break;
            }
            if !held {
                if !queue.pop(chain) {
                    // The next buffer brings us back, unless it is there already.
                    if !queue.enable_kicks() {
                        break;
                    }
                    queue.disable_kicks();
                    continue;
                }
                held = true;
                if chain.writable_len() <= HEADER {
                    queue.fail("a receive buffer has no room for a header and data");
                    break;
                }
            }
            budget -= 1;
            if let Some(header) = self.connections.output(chain) {
                chain.write_at(0, header.as_bytes());
                queue.complete(chain.head(), HEADER + header.len.get());
                held = false;
            }
        }
        if held {
            queue.undo_pop(1);
        }
        queue.signal();
    }

    /// Tells the guest that its connections are gone, once it has a buffer for that.
    fn give_event(&mut self) {
        let Some(Queue { queue, chain }) = &mut self.events else {
            return;
        };
        while self.owes_reset && queue.pop(chain) {
            let written = chain.write_at(0, &TRANSPORT_RESET);
            self.owes_reset = written < TRANSPORT_RESET.len();
            queue.complete(chain.head(), written as u32);
        }
        queue.signal();
    }
}

impl VirtioDevice for Vsock {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            kind: KIND,
            name: "vsock",
            features: RING_FEATURES | STREAMS,
            queue_sizes: vec![QUEUE_SIZE; 3],
            config_len: CONFIG_LEN,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&self.cid.to_le_bytes(), offset, data);
    }

    fn start_queue(
        &mut self,
        index: u16,
        resources: QueueResources,
        at: Option<QueueState>,
    ) -> Result<(), StartError> {
        let slot = match index {
            RECEIVE => &mut self.receive,
            TRANSMIT => &mut self.transmit,
            EVENT => &mut self.events,
            _ => return Err(StartError::NoSuchQueue { index }),
        };
        let fresh = at.is_none();
        let queue = DeviceQueue::new(index, resources, at)?;
        let chain = queue.new_chain();
        *slot = Some(Queue { queue, chain });
        if fresh && index != EVENT {
            // A driver that begins anew knows of no connection.
            self.connections.clear();
            self.owes_reset = false;
        }
        self.fresh = true;
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let slot = match index {
            RECEIVE => &mut self.receive,
            TRANSMIT => &mut self.transmit,
            EVENT => &mut self.events,
            _ => return None,
        };
        slot.take().map(|queue| queue.queue.stop())
    }

    fn process_queue(&mut self, index: u16) {
        match index {
            RECEIVE | TRANSMIT => self.run(),
            EVENT => self.give_event(),
            _ => {}
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource {
            fd: self.connections.fd().as_raw_fd(),
            token: HOST,
        }]
    }

    fn process_event(&mut self, token: u32) {
        // Without a guest the host's side waits: what happens there is seen when the queues start.
        if token == HOST && self.is_running() {
            self.connections.look();
            self.run();
        }
    }

    fn save(&self) -> DeviceState {
        let state = State {
            unanswered: self.connections.unanswered(),
            last_port: self.connections.last_port(),
        };
        DeviceState::new(VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let State {
            unanswered,
            last_port,
        } = state.read(VERSION)?;
        if !self.connections.go_on_from(last_port) {
            return Err(DeviceStateError::Data(format!(
                "last_port {last_port} is none of the host's"
            )));
        }
        self.connections.clear();
        for ports in unanswered {
            self.connections.reset(ports);
        }
        self.owes_reset = true;
        Ok(())
    }
}
