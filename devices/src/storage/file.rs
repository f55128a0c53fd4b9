//! A disk in a raw file or a block device of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::backend::{DiskBackend, Operation, SECTOR};
use super::engine::{Engine, Jobs};
use super::format::{ImageFormat, looks_like_qcow2};
use super::qcow2::Qcow2Fault;
use super::store::Store;

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
    /// No way past the page cache.
    #[error(
        "{path}: cannot be used past the page cache ({cause}); its file system may have no direct I/O: leave direct out",
        path = .path.display()
    )]
    Direct {
        /// The file.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
    /// Not a qcow2 image that can be used.
    #[error("{path}: {why}", path = .path.display())]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        why: Box<Qcow2Fault>,
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

/// How a file is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileOptions {
    /// It is only read.
    pub read_only: bool,
    /// Past the host's page cache, where requests are aligned as that needs.
    pub direct: bool,
    /// Who does the work.
    pub engine: Engine,
    /// What its bytes mean.
    pub format: ImageFormat,
}

/// A raw file or block device, locked against others as long as it lives.
pub struct FileDisk {
    path: PathBuf,
    store: Arc<Store>,
    jobs: Jobs<Store>,
    size: u64,
    options: FileOptions,
}

impl std::fmt::Debug for FileDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FileDisk").field(&self.path).finish()
    }
}

impl FileDisk {
    /// Opens `path`, whose size must be a multiple of 512 bytes, and locks it: for itself alone if it may be written, else
    /// together with other readers.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Self, DiskError> {
        let options = FileOptions {
            read_only,
            ..Default::default()
        };
        Self::open_with(path, options)
    }

    /// Opens `path` as [`open`](Self::open) does, to be used in a certain way.
    pub fn open_with(path: impl AsRef<Path>, options: FileOptions) -> Result<Self, DiskError> {
        let path = path.as_ref().to_owned();
        let FileOptions {
            read_only,
            direct,
            engine,
            ..
        } = options;
        let file = open(&path, read_only)?;
        lock(&file, &path, read_only)?;
        let size = measure(&file, &path)?;
        let mut store = Store::new(file);
        if direct {
            store.open_direct(read_only).map_err(|cause| DiskError::Direct {
                path: path.clone(),
                cause,
            })?;
        }
        let store = Arc::new(store);
        let disk = Self {
            path,
            jobs: Jobs::new(engine, store.clone()),
            store,
            size,
            options,
        };
        disk.warn_of_other_formats();
        Ok(disk)
    }

    /// The file, to be mapped.
    pub fn file(&self) -> &File {
        self.store.file()
    }

    /// A guest may have written such bytes to its raw disk, so they are no reason to refuse it.
    fn warn_of_other_formats(&self) {
        if looks_like_qcow2(self.file()) {
            let path = self.path.display();
            tracing::warn!(
                "{path}: looks like a qcow2 image, but is used as a raw one; say format=qcow2 if it is to be used as such"
            );
        }
    }
}

impl DiskBackend for FileDisk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn refresh(&mut self, path: &Path) -> Option<Result<(), DiskError>> {
        let (there, here) = (std::fs::metadata(path).ok()?, self.file().metadata().ok()?);
        if (there.dev(), there.ino()) != (here.dev(), here.ino()) {
            return None;
        }
        let measured = measure(self.file(), path);
        Some(measured.map(|size| self.size = size))
    }

    fn options(&self) -> FileOptions {
        self.options
    }

    fn writable(&self) -> bool {
        !self.options.read_only
    }

    fn notify(&mut self, event: Arc<EventFd>) {
        self.jobs.notify(event);
    }

    fn submit(&mut self, token: u16, operation: Operation<'_>) -> Option<io::Result<()>> {
        self.jobs.submit(token, operation)
    }

    fn commit(&mut self) {
        self.jobs.commit();
    }

    fn completed(&mut self, wait: bool) -> Option<(u16, io::Result<()>)> {
        self.jobs.completed(wait)
    }
}

pub(super) fn open(path: &Path, read_only: bool) -> Result<File, DiskError> {
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
    match length(file) {
        Err(cause) => Err(DiskError::Open { path, cause }),
        Ok(0) => Err(DiskError::Empty { path }),
        Ok(size) if !size.is_multiple_of(SECTOR) => Err(DiskError::Size { path, size }),
        Ok(size) => Ok(size),
    }
}

/// The bytes of a file. Unlike its metadata's length this is right for block devices too.
pub(super) fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
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
