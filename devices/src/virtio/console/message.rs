//! Control messages, which say what becomes of ports (virtio 1.3, section 5.3.6.2).

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::virtio::queue::RequestChain;

/// Bytes of a message without what follows it.
const LEN: usize = 8;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Event {
    /// The driver is there, or failed.
    DeviceReady,
    /// There is a port.
    DeviceAdd,
    /// There is no port any more.
    DeviceRemove,
    /// The driver has set a port up, or failed to.
    PortReady,
    /// A port is a console.
    ConsolePort,
    /// The console's window has another size.
    Resize,
    /// Somebody has opened or closed the sender's end.
    PortOpen,
    /// The port's name follows.
    PortName,
}

const EVENTS: [Event; 8] = [
    Event::DeviceReady,
    Event::DeviceAdd,
    Event::DeviceRemove,
    Event::PortReady,
    Event::ConsolePort,
    Event::Resize,
    Event::PortOpen,
    Event::PortName,
];

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// Which port.
    pub(super) id: u32,
    /// What about it.
    pub(super) event: Event,
    /// Yes or no.
    pub(super) value: u16,
    /// What follows: a name, a size.
    pub(super) rest: Vec<u8>,
}

impl Message {
    /// A driver's message, if it is one.
    pub(super) fn read(chain: &RequestChain) -> Option<Self> {
        let mut bytes = [0; LEN];
        if chain.read_at(0, &mut bytes) < LEN {
            return None;
        }
        let [i0, i1, i2, i3, e0, e1, v0, v1] = bytes;
        let event = EVENTS.get(usize::from(u16::from_le_bytes([e0, e1])))?;
        Some(Self {
            id: u32::from_le_bytes([i0, i1, i2, i3]),
            event: *event,
            value: u16::from_le_bytes([v0, v1]),
            rest: Vec::new(),
        })
    }

    /// As the driver reads it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.id.to_le_bytes().to_vec();
        bytes.extend((self.event as u16).to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        bytes.extend(&self.rest);
        bytes
    }
}
