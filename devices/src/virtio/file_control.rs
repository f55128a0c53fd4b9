//! What a device that stands on a file has for whoever controls the VM, and hears of things by.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::EventSource;
use super::mailbox::{self, Caller, Mailbox};
use crate::limiter::{Limiter, LimiterConfig};

/// Event source: the file's backend has completed something.
pub(super) const COMPLETED: u32 = 0;
/// Event source: what was not admitted may be now.
pub(super) const ADMIT: u32 = 1;
/// Event source: a call from the control side.
pub(super) const CALL: u32 = 2;

/// The control of a device of type `D`.
pub(super) struct FileControl<D> {
    pub(super) limiter: Limiter,
    pub(super) mailbox: Mailbox<D>,
    /// Signalled by the backend when it has completed something.
    pub(super) completed: Arc<EventFd>,
}

impl<D> FileControl<D> {
    /// A control with limits, and the way to it. It fails only if the host has no descriptors to give.
    pub(super) fn new(limits: LimiterConfig) -> io::Result<(Self, Caller<D>)> {
        let (caller, mailbox) = mailbox::channel()?;
        let control = Self {
            limiter: Limiter::new(limits)?,
            mailbox,
            completed: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
        };
        Ok((control, caller))
    }

    pub(super) fn sources(&self) -> [EventSource; 3] {
        let completed = EventSource {
            fd: self.completed.as_raw_fd(),
            token: COMPLETED,
        };
        [completed, self.limiter.source(ADMIT), self.mailbox.source(CALL)]
    }
}
