//! Frames from the guest: checked, then sent straight from the driver's buffers.
//!
//! A frame that is malformed, or that the backend cannot take for good, is dropped, as a network drops it. One that the
//! backend cannot take now stays where it is until the backend is writable.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::backend::NetBackend;
use super::header::{HEADER, Header};
use crate::limiter::Limiter;
use crate::virtio::device::{QueueResources, QueueState, StartError};
use crate::virtio::queue::{DeviceQueue, RequestChain, Segments};
use crate::{Memory, warn_guest};

/// Work that one turn does at most: a frame counts one, and one more for each so many bytes.
const BUDGET: u32 = 512;
const BUDGET_BYTES: u32 = 1 << 14;

/// A started transmit queue.
pub(super) struct Transmitter {
    queue: DeviceQueue,
    memory: Arc<Memory>,
    chain: RequestChain,
    segments: Segments,
    features: u64,
    /// A frame waits until the backend is writable.
    blocked: bool,
    /// The limits let it through already.
    admitted: bool,
}

impl Transmitter {
    pub(super) fn new(
        index: u16,
        resources: QueueResources,
        at: Option<QueueState>,
    ) -> Result<Self, StartError> {
        let features = resources.features;
        let memory = resources.memory.clone();
        let queue = DeviceQueue::new(index, resources, at)?;
        Ok(Self {
            chain: queue.new_chain(),
            queue,
            memory,
            segments: Segments::new(),
            features,
            blocked: false,
            admitted: false,
        })
    }

    pub(super) fn stop(self) -> QueueState {
        self.queue.stop()
    }

    /// Whether a frame waits until the backend is writable.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether there is a frame that may be sent now.
    pub(super) fn has_more(&self) -> bool {
        !self.blocked && self.queue.has_more()
    }

    /// As [`DeviceQueue::set_polled`].
    pub(super) fn set_polled(&mut self, polled: bool) {
        self.queue.set_polled(polled);
    }

    /// Sends frames until there are none, or the backend takes no more, or others should have their turn.
    pub(super) fn run(&mut self, backend: &mut dyn NetBackend, limiter: Option<&mut Limiter>) {
        if limiter.as_ref().is_some_and(|limiter| limiter.waits()) {
            return;
        }
        self.blocked = false;
        self.queue.disable_kicks();
        self.move_frames(backend, limiter);
        self.queue.signal();
    }

    fn move_frames(&mut self, backend: &mut dyn NetBackend, mut limiter: Option<&mut Limiter>) {
        let mut budget = BUDGET;
        while budget > 0 {
            if !self.queue.pop(&mut self.chain) {
                if !self.queue.enable_kicks() {
                    return;
                }
                self.queue.disable_kicks();
                continue;
            }
            budget = budget.saturating_sub(1 + self.chain.readable_len() / BUDGET_BYTES);
            if let (Some(limiter), false) = (&mut limiter, self.admitted)
                && !limiter.admit(self.chain.readable_len().saturating_sub(HEADER as u32).into())
            {
                self.queue.undo_pop(1);
                return;
            }
            self.admitted = false;
            match self.send(backend) {
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    self.queue.undo_pop(1);
                    self.blocked = true;
                    self.admitted = true;
                    return;
                }
                Ok(()) => {}
                Err(cause) => lost(&cause),
            }
            self.queue.complete(self.chain.head(), 0);
        }
        self.queue.kick_again();
    }

    fn send(&mut self, backend: &mut dyn NetBackend) -> io::Result<()> {
        let mut header = [0; HEADER];
        let frame = self.chain.readable_len().saturating_sub(HEADER as u32);
        self.chain.read_at(0, &mut header);
        let header = match Header::check(header, frame, self.features) {
            Ok(header) => header,
            Err(fault) => {
                warn_guest!("virtio-net: a frame of the guest's is dropped: {fault}");
                return Ok(());
            }
        };
        let mut from = self.segments.start(&self.memory);
        from.add(self.chain.readable(), HEADER as u64, frame.into());
        loop {
            match backend.send(&header, &[], &mut from) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// A frame that went nowhere.
fn lost(cause: &io::Error) {
    // The interface is down: the cable is out, which is nobody's fault.
    if Errno::from_io_error(cause) != Some(Errno::IO) {
        warn_guest!("virtio-net: a frame of the guest's is lost: {cause}");
    }
}
