//! What stores a disk's bytes.

use std::io;
use std::path::Path;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{DiskError, FileOptions};
use crate::virtio::queue::GuestIo;

/// Bytes of a sector: the unit of sizes and offsets.
pub const SECTOR: u64 = 512;

/// One thing to do to the stored bytes. Ranges are whole sectors and lie within the disk.
pub enum Operation<'a> {
    /// Fill guest buffers.
    Read {
        /// Offset in bytes.
        offset: u64,
        /// Where to.
        to: GuestIo<'a>,
    },
    /// Store guest buffers.
    Write {
        /// Offset in bytes.
        offset: u64,
        /// Where from.
        from: GuestIo<'a>,
    },
    /// Make every write that was completed before last.
    Flush,
    /// Forget a range; what it reads as afterwards does not matter. `Unsupported` if the store cannot.
    Discard {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Let a range read as zeros.
    WriteZeroes {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Its space may be given back.
        unmap: bool,
    },
}

/// Where a disk's bytes are. Owned by the device that shows them to the guest, on its I/O thread.
///
/// A backend may do an operation at once or begin it. In the latter case it keeps guest memory mapped
/// ([`HeldIo`](crate::virtio::queue::HeldIo)), and [`completed`](Self::completed) returns the operation's token when it is done.
pub trait DiskBackend: Send {
    /// What to call it in messages, for example its path.
    fn name(&self) -> String;
    /// Size in bytes, whole sectors. Constant but for [`refresh`](Self::refresh).
    fn size(&self) -> u64;
    /// If the bytes are those of the file at `path`, takes the file's size as it is now.
    fn refresh(&mut self, _path: &Path) -> Option<Result<(), DiskError>> {
        None
    }
    /// How a file that takes the place of this one is to be used.
    fn options(&self) -> FileOptions {
        FileOptions::default()
    }
    /// Whether the bytes can change at all.
    fn writable(&self) -> bool;
    /// Does `operation` and returns how that went, or begins it and returns nothing.
    fn submit(&mut self, token: u16, operation: Operation<'_>) -> Option<io::Result<()>>;
    /// Puts what is kept in memory where whoever copies the files now would miss it. Called when the queue stops.
    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// From now on `event` is to be signalled when an operation that was begun is complete. A backend that was not told of one does
    /// everything at once.
    fn notify(&mut self, _event: Arc<EventFd>) {}
    /// There are no more operations for now: hands over what was begun.
    fn commit(&mut self) {}
    /// An operation that is complete, by its token, and how it went. If `wait` is set and any is under way, waits for one.
    fn completed(&mut self, _wait: bool) -> Option<(u16, io::Result<()>)> {
        None
    }
}

/// Bytes that are part of the program: the root image that ships with it. Read-only.
#[derive(Debug, Clone, Copy)]
pub struct StaticDisk {
    bytes: &'static [u8],
}

impl StaticDisk {
    /// A disk of `bytes`. A last sector that is not whole is filled with zeros.
    pub const fn new(bytes: &'static [u8]) -> Self {
        Self { bytes }
    }
}

impl DiskBackend for StaticDisk {
    fn name(&self) -> String {
        "the built-in image".to_owned()
    }

    fn size(&self) -> u64 {
        (self.bytes.len() as u64).next_multiple_of(SECTOR)
    }

    fn writable(&self) -> bool {
        false
    }

    fn submit(&mut self, _: u16, operation: Operation<'_>) -> Option<io::Result<()>> {
        let result = match operation {
            Operation::Read { offset, mut to } => {
                let bytes = usize::try_from(offset)
                    .ok()
                    .and_then(|offset| self.bytes.get(offset..));
                to.copy_from(bytes.unwrap_or_default());
                let rest = to.len().min(SECTOR) as usize;
                to.copy_from(&[0; SECTOR as usize][..rest]);
                if to.is_empty() {
                    Ok(())
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                }
            }
            Operation::Flush => Ok(()),
            _ => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        };
        Some(result)
    }
}
