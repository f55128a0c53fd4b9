//! virtio-blk: a disk (virtio 1.3, section 5.2).
//!
//! One queue. A request is a header, data and a status byte, cut into buffers as the driver likes. Data goes between guest
//! memory and the [`DiskBackend`] without a copy; whatever goes wrong there is in the request's status byte.

mod backend;
mod file;
mod handle;
mod overlay;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

pub use backend::{DiskBackend, Operation, SECTOR, StaticDisk};
pub use file::{DiskError, FileDisk};
pub use handle::{BlockError, BlockHandle};
pub use overlay::OverlayDisk;

use super::config_change::ConfigChange;
use super::device::{DeviceTraits, EventSource, QueueResources, QueueState, StartError, VirtioDevice};
use super::mailbox::{self, Mailbox};
use super::queue::{DeviceQueue, RING_FEATURES, RequestChain, Segments};
use crate::limiter::{Limiter, LimiterChange, LimiterConfig};
use crate::warn_guest;
use handle::Refresh;
use request::{Command, Limits, MAX_DISCARD, MAX_WRITE_ZEROES, SEG_MAX, SIZE_MAX, Status};

/// Device type of virtio-blk.
const KIND: u32 = 2;
const QUEUE_SIZE: u16 = 256;
/// The host's page cache works in pages of 4096 bytes, so that is the block to align to: 512 times two to this.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// Bytes of the configuration space, up to write_zeroes_may_unmap.
const CONFIG_LEN: usize = 60;
const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
/// Event source: the backend has completed something.
const COMPLETED: u32 = 0;
/// Event source: what was not admitted may be now.
const ADMIT: u32 = 1;
/// Event source: a call from the control side.
const CALL: u32 = 2;

const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// How a disk appears to the guest.
#[derive(Debug, Clone, Copy, Default)]
pub struct BlockConfig {
    /// The guest may not write, even if the backend could.
    pub read_only: bool,
    /// What GET_ID answers, padded with zeros: the disk's serial number.
    pub serial: Option<[u8; 20]>,
}

/// A disk.
pub struct Block {
    backend: Box<dyn DiskBackend>,
    serial: [u8; 20],
    read_only: bool,
    config: [u8; CONFIG_LEN],
    queue: Option<DeviceQueue>,
    features: u64,
    /// Requests by token, reused. Those not in `free` are with the backend.
    slots: Vec<Slot>,
    free: Vec<u16>,
    segments: Segments,
    change: ConfigChange,
    control: Option<Control>,
}

/// What a disk has that can be changed while it runs.
struct Control {
    limiter: Limiter,
    mailbox: Mailbox<Block>,
}

/// A request.
struct Slot {
    chain: RequestChain,
    command: Command,
    /// It is a write whose bytes are stored and now being made to last.
    flushing: bool,
}

impl Block {
    /// A disk whose bytes are in `backend`.
    pub fn new(backend: Box<dyn DiskBackend>, config: BlockConfig) -> Self {
        let BlockConfig { read_only, serial } = config;
        let read_only = read_only || !backend.writable();
        Self {
            config: config_space(backend.size()),
            backend,
            serial: serial.unwrap_or_default(),
            read_only,
            queue: None,
            features: 0,
            slots: Vec::new(),
            free: Vec::new(),
            segments: Segments::new(),
            change: ConfigChange::default(),
            control: None,
        }
    }

    /// The disk with limits, and the way to it for whoever controls the VM. It fails only if the host has no descriptors to
    /// give.
    pub fn controlled(mut self, limits: LimiterConfig) -> io::Result<(Self, BlockHandle)> {
        let (caller, mailbox) = mailbox::channel()?;
        let limiter = Limiter::new(limits)?;
        self.control = Some(Control { limiter, mailbox });
        Ok((self, BlockHandle { caller }))
    }

    fn set_limits(&mut self, change: LimiterChange) {
        if let Some(control) = &mut self.control {
            control.limiter.change(change);
        }
        self.process_queue(0);
    }

    /// Measures the file at `path` anew, if it is the disk's.
    fn refresh(&mut self, path: &Path) -> Result<(), Refresh> {
        self.settle();
        let refreshed = self.backend.refresh(path).ok_or(Refresh::Other {
            read_only: self.read_only,
        })?;
        refreshed.map_err(Refresh::Failed)?;
        self.resized();
        Ok(())
    }

    fn replace(&mut self, backend: Box<dyn DiskBackend>) -> Result<(), BlockError> {
        if self.backend.event().is_some() || backend.event().is_some() {
            return Err(BlockError::Fixed(backend.name()));
        }
        if !self.read_only && !backend.writable() {
            return Err(BlockError::ReadOnly(backend.name()));
        }
        self.settle();
        self.backend = backend;
        self.resized();
        Ok(())
    }

    /// Answers what is in flight.
    fn settle(&mut self) {
        if let Some(mut queue) = self.queue.take() {
            self.collect(&mut queue, true);
            self.queue = Some(queue);
        }
    }

    fn resized(&mut self) {
        self.config = config_space(self.backend.size());
        self.change.announce();
    }

    /// Whether the limits let `command` through now.
    fn admits(&mut self, command: &Result<Command, Status>) -> bool {
        let bytes = match command {
            Ok(Command::Read { len, .. } | Command::Write { len, .. }) => u64::from(*len),
            _ => 0,
        };
        self.control
            .as_mut()
            .is_none_or(|control| control.limiter.admit(bytes))
    }

    fn limits(&self) -> Limits {
        Limits {
            size: self.backend.size(),
            read_only: self.read_only,
            features: self.features,
        }
    }

    /// Takes one request and answers it, or lets the backend begin it. False if there was none.
    fn step(&mut self, queue: &mut DeviceQueue) -> bool {
        let token = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                chain: queue.new_chain(),
                command: Command::Flush,
                flushing: false,
            });
            (self.slots.len() - 1) as u16
        });
        let slot = &mut self.slots[usize::from(token)];
        if !queue.pop(&mut slot.chain) {
            self.free.push(token);
            return false;
        }
        if slot.chain.writable_len() == 0 {
            self.free.push(token);
            queue.fail("a block request has no room for its status");
            return false;
        }
        let limits = self.limits();
        let command = Command::parse(&self.slots[usize::from(token)].chain, limits);
        if !self.admits(&command) {
            self.free.push(token);
            queue.put_off();
            return false;
        }
        let slot = &mut self.slots[usize::from(token)];
        match command {
            Ok(Command::Id) => {
                let room = (slot.chain.writable_len() - 1).min(20) as usize;
                slot.chain.write_at(0, &self.serial[..room]);
                self.answer(queue, token, Status::Ok);
            }
            Ok(command) => {
                slot.command = command;
                slot.flushing = false;
                self.submit(queue, token);
            }
            Err(status) => self.answer(queue, token, status),
        }
        true
    }

    fn submit(&mut self, queue: &mut DeviceQueue, token: u16) {
        let Slot { chain, command, .. } = &self.slots[usize::from(token)];
        let operation = match *command {
            Command::Read { offset, len } => Operation::Read {
                offset,
                to: chain.writable_io(&mut self.segments, 0, len),
            },
            Command::Write { offset, len } => Operation::Write {
                offset,
                from: chain.readable_io(&mut self.segments, request::HEADER, len),
            },
            Command::Flush | Command::Id => Operation::Flush,
            Command::Discard { offset, len } => Operation::Discard { offset, len },
            Command::WriteZeroes { offset, len, unmap } => Operation::WriteZeroes { offset, len, unmap },
        };
        if let Some(result) = self.backend.submit(token, operation) {
            self.done(queue, token, result);
        }
    }

    /// The backend is done with a request, or with its write.
    fn done(&mut self, queue: &mut DeviceQueue, token: u16, result: io::Result<()>) {
        let slot = &mut self.slots[usize::from(token)];
        let changes = !matches!(slot.command, Command::Read { .. } | Command::Flush | Command::Id);
        if result.is_ok() && changes && !slot.flushing && self.features & FLUSH == 0 {
            // A driver that will not flush is promised that each write lasts when it is answered.
            slot.flushing = true;
            match self.backend.submit(token, Operation::Flush) {
                Some(flushed) => self.done(queue, token, flushed),
                None => return,
            }
            return;
        }
        let status = match result {
            Ok(()) => Status::Ok,
            Err(cause) => {
                let command = slot.command;
                let discard = matches!(command, Command::Discard { .. });
                if discard && cause.kind() == io::ErrorKind::Unsupported {
                    Status::Unsupported
                } else {
                    warn_guest!("disk {}: {command:?} failed: {cause}", self.backend.name());
                    Status::IoError
                }
            }
        };
        self.answer(queue, token, status);
    }

    fn answer(&mut self, queue: &mut DeviceQueue, token: u16, status: Status) {
        let chain = &self.slots[usize::from(token)].chain;
        let written = chain.writable_len();
        chain.write_at(written - 1, &[status as u8]);
        queue.complete(chain.head(), written);
        self.free.push(token);
    }

    /// Answers what the backend has completed. If `wait`, all that it ever began.
    fn collect(&mut self, queue: &mut DeviceQueue, wait: bool) {
        while self.free.len() < self.slots.len() {
            let Some((token, result)) = self.backend.completed(wait) else {
                break;
            };
            self.done(queue, token, result);
        }
        queue.signal();
    }
}

impl VirtioDevice for Block {
    fn traits(&self) -> DeviceTraits {
        let mut features = RING_FEATURES
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY;
        features |= if self.read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            FLUSH | DISCARD | WRITE_ZEROES
        };
        DeviceTraits {
            kind: KIND,
            name: "blk",
            features,
            queue_sizes: vec![QUEUE_SIZE],
            config_len: CONFIG_LEN as u64,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = self
            .config
            .get(usize::try_from(offset).unwrap_or(usize::MAX)..)
            .unwrap_or_default();
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = from.get(at).copied().unwrap_or(0);
        }
    }

    fn start_queue(
        &mut self,
        index: u16,
        queue: QueueResources,
        at: Option<QueueState>,
    ) -> Result<(), StartError> {
        if index != 0 {
            return Err(StartError::NoSuchQueue { index });
        }
        self.features = queue.features;
        let interrupt = queue.interrupt.clone();
        self.queue = Some(DeviceQueue::new(index, queue, at)?);
        self.change.started(interrupt);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        if index != 0 {
            return None;
        }
        let mut queue = self.queue.take()?;
        self.collect(&mut queue, true);
        self.slots.clear();
        self.free.clear();
        if let Some(control) = &mut self.control {
            control.limiter.forget();
        }
        if let Err(error) = self.backend.settle() {
            tracing::error!(
                "{}: what was written last may be lost: {error}",
                self.backend.name()
            );
        }
        self.change.stopped();
        Some(queue.stop())
    }

    fn process_queue(&mut self, index: u16) {
        if index != 0
            || self
                .control
                .as_ref()
                .is_some_and(|control| control.limiter.waits())
        {
            return;
        }
        if let Some(mut queue) = self.queue.take() {
            queue.drain_by(|queue| self.step(queue));
            self.queue = Some(queue);
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let completed = self
            .backend
            .event()
            .map(|fd| EventSource { fd, token: COMPLETED });
        let control = self.control.iter();
        let control =
            control.flat_map(|control| [control.limiter.source(ADMIT), control.mailbox.source(CALL)]);
        completed.into_iter().chain(control).collect()
    }

    fn process_event(&mut self, token: u32) {
        let admits = match (token, &mut self.control) {
            (ADMIT, Some(control)) => control.limiter.rang(),
            _ => false,
        };
        match (token, &mut self.control) {
            (COMPLETED, _) => {
                if let Some(mut queue) = self.queue.take() {
                    self.collect(&mut queue, false);
                    self.queue = Some(queue);
                }
            }
            (ADMIT, _) if admits => self.process_queue(0),
            (CALL, Some(control)) => {
                for call in control.mailbox.calls() {
                    call(self);
                }
            }
            _ => {}
        }
    }
}

/// `struct virtio_blk_config` (section 5.2.4).
fn config_space(size: u64) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(size / SECTOR).to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    put(24, &[PHYSICAL_BLOCK_EXP]);
    // min_io_size: one physical block.
    put(26, &(1_u16 << PHYSICAL_BLOCK_EXP).to_le_bytes());
    put(36, &MAX_DISCARD.to_le_bytes());
    put(40, &1_u32.to_le_bytes());
    put(44, &(1_u32 << PHYSICAL_BLOCK_EXP).to_le_bytes());
    put(48, &MAX_WRITE_ZEROES.to_le_bytes());
    put(52, &1_u32.to_le_bytes());
    put(56, &[1]);
    config
}
