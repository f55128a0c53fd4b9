//! Unix sockets at paths of any length: an address has room for 107 bytes, folders know no such limit.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// What a Unix socket's address has room for (sun_path, less the NUL).
pub(crate) const PATH_MAX: usize = 107;

/// Listens at `path`.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    within(path, |path| UnixListener::bind(path))
}

/// Connects to `path`.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    within(path, |path| UnixStream::connect(path))
}

/// Calls `call` with a name of `path` that an address has room for: a long one leads through its folder's descriptor.
fn within<T>(path: &Path, call: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().as_bytes().len() <= PATH_MAX {
        return call(path);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return call(path);
    };
    let folder = open(folder)?;
    call(&short("self", &folder, name))
}

/// A name of `path` for another process to listen at, and what must be kept while that does.
pub(crate) fn lend(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) if path.as_os_str().as_bytes().len() > PATH_MAX => {
            let folder = open(folder)?;
            let own = std::process::id().to_string();
            Ok((short(&own, &folder, name), Some(folder)))
        }
        _ => Ok((path.to_owned(), None)),
    }
}

fn open(folder: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::empty())?.into())
}

fn short(process: &str, folder: &File, name: &OsStr) -> PathBuf {
    let fd = folder.as_raw_fd().to_string();
    Path::new("/proc").join(process).join("fd").join(fd).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_socket_deep_in_folders_can_be_reached() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        for path in [folder.path().join("short"), deep.join("long")] {
            let listener = bind(&path).unwrap();
            connect(&path).unwrap().write_all(b"hello").unwrap();
            let mut heard = String::new();
            listener.accept().unwrap().0.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "hello");
            assert!(path.exists());
            std::fs::remove_file(&path).unwrap();
            let (lent, _folder) = lend(&path).unwrap();
            assert!(lent.as_os_str().len() <= PATH_MAX);
            let _listener = UnixListener::bind(lent).unwrap();
            connect(&path).unwrap();
        }
    }
}
