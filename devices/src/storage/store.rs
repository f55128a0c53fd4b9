//! The open file of a disk and what is done to it by calls that return when it is done.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags, fallocate, fstatfs, statx};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::backend::Operation;
use super::engine::{Now, Work};
use super::ring::Ring;
use crate::virtio::queue::GuestIo;

/// What is written where a range must be zero and the file system cannot do it.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// `f_type` of file systems in memory: nothing there waits for a device.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// `STATX_DIOALIGN`, from Linux 6.1 on.
const STATX_DIOALIGN: u32 = 0x2000;
/// What direct I/O is aligned to where the kernel does not tell: the largest block that devices have.
const ALIGNED: u64 = 4096;

pub(super) const PUNCH_HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO_RANGE: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// An open file, and the same file opened past the page cache if it is to be used so.
#[derive(Debug)]
pub(super) struct Store {
    file: File,
    direct: Option<Direct>,
    in_memory: bool,
    /// Whether the file system can say that a write would wait, once that is known.
    tells: OnceLock<bool>,
}

#[derive(Debug)]
struct Direct {
    file: File,
    /// What addresses in memory must be multiples of.
    memory: u64,
    /// What offsets and lengths in the file must be multiples of.
    offset: u64,
}

impl Store {
    pub(super) fn new(file: File) -> Self {
        let kind = fstatfs(&file).map_or(0, |found| found.f_type);
        Self {
            file,
            direct: None,
            in_memory: IN_MEMORY.contains(&kind),
            tells: OnceLock::new(),
        }
    }

    /// Uses the file past the page cache from now on, where requests are aligned as that needs.
    pub(super) fn open_direct(&mut self, read_only: bool) -> io::Result<()> {
        // A name of the open file: its path may lead elsewhere by now.
        let name = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(libc::O_DIRECT)
            .open(name)?;
        let (memory, offset) = alignment(&file);
        self.direct = Some(Direct { file, memory, offset });
        Ok(())
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Whether segments and offset are such that the page cache is to be passed by.
    fn is_direct(&self, segments: &[libc::iovec], offset: u64) -> bool {
        self.direct.as_ref().is_some_and(|direct| {
            let aligned = |piece: &libc::iovec| {
                (piece.iov_base as u64).is_multiple_of(direct.memory)
                    && (piece.iov_len as u64).is_multiple_of(direct.offset)
            };
            offset.is_multiple_of(direct.offset) && segments.iter().all(aligned)
        })
    }

    /// The file to use for a transfer.
    pub(super) fn descriptor(&self, segments: &[libc::iovec], offset: u64) -> BorrowedFd<'_> {
        match &self.direct {
            Some(direct) if self.is_direct(segments, offset) => direct.file.as_fd(),
            _ => self.file.as_fd(),
        }
    }

    /// A write into the page cache is a copy, which is done here and now unless the file system says that it would wait.
    fn write_now(&self, offset: &mut u64, from: &mut GuestIo<'_>) -> Now {
        while !from.is_empty() && !self.in_memory && *self.tells.get().unwrap_or(&true) {
            match from.write_now_at(self.file.as_fd(), *offset) {
                Ok(0) => return Now::Done(Err(io::ErrorKind::WriteZero.into())),
                Ok(moved) => *offset += moved as u64,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Now::Waits,
                Err(cause) if cause.kind() == io::ErrorKind::Unsupported => {
                    self.tells.get_or_init(|| false);
                }
                Err(cause) => return Now::Done(Err(cause)),
            }
        }
        Now::Done(from.write_all_at(self.file.as_fd(), *offset))
    }
}

impl Work for Store {
    fn run(&self, operation: Operation<'_>) -> io::Result<()> {
        match operation {
            Operation::Read { offset, mut to } => {
                let file = self.descriptor(to.segments(), offset);
                to.read_exact_at(file, offset)
            }
            Operation::Write { offset, mut from } => {
                let file = self.descriptor(from.segments(), offset);
                from.write_all_at(file, offset)
            }
            Operation::Flush => self.file.sync_data(),
            Operation::Discard { offset, len } => Ok(allocate(&self.file, PUNCH_HOLE, offset, len)?),
            Operation::WriteZeroes { offset, len, unmap } => write_zeroes(&self.file, offset, len, unmap),
        }
    }

    fn run_now(&self, operation: &mut Operation<'_>) -> Now {
        match operation {
            // Nothing to wait for, and such a file system could not tell.
            Operation::Read { offset, to } if self.in_memory => {
                Now::Done(to.read_exact_at(self.file.as_fd(), *offset))
            }
            Operation::Read { offset, to } if !self.is_direct(to.segments(), *offset) => {
                while !to.is_empty() {
                    match to.read_now_at(self.file.as_fd(), *offset) {
                        Ok(0) => return Now::Done(Err(io::ErrorKind::UnexpectedEof.into())),
                        Ok(moved) => *offset += moved as u64,
                        Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => return Now::Waits,
                    }
                }
                Now::Done(Ok(()))
            }
            Operation::Write { offset, from } if !self.is_direct(from.segments(), *offset) => {
                self.write_now(offset, from)
            }
            Operation::Flush | Operation::Discard { .. } | Operation::WriteZeroes { .. }
                if self.in_memory =>
            {
                Now::Done(self.run(std::mem::replace(operation, Operation::Flush)))
            }
            _ => Now::Waits,
        }
    }

    fn ring(self: &Arc<Self>, event: &Arc<EventFd>) -> Option<io::Result<Ring>> {
        Some(Ring::new(self.clone(), event))
    }
}

/// Makes a range of a file zero, by the file system if it can.
pub(super) fn write_zeroes(file: &File, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    match allocate(file, zeroing(unmap), offset, len) {
        Ok(()) => Ok(()),
        Err(cause) if lacks_fallocate(cause) => store_zeroes(file, offset, len),
        Err(cause) => Err(cause.into()),
    }
}

pub(super) fn store_zeroes(file: &File, mut offset: u64, mut len: u64) -> io::Result<()> {
    while len > 0 {
        let piece = len.min(ZEROES.len() as u64);
        file.write_all_at(&ZEROES[..piece as usize], offset)?;
        offset += piece;
        len -= piece;
    }
    Ok(())
}

pub(super) fn allocate(file: &File, mode: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
    loop {
        match fallocate(file, mode, offset, len) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// How a range is made zero.
pub(super) fn zeroing(unmap: bool) -> FallocateFlags {
    if unmap { PUNCH_HOLE } else { ZERO_RANGE }
}

/// Older file systems, and devices that cannot: zeros are written then.
pub(super) fn lacks_fallocate(cause: Errno) -> bool {
    matches!(cause, Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)
}

/// What memory and offsets of direct I/O must be multiples of.
fn alignment(file: &File) -> (u64, u64) {
    let asked = StatxFlags::from_bits_retain(STATX_DIOALIGN);
    match statx(file, "", AtFlags::EMPTY_PATH, asked) {
        Ok(found) if found.stx_mask & STATX_DIOALIGN != 0 && found.stx_dio_offset_align != 0 => (
            u64::from(found.stx_dio_mem_align.max(1)),
            u64::from(found.stx_dio_offset_align),
        ),
        _ => (ALIGNED, ALIGNED),
    }
}
