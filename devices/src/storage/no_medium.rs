//! A drive without a medium: its size is 0 until an image is put in.

#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

use rustix::io::Errno;

use super::backend::{DiskBackend, Operation};
use super::file::FileOptions;

/// What stands for no medium where a disk's file is named.
pub const NO_MEDIUM: &str = "/dev/null";

/// Nothing in the drive.
pub(super) struct NoMedium {
    /// How the image that is put in is to be used.
    options: FileOptions,
}

impl NoMedium {
    /// A drive whose file is said to be at `path`, if that means none.
    pub(super) fn at(path: &Path, options: FileOptions) -> Option<Self> {
        (path == Path::new(NO_MEDIUM)).then_some(Self { options })
    }
}

impl DiskBackend for NoMedium {
    fn name(&self) -> String {
        NO_MEDIUM.to_owned()
    }

    fn size(&self) -> u64 {
        0
    }

    fn options(&self) -> FileOptions {
        self.options
    }

    fn writable(&self) -> bool {
        !self.options.read_only
    }

    fn submit(&mut self, _: u16, operation: Operation<'_>) -> Option<io::Result<()>> {
        Some(match operation {
            // All that was written to it is safe.
            Operation::Flush => Ok(()),
            _ => Err(Errno::NOMEDIUM.into()),
        })
    }
}
