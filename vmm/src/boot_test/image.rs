//! What a guest has left on its disks: bytes, and files of ext4.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use berth_devices::storage::{FileOptions, ImageFormat, OverlayDisk, Qcow2Disk};
use ext4_view::{Ext4, Ext4Error, Ext4Read};

/// A file that is longer than this is not looked into.
const FILE_MAX: u64 = 64 << 20;

/// An image, with its overlay if it has one.
pub(super) enum Image {
    Raw(File),
    Qcow2(Box<Qcow2Disk>),
    Overlay(Box<OverlayDisk>),
}

impl Image {
    /// Opens it. The error is a sentence.
    pub(super) fn open(path: &Path, format: ImageFormat, overlay: Option<&Path>) -> Result<Self, String> {
        let format = format.of(path).map_err(|error| error.to_string())?;
        match overlay {
            None if format == ImageFormat::Qcow2 => {
                let options = FileOptions {
                    read_only: true,
                    format,
                    ..FileOptions::default()
                };
                Qcow2Disk::open(path, options)
                    .map(|disk| Self::Qcow2(Box::new(disk)))
                    .map_err(|error| error.to_string())
            }
            None => File::open(path)
                .map(Self::Raw)
                .map_err(|error| format!("{}: {error}", path.display())),
            Some(overlay) => OverlayDisk::open(path, format, overlay)
                .map(|disk| Self::Overlay(Box::new(disk)))
                .map_err(|error| error.to_string()),
        }
    }

    /// The bytes at `offset`.
    pub(super) fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Raw(file) => file.read_exact_at(to, offset),
            Self::Qcow2(disk) => disk.read_at(offset, to),
            Self::Overlay(disk) => disk.read_at(offset, to),
        }
    }

    /// What the file at `path` of its ext4 file system holds; nothing if there is none. The error is a sentence.
    pub(super) fn file(self, path: &str) -> Result<Option<Vec<u8>>, String> {
        let system = Ext4::load(Box::new(self))
            .map_err(|error| format!("the disk has no ext4 file system that can be read: {error}"))?;
        let data = match system.metadata(path) {
            Ok(data) => data,
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => return Ok(None),
            Err(error) => return Err(format!("{path}: {error}")),
        };
        if data.is_dir() {
            return Ok(Some(Vec::new()));
        }
        if data.len() > FILE_MAX {
            return Err(format!(
                "{path}: it has {} bytes, more than is looked into",
                data.len()
            ));
        }
        system
            .read(path)
            .map(Some)
            .map_err(|error| format!("{path}: {error}"))
    }
}

impl Ext4Read for Image {
    fn read(&mut self, start: u64, to: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        Ok(self.read_at(start, to)?)
    }
}
