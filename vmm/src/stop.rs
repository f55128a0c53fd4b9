//! How a VM ends: the reason is stored first, then whoever waits is woken, so that no exit is ever misread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a VM stopped. Decides the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The guest powered itself off.
    Shutdown,
    /// The guest wrote this status to the exit port.
    Exit(u8),
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked; the message where it is known.
    Panicked(Option<String>),
    /// A fault while delivering a fault: the guest's CPU shut down.
    TripleFault,
    /// The time the user gave ran out.
    TimedOut,
    /// The user or another process asked Berth to end the VM; the signal's number if it was one.
    Killed(Option<i32>),
    /// KVM or Berth cannot go on; a sentence that says why.
    Fault(String),
}

impl StopReason {
    /// The reason in a word, for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Exit(_) => "exit",
            Self::Reset => "reset",
            Self::Panicked(_) => "panicked",
            Self::TripleFault => "triple-fault",
            Self::TimedOut => "timed-out",
            Self::Killed(_) => "killed",
            Self::Fault(_) => "fault",
        }
    }
}

/// Holds the first reason given and wakes the control thread.
pub struct StopCell {
    reason: Mutex<Option<StopReason>>,
    /// Whether there is one, for vCPU threads, which ask after every port access.
    stopped: AtomicBool,
    /// The guest said that it is ready, and nobody has heard it yet.
    ready: AtomicBool,
    wake: EventFd,
}

impl StopCell {
    /// A cell without a reason.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            reason: Mutex::new(None),
            stopped: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Asks the VM to stop. The first reason stands; later ones are consequences.
    pub fn stop(&self, reason: StopReason) {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(reason);
        self.stopped.store(true, Ordering::Release);
        // Fails only when the counter is full, and then the waiter is awake anyway.
        let _ = self.wake.write(1);
    }

    /// The reason, if there is one.
    pub fn reason(&self) -> Option<StopReason> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether there is a reason. Takes no lock.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The guest says that it is ready.
    pub fn tell_ready(&self) {
        tracing::debug!("the guest is ready");
        self.ready.store(true, Ordering::Release);
        // As above.
        let _ = self.wake.write(1);
    }

    /// Whether the guest has said so since this was last asked.
    pub fn take_ready(&self) -> bool {
        self.ready.swap(false, Ordering::AcqRel)
    }

    /// Readable from the moment there is a reason, or the guest is ready. Whoever finds no reason reads it and asks for both.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stands_and_wakes_the_waiter() {
        let cell = StopCell::new().unwrap();
        assert_eq!(cell.reason(), None);
        assert!(cell.wake().read().is_err());
        assert!(!cell.is_stopped());
        cell.stop(StopReason::Exit(3));
        cell.stop(StopReason::Reset);
        assert_eq!(cell.reason(), Some(StopReason::Exit(3)));
        assert_eq!(cell.wake().read().unwrap(), 2);
        assert!(cell.is_stopped());
    }
}
