//! The format of a disk's file, which is said and never guessed.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::file;
use super::no_medium::NoMedium;
use super::{DiskBackend, DiskError, FileDisk, FileOptions, Qcow2Disk};

/// What qcow2 images begin with.
pub(super) const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Whether a file begins as qcow2 images do.
pub(super) fn looks_like_qcow2(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == QCOW2_MAGIC
}

/// What the bytes of a disk's file mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImageFormat {
    /// They are the disk's.
    #[default]
    Raw,
    /// A qcow2 image.
    Qcow2,
    /// A qcow2 image if it begins like one, else raw. Not for disks that a guest has written as raw ones: it could have made them begin
    /// like an image that stands on any file of the host.
    Detect,
}

impl ImageFormat {
    /// The format of the file at `path`: looks into it only if that is asked for.
    pub fn of(self, path: &Path) -> Result<Self, DiskError> {
        if self != Self::Detect {
            return Ok(self);
        }
        let found = looks_like_qcow2(&file::open(path, true)?);
        Ok(if found { Self::Qcow2 } else { Self::Raw })
    }
}

/// A disk's file, as its format has it.
#[derive(Debug)]
pub(super) enum Image {
    Raw(FileDisk),
    Qcow2(Qcow2Disk),
}

impl Image {
    pub(super) fn open(path: &Path, options: FileOptions) -> Result<Self, DiskError> {
        Ok(match options.format.of(path)? {
            ImageFormat::Qcow2 => Self::Qcow2(Qcow2Disk::open(path, options)?),
            _ => Self::Raw(FileDisk::open_with(path, options)?),
        })
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Raw(disk) => disk.size(),
            Self::Qcow2(disk) => disk.size(),
        }
    }

    /// Reads what the disk holds at `offset`.
    pub(super) fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Raw(disk) => disk.file().read_exact_at(to, offset),
            Self::Qcow2(disk) => disk.read_at(offset, to),
        }
    }
}

/// Opens the disk at `path` and locks it: for itself alone if it may be written, else together with other readers.
/// [`NO_MEDIUM`](super::NO_MEDIUM) is a drive with nothing in it.
pub fn open_disk(path: &Path, options: FileOptions) -> Result<Box<dyn DiskBackend>, DiskError> {
    if let Some(drive) = NoMedium::at(path, options) {
        return Ok(Box::new(drive));
    }
    Ok(match Image::open(path, options)? {
        Image::Raw(disk) => Box::new(disk),
        Image::Qcow2(disk) => Box::new(disk),
    })
}
