//! virtio-net: a network card (virtio 1.3, section 5.1).
//!
//! Two queues, receive (0) and transmit (1). Frames go between guest memory and the [`NetBackend`] without a copy. The host does
//! checksums and cuts and joins segments where driver and backend agree on it. Every frame that the backend has is for the guest.
//!
//! A card may have several such pairs, each with a backend of its own, and then has a control queue behind them. Which backends are
//! given frames for the guest is the [`Steering`]'s affair: only those of the pairs that the driver has said it uses, which is the first
//! one to begin with. [`Net::split_off`] makes of such a card one part for each pair, to be served by different threads, and [`NetParts`] one device of the parts.
//!
//! | configuration | bytes |
//! |---|---|
//! | hardware address | 0 to 5 |
//! | link status: bit 0 falls when the backend is gone for good | 6, 7 |
//! | number of queue pairs | 8, 9 |
//! | MTU of the backend | 10, 11 |
//!
//! A saved card may go on with another hardware address: the configuration shows it, and the driver hears that it changed. Linux
//! reads an address only when its driver begins.

#![deny(unsafe_code)]

mod backend;
mod commands;
mod handle;
mod header;
pub mod mmds;
mod pairs;
mod parts;
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
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

pub use backend::{BEGIN_MAX, NetBackend, Steering};
pub use handle::NetHandle;
pub use header::{HEADER, Header};
pub use parts::NetParts;
pub use stream::Stream;
pub use tap::{Tap, TapError, TapQueues};

use super::config_change::ConfigChange;
use super::device::{
    DeviceState, DeviceStateError, DeviceTraits, EventSource, QueueResources, QueueState, StartError,
    VirtioDevice, read_config_from,
};
use super::mailbox::{self, Mailbox};
use super::queue::RING_FEATURES;
use crate::limiter::{Limiter, LimiterChange, LimiterConfig};
use commands::Commands;
use pairs::{Role, Started, no_queues, queue_count, role};
use receive::{Received, Receiver};
use transmit::Transmitter;

/// Device type of virtio-net.
const KIND: u32 = 1;
const QUEUE_SIZE: u16 = 256;
const CONFIG_LEN: usize = 12;
const STATUS: usize = 6;
/// Event source: the next frame may be received.
const ADMIT_RECEIVE: u32 = 0;
/// Event source: the next frame may be sent.
const ADMIT_TRANSMIT: u32 = 1;
/// Event source: a call from the control side.
const CALL: u32 = 2;
/// Event source: the timer of the first backend.
const TIMER: u32 = 3;
/// Event sources from here on: the backends' descriptors.
const BACKENDS: u32 = 4;
const STATE_VERSION: u32 = 1;
/// Smallest MTU that a driver accepts.
const MIN_MTU: u16 = 68;

/// Most pairs of queues of a card.
pub const MAX_PAIRS: u16 = 16;

/// A network card, or the part of one that has a pair of its own.
pub struct Net {
    /// What is behind each pair, from pair `first` on.
    backends: Vec<Box<dyn NetBackend>>,
    first: u16,
    /// The whole card's, and how many of them the driver uses.
    pairs: u16,
    used_pairs: u16,
    steering: Option<Box<dyn Steering>>,
    config: [u8; CONFIG_LEN],
    /// By index.
    queues: Vec<Option<Started>>,
    /// The pair that is served first when the limits let frames through again: each in its turn.
    turn: usize,
    change: ConfigChange,
    control: Option<Control>,
}

/// What is saved.
#[derive(Serialize, Deserialize)]
struct State {
    /// The hardware address that the driver knows.
    mac: [u8; STATUS],
    /// How many pairs the driver uses.
    #[serde(default = "one_pair", skip_serializing_if = "is_one_pair")]
    pairs: u16,
}

fn one_pair() -> u16 {
    1
}

// By reference, as serde calls it.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one_pair(pairs: &u16) -> bool {
    *pairs == 1
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
        Self::made(vec![backend], None, mac)
    }

    /// A card with a pair of queues for each backend, 2 to [`MAX_PAIRS`] of one network that `steering` spreads frames over. All must
    /// have the same features and the same MTU.
    pub fn with_pairs(backends: Vec<Box<dyn NetBackend>>, steering: Box<dyn Steering>, mac: [u8; 6]) -> Self {
        Self::made(backends, Some(steering), mac)
    }

    fn made(backends: Vec<Box<dyn NetBackend>>, steering: Option<Box<dyn Steering>>, mac: [u8; 6]) -> Self {
        let pairs = backends.len() as u16;
        let mtu = backends.first().map_or(MIN_MTU, |backend| backend.mtu());
        let mut config = [0; CONFIG_LEN];
        config[..STATUS].copy_from_slice(&mac);
        let words = [VIRTIO_NET_S_LINK_UP as u16, pairs, mtu.max(MIN_MTU)];
        for (at, word) in (STATUS..).step_by(2).zip(words) {
            config[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
        Self {
            backends,
            first: 0,
            pairs,
            used_pairs: 1,
            steering,
            config,
            queues: no_queues(pairs),
            turn: 0,
            change: ConfigChange::default(),
            control: None,
        }
    }

    /// Takes the other pairs of queues than the first from the card, each as a part of its own that does not meet the others: any thread
    /// may have any of them. What is left answers for the card, and has its control queue. Limits would be those of the first pair alone.
    pub fn split_off(&mut self) -> Vec<Self> {
        let others = self.backends.split_off(1);
        let part = |(first, backend)| Self {
            first,
            pairs: self.pairs,
            queues: no_queues(self.pairs),
            config: self.config,
            ..Self::made(vec![backend], None, [0; STATUS])
        };
        (1..).zip(others).map(part).collect()
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
        self.receive_all();
        self.transmit_all();
    }

    /// The backend is gone and will not come back: the guest sees its cable pulled.
    fn lose_link(&mut self, cause: &io::Error) {
        if self.config[STATUS] != 0 {
            tracing::warn!("a network backend is gone: {cause}");
            self.config[STATUS] = 0;
            self.change.announce();
        }
    }

    /// The place among the backends of the one behind queue `index`, which is a pair's.
    fn place(&self, index: u16) -> Option<usize> {
        let place = usize::from((index / 2).checked_sub(self.first)?);
        (place < self.backends.len()).then_some(place)
    }

    /// The queues of the pair of backend `place`: what is received into, and what is sent from.
    fn indices(&self, place: usize) -> [usize; 2] {
        let receive = 2 * (usize::from(self.first) + place);
        [receive, receive + 1]
    }

    fn receive(&mut self, place: usize) {
        let [index, _] = self.indices(place);
        let Some(Some(Started::Receive(receiver))) = self.queues.get_mut(index) else {
            return;
        };
        let limiter = self.control.as_mut().map(|control| &mut control.receive);
        let Received::Failed(cause) = receiver.run(&mut *self.backends[place], limiter) else {
            return;
        };
        if is_gone(&cause) {
            self.lose_link(&cause);
        } else {
            crate::warn_guest!("virtio-net: the backend gives no frame: {cause}");
        }
    }

    fn transmit(&mut self, place: usize) {
        let [_, index] = self.indices(place);
        let backend = &mut *self.backends[place];
        if let Some(Some(Started::Transmit(transmitter))) = self.queues.get_mut(index) {
            let limiter = self.control.as_mut().map(|control| &mut control.transmit);
            transmitter.run(backend, limiter);
        }
        // Some backends answer by themselves.
        if backend.has_frame() {
            self.receive(place);
        }
    }

    fn transmitter(&mut self, place: usize) -> Option<&mut Transmitter> {
        let [_, index] = self.indices(place);
        match self.queues.get_mut(index) {
            Some(Some(Started::Transmit(transmitter))) => Some(transmitter),
            _ => None,
        }
    }

    fn receive_all(&mut self) {
        for place in self.in_turn() {
            self.receive(place);
        }
    }

    fn transmit_all(&mut self) {
        for place in self.in_turn() {
            self.transmit(place);
        }
    }

    /// All backends, another one first each time: the limits may let only the first have something.
    fn in_turn(&mut self) -> impl Iterator<Item = usize> + use<> {
        let (count, first) = (self.backends.len(), self.turn);
        self.turn = (first + 1) % count;
        (0..count).map(move |at| (first + at) % count)
    }

    fn run_commands(&mut self, index: u16) {
        let (pairs, steering, used) = (self.pairs, &mut self.steering, &mut self.used_pairs);
        if let Some(Some(Started::Control(commands))) = self.queues.get_mut(usize::from(index)) {
            commands.run(|wanted| {
                let done = (1..=pairs).contains(&wanted) && spread(steering, wanted);
                if done {
                    *used = wanted;
                }
                done
            });
        }
    }

    /// A queue starts while no other runs: a driver that begins uses one pair, one that goes on what it did.
    fn begin(&mut self, goes_on: bool) {
        if self.queues.iter().any(Option::is_some) {
            return;
        }
        if !goes_on {
            self.used_pairs = 1;
        }
        // Should that fail, frames come by fewer pairs than they could, and none is lost.
        spread(&mut self.steering, self.used_pairs);
    }
}

/// Has frames come by the first `pairs` only; whether that could be done.
fn spread(steering: &mut Option<Box<dyn Steering>>, pairs: u16) -> bool {
    let done = steering
        .as_mut()
        .map_or(Ok(()), |steering| steering.spread(pairs));
    if let Err(cause) = &done {
        crate::warn_guest!(
            "virtio-net: the host does not spread frames over {pairs} pairs of queues: {cause}"
        );
    }
    done.is_ok()
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
        let several = [VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ];
        let several = several.iter().filter(|_| self.pairs > 1);
        let own = own
            .iter()
            .chain(several)
            .fold(0, |bits, feature| bits | 1 << feature);
        let carried = self.backends.first().map_or(0, |backend| backend.features());
        DeviceTraits {
            kind: KIND,
            name: "net",
            features: RING_FEATURES | own | carried,
            queue_sizes: vec![QUEUE_SIZE; usize::from(queue_count(self.pairs))],
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
        let nowhere = StartError::NoSuchQueue { index };
        let role = role(index, features, self.pairs);
        self.begin(at.is_some());
        let started = match role {
            None => return Err(nowhere),
            Some(Role::Control) => Started::Control(Box::new(Commands::new(index, queue, at)?)),
            Some(Role::Transmit) => Started::Transmit(Box::new(Transmitter::new(index, queue, at)?)),
            Some(Role::Receive) => {
                let place = self.place(index).ok_or(nowhere)?;
                let backend = &mut self.backends[place];
                let receiver = Receiver::new(index, queue, at, backend.mtu())?;
                if let Err(cause) = backend.start(features) {
                    tracing::error!("a network backend does not do what was negotiated: {cause}");
                    self.lose_link(&cause);
                }
                Started::Receive(Box::new(receiver))
            }
        };
        self.queues[usize::from(index)] = Some(started);
        self.change.started(interrupt);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let started = self.queues.get_mut(usize::from(index))?.take()?;
        let limiter = match (&started, &mut self.control) {
            (Started::Receive(_), Some(control)) => Some(&mut control.receive),
            (Started::Transmit(_), Some(control)) => Some(&mut control.transmit),
            _ => None,
        };
        if let Some(limiter) = limiter {
            limiter.forget();
        }
        if self.queues.iter().all(Option::is_none) {
            self.change.stopped();
        }
        Some(match started {
            Started::Receive(receiver) => receiver.stop(),
            Started::Transmit(transmitter) => transmitter.stop(),
            Started::Control(commands) => commands.stop(),
        })
    }

    fn save(&self) -> DeviceState {
        let mut mac = [0; STATUS];
        mac.copy_from_slice(&self.config[..STATUS]);
        let pairs = self.used_pairs;
        DeviceState::new(STATE_VERSION, &State { mac, pairs })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        // Version 0 held nothing.
        if state.version == 0 {
            return state.read::<()>(0);
        }
        let State { mac, pairs } = state.read(STATE_VERSION)?;
        if !(1..=self.pairs).contains(&pairs) {
            let have = self.pairs;
            return Err(DeviceStateError::Data(format!(
                "its driver uses {pairs} pairs of queues, of {have}"
            )));
        }
        self.used_pairs = pairs;
        if self.config[..STATUS] != mac {
            self.change.announce();
        }
        Ok(())
    }

    fn process_queue(&mut self, index: u16) {
        match self.queues.get(usize::from(index)) {
            Some(Some(Started::Control(_))) => self.run_commands(index),
            Some(Some(started)) => {
                let receives = matches!(started, Started::Receive(_));
                match self.place(index) {
                    Some(place) if receives => self.receive(place),
                    Some(place) => self.transmit(place),
                    None => {}
                }
            }
            _ => {}
        }
    }

    fn poll(&mut self) -> bool {
        let control = self.control.as_ref();
        let [may_receive, may_transmit] = control.map_or([true; 2], |control| {
            [!control.receive.waits(), !control.transmit.waits()]
        });
        let has_more = |started: &Started| match started {
            Started::Receive(receiver) => may_receive && receiver.has_more(),
            Started::Transmit(transmitter) => may_transmit && transmitter.has_more(),
            Started::Control(commands) => commands.has_more(),
        };
        let mut any = false;
        for index in 0..self.queues.len() {
            if self.queues[index].as_ref().is_some_and(has_more) {
                self.process_queue(index as u16);
                any = true;
            }
        }
        any
    }

    fn set_polled(&mut self, polled: bool) {
        for index in 0..self.queues.len() {
            match &mut self.queues[index] {
                Some(Started::Receive(receiver)) => receiver.set_polled(polled),
                Some(Started::Transmit(transmitter)) => transmitter.set_polled(polled),
                Some(Started::Control(commands)) => commands.set_polled(polled),
                None => continue,
            }
            if !polled {
                self.process_queue(index as u16);
            }
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let backends = (BACKENDS..)
            .zip(&self.backends)
            .map(|(token, backend)| EventSource {
                fd: backend.fd().as_raw_fd(),
                token,
            });
        let control = self.control.iter().flat_map(|control| {
            [
                control.receive.source(ADMIT_RECEIVE),
                control.transmit.source(ADMIT_TRANSMIT),
                control.mailbox.source(CALL),
            ]
        });
        let timer = self.backends.first().and_then(|backend| backend.timer());
        let timer = timer.map(|fd| EventSource { fd, token: TIMER });
        backends.chain(timer).chain(control).collect()
    }

    fn process_event(&mut self, token: u32) {
        let admits = match (token, &mut self.control) {
            (ADMIT_RECEIVE, Some(control)) => control.receive.rang(),
            (ADMIT_TRANSMIT, Some(control)) => control.transmit.rang(),
            _ => false,
        };
        match (token, &mut self.control) {
            (TIMER, _) => {
                if let Some(backend) = self.backends.first_mut() {
                    backend.on_timer();
                    if backend.has_frame() {
                        self.receive(0);
                    }
                }
            }
            (ADMIT_RECEIVE, _) if admits => self.receive_all(),
            (ADMIT_TRANSMIT, _) if admits => self.transmit_all(),
            (CALL, Some(control)) => {
                for call in control.mailbox.calls() {
                    call(self);
                }
            }
            (BACKENDS.., _) => {
                let place = (token - BACKENDS) as usize;
                let Some(backend) = self.backends.get_mut(place) else {
                    return;
                };
                backend.on_ready();
                // Edges do not say which of the two.
                self.receive(place);
                if self
                    .transmitter(place)
                    .is_some_and(|transmitter| transmitter.is_blocked())
                {
                    self.transmit(place);
                }
            }
            _ => {}
        }
    }
}
