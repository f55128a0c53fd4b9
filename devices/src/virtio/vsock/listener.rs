//! The Unix socket on which host programs reach the guest, and the way to those on which the guest reaches them.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};

/// Connections that wait to be accepted; the kernel takes less if the host is configured so.
const BACKLOG: i32 = 4096;

/// Why there can be no vsock device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Another file has the name.
    #[error("{path}: something that is not a socket stands there; remove it or choose another path")]
    NotSocket {
        /// The name.
        path: PathBuf,
    },
    /// Another program has the socket.
    #[error("{path}: another program listens there, perhaps another VM; choose another path")]
    InUse {
        /// The name.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("{path}: cannot listen there: {cause}")]
    Listen {
        /// The name.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The host gives no descriptor.
    #[error("the host has no descriptor for it: {0}")]
    Host(#[from] io::Error),
}

/// The listening socket. Its file goes when it does.
pub(super) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file, to remove no other.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`, for the owner alone. A socket file that nobody listens on is replaced.
    pub(super) fn new(path: &Path) -> Result<Self, VsockError> {
        let path = path.to_owned();
        remove_stale(&path)?;
        match open(&path) {
            Ok(socket) => Ok(Self {
                socket,
                file: identity(&path),
                path,
            }),
            Err(Errno::ADDRINUSE) => Err(VsockError::InUse { path }),
            Err(cause) => Err(VsockError::Listen {
                path,
                cause: cause.into(),
            }),
        }
    }

    /// The next connection, if there is one.
    pub(super) fn accept(&self) -> Result<OwnedFd, Errno> {
        accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }

    /// Address of the socket on which a host program answers the guest's connections to `port`.
    pub(super) fn service(&self, port: u32) -> Result<SocketAddrUnix, Errno> {
        SocketAddrUnix::new(service_path(&self.path, port))
    }
}

/// Where a host program listens for the guest's connections to `port`, for a device at `path`.
pub fn service_path(path: &Path, port: u32) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_some() && identity(&self.path) == self.file {
            // Whoever removed it meanwhile has done the same.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket that is not connected yet.
pub(super) fn stream() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Connects without waiting.
pub(super) fn dial(socket: &OwnedFd, address: &SocketAddrUnix) -> Result<(), Errno> {
    connect(socket, address)
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = stream()?;
    // Before the file exists, which takes its mode from here.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    let ready = listen(&socket, BACKLOG);
    // A umask only takes away, but the owner needs both.
    let moded = fs::set_permissions(path, Permissions::from_mode(0o600));
    if let Err(cause) = ready.and(moded.map_err(|cause| Errno::from_io_error(&cause).unwrap_or(Errno::IO))) {
        let _ = fs::remove_file(path);
        return Err(cause);
    }
    Ok(socket)
}

fn remove_stale(path: &Path) -> Result<(), VsockError> {
    let Ok(file) = fs::symlink_metadata(path) else {
        // Nothing there, or nothing that binding will not say better.
        return Ok(());
    };
    if !file.file_type().is_socket() {
        return Err(VsockError::NotSocket { path: path.into() });
    }
    let listen = |cause: io::Error| VsockError::Listen {
        path: path.into(),
        cause,
    };
    let probe = stream().and_then(|socket| dial(&socket, &SocketAddrUnix::new(path)?));
    match probe {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(listen),
        Err(Errno::NOENT) => Ok(()),
        // AGAIN: somebody listens and has much to accept.
        Ok(()) | Err(Errno::AGAIN) => Err(VsockError::InUse { path: path.into() }),
        Err(cause) => Err(listen(cause.into())),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}
