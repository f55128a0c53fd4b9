//! What the process of a test's VM does for the test, besides running it: it leaves word of how the VM ended, and does not outlive
//! the test.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::stop::StopReason;

/// How a VM ended. Its exit code alone would not say: a guest may end with any status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrivenEnd {
    /// The reason in a word, see [`StopReason::word`].
    pub reason: String,
    /// What the guest wrote to the exit port.
    pub status: Option<u8>,
    /// The sentence for the user, if there is one.
    pub message: Option<String>,
}

impl DrivenEnd {
    /// For the reason that the VM gave.
    pub fn of(reason: &StopReason, message: Option<String>) -> Self {
        Self {
            reason: reason.word().to_owned(),
            status: match reason {
                StopReason::Exit(status) => Some(*status),
                _ => None,
            },
            message,
        }
    }

    /// Writes it to `path`.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_vec(self)?)
    }

    /// What stands at `path`, if a VM has ended.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// Has this process end as if by SIGTERM when the thread that started it is gone.
pub(crate) fn end_with_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::TERM))?)
}
