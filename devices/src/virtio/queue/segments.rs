//! Guest buffers as the host's I/O calls want them: `readv` and its kin straight on guest memory, without a copy.
//!
//! With [`burst`](super::burst) and [`place`](super::place) the only unsafe code of the queue core.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, VolatileSlice};

use super::chain::{Buffer, parts};
use crate::Memory;

/// Most segments that one call takes.
pub(super) const IOV_MAX: usize = 1024;

/// Room for a list of segments, kept by a device so that a request allocates nothing.
#[derive(Default)]
pub struct Segments {
    list: Vec<libc::iovec>,
}

// SAFETY: the pointers in `list` are followed only through `GuestIo`, which is made anew by `start` (emptying the list) and
// borrows the memory they point into; between two of them they are plain numbers. Guest memory may be touched by any thread.
unsafe impl Send for Segments {}

impl Segments {
    /// No segments yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a list of segments of `memory`.
    pub fn start<'a>(&'a mut self, memory: &'a Arc<Memory>) -> GuestIo<'a> {
        self.list.clear();
        GuestIo {
            list: &mut self.list,
            memory,
            first: 0,
            len: 0,
        }
    }
}

/// A datagram that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// Its length in bytes.
    pub len: usize,
    /// How many of them are in the segments; the others are in the spill.
    pub in_place: usize,
}

/// Segments of guest memory to be filled from, or sent to, a host file or descriptor. Each call takes what it moved off the
/// front.
pub struct GuestIo<'a> {
    list: &'a mut Vec<libc::iovec>,
    memory: &'a Arc<Memory>,
    first: usize,
    len: u64,
}

impl GuestIo<'_> {
    /// Appends up to `len` bytes from `skip` bytes into `buffers`; returns how many it found. Buffers may come from several
    /// chains, but all of one guest memory.
    pub fn add(&mut self, buffers: &[Buffer], skip: u64, len: u64) -> u64 {
        let before = self.len;
        for part in parts(buffers, skip, len) {
            if let Ok(slice) = self.memory.get_slice(part.addr, part.len as usize) {
                self.list.push(segment(&slice));
                self.len += u64::from(part.len);
                continue;
            }
            // A buffer may cross from one region of guest memory into the next: two pieces on the host.
            for slice in self.memory.get_slices(part.addr, part.len as usize) {
                let Ok(slice) = slice else {
                    return self.len - before;
                };
                self.list.push(segment(&slice));
                self.len += slice.len() as u64;
            }
        }
        self.len - before
    }

    /// Bytes left.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segments that are left.
    pub fn segments(&self) -> &[libc::iovec] {
        &self.list[self.first..]
    }

    /// Reads once from `offset` on in the file what is there without waiting for a device; `WouldBlock` if nothing is. Returns the
    /// bytes read.
    pub fn read_now_at(&mut self, fd: BorrowedFd, offset: u64) -> io::Result<usize> {
        let (list, count) = self.window();
        let at = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: as in `readv`.
        let moved = unsafe { libc::preadv2(fd.as_raw_fd(), list, count, at, libc::RWF_NOWAIT) };
        self.advance(moved)
    }

    /// Writes once to the file from `offset` on what it takes without waiting; `WouldBlock` if nothing. Returns the bytes written.
    pub fn write_now_at(&mut self, fd: BorrowedFd, offset: u64) -> io::Result<usize> {
        let (list, count) = self.window();
        let at = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: as in `readv`; the kernel only reads here.
        let moved = unsafe { libc::pwritev2(fd.as_raw_fd(), list, count, at, libc::RWF_NOWAIT) };
        self.advance(moved)
    }

    /// Reads once from `fd` into the segments; returns the bytes read.
    pub fn readv(&mut self, fd: BorrowedFd) -> io::Result<usize> {
        let (list, count) = self.window();
        // SAFETY: `list` is `count` segments that `add` took from guest memory, which `self` borrows, so every pointer is
        // mapped and writable for its length. The guest may write there meanwhile; no reference to it exists on our side.
        let moved = unsafe { libc::readv(fd.as_raw_fd(), list, count) };
        self.advance(moved)
    }

    /// Writes once from the segments to `fd`; returns the bytes written.
    pub fn writev(&mut self, fd: BorrowedFd) -> io::Result<usize> {
        let (list, count) = self.window();
        // SAFETY: as in `readv`; the kernel only reads here.
        let moved = unsafe { libc::writev(fd.as_raw_fd(), list, count) };
        self.advance(moved)
    }

    /// Reads one datagram from `fd` into the segments; what they have no room for goes to `spill`.
    pub fn receive(&mut self, fd: BorrowedFd, spill: &mut [u8]) -> io::Result<Datagram> {
        // One place in the list is for the spill.
        while self.segments().len() >= IOV_MAX
            && let Some(piece) = self.list.pop()
        {
            self.len -= piece.iov_len as u64;
        }
        let room = self.len as usize;
        self.list.push(libc::iovec {
            iov_base: spill.as_mut_ptr().cast(),
            iov_len: spill.len(),
        });
        let (list, count) = self.window();
        // SAFETY: as in `readv` for all segments but the last, which is `spill`, borrowed for this call.
        let moved = unsafe { libc::readv(fd.as_raw_fd(), list, count) };
        self.list.pop();
        let len = usize::try_from(moved).map_err(|_| io::Error::last_os_error())?;
        let in_place = len.min(room);
        self.skip(in_place);
        Ok(Datagram { len, in_place })
    }

    /// Sends `head` and all segments to `fd` as one datagram.
    pub fn send(&mut self, fd: BorrowedFd, head: &[u8]) -> io::Result<()> {
        self.send_part(fd, head).map(|_| ())
    }

    /// Writes once `head` and all segments to `fd`, as much as it takes; returns the bytes written, those of `head` among them.
    pub fn send_part(&mut self, fd: BorrowedFd, head: &[u8]) -> io::Result<usize> {
        if self.segments().len() >= IOV_MAX {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let first = libc::iovec {
            iov_base: head.as_ptr().cast_mut().cast(),
            iov_len: head.len(),
        };
        self.list.insert(self.first, first);
        let (list, count) = self.window();
        // SAFETY: as in `writev` for all segments but the first, which is `head`, borrowed for this call and only read.
        let moved = unsafe { libc::writev(fd.as_raw_fd(), list, count) };
        self.list.remove(self.first);
        let moved = usize::try_from(moved).map_err(|_| io::Error::last_os_error())?;
        self.skip(moved.saturating_sub(head.len()));
        Ok(moved)
    }

    /// Fills all segments from `offset` on in the file. A file that ends before is an `UnexpectedEof`.
    pub fn read_exact_at(&mut self, fd: BorrowedFd, offset: u64) -> io::Result<()> {
        self.all_at(offset, io::ErrorKind::UnexpectedEof, |list, count, at| {
            // SAFETY: as in `readv`.
            unsafe { libc::preadv64(fd.as_raw_fd(), list, count, at) }
        })
    }

    /// Writes all segments to the file from `offset` on.
    pub fn write_all_at(&mut self, fd: BorrowedFd, offset: u64) -> io::Result<()> {
        self.all_at(offset, io::ErrorKind::WriteZero, |list, count, at| {
            // SAFETY: as in `readv`; the kernel only reads here.
            unsafe { libc::pwritev64(fd.as_raw_fd(), list, count, at) }
        })
    }

    /// Fills the segments from `data`; returns how many bytes found room.
    pub fn copy_from(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while let Some(piece) = self.piece(data.len() - done) {
            let len = piece.len();
            piece.copy_from(&data[done..done + len]);
            done += len;
            self.skip(len);
        }
        done
    }

    /// Copies the segments to `data`; returns how many bytes there were.
    pub fn copy_to(&mut self, data: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(piece) = self.piece(data.len() - done) {
            let len = piece.len();
            piece.copy_to(&mut data[done..done + len]);
            done += len;
            self.skip(len);
        }
        done
    }

    /// What is left of the first segment, `most` bytes at most; none if that is nothing.
    fn piece(&self, most: usize) -> Option<VolatileSlice<'_>> {
        let piece = self.segments().first()?;
        let len = piece.iov_len.min(most);
        if len == 0 {
            return None;
        }
        // SAFETY: `piece` is a segment that `add` took from guest memory, which `self` borrows, so `len` bytes of it are
        // mapped and writable as long as the result lives.
        Some(unsafe { VolatileSlice::new(piece.iov_base.cast(), len) })
    }

    fn all_at(
        &mut self,
        mut offset: u64,
        at_end: io::ErrorKind,
        call: impl Fn(*const libc::iovec, i32, i64) -> isize,
    ) -> io::Result<()> {
        while !self.is_empty() {
            let at = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let (list, count) = self.window();
            match self.advance(call(list, count, at)) {
                Ok(0) => return Err(at_end.into()),
                Ok(moved) => offset += moved as u64,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    fn window(&self) -> (*const libc::iovec, i32) {
        let left = self.segments();
        (left.as_ptr(), left.len().min(IOV_MAX) as i32)
    }

    fn advance(&mut self, moved: isize) -> io::Result<usize> {
        let moved = usize::try_from(moved).map_err(|_| io::Error::last_os_error())?;
        self.skip(moved);
        Ok(moved)
    }

    fn skip(&mut self, bytes: usize) {
        self.len = self.len.saturating_sub(bytes as u64);
        self.first += skip(&mut self.list[self.first..], bytes);
    }
}

/// Takes `bytes` bytes off the front of `list`; returns how many segments are used up.
fn skip(list: &mut [libc::iovec], mut bytes: usize) -> usize {
    for (used, piece) in list.iter_mut().enumerate() {
        if bytes < piece.iov_len {
            piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(bytes).cast();
            piece.iov_len -= bytes;
            return used;
        }
        bytes -= piece.iov_len;
    }
    list.len()
}

/// Segments for an operation that goes on after the call that began it. They keep guest memory mapped.
#[derive(Default)]
pub struct HeldIo {
    list: Vec<libc::iovec>,
    first: usize,
    len: u64,
    memory: Option<Arc<Memory>>,
}

// SAFETY: the pointers in `list` are into the guest memory that `memory` keeps mapped, wherever the value goes; guest memory may be touched
// by any thread.
unsafe impl Send for HeldIo {}

impl HeldIo {
    /// Takes over what is left of `io`. What was held before is forgotten: nothing may be under way with it.
    pub fn hold(&mut self, io: &GuestIo<'_>) {
        self.list.clear();
        self.list.extend_from_slice(io.segments());
        self.first = 0;
        self.len = io.len;
        self.memory = Some(io.memory.clone());
    }

    /// The segments, for a call that returns when it is done with them.
    pub fn io(&mut self) -> Option<GuestIo<'_>> {
        Some(GuestIo {
            list: &mut self.list,
            memory: self.memory.as_ref()?,
            first: self.first,
            len: self.len,
        })
    }

    /// The segments that are left. They stay where they are as long as `self` is not given others.
    pub fn segments(&self) -> &[libc::iovec] {
        let left = &self.list[self.first..];
        &left[..left.len().min(IOV_MAX)]
    }

    /// Bytes left.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// So many bytes were moved.
    pub fn skip(&mut self, bytes: usize) {
        self.len = self.len.saturating_sub(bytes as u64);
        self.first += skip(&mut self.list[self.first..], bytes);
    }
}

fn segment(slice: &VolatileSlice) -> libc::iovec {
    // The mapping is not given back while the guest memory lives, so the pointer outlives the guard.
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}
