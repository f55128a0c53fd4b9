//! An image's bytes at any offset.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An image to look at.
pub(super) enum Look<'a> {
    File {
        file: File,
        len: u64,
    },
    /// A part of a file.
    Part {
        file: &'a File,
        start: u64,
        len: u64,
    },
    Bytes(&'a [u8]),
}

impl<'a> Look<'a> {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let data = file.metadata()?;
        if data.is_dir() {
            return Err(io::Error::other("it is a directory; name an image"));
        }
        // A block device has its length at its end.
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Self::File { file, len })
    }

    pub(super) fn of_bytes(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } | Self::Part { len, .. } => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// `N` bytes from `offset`, where there are as many.
    pub(super) fn read<const N: usize>(&self, offset: u64) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        let inside = offset.checked_add(N as u64).is_some_and(|end| end <= self.len());
        if !inside {
            return Ok(None);
        }
        match self {
            Self::File { file, .. } => return exact(file, offset),
            Self::Part { file, start, .. } => return exact(file, start + offset),
            Self::Bytes(all) => bytes.copy_from_slice(&all[offset as usize..offset as usize + N]),
        }
        Ok(Some(bytes))
    }

    /// A part of it.
    pub(super) fn part(&self, start: u64, size: u64) -> Option<Look<'_>> {
        let left = self.len().checked_sub(start)?;
        let len = left.min(size);
        Some(match self {
            Self::Bytes(bytes) => Look::Bytes(&bytes[start as usize..(start + len) as usize]),
            Self::File { file, .. } => Look::Part { file, start, len },
            Self::Part { file, start: own, .. } => Look::Part {
                file,
                start: own + start,
                len,
            },
        })
    }

    /// All of it, from its start.
    pub(super) fn stream(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::File { file, .. } => {
                let mut file = file.try_clone()?;
                file.rewind()?;
                Box::new(file)
            }
            Self::Part { file, start, len } => {
                let mut file = file.try_clone()?;
                file.seek(SeekFrom::Start(*start))?;
                Box::new(file.take(*len))
            }
            Self::Bytes(bytes) => Box::new(*bytes),
        })
    }
}

fn exact<const N: usize>(file: &File, offset: u64) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(Some(bytes)),
        // It has become shorter.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Numbers in structures.
pub(super) trait Numbers {
    fn le16(&self, at: usize) -> u16;
    fn le32(&self, at: usize) -> u32;
    fn le64(&self, at: usize) -> u64;
    fn be32(&self, at: usize) -> u32;
    fn be64(&self, at: usize) -> u64;
}

impl Numbers for [u8] {
    fn le16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self[at], self[at + 1]])
    }

    fn le32(&self, at: usize) -> u32 {
        u32::from(self.le16(at)) | u32::from(self.le16(at + 2)) << 16
    }

    fn le64(&self, at: usize) -> u64 {
        u64::from(self.le32(at)) | u64::from(self.le32(at + 4)) << 32
    }

    fn be32(&self, at: usize) -> u32 {
        self.le32(at).swap_bytes()
    }

    fn be64(&self, at: usize) -> u64 {
        self.le64(at).swap_bytes()
    }
}
