//! A Unix socket behind a port, for one client at a time. The next one waits until the first has left.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::backend::{PortBackend, PortError};

/// A listening socket and its client.
#[derive(Debug)]
pub struct SocketPort {
    path: PathBuf,
    listener: UnixListener,
    client: Option<UnixStream>,
    /// Listener and client are in here, so that one descriptor stands for both.
    poll: OwnedFd,
}

impl SocketPort {
    /// Listens at `path`, where nothing may be. The socket is removed when this is dropped.
    pub fn bind(path: &Path) -> Result<Self, PortError> {
        let path = path.to_owned();
        let listener = match UnixListener::bind(&path) {
            Ok(listener) => listener,
            Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => return Err(PortError::Taken { path }),
            Err(cause) => return Err(PortError::Path { path, cause }),
        };
        let poll = listener
            .set_nonblocking(true)
            .and_then(|()| Ok(epoll::create(CreateFlags::CLOEXEC)?))
            .and_then(|poll| {
                let flags = EventFlags::IN | EventFlags::ET;
                epoll::add(&poll, &listener, EventData::new_u64(0), flags)?;
                Ok(poll)
            });
        match poll {
            Ok(poll) => Ok(Self {
                path,
                listener,
                client: None,
                poll,
            }),
            Err(cause) => Err(PortError::Path { path, cause }),
        }
    }

    fn accept(&mut self) -> io::Result<UnixStream> {
        let (client, _) = self.listener.accept()?;
        client.set_nonblocking(true)?;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&self.poll, &client, EventData::new_u64(1), flags)?;
        Ok(client)
    }

    /// Ends with the client if `result` says that it has left.
    fn watch(&mut self, result: io::Result<usize>) -> io::Result<usize> {
        match &result {
            Err(cause)
                if matches!(
                    cause.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Ok(1..) => {}
            // Closing it takes it out of the epoll as well.
            _ => self.client = None,
        }
        result
    }
}

impl Drop for SocketPort {
    fn drop(&mut self) {
        // Someone else may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl PortBackend for SocketPort {
    fn event(&self) -> Option<RawFd> {
        Some(self.poll.as_raw_fd())
    }

    fn look(&mut self) {
        // Takes the edges; what they mean is found out by trying.
        let mut events = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; 4];
        let _ = epoll::wait(&self.poll, &mut events, Some(&Timespec::default()));
        if self.client.is_none() {
            self.client = self.accept().ok();
        }
    }

    fn connected(&self) -> bool {
        self.client.is_some()
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(client) = &mut self.client else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let result = client.read(bytes);
        self.watch(result)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(client) = &mut self.client else {
            return Ok(bytes.len());
        };
        let result = client.write(bytes);
        self.watch(result)
    }

    fn hang_up(&mut self) {
        if let Some(client) = self.client.take() {
            // It may have left already.
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}
