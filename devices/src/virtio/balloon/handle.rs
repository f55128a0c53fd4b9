//! The control side of a balloon.

#![forbid(unsafe_code)]

use std::time::Duration;

use super::{Balloon, BalloonStats, Hinting};
use crate::virtio::mailbox::{Caller, DeviceGone};

/// How full a balloon is, in pages of 4 KiB, and what the guest told of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonStatus {
    /// Pages that the guest should give up.
    pub target_pages: u32,
    /// Pages that it has given up.
    pub actual_pages: u32,
    /// Between two reports of the guest on its memory; zero if there are none.
    pub stats_interval: Duration,
    /// The last report.
    pub stats: BalloonStats,
}

/// Why a balloon does not do what is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BalloonError {
    /// There is no device any more.
    #[error(transparent)]
    Gone(#[from] DeviceGone),
    /// It was made without statistics.
    #[error("the balloon has no statistics; give it a stats_interval before the VM is started")]
    NoStats,
    /// Statistics cannot be switched off or on later.
    #[error(
        "the balloon's statistics cannot be switched off while the VM runs; give an interval of at least 1 s"
    )]
    StatsStay,
    /// It was made without hinting.
    #[error("the balloon has no free page hinting; ask for it before the VM is started")]
    NoHinting,
}

/// A balloon for whoever controls the VM. Every call returns when the device has done it.
#[derive(Clone)]
pub struct BalloonHandle {
    pub(super) caller: Caller<Balloon>,
}

impl BalloonHandle {
    /// Asks the guest to give up `pages` pages of 4 KiB.
    pub fn set_target(&self, pages: u32) -> Result<(), BalloonError> {
        Ok(self.caller.call(move |balloon| balloon.set_target(pages))?)
    }

    /// How full the balloon is.
    pub fn status(&self) -> Result<BalloonStatus, BalloonError> {
        Ok(self.caller.call(|balloon| balloon.status())?)
    }

    /// Changes the time between two reports. Only a balloon that was made with statistics has any.
    pub fn set_stats_interval(&self, interval: Duration) -> Result<(), BalloonError> {
        self.caller
            .call(move |balloon| balloon.set_stats_interval(interval))?
    }

    /// Asks the guest which pages are free, and gives those back. If `release`, the guest may use them again as soon as it
    /// has named them all, else not before [`stop_hinting`](Self::stop_hinting).
    pub fn start_hinting(&self, release: bool) -> Result<(), BalloonError> {
        self.caller.call(move |balloon| balloon.start_hinting(release))?
    }

    /// Lets the guest use the free pages that it named.
    pub fn stop_hinting(&self) -> Result<(), BalloonError> {
        self.caller.call(Balloon::stop_hinting)?
    }

    /// How far hinting is.
    pub fn hinting(&self) -> Result<Hinting, BalloonError> {
        self.caller.call(|balloon| balloon.hinting())?
    }
}
