//! Where a serial port's output goes.
//!
//! A byte is written when the guest writes it: no buffer, so nothing is lost when the VM ends, and no thread. A reader that
//! is slow holds the guest up, as a real line would; a VM that is ending is not held up.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use berth_devices::limiter::Meter;
use berth_devices::warn_guest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::stop::{StopCell, StopReason};

/// How long to wait for a reader before looking whether the VM ends: a kick that comes just before the wait is not seen.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// A descriptor that takes output: standard output, a file, a pipe.
pub(crate) struct Stream {
    fd: OwnedFd,
    stop: Arc<StopCell>,
    /// What the descriptor is called where the VM runs for what it says there, and ends when nobody can have it.
    purpose: Option<&'static str>,
    /// Its reader has left for good, which was said once.
    unread: bool,
}

impl Stream {
    pub(crate) fn new(fd: OwnedFd, stop: Arc<StopCell>) -> Self {
        Self {
            fd,
            stop,
            purpose: None,
            unread: false,
        }
    }

    /// A stream whose loss ends the VM, as it would end a program that writes to it: by SIGPIPE where nobody reads it.
    pub(crate) fn essential(fd: OwnedFd, stop: Arc<StopCell>, name: &'static str) -> Self {
        Self {
            purpose: Some(name),
            ..Self::new(fd, stop)
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unread {
            return Ok(bytes.len());
        }
        let cause = match write_when_ready(&self.fd, bytes, &self.stop) {
            Err(cause) => cause,
            written => return written,
        };
        self.unread = cause.kind() == io::ErrorKind::BrokenPipe;
        match self.purpose {
            None => Err(cause),
            Some(name) => {
                self.stop.stop(if self.unread {
                    StopReason::Killed(Some(libc::SIGPIPE))
                } else {
                    StopReason::Fault(format!("{name} cannot be written: {cause}"))
                });
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// As much as a pipe that is ready takes without waiting (PIPE_BUF).
const ATOMIC: usize = 4096;

/// Writes what `fd` takes without making a VM that ends wait for it: then it is as if all were written.
fn write_when_ready(fd: impl AsFd, bytes: &[u8], stop: &StopCell) -> io::Result<usize> {
    loop {
        let mut poll_fd = [PollFd::new(&fd, PollFlags::OUT)];
        match poll(&mut poll_fd, Some(&LOOK)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => match rustix::io::write(&fd, &bytes[..bytes.len().min(ATOMIC)]) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
        if stop.reason().is_some() {
            return Ok(bytes.len());
        }
    }
}

/// The one client of a line that may have none. What the guest writes while nobody listens is dropped.
#[derive(Clone)]
pub(crate) struct Client {
    fd: Arc<Mutex<Option<Arc<OwnedFd>>>>,
    stop: Arc<StopCell>,
}

impl Client {
    pub(crate) fn new(stop: Arc<StopCell>) -> Self {
        Self {
            fd: Arc::default(),
            stop,
        }
    }

    /// From now on output goes to `fd`, or nowhere.
    pub(crate) fn set(&self, fd: Option<Arc<OwnedFd>>) {
        *self.fd.lock().unwrap_or_else(PoisonError::into_inner) = fd;
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fd = self.fd.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(fd) = fd else { return Ok(bytes.len()) };
        if let Ok(count) = write_when_ready(&*fd, bytes, &self.stop) {
            return Ok(count);
        }
        // The client is gone; the control thread sees it too and waits for the next.
        self.set(None);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The controlling end of a pseudo-terminal. What does not fit while nobody reads is dropped.
pub(crate) struct Pty(pub(crate) OwnedFd);

impl Write for Pty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::io::write(&self.0, bytes) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN | Errno::INTR) => Ok(bytes.len()),
            Err(error) => Err(error.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Output of which only so much passes; the rest is dropped, so that a guest never waits for it.
pub(crate) struct Limited {
    pub(crate) output: Box<dyn Write + Send>,
    pub(crate) meter: Meter,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let pass: Vec<u8> = bytes.iter().copied().filter(|_| self.meter.admit(1)).collect();
        self.output.write_all(&pass)?;
        let dropped = bytes.len() - pass.len();
        if dropped > 0 {
            warn_guest!(
                "serial port: the guest writes more than its rate limit lets pass; {dropped} bytes are dropped"
            );
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use berth_devices::limiter::BucketConfig;

    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn stop() -> Arc<StopCell> {
        Arc::new(StopCell::new().unwrap())
    }

    #[test]
    fn a_full_pipe_does_not_hold_up_a_vm_that_ends() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let stop = stop();
        let mut stream = Stream::new(writer.into(), stop.clone());
        stop.stop(StopReason::Shutdown);
        // More than any pipe holds.
        stream.write_all(&vec![b'x'; 4 << 20]).unwrap();
    }

    #[test]
    fn a_reader_that_left_is_told_of_once() {
        let (reader, writer) = std::io::pipe().unwrap();
        let stop = stop();
        let mut stream = Stream::new(writer.into(), stop.clone());
        drop(reader);
        let said = stream.write_all(b"x").unwrap_err();
        assert_eq!(said.kind(), io::ErrorKind::BrokenPipe);
        stream.write_all(b"y").unwrap();
        assert_eq!(stop.reason(), None);
    }

    #[test]
    fn an_output_that_a_vm_runs_for_ends_it_when_it_is_lost() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let lost = "standard output cannot be written: No space left on device (os error 28)";
        for (fd, reason) in [
            (OwnedFd::from(writer), StopReason::Killed(Some(libc::SIGPIPE))),
            (full.into(), StopReason::Fault(lost.to_owned())),
        ] {
            let stop = stop();
            let mut stream = Stream::essential(fd, stop.clone(), "standard output");
            stream.write_all(b"x").unwrap();
            assert_eq!(stop.reason(), Some(reason));
        }
    }

    #[test]
    fn what_a_limit_does_not_let_pass_is_dropped_and_nobody_waits() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let hour = BucketConfig {
            size: 4,
            refill_ms: 3_600_000,
            burst: 2,
        };
        let mut limited = Limited {
            output: Box::new(writer),
            meter: Meter::new(hour).unwrap(),
        };
        limited.write_all(b"12345").unwrap();
        limited.write_all(b"678").unwrap();
        drop(limited);
        let mut heard = String::new();
        reader.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "123456");
    }

    #[test]
    fn a_client_that_left_is_forgotten_and_the_next_is_served() {
        let mut client = Client::new(stop());
        client.write_all(b"nobody hears this").unwrap();
        let (gone, end) = UnixStream::pair().unwrap();
        client.set(Some(Arc::new(end.into())));
        drop(gone);
        client.write_all(b"nor this").unwrap();
        let (mut here, end) = UnixStream::pair().unwrap();
        client.set(Some(Arc::new(end.into())));
        client.write_all(b"but this").unwrap();
        client.set(None);
        let mut heard = String::new();
        here.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "but this");
    }
}
