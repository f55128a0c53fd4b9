//! The control side of a disk.

#![forbid(unsafe_code)]

use std::path::Path;

use super::Block;
use crate::limiter::LimiterChange;
use crate::storage::{DiskBackend, DiskError, FileOptions, open_disk};
use crate::virtio::mailbox::{Caller, DeviceGone};

/// Why a disk does not do what is asked of it.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// There is no device any more.
    #[error(transparent)]
    Gone(#[from] DeviceGone),
    /// The file is no disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The guest may write to the disk.
    #[error("{0}: is read-only, but the guest may write to the disk; give a file that can be written")]
    ReadOnly(String),
}

/// A disk for whoever controls the VM. Every call returns when the device has done it.
#[derive(Clone)]
pub struct BlockHandle {
    pub(super) caller: Caller<Block>,
}

impl BlockHandle {
    /// Sets new limits.
    pub fn set_limits(&self, change: LimiterChange) -> Result<(), BlockError> {
        Ok(self.caller.call(move |block| block.set_limits(change))?)
    }

    /// Takes the disk's bytes from the file at `path` from now on, and tells the guest its size. What the guest asked for
    /// before is finished first. The file that it has already is only measured anew.
    pub fn set_path(&self, path: &Path) -> Result<(), BlockError> {
        let same = path.to_owned();
        let known = self.caller.call(move |block| block.refresh(&same))?;
        let options = match known {
            Ok(()) => return Ok(()),
            Err(Refresh::Failed(cause)) => return Err(cause.into()),
            Err(Refresh::Other(options)) => options,
        };
        self.replace(open_disk(path, options)?)
    }

    /// Takes the disk's bytes from `backend` from now on, as [`set_path`](Self::set_path) does.
    pub fn replace(&self, backend: Box<dyn DiskBackend>) -> Result<(), BlockError> {
        self.caller.call(move |block| block.replace(backend))?
    }
}

/// Why a disk's file is not only to be measured anew.
pub(super) enum Refresh {
    /// It is another file, to be used as this one is.
    Other(FileOptions),
    /// It is the file, and no disk any more.
    Failed(DiskError),
}
