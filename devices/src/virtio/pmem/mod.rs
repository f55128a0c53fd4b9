//! virtio-pmem: a file that the guest has in its physical memory (virtio 1.3, section 5.19).
//!
//! The guest reads and writes the mapped file without the device. One queue takes flushes, and a flush is answered when what the
//! guest wrote before it lasts. Those that wait together are one on the host: it begins after all of them were asked for.

#![forbid(unsafe_code)]

mod handle;
#[cfg(test)]
mod tests;

use std::io;

use serde::{Deserialize, Serialize};

use super::device::{
    DeviceState, DeviceStateError, DeviceTraits, EventSource, QueueResources, QueueState, StartError,
    VirtioDevice, read_config_from,
};
use super::file_control::{ADMIT, CALL, COMPLETED, FileControl};
use super::queue::{DeviceQueue, RING_FEATURES, RequestChain};
use crate::limiter::{LimiterChange, LimiterConfig};
use crate::storage::{DiskBackend, Operation};
use crate::warn_guest;

pub use handle::PmemHandle;

/// What address and size of the memory must be multiples of: drivers map it by pages of that size.
pub const ALIGNMENT: u64 = 2 << 20;

/// Device type of virtio-pmem.
const KIND: u32 = 27;
const QUEUE_SIZE: u16 = 64;
/// The only request type there is.
const FLUSH: u32 = 0;
const SUCCESS: u32 = 0;
const FAILURE: u32 = u32::MAX;
/// Bytes of a request and of its answer.
const WORD: u32 = 4;
/// The only operation that is ever under way.
const TOKEN: u16 = 0;
/// Version of [`State`].
const VERSION: u32 = 1;

/// A persistent memory device.
pub struct Pmem {
    backend: Box<dyn DiskBackend>,
    place: State,
    config: [u8; 16],
    queue: Option<DeviceQueue>,
    /// The requests that the flush under way answers, or the next one will.
    batch: Vec<RequestChain>,
    /// Requests to be filled again.
    spare: Vec<RequestChain>,
    flushing: bool,
    control: Option<FileControl<Pmem>>,
}

/// Where the memory is: a driver that has read that does not ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    start: u64,
    size: u64,
}

impl Pmem {
    /// A device for the file of `backend`, which the guest finds in its physical memory from `start` on, `size` bytes. Both are
    /// multiples of [`ALIGNMENT`].
    pub fn new(backend: Box<dyn DiskBackend>, start: u64, size: u64) -> Self {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&start.to_le_bytes());
        config[8..].copy_from_slice(&size.to_le_bytes());
        Self {
            backend,
            place: State { start, size },
            config,
            queue: None,
            batch: Vec::new(),
            spare: Vec::new(),
            flushing: false,
            control: None,
        }
    }

    /// The device with limits, and the way to it for whoever controls the VM. It fails only if the host has no descriptors to
    /// give.
    pub fn controlled(mut self, limits: LimiterConfig) -> io::Result<(Self, PmemHandle)> {
        let (control, caller) = FileControl::new(limits)?;
        self.backend.notify(control.completed.clone());
        self.control = Some(control);
        Ok((self, PmemHandle { caller }))
    }

    fn set_limits(&mut self, change: LimiterChange) {
        if let Some(control) = &mut self.control {
            control.limiter.change(change);
        }
        self.process_queue(0);
    }

    /// Whether the limits let nothing through now.
    fn waits(&self) -> bool {
        self.control
            .as_ref()
            .is_some_and(|control| control.limiter.waits())
    }

    /// Takes one request: it is answered, or waits for a flush. False if there was none, or none that may be done now.
    fn step(&mut self, queue: &mut DeviceQueue) -> bool {
        let mut chain = self.spare.pop().unwrap_or_else(|| queue.new_chain());
        let mut goes_on = queue.pop(&mut chain);
        if goes_on && chain.writable_len() < WORD {
            queue.fail("a request to persistent memory has no room for its answer");
            goes_on = false;
        } else if goes_on && !is_flush(&chain) {
            answer_to(queue, &chain, FAILURE);
        } else if goes_on && self.admits() {
            self.batch.push(chain);
            return true;
        } else if goes_on {
            queue.put_off();
            goes_on = false;
        }
        self.spare.push(chain);
        goes_on
    }

    /// Whether the limits let a flush through now. Those that go together count as one, of all that there is to be written.
    fn admits(&mut self) -> bool {
        let bytes = self.backend.size();
        let limiter = self.control.as_mut().map(|control| &mut control.limiter);
        !self.batch.is_empty() || limiter.is_none_or(|limiter| limiter.admit(bytes))
    }

    /// Answers what has been asked for, when the host has said how the flush went.
    fn done(&mut self, queue: &mut DeviceQueue, result: &io::Result<()>) {
        self.flushing = false;
        if let Err(cause) = result {
            warn_guest!("{}: a flush failed: {cause}", self.backend.name());
        }
        let answer = if result.is_ok() { SUCCESS } else { FAILURE };
        for chain in self.batch.drain(..) {
            answer_to(queue, &chain, answer);
            self.spare.push(chain);
        }
        queue.signal();
    }

    /// Answers what is under way if it is done, or waits for that.
    fn collect(&mut self, wait: bool) {
        if !self.flushing {
            return;
        }
        // A queue stops only when nothing of it is under way.
        let Some(mut queue) = self.queue.take() else {
            return;
        };
        if let Some((_, result)) = self.backend.completed(wait) {
            self.done(&mut queue, &result);
        }
        self.queue = Some(queue);
    }
}

fn is_flush(chain: &RequestChain) -> bool {
    let mut kind = [0; WORD as usize];
    chain.read_at(0, &mut kind) == kind.len() && u32::from_le_bytes(kind) == FLUSH
}

fn answer_to(queue: &mut DeviceQueue, chain: &RequestChain, answer: u32) {
    chain.write_at(0, &answer.to_le_bytes());
    queue.complete(chain.head(), WORD);
}

impl VirtioDevice for Pmem {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            kind: KIND,
            name: "pmem",
            features: RING_FEATURES,
            queue_sizes: vec![QUEUE_SIZE],
            config_len: self.config.len() as u64,
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
        if index != 0 {
            return Err(StartError::NoSuchQueue { index });
        }
        self.queue = Some(DeviceQueue::new(index, queue, at)?);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        if index != 0 {
            return None;
        }
        while self.flushing && self.queue.is_some() {
            self.collect(true);
        }
        // They belong to the guest memory that the queue was started with.
        self.spare.clear();
        if let Some(control) = &mut self.control {
            control.limiter.forget();
        }
        self.queue.take().map(DeviceQueue::stop)
    }

    fn process_queue(&mut self, index: u16) {
        if index != 0 || self.flushing || self.waits() {
            return;
        }
        let Some(mut queue) = self.queue.take() else {
            return;
        };
        queue.drain_by(|queue| self.step(queue));
        if !self.batch.is_empty() {
            self.flushing = true;
            match self.backend.submit(TOKEN, Operation::Flush) {
                Some(result) => self.done(&mut queue, &result),
                None => self.backend.commit(),
            }
        }
        self.queue = Some(queue);
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
            (COMPLETED, _) => {
                self.collect(false);
                // What came meanwhile.
                self.process_queue(0);
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

    fn save(&self) -> DeviceState {
        DeviceState::new(VERSION, &self.place)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let State { start, size } = state.read(VERSION)?;
        if self.place == (State { start, size }) {
            return Ok(());
        }
        Err(DeviceStateError::Data(format!(
            "the guest knows {size} bytes of persistent memory at {start:#x}, and here there are {} at {:#x}; give it files of the \
             sizes that they had",
            self.place.size, self.place.start
        )))
    }
}
