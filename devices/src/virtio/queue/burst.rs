//! Many datagrams by one system call: an io_uring as a list of reads or writes of which none waits, so that all of them are done when the
//! call returns.
//!
//! A tap takes and gives one frame a call, and a call costs a third of what the frame does.

#![allow(unsafe_code)]

use std::io;
use std::iter::zip;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use super::chain::RequestChain;
use super::segments::{Datagram, IOV_MAX, Segments};

/// Most datagrams of one call.
pub const BURST: usize = 32;
/// Most bytes of our own before those of the guest's buffers.
pub(super) const HEAD_MAX: usize = 16;

/// Datagrams that are received or sent together. Nothing is made before the first.
pub struct Burst {
    ring: Option<IoUring>,
    /// The host has no io_uring for us, or none that does this.
    refused: bool,
    slots: Vec<Slot>,
    /// Slots in use.
    count: usize,
    segments: Segments,
    /// Bytes of room behind the buffers of each datagram that is received.
    spill: usize,
}

#[derive(Default)]
struct Slot {
    list: Vec<libc::iovec>,
    head: Box<[u8; HEAD_MAX]>,
    /// Bytes of the buffers to receive into.
    room: usize,
    spill: Box<[u8]>,
    /// What the kernel said: bytes, or a negated error number.
    result: i32,
}

// SAFETY: the pointers in `list` are followed only by the kernel during the call that made the list; between two calls they are plain
// numbers.
unsafe impl Send for Slot {}

impl Burst {
    /// For datagrams that `spill` bytes hold, whatever of them finds room in the guest's buffers.
    pub fn new(spill: usize) -> Self {
        Self {
            ring: None,
            refused: false,
            slots: Vec::new(),
            count: 0,
            segments: Segments::new(),
            spill,
        }
    }

    /// Whether the host was found not to do it. One by one is the way then.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    /// The room behind the buffers of datagram `index`, below [`BURST`].
    pub fn spill(&mut self, index: usize) -> &mut [u8] {
        self.make_slots(index + 1);
        &mut self.slots[index].spill
    }

    fn make_slots(&mut self, count: usize) {
        let spill = self.spill;
        let make = || Slot {
            spill: vec![0; spill].into_boxed_slice(),
            ..Slot::default()
        };
        self.slots.resize_with(self.slots.len().max(count), make);
    }

    /// Receives a datagram into each of `chains`, [`BURST`] at most, as far as there are any, without waiting. An error is that of the
    /// means, and nothing was received; what became of each says [`received`](Self::received).
    pub fn receive<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        chains: impl Iterator<Item = &'a RequestChain>,
    ) -> io::Result<()> {
        self.count = 0;
        for chain in chains.take(BURST) {
            self.make_slots(self.count + 1);
            let slot = &mut self.slots[self.count];
            let io = chain.writable_io(&mut self.segments, 0, u32::MAX);
            // One place is for the spill.
            let segments = io.segments();
            let segments = &segments[..segments.len().min(IOV_MAX - 1)];
            slot.room = segments.iter().map(|piece| piece.iov_len).sum();
            slot.list.clear();
            slot.list.extend_from_slice(segments);
            slot.list.push(segment(&mut slot.spill));
            self.count += 1;
        }
        let fd = types::Fd(fd.as_raw_fd());
        self.run(|list| {
            opcode::Readv::new(fd, list.as_ptr(), list.len() as u32)
                .rw_flags(libc::RWF_NOWAIT)
                .build()
        })
    }

    /// What was received into chain `index` of the last call.
    pub fn received(&self, index: usize) -> io::Result<Datagram> {
        let slot = &self.slots[..self.count][index];
        let len = moved(slot.result)?;
        let in_place = len.min(slot.room);
        Ok(Datagram { len, in_place })
    }

    /// Makes of a datagram that was received into `chain`, as its number `index`, one that is in the spill alone, as far as that has room.
    pub fn lift(&mut self, index: usize, chain: &RequestChain, datagram: Datagram) -> Datagram {
        let spill = &mut self.slots[index].spill;
        let len = datagram.len.min(spill.len());
        let in_place = datagram.in_place.min(len);
        spill.copy_within(..len - in_place, in_place);
        chain
            .writable_io(&mut self.segments, 0, in_place as u32)
            .copy_to(&mut spill[..in_place]);
        Datagram { len, in_place: 0 }
    }

    /// Sends a datagram for each of `parts`, [`BURST`] at most, without waiting: the bytes of the head, [`HEAD_MAX`] at most, then what the
    /// chain has to read from `skip` bytes on. An error is that of the means, and nothing was sent; what became of each says
    /// [`sent`](Self::sent).
    pub fn send<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        parts: impl Iterator<Item = (&'a [u8], &'a RequestChain)>,
        skip: u32,
    ) -> io::Result<()> {
        self.count = 0;
        for (head, chain) in parts.take(BURST) {
            self.make_slots(self.count + 1);
            let slot = &mut self.slots[self.count];
            let head_len = head.len().min(HEAD_MAX);
            slot.head[..head_len].copy_from_slice(&head[..head_len]);
            slot.list.clear();
            slot.list.push(segment(&mut slot.head[..head_len]));
            let io = chain.readable_io(&mut self.segments, skip, u32::MAX);
            slot.list.extend_from_slice(io.segments());
            self.count += 1;
        }
        let fd = types::Fd(fd.as_raw_fd());
        self.run(|list| {
            opcode::Writev::new(fd, list.as_ptr(), list.len() as u32)
                .rw_flags(libc::RWF_NOWAIT)
                .build()
        })
    }

    /// What became of part `index` of the last call.
    pub fn sent(&self, index: usize) -> io::Result<()> {
        moved(self.slots[..self.count][index].result).map(|_| ())
    }

    fn run(&mut self, entry: impl Fn(&[libc::iovec]) -> squeue::Entry) -> io::Result<()> {
        let result = self.try_run(entry);
        let slots = &self.slots[..self.count];
        let unknown = -Errno::OPNOTSUPP.raw_os_error();
        let result = match result {
            // So the kernel answers for files whose operations it cannot keep from waiting.
            Ok(()) if !slots.is_empty() && slots.iter().all(|slot| slot.result == unknown) => {
                Err(Errno::OPNOTSUPP.into())
            }
            result => result,
        };
        if let Err(cause) = &result {
            tracing::debug!("frames go one by one: no io_uring for them: {cause}");
            self.refused = true;
            self.ring = None;
        }
        result
    }

    fn try_run(&mut self, entry: impl Fn(&[libc::iovec]) -> squeue::Entry) -> io::Result<()> {
        let ring = match &mut self.ring {
            Some(ring) => ring,
            None => self
                .ring
                .insert(IoUring::builder().dontfork().build(BURST as u32)?),
        };
        let slots = &mut self.slots[..self.count];
        for (index, slot) in zip(0.., &*slots) {
            let entry = entry(&slot.list).user_data(index);
            // SAFETY: the entry's list and what it points to are as `receive` and `send` made them: a slot's own head or spill, and buffers
            // in guest memory, which is mapped as long as the chains live that they borrow. Nothing of it changes or goes before this
            // function returns, and it returns only when every entry that the kernel took is completed.
            unsafe { ring.submission().push(&entry) }
                .map_err(|_| io::Error::from(io::ErrorKind::QuotaExceeded))?;
        }
        let mut left = slots.len();
        while left > 0 {
            let entered = ring.submit_and_wait(left);
            for completion in ring.completion() {
                slots[completion.user_data() as usize].result = completion.result();
                left -= 1;
            }
            match entered {
                Err(cause) if left == slots.len() && ring.submission().len() == left => {
                    if cause.kind() != io::ErrorKind::Interrupted {
                        // It took none, and with the ring they are gone.
                        return Err(cause);
                    }
                }
                // The kernel is short of something, but it has some of them: they must be done.
                Err(_) => std::thread::yield_now(),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

fn segment(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

fn moved(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
