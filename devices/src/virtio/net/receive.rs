//! Frames for the guest: from the backend straight into the buffers that the driver has posted.
//!
//! Buffers are taken ahead of need, because a frame's length is known only when it has been read. A read offers as many of
//! them as frames have lately been long, and a spill behind them; only what spills is copied. With mergeable buffers a frame
//! goes on in as many as it needs.
//!
//! Where frames come faster than they are read, many are read by one system call, each into the next buffer that a short frame fits.
//!
//! If the driver has posted nothing, nothing is read: the backend keeps the frames, or drops them as a full network does, and
//! the driver's next notification goes on.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_MRG_RXBUF,
};

use super::backend::NetBackend;
use super::header::{HEADER, LONGEST, NUM_BUFFERS};
use crate::limiter::Limiter;
use crate::virtio::device::{QueueResources, QueueState, StartError};
use crate::virtio::queue::{BURST, Burst, Datagram, DeviceQueue, RequestChain, Segments};
use crate::{Memory, warn_guest};

/// With any of these the host gives frames longer than its network's.
const LONG_FRAMES: [u32; 5] = [
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
];
/// Header and longest frame.
const MOST: usize = HEADER + LONGEST as usize;
/// Frames that one turn takes at most, so that other queues of the thread have theirs.
const BUDGET: u32 = 256;
/// After a long frame, so many short ones in a row make reads short again.
const PATIENCE: u32 = 64;

/// A started receive queue.
pub(super) struct Receiver {
    queue: DeviceQueue,
    memory: Arc<Memory>,
    segments: Segments,
    mergeable: bool,
    /// Bytes that a frame has which was not put together by the host, with its header.
    short: usize,
    /// The host may put frames together.
    long_frames: bool,
    /// Reads that are still to offer room for a long frame.
    long: u32,
    /// Buffers taken from the queue, oldest first, and the bytes they have together.
    taken: VecDeque<RequestChain>,
    room: usize,
    /// For reuse.
    unused: Vec<RequestChain>,
    burst: Burst,
    /// Frames that were read and not given to the driver yet, oldest first.
    read: VecDeque<Frame>,
    /// Most buffers that the driver ever had posted at once.
    most_posted: u16,
    /// The driver has to post more before anything is done.
    starved: bool,
}

/// A frame that was read: its beginning is in the buffers that were taken, once those before it are used, and the rest in a spill.
#[derive(Debug, Clone, Copy)]
struct Frame {
    datagram: Datagram,
    /// Which one.
    spill: usize,
}

/// How reading ended.
#[derive(Debug)]
pub(super) enum Received {
    /// Nothing more to do until something happens.
    Idle,
    /// The backend failed.
    Failed(io::Error),
}

impl Receiver {
    pub(super) fn new(
        index: u16,
        resources: QueueResources,
        at: Option<QueueState>,
        mtu: u16,
    ) -> Result<Self, StartError> {
        let has = |feature: u32| resources.features & 1 << feature != 0;
        let mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        let long_frames = LONG_FRAMES.into_iter().any(has);
        let memory = resources.memory.clone();
        Ok(Self {
            queue: DeviceQueue::new(index, resources, at)?,
            memory,
            segments: Segments::new(),
            mergeable,
            // Ethernet header, VLAN tag.
            short: HEADER + 14 + 4 + usize::from(mtu),
            long_frames,
            long: 0,
            taken: VecDeque::new(),
            room: 0,
            unused: Vec::new(),
            burst: Burst::new(MOST),
            read: VecDeque::new(),
            most_posted: 0,
            starved: false,
        })
    }

    /// Stops: buffers that were taken and not used are as if they had not been. Frames that wait for buffers are lost, as
    /// on any network.
    pub(super) fn stop(mut self) -> QueueState {
        self.queue.undo_pop(self.taken.len() as u16);
        self.queue.stop()
    }

    /// Whether what the driver was to post is there.
    pub(super) fn has_more(&self) -> bool {
        self.starved && self.queue.has_more()
    }

    /// As [`DeviceQueue::set_polled`].
    pub(super) fn set_polled(&mut self, polled: bool) {
        self.queue.set_polled(polled);
    }

    /// Moves frames until there are none, or no buffers, or others should have their turn.
    pub(super) fn run(&mut self, backend: &mut dyn NetBackend, limiter: Option<&mut Limiter>) -> Received {
        if limiter.as_ref().is_some_and(|limiter| limiter.waits()) {
            return Received::Idle;
        }
        self.starved = false;
        self.most_posted = self.most_posted.max(self.queue.posted());
        self.queue.disable_kicks();
        let result = self.move_frames(backend, limiter);
        self.queue.publish();
        self.queue.signal();
        result
    }

    fn move_frames(&mut self, backend: &mut dyn NetBackend, mut limiter: Option<&mut Limiter>) -> Received {
        let limited = limiter.as_ref().is_some_and(|limiter| limiter.limits());
        let (mut budget, mut reads, mut more) = (BUDGET, 0_u32, true);
        while budget > 0 {
            let first = self.read.front().copied();
            let has_buffers = match &first {
                Some(frame) => self.has_room(frame.datagram),
                None if !more => return Received::Idle,
                None => {
                    self.take(self.usual());
                    !self.taken.is_empty()
                }
            };
            if !has_buffers {
                if first.is_some_and(|frame| self.drops(frame.datagram)) {
                    self.read.pop_front();
                    budget -= 1;
                    continue;
                }
                // The next buffer brings us back, unless it is there already.
                if !self.queue.enable_kicks() {
                    self.starved = true;
                    return Received::Idle;
                }
                self.queue.disable_kicks();
                continue;
            }
            let Some(frame) = first else {
                self.queue.publish();
                // Often there is one, or two; the more come, the more are asked for.
                let doublings = reads.saturating_sub(1).min(BURST.ilog2());
                match self.read(backend, if limited { 1 } else { 1 << doublings }) {
                    Ok(left) => {
                        (reads, more) = (reads + 1, left);
                        // What was no frame counts as one.
                        budget -= u32::from(self.read.is_empty());
                    }
                    Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Received::Idle,
                    Err(cause) if cause.kind() == io::ErrorKind::Interrupted => budget -= 1,
                    Err(cause) => return Received::Failed(cause),
                }
                continue;
            };
            if let Some(limiter) = &mut limiter
                && !limiter.admit(frame.datagram.len.saturating_sub(HEADER) as u64)
            {
                return Received::Idle;
            }
            self.read.pop_front();
            self.place(frame);
            budget -= 1;
        }
        self.queue.kick_again();
        Received::Idle
    }

    /// Bytes that a read offers room for.
    fn usual(&self) -> usize {
        if self.long > 0 { MOST } else { self.short }
    }

    /// Takes buffers until they have room for `want` bytes.
    fn take(&mut self, want: usize) {
        // Each buffer has room for a header, so this ends even where a driver posts the same one again and again.
        while self.room < want && (self.mergeable || self.taken.is_empty()) && self.take_one() {}
    }

    fn take_one(&mut self) -> bool {
        let mut buffer = self.unused.pop().unwrap_or_else(|| self.queue.new_chain());
        if !self.queue.pop(&mut buffer) {
            self.unused.push(buffer);
            return false;
        }
        let room = buffer.writable_len() as usize;
        if room < HEADER {
            self.queue.undo_pop(1);
            self.unused.push(buffer);
            self.queue.fail("a receive buffer has no room for a header");
            return false;
        }
        self.room += room;
        self.taken.push_back(buffer);
        true
    }

    /// Whether there are buffers for a frame that was read.
    fn has_room(&mut self, datagram: Datagram) -> bool {
        self.take(datagram.len);
        if self.mergeable {
            return self.room >= datagram.len;
        }
        let first = self.taken.front();
        first.is_some_and(|buffer| buffer.writable_len() as usize >= datagram.len)
    }

    /// Whether a frame that finds no room is to be dropped. What the driver has posted at its best and is not there now will come.
    fn drops(&self, datagram: Datagram) -> bool {
        if self.mergeable && self.queue.posted() < self.most_posted {
            return false;
        }
        let (len, room) = (datagram.len, self.room);
        warn_guest!(
            "virtio-net: a frame of {len} bytes finds only {room} in the guest's buffers and is dropped"
        );
        true
    }

    /// Reads frames, `most` at most. Returns whether there may be more.
    fn read(&mut self, backend: &mut dyn NetBackend, most: usize) -> io::Result<bool> {
        if most > 1 && self.long == 0 && !self.burst.is_refused() {
            while self.taken.len() < most && self.take_one() {}
            let fits = |buffer: &&RequestChain| buffer.writable_len() as usize >= self.short;
            let count = self.taken.iter().take(most).take_while(fits).count();
            if count > 1
                && let Some(fd) = backend.receives_by()
                && self.burst.receive(fd, self.taken.iter().take(count)).is_ok()
            {
                return self.sort(count);
            }
        }
        let mut want = self.usual();
        let mut to = self.segments.start(&self.memory);
        for buffer in &self.taken {
            want -= to.add(buffer.writable(), 0, want as u64) as usize;
            // Without mergeable buffers a frame has one.
            if want == 0 || !self.mergeable {
                break;
            }
        }
        let datagram = backend.receive(&mut to, self.burst.spill(0))?;
        self.keep(datagram, 0);
        Ok(true)
    }

    /// Takes over what a burst brought into the first `count` buffers. Returns whether there may be more.
    fn sort(&mut self, count: usize) -> io::Result<bool> {
        let (mut came, mut astray, mut failure) = (0, false, None);
        for index in 0..count {
            let mut datagram = match self.burst.received(index) {
                Ok(datagram) => datagram,
                Err(cause) => {
                    failure.get_or_insert(cause);
                    continue;
                }
            };
            // It lies in the buffer that is its turn unless one before it found nothing, or needs more than its own.
            astray |= index != came || datagram.len > datagram.in_place;
            if astray {
                datagram = self.burst.lift(index, &self.taken[index], datagram);
            }
            came += usize::from(self.keep(datagram, index));
        }
        match failure {
            Some(cause) if came == 0 => Err(cause),
            Some(cause) => Ok(cause.kind() != io::ErrorKind::WouldBlock),
            None => Ok(true),
        }
    }

    /// Puts a frame behind those that were read; whether it is one.
    fn keep(&mut self, datagram: Datagram, spill: usize) -> bool {
        if datagram.len < HEADER {
            warn_guest!("virtio-net: a backend gave a frame without a header");
            return false;
        }
        if self.long_frames && datagram.len > self.short {
            self.long = PATIENCE;
        } else {
            self.long = self.long.saturating_sub(1);
        }
        self.read.push_back(Frame { datagram, spill });
        true
    }

    /// Gives a frame to the driver, in buffers that have room for it.
    fn place(&mut self, frame: Frame) {
        let len = frame.datagram.len;
        self.write_spill(frame);
        let mut left = len;
        let used = self.taken.iter().take_while(|buffer| {
            let any = left > 0;
            left = left.saturating_sub(buffer.writable_len() as usize);
            any
        });
        // At most a frame's length in headers.
        let count = used.count() as u16;
        if let Some(first) = self.taken.front() {
            first.write_at(NUM_BUFFERS, &count.to_le_bytes());
        }
        let mut left = len as u32;
        for buffer in self.taken.drain(..usize::from(count)) {
            let room = buffer.writable_len();
            self.queue.push_used(buffer.head(), left.min(room));
            left = left.saturating_sub(room);
            self.room -= room as usize;
            self.unused.push(buffer);
        }
    }

    /// Copies what did not fit in place to the buffers where it belongs.
    fn write_spill(&mut self, Frame { datagram, spill }: Frame) {
        let mut rest = &self.burst.spill(spill)[..datagram.len - datagram.in_place];
        let mut skip = datagram.in_place;
        for buffer in &self.taken {
            if rest.is_empty() {
                return;
            }
            let room = buffer.writable_len() as usize;
            if skip < room {
                let written = buffer.write_at(skip as u32, rest);
                rest = &rest[written..];
            }
            skip = skip.saturating_sub(room);
        }
    }
}
