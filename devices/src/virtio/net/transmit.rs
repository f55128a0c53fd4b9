//! Frames from the guest: checked, then sent straight from the driver's buffers.
//!
//! A frame that is malformed, or that the backend cannot take for good, is dropped, as a network drops it. One that the
//! backend cannot take now stays where it is until the backend is writable.

use std::io;
use std::iter::zip;

use rustix::io::Errno;

use super::backend::NetBackend;
use super::header::{HEADER, Header};
use crate::limiter::Limiter;
use crate::virtio::device::{QueueResources, QueueState, StartError};
use crate::virtio::queue::{BURST, Burst, DeviceQueue, RequestChain, Segments};
use crate::warn_guest;

/// Work that one turn does at most: a frame counts one, and one more for each so many bytes.
const BUDGET: u32 = 512;
const BUDGET_BYTES: u32 = 1 << 14;
/// Bytes after which no more frames are sent by one system call: the driver is to have its buffers back.
const TOGETHER_BYTES: u32 = 1 << 16;

/// A started transmit queue.
pub(super) struct Transmitter {
    queue: DeviceQueue,
    /// For reuse: the first of them hold what was taken from the queue.
    chains: Vec<RequestChain>,
    segments: Segments,
    burst: Burst,
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
        let queue = DeviceQueue::new(index, resources, at)?;
        Ok(Self {
            queue,
            chains: Vec::new(),
            segments: Segments::new(),
            burst: Burst::new(0),
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
        let limited = limiter.as_ref().is_some_and(|limiter| limiter.limits());
        let mut budget = BUDGET;
        while budget > 0 {
            let together = !limited && !self.burst.is_refused() && backend.sends_by().is_some();
            match self.take(if together { BURST } else { 1 }, &mut budget) {
                0 => {
                    if !self.queue.enable_kicks() {
                        return;
                    }
                    self.queue.disable_kicks();
                }
                1 => self.send_one(backend, limiter.as_deref_mut()),
                count => self.send_many(backend, count),
            }
            if self.blocked || limiter.as_ref().is_some_and(|limiter| limiter.waits()) {
                return;
            }
        }
        self.queue.kick_again();
    }

    /// Takes frames, `most` at most, or what the budget allows; returns how many.
    fn take(&mut self, most: usize, budget: &mut u32) -> usize {
        let (mut count, mut bytes) = (0, 0);
        while count < most && *budget > 0 && bytes < TOGETHER_BYTES {
            if self.chains.len() == count {
                self.chains.push(self.queue.new_chain());
            }
            let chain = &mut self.chains[count];
            if !self.queue.pop(chain) {
                break;
            }
            *budget = budget.saturating_sub(1 + chain.readable_len() / BUDGET_BYTES);
            bytes = chain.readable_len().saturating_add(bytes);
            count += 1;
        }
        count
    }

    fn send_one(&mut self, backend: &mut dyn NetBackend, limiter: Option<&mut Limiter>) {
        let chain = &self.chains[0];
        if let (Some(limiter), false) = (limiter, self.admitted)
            && !limiter.admit(frame_len(chain).into())
        {
            self.queue.undo_pop(1);
            return;
        }
        self.admitted = false;
        match send(backend, chain, self.features, &mut self.segments) {
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                self.queue.undo_pop(1);
                self.blocked = true;
                self.admitted = true;
                return;
            }
            Ok(()) => {}
            Err(cause) => lost(&cause),
        }
        self.queue.complete(chain.head(), 0);
    }

    /// Sends the first `count` frames of `chains`, or puts them back if the host has no means to send them together.
    fn send_many(&mut self, backend: &mut dyn NetBackend, count: usize) {
        let chains = &self.chains[..count];
        let mut headers = [None; BURST];
        for (header, chain) in zip(&mut headers, chains) {
            *header = checked(chain, self.features);
        }
        let parts = zip(&headers, chains);
        let parts = parts.filter_map(|(header, chain)| Some((&header.as_ref()?.bytes()[..], chain)));
        let burst = &mut self.burst;
        let sent = backend.sends_by().map(|fd| burst.send(fd, parts, HEADER as u32));
        if !matches!(sent, Some(Ok(()))) {
            self.queue.put_back(chains);
            return;
        }
        let mut place = 0;
        let outcomes = headers.map(|header| {
            header?;
            place += 1;
            Some(burst.sent(place - 1))
        });
        let waits = |outcome: &io::Result<()>| {
            let cause = outcome.as_ref().err();
            cause.is_some_and(|cause| cause.kind() == io::ErrorKind::WouldBlock)
        };
        // What the backend has no room for now stays, unless a frame behind it was sent.
        let sent = |outcome: &Option<_>| outcome.as_ref().is_some_and(|outcome| !waits(outcome));
        let after = outcomes.iter().rposition(sent).map_or(0, |last| last + 1);
        let waiting = outcomes[after..count].iter().position(Option::is_some);
        let done = waiting.map_or(count, |first| after + first);
        let (done, kept) = chains.split_at(done);
        for (chain, outcome) in zip(done, outcomes) {
            if let Some(Err(cause)) = outcome {
                lost(&cause);
            }
            self.queue.push_used(chain.head(), 0);
        }
        self.queue.publish();
        self.queue.put_back(kept);
        self.blocked = !kept.is_empty();
    }
}

fn frame_len(chain: &RequestChain) -> u32 {
    chain.readable_len().saturating_sub(HEADER as u32)
}

/// The header of a frame, if it may be sent.
fn checked(chain: &RequestChain, features: u64) -> Option<Header> {
    let mut header = [0; HEADER];
    chain.read_at(0, &mut header);
    Header::check(header, frame_len(chain), features)
        .inspect_err(|fault| warn_guest!("virtio-net: a frame of the guest's is dropped: {fault}"))
        .ok()
}

fn send(
    backend: &mut dyn NetBackend,
    chain: &RequestChain,
    features: u64,
    segments: &mut Segments,
) -> io::Result<()> {
    let Some(header) = checked(chain, features) else {
        return Ok(());
    };
    let mut from = chain.readable_io(segments, HEADER as u32, frame_len(chain));
    loop {
        match backend.send(&header, &[], &mut from) {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
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
