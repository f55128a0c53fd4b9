//! virtio-net: a network card (virtio 1.3, section 5.1).
//!
//! Two queues, receive (0) and transmit (1). Frames go between guest memory and the [`NetBackend`] without a copy. The host does
//! checksums and cuts and joins TCP segments where driver and backend agree on it. No control queue: one pair of queues,
//! and every frame that the backend has is for the guest.
//!
//! | configuration | bytes |
//! |---|---|
//! | hardware address | 0 to 5 |
//! | link status: bit 0 falls when the backend is gone for good | 6, 7 |
//! | number of queue pairs: 1 | 8, 9 |
//! | MTU of the backend | 10, 11 |
//!
//! A saved card may go on with another hardware address: the configuration shows it, and the driver hears that it changed. Linux
//! reads an address only when its driver begins.

#![deny(unsafe_code)]

mod backend;
mod handle;
mod header;
pub mod mmds;
mod receive;
mod stream;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

pub use backend::{BEGIN_MAX, NetBackend};
pub use handle::NetHandle;
pub use header::{HEADER, Header};
pub use stream::Stream;
pub use tap::{Tap, TapError};

use super::config_change::ConfigChange;
use super::device::{
    DeviceState, DeviceStateError, DeviceTraits, EventSource, QueueResources, QueueState, StartError,
    VirtioDevice, read_config_from,
};
use super::mailbox::{self, Mailbox};
use super::queue::RING_FEATURES;
use crate::limiter::{Limiter, LimiterChange, LimiterConfig};
use receive::{Received, Receiver};
use transmit::Transmitter;

/// Device type of virtio-net.
const KIND: u32 = 1;
const QUEUE_SIZE: u16 = 256;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONFIG_LEN: usize = 12;
const STATUS: usize = 6;
/// Event source: the backend's descriptor.
const BACKEND: u32 = 0;
/// Event source: the next frame may be received.
const ADMIT_RECEIVE: u32 = 1;
/// Event source: the next frame may be sent.
const ADMIT_TRANSMIT: u32 = 2;
/// Event source: a call from the control side.
const CALL: u32 = 3;
const STATE_VERSION: u32 = 1;
/// Event source: the backend's timer.
const TIMER: u32 = 4;
/// Smallest MTU that a driver accepts.
const MIN_MTU: u16 = 68;

/// A network card.
pub struct Net {
    backend: Box<dyn NetBackend>,
    config: [u8; CONFIG_LEN],
    receiver: Option<Receiver>,
    transmitter: Option<Transmitter>,
    change: ConfigChange,
    control: Option<Control>,
}

/// What is saved.
#[derive(Serialize, Deserialize)]
struct State {
    /// The hardware address that the driver knows.
    mac: [u8; STATUS],
}

/// What a card has that can be changed while it runs.
struct Control {
    receive: Limiter,
    transmit: Limiter,
    mailbox: Mailbox<Net>,
}

impl Net {
    /// A card with the hardware address `mac`, plugged into `backend`.
    pub fn new(backend: Box<dyn NetBackend>, mac: [u8; 6]) -> Self {
        let mut config = [0; CONFIG_LEN];
        config[..STATUS].copy_from_slice(&mac);
        let words = [VIRTIO_NET_S_LINK_UP as u16, 1, backend.mtu().max(MIN_MTU)];
        for (at, word) in (STATUS..).step_by(2).zip(words) {
            config[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
        Self {
            backend,
            config,
            receiver: None,
            transmitter: None,
            change: ConfigChange::default(),
            control: None,
        }
    }

    /// The card with limits to what the guest receives and sends, and the way to it for whoever controls the VM. It fails only
    /// if the host has no descriptors to give.
    pub fn controlled(
        mut self,
        receive: LimiterConfig,
        transmit: LimiterConfig,
    ) -> io::Result<(Self, NetHandle)> {
        let (caller, mailbox) = mailbox::channel()?;
        self.control = Some(Control {
            receive: Limiter::new(receive)?,
            transmit: Limiter::new(transmit)?,
            mailbox,
        });
        Ok((self, NetHandle { caller }))
    }

    fn set_limits(&mut self, receive: LimiterChange, transmit: LimiterChange) {
        if let Some(control) = &mut self.control {
            control.receive.change(receive);
            control.transmit.change(transmit);
        }
        self.receive();
        self.transmit();
    }

    /// The backend is gone and will not come back: the guest sees its cable pulled.
    fn lose_link(&mut self, cause: &io::Error) {
        if self.config[STATUS] != 0 {
            tracing::warn!("a network backend is gone: {cause}");
            self.config[STATUS] = 0;
            self.change.announce();
        }
    }

    fn receive(&mut self) {
        let Some(receiver) = &mut self.receiver else {
            return;
        };
        let limiter = self.control.as_mut().map(|control| &mut control.receive);
        let Received::Failed(cause) = receiver.run(&mut *self.backend, limiter) else {
            return;
        };
        if is_gone(&cause) {
            self.lose_link(&cause);
        } else {
            crate::warn_guest!("virtio-net: the backend gives no frame: {cause}");
        }
    }

    fn transmit(&mut self) {
        if let Some(transmitter) = &mut self.transmitter {
            let limiter = self.control.as_mut().map(|control| &mut control.transmit);
            transmitter.run(&mut *self.backend, limiter);
        }
        // Some backends answer by themselves.
        if self.backend.has_frame() {
            self.receive();
        }
    }
}

/// Whether this is what a backend says that will never have a frame again: a tap whose interface was deleted, a stream at its
/// end.
fn is_gone(cause: &io::Error) -> bool {
    Errno::from_io_error(cause) == Some(Errno::BADFD)
        || matches!(
            cause.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::InvalidData
        )
}

/// A random hardware address: locally administered, for one station.
pub fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    // So few bytes come all at once.
    getrandom(&mut mac, GetRandomFlags::empty())?;
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

impl VirtioDevice for Net {
    fn traits(&self) -> DeviceTraits {
        let own = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_MTU,
        ];
        let own = own.iter().fold(0, |bits, feature| bits | 1 << feature);
        DeviceTraits {
            kind: KIND,
            name: "net",
            features: RING_FEATURES | own | self.backend.features(),
            queue_sizes: vec![QUEUE_SIZE; 2],
            config_len: CONFIG_LEN as u64,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&self.config, offset, data);
    }

    fn start_queue(
        &mut self,
        index: u16,
        queue: QueueResources,
        at: Option<QueueState>,
    ) -> Result<(), StartError> {
        let (interrupt, features) = (queue.interrupt.clone(), queue.features);
        match index {
            RECEIVE => {
                self.receiver = Some(Receiver::new(index, queue, at, self.backend.mtu())?);
                if let Err(cause) = self.backend.start(features) {
                    tracing::error!("a network backend does not do what was negotiated: {cause}");
                    self.lose_link(&cause);
                }
            }
            TRANSMIT => self.transmitter = Some(Transmitter::new(index, queue, at)?),
            _ => return Err(StartError::NoSuchQueue { index }),
        }
        self.change.started(interrupt);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let stopped = match index {
            RECEIVE => {
                if let Some(control) = &mut self.control {
                    control.receive.forget();
                }
                self.receiver.take().map(Receiver::stop)
            }
            TRANSMIT => {
                if let Some(control) = &mut self.control {
                    control.transmit.forget();
                }
                self.transmitter.take().map(Transmitter::stop)
            }
            _ => None,
        };
        if self.receiver.is_none() && self.transmitter.is_none() {
            self.change.stopped();
        }
        stopped
    }

    fn save(&self) -> DeviceState {
        let mut mac = [0; STATUS];
        mac.copy_from_slice(&self.config[..STATUS]);
        DeviceState::new(STATE_VERSION, &State { mac })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        // Version 0 held nothing.
        if state.version == 0 {
            return state.read::<()>(0);
        }
        let State { mac } = state.read(STATE_VERSION)?;
        if self.config[..STATUS] != mac {
            self.change.announce();
        }
        Ok(())
    }

    fn process_queue(&mut self, index: u16) {
        match index {
            RECEIVE => self.receive(),
            TRANSMIT => self.transmit(),
            _ => {}
        }
    }

    fn poll(&mut self) -> bool {
        let waits = self
            .control
            .as_ref()
            .is_some_and(|control| control.transmit.waits());
        let any = !waits && self.transmitter.as_ref().is_some_and(Transmitter::has_more);
        if any {
            self.transmit();
        }
        any
    }

    fn set_polled(&mut self, polled: bool) {
        if let Some(transmitter) = &mut self.transmitter {
            transmitter.set_polled(polled);
        }
        if !polled {
            self.transmit();
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let backend = EventSource {
            fd: self.backend.fd().as_raw_fd(),
            token: BACKEND,
        };
        let control = self.control.iter().flat_map(|control| {
            [
                control.receive.source(ADMIT_RECEIVE),
                control.transmit.source(ADMIT_TRANSMIT),
                control.mailbox.source(CALL),
            ]
        });
        let timer = self.backend.timer().map(|fd| EventSource { fd, token: TIMER });
        std::iter::once(backend).chain(timer).chain(control).collect()
    }

    fn process_event(&mut self, token: u32) {
        let admits = match (token, &mut self.control) {
            (ADMIT_RECEIVE, Some(control)) => control.receive.rang(),
            (ADMIT_TRANSMIT, Some(control)) => control.transmit.rang(),
            _ => false,
        };
        match (token, &mut self.control) {
            (BACKEND, _) => {
                self.backend.on_ready();
                // Edges do not say which of the two.
                self.receive();
                if self.transmitter.as_ref().is_some_and(Transmitter::is_blocked) {
                    self.transmit();
                }
            }
            (TIMER, _) => {
                self.backend.on_timer();
                if self.backend.has_frame() {
                    self.receive();
                }
            }
            (ADMIT_RECEIVE, _) if admits => self.receive(),
            (ADMIT_TRANSMIT, _) if admits => self.transmit(),
            (CALL, Some(control)) => {
                for call in control.mailbox.calls() {
                    call(self);
                }
            }
            _ => {}
        }
    }
}
