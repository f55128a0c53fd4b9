//! What a file in an image holds: pieces of a file on the host, and holes between them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use super::ImageError;

/// How much is copied at once.
pub(super) const CHUNK: usize = 256 << 10;

/// A piece of a file that holds data; what lies between pieces reads as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where it lies in the file.
    pub(super) offset: u64,
    /// Its length.
    pub(super) len: u64,
    /// Where it lies in what the file comes from.
    pub(super) from: u64,
}

/// Where the bytes are.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// A file of a directory, opened when it is needed.
    Path(PathBuf),
    /// An archive, or what was unpacked from one.
    File(Arc<File>),
    /// Here.
    Bytes(Arc<[u8]>),
}

/// What a file holds.
#[derive(Debug, Clone)]
pub(super) struct Contents {
    /// Its size in bytes.
    pub(super) size: u64,
    /// Its pieces, in order, none empty, none past `size`.
    pub(super) pieces: Vec<Piece>,
    pub(super) origin: Origin,
}

impl Contents {
    /// A file that holds these bytes.
    #[cfg(test)]
    pub(super) fn of_bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        let whole = Piece {
            offset: 0,
            len: bytes.len() as u64,
            from: 0,
        };
        Self {
            size: whole.len,
            pieces: Some(whole).filter(|piece| piece.len > 0).into_iter().collect(),
            origin: Origin::Bytes(bytes),
        }
    }

    /// Gives every piece to `sink`, in order and in chunks, with where it lies in the file.
    pub(super) fn read(
        &self,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let source = self.open()?;
        let mut buffer = Vec::new();
        for piece in &self.pieces {
            let mut done = 0;
            while done < piece.len {
                let len = (piece.len - done).min(CHUNK as u64);
                buffer.resize(len as usize, 0);
                source.read_exact(&mut buffer, piece.from + done)?;
                sink(piece.offset + done, &buffer)?;
                done += len;
            }
        }
        Ok(())
    }

    /// Writes the whole file to `sink`, holes as zeros.
    pub(super) fn stream(
        &self,
        sink: &mut dyn Write,
        failed: &dyn Fn(io::Error) -> ImageError,
    ) -> Result<(), ImageError> {
        let mut at = 0;
        self.read(|offset, bytes| {
            zeros(sink, offset - at).map_err(failed)?;
            at = offset + bytes.len() as u64;
            sink.write_all(bytes).map_err(failed)
        })?;
        zeros(sink, self.size - at).map_err(failed)
    }

    /// All of it, for what is known to be small.
    #[cfg(test)]
    pub(super) fn to_vec(&self) -> Result<Vec<u8>, ImageError> {
        let mut bytes = vec![0; self.size as usize];
        self.read(|offset, piece| {
            bytes[offset as usize..offset as usize + piece.len()].copy_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn open(&self) -> Result<Opened<'_>, ImageError> {
        Ok(match &self.origin {
            Origin::Path(path) => {
                let file = OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                    .open(path)
                    .map_err(ImageError::io(path))?;
                let now = file.metadata().map_err(ImageError::io(path))?;
                if !now.is_file() || now.len() != self.size {
                    return Err(ImageError::source(&path.display(), CHANGED));
                }
                Opened::File {
                    file: Arc::new(file),
                    name: path.display().to_string(),
                }
            }
            Origin::File(file) => Opened::File {
                file: Arc::clone(file),
                name: "the tar file".to_owned(),
            },
            Origin::Bytes(bytes) => Opened::Bytes(bytes),
        })
    }
}

const CHANGED: &str = "it changed while the image was made; build the image again when nobody writes there";

fn zeros(sink: &mut dyn Write, mut count: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while count > 0 {
        let len = count.min(ZEROS.len() as u64);
        sink.write_all(&ZEROS[..len as usize])?;
        count -= len;
    }
    Ok(())
}

enum Opened<'a> {
    File { file: Arc<File>, name: String },
    Bytes(&'a [u8]),
}

impl Opened<'_> {
    fn read_exact(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        match self {
            Self::File { file, name } => match file.read_exact_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Err(ImageError::source(name, CHANGED))
                }
                result => result.map_err(|cause| ImageError::Io {
                    name: name.clone(),
                    cause,
                }),
            },
            Self::Bytes(bytes) => {
                let start = offset as usize;
                buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
                Ok(())
            }
        }
    }
}
