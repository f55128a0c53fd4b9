//! A disk in a qcow2 image: it holds what was written, and shows another image where it has nothing.
//!
//! The format is the work of the `imago` crate. Here are what it is given (files that are open, locked and whose headers were checked, so that
//! it never opens one itself) and the threads that it runs on: an operation may have to read tables and copy clusters before it is done.
//!
//! Once the file could not be written, the library may hold for written what is not: a table that later requests are then written to and
//! that no flush writes. So nothing more is written, and no flush succeeds, until the image is opened anew; it can still be read.
//!
//! Should the library panic, the request fails and so does every later one: nobody knows what it left. What was flushed before is in the
//! file, and other disks and the guest go on.

#![forbid(unsafe_code)]

mod header;
mod layers;
mod refcounts;

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::FormatAccess;
#[cfg(not(test))]
use imago::file::File as Storage;
use vmm_sys_util::eventfd::EventFd;

use super::backend::{DiskBackend, Operation};
use super::engine::{Jobs, Work};
#[cfg(test)]
use super::faulty::FaultyFile as Storage;
use super::file::{DiskError, FileOptions};
use crate::contained::contain;
use layers::Identity;

/// Bytes that are moved at once: the largest cluster, so that one which is written whole is never filled from below before.
const PIECE: u64 = 2 << 20;

/// An image and those that it stands on, which are only read.
type Layers = FormatAccess<Storage>;

/// What is wrong with a qcow2 image. Each goes on a sentence that begins with the image's path.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Fault {
    /// Another format.
    #[error("is no qcow2 image; leave its format out if it is a raw one")]
    Magic,
    /// A version that is not known.
    #[error(
        "is of version {0} of qcow2, of which 2 and 3 are known; qemu-img convert -O qcow2 makes one of version 3"
    )]
    Version(u32),
    /// Fields that cannot be.
    #[error("{0}; the image is damaged, qemu-img check may tell more")]
    Damaged(&'static str),
    /// No sectors, not whole ones, or more than the format can have.
    #[error(
        "its disk has {0} bytes, which must be whole sectors of 512 and not more than its clusters can hold; qemu-img resize changes that"
    )]
    Size(u64),
    /// Ciphers.
    #[error("is encrypted; qemu-img convert makes an image that is not")]
    Encrypted,
    /// It was not closed.
    #[error("was not closed by the program that wrote it last; qemu-img check -r all repairs it")]
    Dirty,
    /// A program found it to be damaged.
    #[error("is marked as corrupt; qemu-img check -r all may repair it")]
    Corrupt,
    /// Data elsewhere.
    #[error(
        "keeps its data in another file, which Berth does not read; qemu-img convert -O qcow2 makes one image of both"
    )]
    DataFile,
    /// Not deflate.
    #[error(
        "is compressed by another method than zlib; qemu-img convert -O qcow2 makes an image that is not compressed"
    )]
    Compression,
    /// Subclusters.
    #[error(
        "has extended L2 entries, which Berth does not read; qemu-img convert -O qcow2 makes an image without"
    )]
    ExtendedL2,
    /// Features of later times.
    #[error(
        "needs features that are not known here (bits {0:#x}); qemu-img convert -O qcow2 may make an image without"
    )]
    Features(u64),
    /// QEMU would have to guess.
    #[error(
        "does not say what format its backing file {name} has, and that is not guessed; say it with qemu-img rebase -u -b {name} -F raw (or qcow2)"
    )]
    BackingFormatMissing {
        /// The backing file, as it is written.
        name: String,
    },
    /// Formats that only QEMU reads.
    #[error("its backing file {name} is said to be of the format {format:?}; it can be raw or qcow2")]
    BackingFormat {
        /// What is said.
        format: String,
        /// The backing file, as it is written.
        name: String,
    },
    /// Network block devices and the like.
    #[error(
        "stands on something reached by {protocol:?}; Berth reads backing files only, and takes ./ before a name for one with a colon"
    )]
    BackingProtocol {
        /// What is before the colon.
        protocol: String,
    },
    /// It stands on itself.
    #[error("stands on itself; qemu-img rebase gives it another backing file")]
    Loop,
    /// Too many below.
    #[error("stands on more than {0} other images; qemu-img commit or convert makes fewer of them")]
    Deep(usize),
    /// Something is wrong below.
    #[error("cannot be used without its backing file: {0}")]
    Backing(DiskError),
    /// Anything else.
    #[error("cannot be opened as a qcow2 image: {0}")]
    Open(#[from] io::Error),
}

/// A qcow2 image, locked against others as long as it lives, as are those that it stands on against writers.
pub struct Qcow2Disk {
    path: PathBuf,
    /// Before the image: their threads end first.
    jobs: Jobs<Image>,
    image: Arc<Image>,
    size: u64,
    identity: Identity,
    options: FileOptions,
}

impl std::fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Qcow2Disk").field(&self.path).finish()
    }
}

impl Qcow2Disk {
    /// Opens the image at `path` and what it stands on.
    pub fn open(path: &Path, options: FileOptions) -> Result<Self, DiskError> {
        let opened = contain(|| layers::open(path, options.read_only))
            .map_err(|panic| layers::fault(path, io::Error::other(panic)))??;
        let image = Arc::new(Image {
            path: path.to_owned(),
            layers: Arc::new(RwLock::new(opened.layers)),
            broken: AtomicBool::new(false),
            unwritten: AtomicBool::new(false),
            spare: Mutex::default(),
            writable: !options.read_only,
            span: opened.span,
            settled: Mutex::default(),
        });
        Ok(Self {
            path: path.to_owned(),
            jobs: Jobs::new(options.engine, image.clone()),
            image,
            size: opened.size,
            identity: opened.identity,
            options,
        })
    }

    /// The backing file of the image at `path`, which a VM may have, as it is written there; nothing if it has none.
    pub fn backing_name(path: &Path) -> Result<Option<PathBuf>, DiskError> {
        Ok(layers::peek(path)?.backing.map(|backing| backing.name.into()))
    }

    /// Reads what the disk holds at `offset`. Past its end is an error.
    pub fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(to.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.image.contained(|image| image.shared().read(to, offset))
    }
}

impl DiskBackend for Qcow2Disk {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn refresh(&mut self, path: &Path) -> Option<Result<(), DiskError>> {
        let there = std::fs::metadata(path).ok()?;
        // Its size is in its header, which nobody else changes while it is locked.
        ((there.dev(), there.ino()) == self.identity).then_some(Ok(()))
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

    fn completed(&mut self, wait: bool) -> Option<(u16, io::Result<()>)> {
        self.jobs.completed(wait)
    }

    /// Tables that were changed are in memory: a copy of the file without them would lack what was written.
    fn settle(&mut self) -> io::Result<()> {
        if self.writable() {
            self.image.contained(|image| image.change(Layers::flush))?;
        }
        Ok(())
    }
}

/// What the threads work on.
struct Image {
    /// For messages.
    path: PathBuf,
    /// Shared, but for what moves clusters away under the others.
    layers: Arc<RwLock<Layers>>,
    /// The library has panicked.
    broken: AtomicBool,
    /// Something could not be written. It is set before the lock is let go.
    unwritten: AtomicBool,
    /// Buffers that nobody uses now. The format is not read from, nor written to, memory that a guest can change meanwhile.
    spare: Mutex<Vec<Vec<u8>>>,
    writable: bool,
    /// Bytes of the disk that one second-level table stands for.
    span: u64,
    /// Which of those tables were written to and are in the file, with what says that they are in use.
    settled: Mutex<HashSet<u64>>,
}

impl Image {
    /// A table that is made is at once in the file, but the library keeps in memory for a while that its place is taken. A crash in between
    /// would leave an image that must be repaired, so the first write to each table has that put into the file too.
    fn settle_tables(&self, offset: u64, len: u64) -> io::Result<()> {
        let tables = offset / self.span..(offset + len).div_ceil(self.span);
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if tables.clone().any(|table| !settled.contains(&table)) {
            self.change(Layers::flush)?;
            settled.extend(tables);
        }
        Ok(())
    }

    /// Does something by the library, unless that has panicked before.
    fn contained<T>(&self, work: impl FnOnce(&Self) -> io::Result<T>) -> io::Result<T> {
        if self.broken.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "the library that reads the image has failed before",
            ));
        }
        contain(|| work(self)).unwrap_or_else(|panic| {
            self.broken.store(true, Ordering::Release);
            // When it goes it writes what it remembers, which is not to be trusted.
            std::mem::forget(self.layers.clone());
            tracing::error!(
                "{}: nothing is read or written any more, because of {panic}; what the guest flushed is there",
                self.path.display()
            );
            Err(io::Error::other(panic))
        })
    }

    /// Changes the image, or finds that it can no longer be changed.
    fn change(&self, work: impl FnOnce(&Layers) -> io::Result<()>) -> io::Result<()> {
        let layers = self.shared();
        self.note(|| work(&layers))
    }

    /// The same for what others must stay away from meanwhile.
    fn change_alone(&self, work: impl FnOnce(&mut Layers) -> io::Result<()>) -> io::Result<()> {
        let mut layers = self.alone();
        self.note(|| work(&mut layers))
    }

    /// Does something under the lock, and notes whether it failed.
    fn note(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if self.unwritten.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "what could not be written before stands in the way",
            ));
        }
        work().inspect_err(|cause| {
            if cause.kind() != io::ErrorKind::Unsupported && !self.unwritten.swap(true, Ordering::AcqRel) {
                tracing::error!(
                    "{}: it takes no more writes until the VM starts anew: {cause}",
                    self.path.display()
                );
            }
        })
    }

    /// Waits for the changes that are under way, so that it is known of each whether it failed.
    fn settle_changes(&self) {
        drop(self.alone());
    }

    fn shared(&self) -> RwLockReadGuard<'_, Layers> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Layers> {
        self.layers.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `each` with a buffer for each piece of a range, and its offset.
    fn pieces(
        &self,
        mut offset: u64,
        mut len: u64,
        mut each: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = self.spare().pop().unwrap_or_default();
        let mut result = Ok(());
        while len > 0 && result.is_ok() {
            let piece = (PIECE - offset % PIECE).min(len);
            if buffer.len() < piece as usize {
                buffer.resize(piece as usize, 0);
            }
            result = each(&mut buffer[..piece as usize], offset);
            offset += piece;
            len -= piece;
        }
        self.spare().push(buffer);
        result
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let done = if unmap {
            self.change_alone(|layers| layers.discard_to_zero(offset, len))
        } else {
            self.change(|layers| layers.write_zeroes(offset, len))
        };
        match done {
            // Version 2 has no clusters that are zero.
            Err(cause) if cause.kind() == io::ErrorKind::Unsupported => {
                self.pieces(offset, len, |piece, offset| {
                    piece.fill(0);
                    self.change(|layers| layers.write(&*piece, offset))
                })
            }
            done => done,
        }
    }
}

impl Work for Image {
    fn run(&self, operation: Operation<'_>) -> io::Result<()> {
        self.contained(|image| image.operate(operation))
    }
}

impl Image {
    fn operate(&self, operation: Operation<'_>) -> io::Result<()> {
        if !self.writable && !matches!(operation, Operation::Read { .. } | Operation::Flush) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        match operation {
            Operation::Read { offset, mut to } => self.pieces(offset, to.len(), |piece, offset| {
                self.shared().read(&mut *piece, offset)?;
                to.copy_from(piece);
                Ok(())
            }),
            Operation::Write { offset, mut from } => self.pieces(offset, from.len(), |piece, offset| {
                from.copy_to(piece);
                self.change(|layers| layers.write(&*piece, offset))?;
                self.settle_tables(offset, piece.len() as u64)
            }),
            Operation::Flush if !self.writable => Ok(()),
            Operation::Flush => {
                self.settle_changes();
                self.change(|layers| {
                    layers.flush()?;
                    layers.sync()
                })
            }
            Operation::Discard { offset, len } => {
                self.change_alone(|layers| layers.discard_to_any(offset, len))?;
                self.settle_tables(offset, len)
            }
            Operation::WriteZeroes { offset, len, unmap } => {
                self.write_zeroes(offset, len, unmap)?;
                self.settle_tables(offset, len)
            }
        }
    }
}
