//! Frames for the guest: from the backend straight into the buffers that the driver has posted.
//!
//! Buffers are taken ahead of need, because a frame's length is known only when it has been read. A read offers as many of
//! them as frames have lately been long, and a spill behind them; only what spills is copied. With mergeable buffers a frame
//! goes on in as many as it needs.
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
use crate::virtio::queue::{Datagram, DeviceQueue, RequestChain, Segments};
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
    spill: Box<[u8]>,
    /// A frame that waits for more buffers, or until the limits let it through; its first part is in those that were taken, the rest in `spill`.
    held: Option<Datagram>,
    /// The limits let it through already.
    admitted: bool,
    /// Most buffers that the driver ever had posted at once.
    most_posted: u16,
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
            spill: vec![0; MOST].into_boxed_slice(),
            held: None,
            admitted: false,
            most_posted: 0,
        })
    }

    /// Stops: buffers that were taken and not used are as if they had not been. A frame that waits for buffers is lost, as
    /// on any network.
    pub(super) fn stop(mut self) -> QueueState {
        self.queue.undo_pop(self.taken.len() as u16);
        self.queue.stop()
    }

    /// Moves frames until there are none, or no buffers, or others should have their turn.
    pub(super) fn run(&mut self, backend: &mut dyn NetBackend, limiter: Option<&mut Limiter>) -> Received {
        if limiter.as_ref().is_some_and(|limiter| limiter.waits()) {
            return Received::Idle;
        }
        self.most_posted = self.most_posted.max(self.queue.posted());
        self.queue.disable_kicks();
        let result = self.move_frames(backend, limiter);
        self.queue.signal();
        result
    }

    fn move_frames(&mut self, backend: &mut dyn NetBackend, mut limiter: Option<&mut Limiter>) -> Received {
        for _ in 0..BUDGET {
            self.take(if self.long > 0 { MOST } else { self.short });
            if self.taken.is_empty() || self.held.is_some_and(|frame| !self.has_room(frame)) {
                // The next buffer brings us back, unless it is there already.
                if !self.queue.enable_kicks() {
                    return Received::Idle;
                }
                self.queue.disable_kicks();
                continue;
            }
            let frame = match self.held.take() {
                Some(frame) => frame,
                None => match self.read(backend) {
                    Ok(frame) => frame,
                    Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Received::Idle,
                    Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                    Err(cause) => return Received::Failed(cause),
                },
            };
            if let (Some(limiter), false) = (&mut limiter, self.admitted)
                && !limiter.admit(frame.len.saturating_sub(HEADER) as u64)
            {
                self.held = Some(frame);
                return Received::Idle;
            }
            self.place(frame);
            self.admitted = self.held.is_some();
        }
        self.queue.kick_again();
        Received::Idle
    }

    /// Takes buffers until they have room for `want` bytes.
    fn take(&mut self, want: usize) {
        // Each buffer has room for a header, so this ends even where a driver posts the same one again and again.
        while self.room < want && (self.mergeable || self.taken.is_empty()) {
            let mut buffer = self.unused.pop().unwrap_or_else(|| self.queue.new_chain());
            if !self.queue.pop(&mut buffer) {
                self.unused.push(buffer);
                return;
            }
            let room = buffer.writable_len() as usize;
            if room < HEADER {
                self.queue.undo_pop(1);
                self.unused.push(buffer);
                self.queue.fail("a receive buffer has no room for a header");
                return;
            }
            self.room += room;
            self.taken.push_back(buffer);
        }
    }

    /// Whether there are buffers for a frame that waits.
    fn has_room(&mut self, frame: Datagram) -> bool {
        self.take(frame.len);
        self.room >= frame.len
    }

    fn read(&mut self, backend: &mut dyn NetBackend) -> io::Result<Datagram> {
        let mut want = if self.long > 0 { MOST } else { self.short };
        let mut to = self.segments.start(&self.memory);
        for buffer in &self.taken {
            want -= to.add(buffer.writable(), 0, want as u64) as usize;
            if want == 0 {
                break;
            }
        }
        let frame = backend.receive(&mut to, &mut self.spill)?;
        if self.long_frames && frame.len > self.short {
            self.long = PATIENCE;
        } else {
            self.long = self.long.saturating_sub(1);
        }
        Ok(frame)
    }

    /// Gives a frame to the driver, or keeps it if the driver has to post buffers first, or drops it.
    fn place(&mut self, frame: Datagram) {
        if frame.len < HEADER {
            warn_guest!("virtio-net: a backend gave a frame without a header");
            return;
        }
        if !self.has_room(frame) {
            // What the driver has posted at its best and is not there now will come.
            if self.mergeable && self.queue.posted() < self.most_posted {
                self.held = Some(frame);
            } else {
                let (len, room) = (frame.len, self.room);
                warn_guest!(
                    "virtio-net: a frame of {len} bytes finds only {room} in the guest's buffers and is dropped"
                );
            }
            return;
        }
        self.write_spill(frame);
        let mut left = frame.len;
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
        let mut left = frame.len as u32;
        for buffer in self.taken.drain(..usize::from(count)) {
            let room = buffer.writable_len();
            self.queue.push_used(buffer.head(), left.min(room));
            left = left.saturating_sub(room);
            self.room -= room as usize;
            self.unused.push(buffer);
        }
        self.queue.publish();
    }

    /// Copies what did not fit in place to the buffers where it belongs.
    fn write_spill(&self, frame: Datagram) {
        let mut rest = &self.spill[..frame.len - frame.in_place];
        let mut skip = frame.in_place;
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
