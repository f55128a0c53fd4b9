//! A timer as a descriptor for an event loop.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Readable when its time has come. Stopped at first.
#[derive(Debug)]
pub struct Timer {
    fd: OwnedFd,
}

impl Timer {
    /// A stopped timer, on the clock that does not jump.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { fd })
    }

    /// The descriptor.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Rings once, `after` from now, and at no other time.
    pub fn once(&self, after: Duration) {
        // Zero would stop it.
        self.set(after.max(Duration::from_nanos(1)), Duration::ZERO);
    }

    /// Rings every `period`, for the first time after one; zero stops it.
    pub fn every(&self, period: Duration) {
        self.set(period, period);
    }

    /// Rings no more.
    pub fn stop(&self) {
        self.set(Duration::ZERO, Duration::ZERO);
    }

    /// Whether it has rung since the last call.
    pub fn rang(&self) -> bool {
        rustix::io::read(self.fd.as_fd(), &mut [0; 8]).is_ok()
    }

    fn set(&self, first: Duration, period: Duration) {
        let time = |duration: Duration| Timespec {
            tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: duration.subsec_nanos().into(),
        };
        let times = Itimerspec {
            it_interval: time(period),
            it_value: time(first),
        };
        if let Err(cause) = timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &times) {
            tracing::error!("a timer cannot be set: {cause}");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn wait(timer: &Timer) {
        let patience = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        assert_eq!(
            poll(&mut [PollFd::new(&timer.fd, PollFlags::IN)], Some(&patience)),
            Ok(1)
        );
    }

    #[test]
    fn a_timer_rings_once_or_again_and_again_until_it_is_stopped() {
        let timer = Timer::new().unwrap();
        assert!(!timer.rang());
        timer.once(Duration::ZERO);
        wait(&timer);
        assert!(timer.rang());
        assert!(!timer.rang(), "once is once");
        timer.every(Duration::from_millis(1));
        for _ in 0..3 {
            wait(&timer);
            assert!(timer.rang());
        }
        timer.stop();
        assert!(!timer.rang());
    }
}
