//! A log file of bounded size: when it is full it is put aside under its name with `.1` behind, and a new one begun.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How large a log may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Bytes in one file; 0 for no bound.
    pub size: u64,
    /// How many full files to keep beside the current one.
    pub keep: u32,
}

/// A log file that is put aside when it is full.
#[derive(Debug)]
pub(crate) struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    bound: Bound,
}

impl RotatingFile {
    /// Appends to the file at `path`, which is made if it is not there. Only regular files have a bound.
    pub(crate) fn open(path: &Path, mut bound: Bound) -> io::Result<Self> {
        let file = open(path)?;
        let data = file.metadata()?;
        if !data.is_file() {
            bound.size = 0;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            size: data.len(),
            bound,
        })
    }

    /// The same for a path that may be a pipe which nobody reads yet: neither the opening nor a write waits for that.
    pub(crate) fn open_at_once(path: &Path, bound: Bound) -> io::Result<Self> {
        if fs::metadata(path).is_ok_and(|data| data.file_type().is_fifo()) {
            let mut options = OpenOptions::new();
            options.read(true).append(true).custom_flags(libc::O_NONBLOCK);
            return Ok(Self {
                path: path.to_owned(),
                file: options.open(path)?,
                size: 0,
                bound: Bound { size: 0, ..bound },
            });
        }
        Self::open(path, bound)
    }

    /// Puts the full file aside. If that fails, it goes on growing: a log too long is better than none.
    fn rotate(&mut self) {
        let turned = (|| {
            for number in (1..self.bound.keep).rev() {
                let from = aside(&self.path, number);
                if from.exists() {
                    fs::rename(&from, aside(&self.path, number + 1))?;
                }
            }
            if self.bound.keep == 0 {
                fs::remove_file(&self.path)?;
            } else {
                fs::rename(&self.path, aside(&self.path, 1))?;
            }
            open(&self.path)
        })();
        if let Ok(file) = turned {
            self.file = file;
        }
        // Also where it failed: to be tried again only after as much again.
        self.size = 0;
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Consoles and logs may hold what is not for everyone.
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// The name of the file that was put aside `number` turns ago.
pub(crate) fn aside(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let after = self.size.saturating_add(bytes.len() as u64);
        if self.bound.size > 0 && self.size > 0 && after > self.bound.size {
            self.rotate();
        }
        let count = self.file.write(bytes)?;
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_put_aside_and_the_oldest_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = RotatingFile::open(&path, Bound { size: 10, keep: 2 }).unwrap();
        for line in ["first\n", "second\n", "third\n", "fourth\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "fourth\n");
        assert_eq!(read(&aside(&path, 1)), "third\n");
        assert_eq!(read(&aside(&path, 2)), "second\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_was_there_before_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "0123456789").unwrap();
        let mut log = RotatingFile::open(&path, Bound { size: 10, keep: 0 }).unwrap();
        log.write_all(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn what_is_no_regular_file_is_never_put_aside() {
        let mut log = RotatingFile::open(Path::new("/dev/null"), Bound { size: 1, keep: 1 }).unwrap();
        log.write_all(b"one").unwrap();
        log.write_all(b"two").unwrap();
        assert!(!Path::new("/dev/null.1").exists());
    }
}
