//! A disk in a raw file or a block device of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::backend::{DiskBackend, Operation, SECTOR};

/// What is written where a range must be zero and the file system cannot do it.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// Why a file cannot be a disk. Each is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Nothing there.
    #[error("{path}: there is no such file; create it, for example with truncate -s 1G {path}", path = .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// No right to it.
    #[error(
        "{path}: no permission to {verb} it; change its owner or mode{hint}",
        path = .path.display(),
        verb = if *.read_only { "read" } else { "write" },
        hint = if *.read_only { "" } else { ", or attach it read-only" }
    )]
    Denied {
        /// The file.
        path: PathBuf,
        /// It was to be read only.
        read_only: bool,
    },
    /// A file system mounted read-only.
    #[error("{path}: its file system is read-only; attach the disk read-only", path = .path.display())]
    ReadOnlyFilesystem {
        /// The file.
        path: PathBuf,
    },
    /// A directory.
    #[error("{path}: is a directory; a disk is a raw image file or a block device", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A pipe, a terminal or the like.
    #[error("{path}: is neither a regular file nor a block device", path = .path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// No bytes.
    #[error("{path}: is empty; give it a size, for example with truncate -s 1G {path}", path = .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// No overlay, or not of this disk.
    #[error("{path}: {why}", path = .path.display())]
    Overlay {
        /// The overlay.
        path: PathBuf,
        /// What it is, and what to do.
        why: &'static str,
    },
    /// Not whole sectors.
    #[error(
        "{path}: size {size} is not a multiple of 512 bytes; pad it, for example with truncate -s {padded} {path}",
        path = .path.display(),
        padded = .size.next_multiple_of(SECTOR)
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// Someone else has it.
    #[error(
        "{path}: is in use by another program{how}",
        path = .path.display(),
        how = if *.read_only {
            ", which writes to it; stop that first"
        } else {
            " (another VM?); stop that first, or attach the disk read-only in both"
        }
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// It was to be read only.
        read_only: bool,
    },
    /// A block device that the host itself uses.
    #[error("{path}: the host uses this device; unmount it first, or attach it read-only", path = .path.display())]
    Mounted {
        /// The device.
        path: PathBuf,
    },
    /// Anything else.
    #[error("{path}: cannot be opened: {cause}", path = .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
}

/// A raw file or block device, locked against others as long as it lives.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
    file: File,
    size: u64,
    read_only: bool,
}

impl FileDisk {
    /// Opens `path`, whose size must be a multiple of 512 bytes, and locks it: for itself alone if it may be written, else
    /// together with other readers.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self, DiskError> {
        let path = path.as_ref().to_owned();
        let file = open(&path, read_only)?;
        lock(&file, &path, read_only)?;
        let size = measure(&file, &path)?;
        let disk = Self {
            path,
            file,
            size,
            read_only,
        };
        disk.warn_of_other_formats();
        Ok(disk)
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// A guest may have written such bytes to its raw disk, so they are no reason to refuse it.
    fn warn_of_other_formats(&self) {
        let mut magic = [0; 4];
        if self.file.read_exact_at(&mut magic, 0).is_ok() && &magic == b"QFI\xfb" {
            let path = self.path.display();
            tracing::warn!(
                "{path}: looks like a qcow2 image, but is used as a raw one; qemu-img convert -O raw makes it one"
            );
        }
    }

    fn run(&self, operation: Operation<'_>) -> io::Result<()> {
        match operation {
            Operation::Read { offset, mut to } => to.read_exact_at(self.file.as_fd(), offset),
            Operation::Write { offset, mut from } => from.write_all_at(self.file.as_fd(), offset),
            Operation::Flush => self.file.sync_data(),
            Operation::Discard { offset, len } => Ok(self.fallocate(PUNCH_HOLE, offset, len)?),
            Operation::WriteZeroes { offset, len, unmap } => self.write_zeroes(offset, len, unmap),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let mode = if unmap {
            PUNCH_HOLE
        } else {
            FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE)
        };
        match self.fallocate(mode, offset, len) {
            Ok(()) => Ok(()),
            // Older file systems, and devices that cannot.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => self.store_zeroes(offset, len),
            Err(cause) => Err(cause.into()),
        }
    }

    fn store_zeroes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let piece = len.min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..piece as usize], offset)?;
            offset += piece;
            len -= piece;
        }
        Ok(())
    }

    fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
        loop {
            match fallocate(&self.file, mode, offset, len) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

const PUNCH_HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

impl DiskBackend for FileDisk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn refresh(&mut self, path: &Path) -> Option<Result<(), DiskError>> {
        let (there, here) = (std::fs::metadata(path).ok()?, self.file.metadata().ok()?);
        if (there.dev(), there.ino()) != (here.dev(), here.ino()) {
            return None;
        }
        let measured = measure(&self.file, path);
        Some(measured.map(|size| self.size = size))
    }

    fn writable(&self) -> bool {
        !self.read_only
    }

    fn submit(&mut self, _: u16, operation: Operation<'_>) -> Option<io::Result<()>> {
        Some(self.run(operation))
    }
}

fn open(path: &Path, read_only: bool) -> Result<File, DiskError> {
    let failed = |cause: io::Error| {
        let path = path.to_owned();
        match cause.kind() {
            io::ErrorKind::NotFound => DiskError::Missing { path },
            io::ErrorKind::PermissionDenied => DiskError::Denied { path, read_only },
            io::ErrorKind::ReadOnlyFilesystem => DiskError::ReadOnlyFilesystem { path },
            io::ErrorKind::ResourceBusy => DiskError::Mounted { path },
            _ => DiskError::Open { path, cause },
        }
    };
    // Before it is opened: a pipe would wait for its other end.
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if kind.is_dir() {
        return Err(DiskError::Directory {
            path: path.to_owned(),
        });
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::Kind {
            path: path.to_owned(),
        });
    }
    // On a block device this says that nobody else on the host may use it, a mount included.
    let exclusive = if kind.is_block_device() && !read_only {
        libc::O_EXCL
    } else {
        0
    };
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(exclusive)
        .open(path)
        .map_err(failed)
}

/// The size of an open disk.
fn measure(file: &File, path: &Path) -> Result<u64, DiskError> {
    let path = path.to_owned();
    // Unlike the metadata's length this is right for block devices too.
    let mut end = file;
    match end.seek(SeekFrom::End(0)) {
        Err(cause) => Err(DiskError::Open { path, cause }),
        Ok(0) => Err(DiskError::Empty { path }),
        Ok(size) if !size.is_multiple_of(SECTOR) => Err(DiskError::Size { path, size }),
        Ok(size) => Ok(size),
    }
}

/// Locks the whole file. The lock belongs to the open file, not to the process, so it also keeps two disks of one process
/// apart, and it meets those of QEMU.
pub(super) fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), DiskError> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let range = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: `file` is an open descriptor, and `range` is a valid `flock` that the call only reads.
    let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) };
    if locked == 0 {
        return Ok(());
    }
    let cause = io::Error::last_os_error();
    let path = path.to_owned();
    match cause.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(DiskError::InUse { path, read_only }),
        Some(libc::ENOLCK | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS) => {
            tracing::warn!(
                "{}: its file system has no locks, so nothing keeps other VMs away",
                path.display()
            );
            Ok(())
        }
        _ => Err(DiskError::Open { path, cause }),
    }
}

#[cfg(test)]
mod tests;
