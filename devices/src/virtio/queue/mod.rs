//! The queue core that every device shares: split virtqueues (virtio 1.3, section 2.7) over the `virtio-queue` crate.
//!
//! [`DeviceQueue`] owns what must be right once: taking chains only after they were checked whole, giving them back,
//! when to ask the driver for notifications and when to send it one. A device brings a closure per request
//! ([`DeviceQueue::drain`]) or, if its requests complete later or span chains, the verbs below it.
//!
//! ```text
//!   drain:  disable_kicks ─▶ pop ─▶ device ─▶ complete ─┐ until empty   ─▶ enable_kicks ─▶ signal
//!                             ▲─────────────────────────┘  ▲── more came meanwhile ──┘
//!   broken: any chain or ring that breaks the rules: DEVICE_NEEDS_RESET, nothing more is taken until the queue starts anew
//! ```

mod burst;
mod chain;
mod place;
mod segments;
#[cfg(test)]
mod tests;

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

pub use burst::{BURST, Burst};
pub use chain::{Buffer, ChainError, MAX_INDIRECT, RequestChain};
pub use segments::{Datagram, GuestIo, HeldIo, Segments};

use super::counters::DeviceCounters;
use super::device::{DeviceInterrupt, QueueResources, QueueState, StartError};
use crate::{Memory, warn_guest};
use chain::{DESCRIPTOR_SIZE, Table};
use place::Place;

/// The ring features that this core supports. A device adds them to its own.
pub const RING_FEATURES: u64 = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Requests that [`DeviceQueue::drain`] takes before it lets others have the thread, large ones counting as several. A
/// driver that adds requests as fast as they are answered would otherwise keep it for good.
const DRAIN_BUDGET: u32 = 1024;
/// Bytes of buffers that count as one more request.
const BUDGET_BYTES: u32 = 1 << 16;

/// Why a queue cannot go on.
#[derive(Debug, thiserror::Error)]
enum QueueFault {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("its available ring is broken: {0}")]
    Ring(#[from] virtio_queue::Error),
    #[error("its rings cannot be reached: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    #[error("its rings are not where they may be: {0}")]
    Place(#[from] vm_memory::VolatileMemoryError),
    #[error("{0}")]
    Device(String),
}

/// A started queue, as its device holds it.
pub struct DeviceQueue {
    index: u16,
    memory: Arc<Memory>,
    queue: Queue,
    table: Table,
    avail: Place,
    used: Place,
    /// Entries written to the used ring, and how many of them the driver can see and was considered to be told of.
    next_used: Wrapping<u16>,
    published: Wrapping<u16>,
    signalled: Wrapping<u16>,
    kick: EventFd,
    interrupt: Arc<dyn DeviceInterrupt>,
    counters: Arc<DeviceCounters>,
    /// Bytes to read of the request taken last, in case it is put back.
    last_readable: u32,
    broken: bool,
    /// The I/O thread looks at the ring by itself: the driver is not asked to notify.
    polled: bool,
    /// The device wants no more in this turn, though there is more.
    put_off: bool,
    /// What is left of [`DRAIN_BUDGET`] in this turn.
    budget: u32,
    /// For [`DeviceQueue::drain`], which hands it out by reference.
    scratch: Option<RequestChain>,
}

impl DeviceQueue {
    /// Takes over queue `index`, from its beginning or from where `at` says it stopped.
    pub fn new(index: u16, resources: QueueResources, at: Option<QueueState>) -> Result<Self, StartError> {
        let QueueResources {
            memory,
            mut queue,
            kick,
            interrupt,
            features,
            counters,
        } = resources;
        if !rings_in_memory(&queue, &memory) {
            return Err(StartError::Ring { index });
        }
        let at = at.unwrap_or(QueueState {
            next_avail: 0,
            next_used: 0,
        });
        queue.set_next_avail(at.next_avail);
        queue.set_next_used(at.next_used);
        let next_used = Wrapping(at.next_used);
        let size = usize::from(queue.size());
        let place = |addr, len| Place::new(&memory, GuestAddress(addr), len);
        let table = Table {
            place: place(queue.desc_table(), DESCRIPTOR_SIZE * size),
            size: queue.size(),
            indirect: features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0,
        };
        Ok(Self {
            index,
            scratch: Some(RequestChain::new(memory.clone())),
            avail: place(queue.avail_ring(), avail_ring_len(size)),
            used: place(queue.used_ring(), used_ring_len(size)),
            memory,
            queue,
            table,
            next_used,
            published: next_used,
            signalled: next_used,
            kick,
            interrupt,
            counters,
            last_readable: 0,
            broken: false,
            polled: false,
            put_off: false,
            budget: 0,
        })
    }

    /// Stops it. Every chain that was taken must have been given back.
    pub fn stop(mut self) -> QueueState {
        self.publish();
        self.signal();
        QueueState {
            next_avail: self.queue.next_avail(),
            next_used: self.next_used.0,
        }
    }

    /// Guest memory, in which the buffers lie.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// An empty request for [`pop`](Self::pop).
    pub fn new_chain(&self) -> RequestChain {
        RequestChain::new(self.memory.clone())
    }

    /// Whether the driver broke the protocol here. Nothing is taken from a broken queue.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Answers every request there is: `handle` does one and returns how many bytes it wrote to the writable buffers.
    /// One interrupt at most, at the end.
    pub fn drain(&mut self, mut handle: impl FnMut(&RequestChain) -> u32) {
        let Some(mut chain) = self.scratch.take() else {
            return;
        };
        self.drain_by(|queue| {
            let taken = queue.pop(&mut chain);
            if taken {
                let written = handle(&chain);
                queue.complete(chain.head(), written);
            }
            taken
        });
        self.scratch = Some(chain);
    }

    /// The loop around [`drain`](Self::drain), for devices that answer later or take several requests at once: `step` takes
    /// what it wants and returns false when it found nothing to take.
    pub fn drain_by(&mut self, mut step: impl FnMut(&mut Self) -> bool) {
        self.budget = DRAIN_BUDGET;
        self.counters.turned();
        self.put_off = false;
        self.disable_kicks();
        loop {
            while self.budget > 0 && step(self) {}
            if self.put_off {
                break;
            }
            if self.budget == 0 {
                // More may be there: come back by our own notification, after the others had their turn.
                self.kick_again();
                break;
            }
            if !self.enable_kicks() {
                break;
            }
            self.disable_kicks();
        }
        self.signal();
    }

    /// Takes the next request into `chain`. False if there is none, or none to be had because the queue is broken.
    pub fn pop(&mut self, chain: &mut RequestChain) -> bool {
        if self.broken {
            return false;
        }
        match self.try_pop(chain) {
            Ok(taken) => taken,
            Err(fault) => {
                self.fail_with(&fault);
                false
            }
        }
    }

    fn try_pop(&mut self, chain: &mut RequestChain) -> Result<bool, QueueFault> {
        let next = self.queue.next_avail();
        let waiting = self.available()? - Wrapping(next);
        if waiting.0 == 0 {
            return Ok(false);
        }
        if waiting.0 > self.table.size {
            return Err(virtio_queue::Error::InvalidAvailRingIndex.into());
        }
        let slot = usize::from(next & (self.table.size - 1));
        let head: u16 = self.avail.slice(4 + 2 * slot, 2)?.load(0, Ordering::Relaxed)?;
        self.queue.set_next_avail(next.wrapping_add(1));
        self.last_readable = 0;
        if let Err(fault) = chain.load(&self.table, u16::from_le(head)) {
            // The state of a stopped queue then still names the chain as not taken.
            self.undo_pop(1);
            return Err(fault.into());
        }
        self.last_readable = chain.readable_len();
        self.counters.taken(self.last_readable);
        let large = (chain.readable_len() / BUDGET_BYTES) + (chain.writable_len() / BUDGET_BYTES);
        self.budget = self.budget.saturating_sub(1 + large);
        Ok(true)
    }

    /// How many requests the driver has posted and not been given back, those that were taken among them.
    pub fn posted(&self) -> u16 {
        self.available().map_or(0, |index| (index - self.next_used).0)
    }

    /// How many requests the driver has ever posted, modulo 2^16. What it wrote before is visible.
    fn available(&self) -> Result<Wrapping<u16>, QueueFault> {
        let index: u16 = self.avail.slice(2, 2)?.load(0, Ordering::Acquire)?;
        Ok(Wrapping(u16::from_le(index)))
    }

    /// Puts the last `count` requests back where they were taken, none of them answered.
    pub fn undo_pop(&mut self, count: u16) {
        // Devices put back one request with bytes to read, or several without.
        self.counters
            .put_back(std::mem::take(&mut self.last_readable).into());
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Puts the last requests back where they were taken, none of them answered.
    pub fn put_back(&mut self, chains: &[RequestChain]) {
        let bytes = chains.iter().map(RequestChain::readable_len);
        self.counters.put_back(bytes.map(u64::from).sum());
        self.last_readable = 0;
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(chains.len() as u16));
    }

    /// Puts the request that was just taken back, and takes no more in this turn of [`drain_by`](Self::drain_by): the device
    /// comes back by itself when it can serve it.
    pub fn put_off(&mut self) {
        self.undo_pop(1);
        self.end_turn();
    }

    /// Takes no more in this turn of [`drain_by`](Self::drain_by), though there may be more: the device comes back by itself
    /// when it has something to do with it.
    pub fn end_turn(&mut self) {
        self.put_off = true;
    }

    /// Gives a request back, with `written` bytes written to it, and lets the driver see it.
    pub fn complete(&mut self, head: u16, written: u32) {
        self.push_used(head, written);
        self.publish();
    }

    /// Gives a request back; the driver sees it only after [`publish`](Self::publish), together with all others until then.
    pub fn push_used(&mut self, head: u16, written: u32) {
        if self.broken {
            return;
        }
        let slot = usize::from(self.next_used.0 & (self.table.size - 1));
        let words = [u32::from(head), written];
        for (at, word) in (4 + 8 * slot..).step_by(4).zip(words) {
            if let Err(fault) = self.write_used(at, word.to_le(), Ordering::Relaxed) {
                self.fail_with(&fault);
                return;
            }
        }
        self.next_used += 1;
        self.counters.answered(written);
    }

    /// Lets the driver see what was given back.
    pub fn publish(&mut self) {
        if self.published == self.next_used || self.broken {
            return;
        }
        match self.write_used(2, self.next_used.0.to_le(), Ordering::Release) {
            Ok(()) => self.published = self.next_used,
            Err(fault) => self.fail_with(&fault),
        }
    }

    fn write_used<T: AtomicAccess>(&self, at: usize, value: T, order: Ordering) -> Result<(), QueueFault> {
        Ok(self.used.slice(at, size_of::<T>())?.store(value, 0, order)?)
    }

    /// Interrupts the driver if it was given something since the last call and wants to hear of it.
    pub fn signal(&mut self) {
        if self.signalled == self.published {
            return;
        }
        // What was published must be visible before the driver's wish is read: it does the two in the other order.
        fence(Ordering::SeqCst);
        match self.wants_interrupt() {
            Ok(true) => {
                self.counters.interrupted();
                self.interrupt.used_buffer(self.index);
            }
            Ok(false) => {}
            Err(fault) => self.fail_with(&fault),
        }
        self.signalled = self.published;
    }

    fn wants_interrupt(&self) -> Result<bool, QueueFault> {
        let size = usize::from(self.table.size);
        if self.queue.event_idx_enabled() {
            let event: u16 = self.avail.slice(4 + 2 * size, 2)?.load(0, Ordering::Relaxed)?;
            let event = Wrapping(u16::from_le(event));
            return Ok(self.published - event - Wrapping(1) < self.published - self.signalled);
        }
        let flags: u16 = self.avail.slice(0, 2)?.load(0, Ordering::Relaxed)?;
        Ok(u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }

    /// Tells the driver that it need not notify: its requests are being taken.
    pub fn disable_kicks(&mut self) {
        if self.broken {
            return;
        }
        if let Err(fault) = self.queue.disable_notification(&*self.memory) {
            self.fail_with(&fault.into());
        }
    }

    /// Whether the driver need not notify, since the I/O thread looks at the ring by itself. Once it does not any more, drain the queue,
    /// which asks for notifications again.
    pub fn set_polled(&mut self, polled: bool) {
        self.polled = polled;
    }

    /// Whether there is a request to take.
    pub fn has_more(&self) -> bool {
        !self.broken
            && self
                .available()
                .is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Asks the driver to notify of its next request. True if one came before it could know: take that first.
    pub fn enable_kicks(&mut self) -> bool {
        if self.broken {
            return false;
        }
        if self.polled {
            return self.has_more();
        }
        match self.queue.enable_notification(&*self.memory) {
            Ok(more) => more,
            Err(fault) => {
                self.fail_with(&fault.into());
                false
            }
        }
    }

    /// Notifies this queue ourselves, so that the I/O thread comes back to it.
    pub fn kick_again(&self) {
        // It fails only when the counter is full, and then a notification is pending anyway.
        let _ = self.kick.write(1);
    }

    /// The device found that the driver broke its protocol beyond repair of one request: asks for a reset and takes no more.
    pub fn fail(&mut self, why: impl Into<String>) {
        self.fail_with(&QueueFault::Device(why.into()));
    }

    fn fail_with(&mut self, fault: &QueueFault) {
        self.broken = true;
        self.counters.failed();
        warn_guest!(
            "virtio queue {}: the driver must reset the device: {fault}",
            self.index
        );
        self.interrupt.needs_reset();
    }
}

/// Whether all three rings of `queue` lie in guest memory. `Queue::is_valid` says the same, but into the log as well, as
/// often as a guest likes.
pub fn rings_in_memory(queue: &Queue, memory: &Memory) -> bool {
    let size = usize::from(queue.size());
    let rings = [
        (queue.desc_table(), DESCRIPTOR_SIZE * size),
        (queue.avail_ring(), avail_ring_len(size)),
        (queue.used_ring(), used_ring_len(size)),
    ];
    // The crate takes an available ring at 0 for one that was never set.
    queue.ready()
        && queue.avail_ring() != 0
        && rings.iter().all(|&(addr, len)| {
            GuestAddress(addr).checked_add(len as u64).is_some()
                && GuestMemoryBackend::check_range(memory, GuestAddress(addr), len)
        })
}

/// Flags, index, an entry for each descriptor, the event index.
fn avail_ring_len(size: usize) -> usize {
    6 + 2 * size
}

fn used_ring_len(size: usize) -> usize {
    6 + 8 * size
}
