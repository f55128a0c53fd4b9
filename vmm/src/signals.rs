//! The signals that end Berth, as a descriptor to wait for. What they end, they end in order: the terminal is restored and
//! the devices are closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// The terminal's window has another size.
pub(crate) const RESIZED: i32 = libc::SIGWINCH;

/// A signalfd for the ending signals, which are blocked from the moment it is taken, in this thread and all that it starts.
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Takes the signals. Call it before any thread is started.
    pub(crate) fn take() -> io::Result<Self> {
        Self::of(&ENDING)
    }

    /// Those and [`RESIZED`].
    pub(crate) fn take_with_resized() -> io::Result<Self> {
        let [a, b, c, d] = ENDING;
        Self::of(&[a, b, c, d, RESIZED])
    }

    fn of(signals: &[libc::c_int]) -> io::Result<Self> {
        // SAFETY: all zero bits are a valid signal set, and sigemptyset makes it an empty one anyway.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a live signal set that nothing else refers to.
        unsafe { libc::sigemptyset(&raw mut set) };
        for &signal in signals {
            // SAFETY: as above, and the numbers are signals.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: `set` is initialised; the old mask is not asked for.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The number of a signal that has come, if one has.
    pub(crate) fn next(&self) -> Option<i32> {
        // struct signalfd_siginfo: 128 bytes, the number first.
        let mut info = [0u8; 128];
        let count = rustix::io::read(&self.0, &mut info).ok()?;
        let number = info.first_chunk().filter(|_| count == info.len())?;
        Some(i32::from_ne_bytes(*number))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_came_is_read_once() {
        let signals = Signals::take().unwrap();
        assert_eq!(signals.next(), None);
        // SAFETY: raises a signal that this thread has blocked.
        unsafe { libc::raise(libc::SIGTERM) };
        assert_eq!(signals.next(), Some(libc::SIGTERM));
        assert_eq!(signals.next(), None);
    }
}
