//! The bytes of a kernel, wherever they are, and the way from a file to an uncompressed ELF image.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{BootError, Compression, Format, KernelInfo, bzimage};

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// A file on the host.
    File(PathBuf),
    /// Part of the program.
    Embedded {
        /// What error messages call it.
        name: &'static str,
        /// The kernel.
        bytes: &'static [u8],
    },
}

impl KernelSource {
    /// What error messages call it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Embedded { name, .. } => (*name).to_owned(),
        }
    }
}

/// A kernel image that can be read at any offset.
pub(crate) enum Image {
    File { file: File, len: u64 },
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

/// A file larger than this is no kernel; it is not read into memory to find that out.
const MAX_PACKED: u64 = 1 << 30;

impl Image {
    pub(crate) fn open(source: &KernelSource) -> Result<Self, BootError> {
        match source {
            KernelSource::File(path) => open_file(path)
                .map(|(file, len)| Image::File { file, len })
                .map_err(|cause| BootError::Read {
                    what: "kernel",
                    name: source.name(),
                    cause,
                }),
            KernelSource::Embedded { bytes, .. } => Ok(Self::Static(bytes)),
        }
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Static(bytes) => bytes.len() as u64,
            Self::Owned(bytes) => bytes.len() as u64,
        }
    }

    /// Up to `len` bytes from `offset`; fewer where the image ends.
    pub(crate) fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let len = len.min(usize::try_from(self.len().saturating_sub(offset)).unwrap_or(usize::MAX));
        match self {
            Self::File { file, .. } => {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(bytes)
            }
            Self::Static(bytes) => Ok(slice(bytes, offset, len).to_vec()),
            Self::Owned(bytes) => Ok(slice(bytes, offset, len).to_vec()),
        }
    }

    /// Copies `len` bytes from `offset`, which must lie inside, to guest memory at `to`, which must be RAM.
    pub(crate) fn copy(&self, offset: u64, len: u64, memory: &GuestMemoryMmap, to: u64) -> io::Result<()> {
        let to = GuestAddress(to);
        match self {
            Self::File { file, .. } => {
                let mut file = file;
                file.seek(SeekFrom::Start(offset))?;
                let mut file = file.try_clone()?;
                memory
                    .read_exact_volatile_from(to, &mut file, len as usize)
                    .map_err(io::Error::other)
            }
            Self::Static(bytes) => memory
                .write_slice(slice(bytes, offset, len as usize), to)
                .map_err(io::Error::other),
            Self::Owned(bytes) => memory
                .write_slice(slice(bytes, offset, len as usize), to)
                .map_err(io::Error::other),
        }
    }

    /// All of it, for a decoder.
    pub(crate) fn into_bytes(self) -> io::Result<Vec<u8>> {
        match self {
            Self::File { mut file, len } => {
                if len > MAX_PACKED {
                    return Err(io::Error::other(
                        "it is larger than 1 GiB and packed; no kernel is",
                    ));
                }
                let mut bytes = Vec::with_capacity(len as usize);
                file.rewind()?;
                file.take(MAX_PACKED).read_to_end(&mut bytes)?;
                Ok(bytes)
            }
            Self::Static(bytes) => Ok(bytes.to_vec()),
            Self::Owned(bytes) => Ok(bytes),
        }
    }
}

/// Opens a file that a guest boots from, and says how long it is.
///
/// # Errors
/// What is wrong with the path and what to do, as the end of a sentence that names it.
pub fn open_file(path: &std::path::Path) -> io::Result<(File, u64)> {
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => io::Error::other("there is no such file; check its path"),
        io::ErrorKind::PermissionDenied => {
            io::Error::other("no permission to read it; change its owner or mode")
        }
        _ => cause,
    };
    // Before it is opened: a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(io::Error::other("it is not a regular file; name one that is"));
    }
    let file = File::open(path).map_err(failed)?;
    let len = file.metadata()?.len();
    if len == 0 {
        return Err(io::Error::other("it is empty; see how it was made"));
    }
    Ok((file, len))
}

fn slice(bytes: &[u8], offset: u64, len: usize) -> &[u8] {
    let start = (offset as usize).min(bytes.len());
    &bytes[start..bytes.len().min(start + len)]
}

/// Turns any accepted container into an ELF image. `ram` bounds what a compressed one may come to.
pub(crate) fn unpack(name: &str, image: Image, ram: u64) -> Result<(Image, KernelInfo), BootError> {
    let read = |cause| BootError::Read {
        what: "kernel",
        name: name.to_owned(),
        cause,
    };
    let magic = image.read_at(0, 16).map_err(read)?;
    if magic.starts_with(b"\x7fELF") {
        return Ok((
            image,
            KernelInfo {
                format: Format::Elf,
                compression: None,
            },
        ));
    }
    if let Some(compression) = Compression::detect(&magic) {
        let inner = decode(name, compression, &image.into_bytes().map_err(read)?, ram)?;
        let (inner, info) = match Compression::detect(&inner) {
            // A kernel packed twice is nothing that any build makes.
            Some(_) => return Err(unknown(name, &inner)),
            None => unpack(name, Image::Owned(inner), ram)?,
        };
        return Ok((
            inner,
            KernelInfo {
                compression: Some(compression),
                ..info
            },
        ));
    }
    if bzimage::is_bzimage(&image).map_err(read)? {
        let payload = bzimage::payload(name, &image)?;
        let payload = image
            .read_at(payload.start, (payload.end - payload.start) as usize)
            .map_err(read)?;
        let (inner, compression) = match Compression::detect(&payload) {
            Some(compression) => (decode(name, compression, &payload, ram)?, Some(compression)),
            None => (payload, None),
        };
        if !inner.starts_with(b"\x7fELF") {
            let what = "the payload of the bzImage is not an ELF file".to_owned();
            return Err(BootError::Malformed {
                name: name.to_owned(),
                what,
            });
        }
        return Ok((
            Image::Owned(inner),
            KernelInfo {
                format: Format::BzImage,
                compression,
            },
        ));
    }
    Err(unknown(name, &magic))
}

fn unknown(name: &str, bytes: &[u8]) -> BootError {
    BootError::UnknownFormat {
        name: name.to_owned(),
        magic: bytes[..bytes.len().min(4)].to_vec(),
    }
}

fn decode(name: &str, compression: Compression, packed: &[u8], ram: u64) -> Result<Vec<u8>, BootError> {
    match compression.unpack(packed, ram) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(BootError::Bomb {
            name: name.to_owned(),
            mib: ram >> 20,
        }),
        Err(cause) => Err(BootError::Unpack {
            name: name.to_owned(),
            format: compression.name(),
            cause,
        }),
    }
}
