//! What stands behind a port: somebody to talk to, or a place for output.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

/// Why a port leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The file or socket cannot be made.
    #[error("{}: {cause}", .path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Something is at the socket's path already.
    #[error("{}: something is there already; remove it or choose another path", .path.display())]
    Taken {
        /// The path.
        path: PathBuf,
    },
}

/// The host's end of a port. It never waits.
pub trait PortBackend: Send {
    /// A descriptor whose edges mean that something may be there to be read, or room to write.
    fn event(&self) -> Option<RawFd> {
        None
    }
    /// The descriptor had an edge, or the last [`read`](Self::read) or [`write`](Self::write) failed: looks who is there.
    fn look(&mut self) {}
    /// Whether anybody is at the other end.
    fn connected(&self) -> bool {
        true
    }
    /// Reads what is there for the guest; `WouldBlock` if that is nothing.
    fn read(&mut self, _bytes: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    /// Writes some of what the guest wrote; `WouldBlock` if there is no room.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// The guest has closed the port: whoever is at the other end is to know.
    fn hang_up(&mut self) {}
}

/// Nowhere: output is dropped, and there is no input.
#[derive(Debug, Clone, Copy)]
pub struct NullPort;

impl PortBackend for NullPort {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
}

/// A file that output is appended to.
#[derive(Debug)]
pub struct FilePort(File);

impl FilePort {
    /// Opens the file at `path`, or makes it.
    pub fn open(path: &Path) -> Result<Self, PortError> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        file.map(Self).map_err(|cause| PortError::Path {
            path: path.to_owned(),
            cause,
        })
    }
}

impl PortBackend for FilePort {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            // Whatever it is, it is no file to wait for.
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => Ok(bytes.len()),
            result => result,
        }
    }
}
