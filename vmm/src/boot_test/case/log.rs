//! What the guest said, on disk.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// How much of a console is kept on disk.
const LOG_MAX: u64 = 64 << 20;

/// The console's log.
pub(super) struct Log {
    file: File,
    room: u64,
}

impl Log {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path)?,
            room: LOG_MAX,
        })
    }

    /// A disk that is full costs the log, not the test.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let count = bytes.len().min(usize::try_from(self.room).unwrap_or(usize::MAX));
        if count > 0 {
            let _ = self.file.write_all(&bytes[..count]);
            self.room -= count as u64;
            if self.room == 0 {
                let _ = self.file.write_all(b"\n[Berth: the rest is left out]\n");
            }
        }
    }
}
