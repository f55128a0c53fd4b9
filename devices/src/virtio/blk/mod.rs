//! virtio-blk: a disk (virtio 1.3, section 5.2).
//!
//! One queue or several, all on one thread. A request is a header, data and a status byte, cut into buffers as the driver likes. Data
//! goes between guest memory and the [`DiskBackend`] without a copy; whatever goes wrong there is in the request's status byte.

mod handle;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

pub use handle::{BlockError, BlockHandle};

use super::config_change::ConfigChange;
use super::device::{
    DeviceTraits, EventSource, QueueResources, QueueState, StartError, VirtioDevice, read_config_from,
};
use super::file_control::{ADMIT, CALL, COMPLETED, FileControl};
use super::queue::{DeviceQueue, RING_FEATURES, RequestChain, Segments};
use crate::limiter::{Limiter, LimiterChange, LimiterConfig};
use crate::storage::{DiskBackend, FileOptions, Operation, SECTOR};
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
const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// Most queues of a disk.
pub const MAX_QUEUES: u16 = 16;

/// How a disk appears to the guest.
#[derive(Debug, Clone, Copy, Default)]
pub struct BlockConfig {
    /// Queues, up to [`MAX_QUEUES`]; 0 is 1.
    pub queues: u16,
    /// Each write lasts when it is answered, and the guest need not flush.
    pub write_through: bool,
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
    write_through: bool,
    config: [u8; CONFIG_LEN],
    lanes: Vec<Lane>,
    features: u64,
    /// Requests by token, reused. Those not in `free` are with the backend.
    slots: Vec<Slot>,
    free: Vec<u16>,
    segments: Segments,
    change: ConfigChange,
    control: Option<FileControl<Block>>,
}

/// A queue, and how many of its requests are with the backend.
#[derive(Default)]
struct Lane {
    queue: Option<DeviceQueue>,
    under_way: u32,
}

/// A request.
struct Slot {
    chain: RequestChain,
    /// The queue it came from.
    lane: u16,
    command: Command,
    /// It is a write whose bytes are stored and now being made to last.
    flushing: bool,
}

impl Block {
    /// A disk whose bytes are in `backend`.
    pub fn new(backend: Box<dyn DiskBackend>, config: BlockConfig) -> Self {
        let BlockConfig {
            queues,
            write_through,
            read_only,
            serial,
        } = config;
        let read_only = read_only || !backend.writable();
        let queues = queues.clamp(1, MAX_QUEUES);
        Self {
            config: config_space(backend.size(), queues),
            backend,
            serial: serial.unwrap_or_default(),
            read_only,
            write_through,
            lanes: (0..queues).map(|_| Lane::default()).collect(),
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
        let (control, caller) = FileControl::new(limits)?;
        self.backend.notify(control.completed.clone());
        self.control = Some(control);
        Ok((self, BlockHandle { caller }))
    }

    fn set_limits(&mut self, change: LimiterChange) {
        if let Some(control) = &mut self.control {
            control.limiter.change(change);
        }
        self.process_all();
    }

    fn process_all(&mut self) {
        for index in 0..self.lanes.len() {
            self.process_queue(index as u16);
        }
    }

    /// Measures the file at `path` anew, if it is the disk's.
    fn refresh(&mut self, path: &Path) -> Result<(), Refresh> {
        self.settle();
        let refreshed = self.backend.refresh(path).ok_or(Refresh::Other(FileOptions {
            read_only: self.read_only,
            ..self.backend.options()
        }))?;
        refreshed.map_err(Refresh::Failed)?;
        self.resized();
        Ok(())
    }

    fn replace(&mut self, mut backend: Box<dyn DiskBackend>) -> Result<(), BlockError> {
        if !self.read_only && !backend.writable() {
            return Err(BlockError::ReadOnly(backend.name()));
        }
        self.settle();
        if let Some(control) = &self.control {
            backend.notify(control.completed.clone());
        }
        self.backend = backend;
        self.resized();
        Ok(())
    }

    /// Answers what is in flight.
    fn settle(&mut self) {
        self.collect(|block| block.free.len() < block.slots.len());
    }

    fn resized(&mut self) {
        self.config = config_space(self.backend.size(), self.lanes.len() as u16);
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

    /// Whether the limits let nothing through now.
    fn waits(&self) -> bool {
        let limiter = self.control.as_ref().map(|control| &control.limiter);
        limiter.is_some_and(Limiter::waits)
    }

    fn limits(&self) -> Limits {
        Limits {
            size: self.backend.size(),
            read_only: self.read_only,
            features: self.features,
        }
    }

    /// Takes one request and answers it, or lets the backend begin it. False if there was none.
    fn step(&mut self, lane: u16, queue: &mut DeviceQueue) -> bool {
        let token = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                chain: queue.new_chain(),
                lane,
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
                slot.lane = lane;
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
        match self.backend.submit(token, operation) {
            Some(result) => self.done(queue, token, result),
            None => self.lanes[usize::from(self.slots[usize::from(token)].lane)].under_way += 1,
        }
    }

    /// The backend is done with a request, or with its write.
    fn done(&mut self, queue: &mut DeviceQueue, token: u16, result: io::Result<()>) {
        let slot = &mut self.slots[usize::from(token)];
        let changes = !matches!(slot.command, Command::Read { .. } | Command::Flush | Command::Id);
        if result.is_ok() && changes && !slot.flushing && self.features & FLUSH == 0 {
            // A driver that will not flush is promised that each write lasts when it is answered.
            slot.flushing = true;
            let lane = usize::from(slot.lane);
            match self.backend.submit(token, Operation::Flush) {
                Some(flushed) => self.done(queue, token, flushed),
                None => self.lanes[lane].under_way += 1,
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

    /// Answers what the backend has completed, and waits for more of it as long as `wanting` says so.
    fn collect(&mut self, wanting: impl Fn(&Self) -> bool) {
        self.backend.commit();
        while self.free.len() < self.slots.len() {
            let wait = wanting(self);
            let Some((token, result)) = self.backend.completed(wait) else {
                break;
            };
            let Some(lane) = self
                .slots
                .get(usize::from(token))
                .map(|slot| usize::from(slot.lane))
            else {
                continue;
            };
            // A queue stops only when nothing of it is under way.
            let Some(mut queue) = self.lanes[lane].queue.take() else {
                continue;
            };
            self.lanes[lane].under_way -= 1;
            self.done(&mut queue, token, result);
            self.lanes[lane].queue = Some(queue);
        }
        for queue in self.lanes.iter_mut().filter_map(|lane| lane.queue.as_mut()) {
            queue.signal();
        }
    }
}

impl VirtioDevice for Block {
    fn traits(&self) -> DeviceTraits {
        let mut features = RING_FEATURES
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY;
        features |= match (self.read_only, self.write_through) {
            (true, _) => 1 << VIRTIO_BLK_F_RO,
            // Without the feature a driver takes each write for one that lasts, which it then is.
            (false, true) => DISCARD | WRITE_ZEROES,
            (false, false) => FLUSH | DISCARD | WRITE_ZEROES,
        };
        if self.lanes.len() > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        DeviceTraits {
            kind: KIND,
            name: "blk",
            features,
            queue_sizes: vec![QUEUE_SIZE; self.lanes.len()],
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
        let Some(lane) = self.lanes.get_mut(usize::from(index)) else {
            return Err(StartError::NoSuchQueue { index });
        };
        self.features = queue.features;
        let interrupt = queue.interrupt.clone();
        lane.queue = Some(DeviceQueue::new(index, queue, at)?);
        self.change.started(interrupt);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let lane = usize::from(index);
        self.lanes.get(lane)?.queue.as_ref()?;
        self.collect(|block| block.lanes[lane].under_way > 0);
        let queue = self.lanes[lane].queue.take()?;
        if self.lanes.iter().any(|lane| lane.queue.is_some()) {
            return Some(queue.stop());
        }
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
        if self.waits() {
            return;
        }
        let lane = usize::from(index);
        let Some(mut queue) = self.lanes.get_mut(lane).and_then(|lane| lane.queue.take()) else {
            return;
        };
        queue.drain_by(|queue| self.step(index, queue));
        self.lanes[lane].queue = Some(queue);
        if self.free.len() < self.slots.len() {
            self.collect(|_| false);
        }
    }

    fn poll(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.lanes.len() {
            let queue = self.lanes[index].queue.as_ref();
            if !self.waits() && queue.is_some_and(DeviceQueue::has_more) {
                self.process_queue(index as u16);
                any = true;
            }
        }
        let under_way = self.slots.len() - self.free.len();
        if under_way > 0 {
            self.collect(|_| false);
            any |= self.slots.len() - self.free.len() < under_way;
        }
        any
    }

    fn set_polled(&mut self, polled: bool) {
        for queue in self.lanes.iter_mut().filter_map(|lane| lane.queue.as_mut()) {
            queue.set_polled(polled);
        }
        if !polled {
            self.process_all();
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        self.control.iter().flat_map(FileControl::sources).collect()
    }

    fn process_event(&mut self, token: u32) {
        let admits = match (token, &mut self.control) {
            (ADMIT, Some(control)) => control.limiter.rang(),
            _ => false,
        };
        match (token, &mut self.control) {
            (COMPLETED, _) => self.collect(|_| false),
            (ADMIT, _) if admits => self.process_all(),
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
fn config_space(size: u64, queues: u16) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(size / SECTOR).to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    put(24, &[PHYSICAL_BLOCK_EXP]);
    // min_io_size: one physical block.
    put(26, &(1_u16 << PHYSICAL_BLOCK_EXP).to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &MAX_DISCARD.to_le_bytes());
    put(40, &1_u32.to_le_bytes());
    put(44, &(1_u32 << PHYSICAL_BLOCK_EXP).to_le_bytes());
    put(48, &MAX_WRITE_ZEROES.to_le_bytes());
    put(52, &1_u32.to_le_bytes());
    put(56, &[1]);
    config
}
