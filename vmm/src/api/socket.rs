//! The API's socket: made for its owner alone, in the place of one that nobody listens on any more, removed at the end.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::unmade;

/// What a Unix socket's address has room for (sun_path, less the NUL).
const PATH_MAX: usize = 107;
/// How many clients may wait to be accepted.
const BACKLOG: i32 = 128;

/// Why there is no socket at the path.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The name does not fit.
    #[error("api-sock: the path {} has {length} bytes; Linux allows {PATH_MAX}", .path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// Another program listens there.
    #[error("api-sock: {}: another program listens there; end it or choose another path", .0.display())]
    Busy(PathBuf),
    /// Something else is there.
    #[error("api-sock: {}: something that is not a socket is there; remove it or choose another path", .0.display())]
    Taken(PathBuf),
    /// The system refused it.
    #[error("api-sock: {}: {}", .path.display(), unmade::why(.path, .cause))]
    Bind {
        /// The path.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// The file of a listening socket. It is removed when this is dropped, unless another has taken its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // Someone else may have removed it between the two.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Listens at `path`, which only the socket's owner may then connect to.
pub(crate) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let length = path.as_os_str().len();
    if length > PATH_MAX {
        return Err(SocketError::TooLong {
            path: path.to_owned(),
            length,
        });
    }
    remove_stale(path)?;
    let listener = bind(path).map_err(|cause| SocketError::Bind {
        path: path.to_owned(),
        cause: cause.into(),
    })?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path),
    };
    Ok((listener, file))
}

fn bind(path: &Path) -> Result<UnixListener, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the file the mode of the socket, so there is no moment in which others may connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Removes a socket that nobody listens on, and nothing else.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |cause| SocketError::Bind {
        path: path.to_owned(),
        cause,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::Taken(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        // Somebody answers; or a listener's queue is full, it is one of another kind, it is not ours to ask.
        _ => Err(SocketError::Busy(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_the_owner_may_connect_and_the_file_goes_with_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let (_listener, file) = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, _file) = listen(&path).unwrap();
        let refused = listen(&path).unwrap_err();
        assert!(matches!(refused, SocketError::Busy(_)), "{refused}");
    }

    #[test]
    fn anything_but_a_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "precious").unwrap();
        let refused = listen(&path).unwrap_err();
        assert!(matches!(refused, SocketError::Taken(_)), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("nothing"), &link).unwrap();
        assert!(matches!(listen(&link), Err(SocketError::Taken(_))));
    }

    #[test]
    fn a_file_that_took_the_sockets_place_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let (_listener, file) = listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn a_path_too_long_for_linux_is_refused_by_its_length() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        let sentence = listen(&path).unwrap_err().to_string();
        assert!(sentence.contains("has 205 bytes; Linux allows 107"), "{sentence}");
    }
}
