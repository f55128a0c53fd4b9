//! What happened to all VMs of a state directory: one file of JSON lines that every process appends to.
//!
//! A line is written by one call, so that lines never mix. A full file is put aside as `events.jsonl.1`; a lock keeps two
//! processes from doing that at once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::inotify;
use rustix::fs::{FlockOperation, flock};

use super::FleetError;
use super::error::io_error;
use crate::events::Event;
use crate::rotate::aside;

/// The file, in the state directory.
const JOURNAL: &str = "events.jsonl";
/// How long it becomes.
const SIZE_MAX: u64 = 4 << 20;
/// As much of a line as a reader waits for.
const LINE_MAX: usize = 1 << 20;

fn path(root: &Path) -> PathBuf {
    root.join(JOURNAL)
}

/// Appends `event`.
pub fn append(root: &Path, event: &Event) -> Result<(), FleetError> {
    let path = path(root);
    let mut line = event.to_json();
    line.push('\n');
    let result = (|| -> io::Result<()> {
        let mut file = open(&path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        // It may have been put aside while this waited.
        while fs::metadata(&path).map_or(0, |data| data.ino()) != file.metadata()?.ino() {
            file = open(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
        }
        if file.metadata()?.len() >= SIZE_MAX {
            fs::rename(&path, aside(&path, 1))?;
            file = open(&path)?;
        }
        file.write_all(line.as_bytes())
    })();
    result.map_err(io_error("written", &path))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Reads a file of lines that grows, and follows it when it is put aside and begun anew.
pub struct Follower {
    path: PathBuf,
    file: Option<File>,
    watch: rustix::fd::OwnedFd,
    rest: Vec<u8>,
}

impl Follower {
    /// Follows the journal from its beginning, or from its end.
    pub fn journal(root: &Path, past: bool) -> Result<Self, FleetError> {
        let make = || -> io::Result<()> { fs::create_dir_all(root) };
        make().map_err(io_error("made", root))?;
        Self::new(&path(root), past)
    }

    /// Follows `path`, which need not be there yet, in a folder that is.
    pub fn new(path: &Path, past: bool) -> Result<Self, FleetError> {
        let make = || -> io::Result<Self> {
            let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let folder = path.parent().unwrap_or(Path::new("."));
            let wanted = inotify::WatchFlags::MODIFY
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::DELETE_SELF
                | inotify::WatchFlags::MOVE_SELF;
            // Before the file is read, so that nothing falls in between.
            inotify::add_watch(&watch, folder, wanted)?;
            let mut file = open_to_read(path)?;
            if !past && let Some(file) = &mut file {
                file.seek(SeekFrom::End(0))?;
            }
            Ok(Self {
                path: path.to_owned(),
                file,
                watch,
                rest: Vec::new(),
            })
        };
        make().map_err(io_error("followed", path))
    }

    /// Readable when there may be more to read.
    pub fn watch(&self) -> rustix::fd::BorrowedFd<'_> {
        use rustix::fd::AsFd;
        self.watch.as_fd()
    }

    /// All bytes that have come.
    pub fn read(&mut self) -> Result<Vec<u8>, FleetError> {
        let mut buffer = [0; 4096];
        while rustix::io::read(&self.watch, &mut buffer).is_ok_and(|count| count > 0) {}
        let mut bytes = Vec::new();
        let mut more = || -> io::Result<()> {
            if let Some(file) = &mut self.file {
                file.read_to_end(&mut bytes)?;
            }
            let current = fs::metadata(&self.path).ok().map(|data| data.ino());
            let ours = self
                .file
                .as_ref()
                .and_then(|file| file.metadata().ok())
                .map(|data| data.ino());
            if current.is_some() && current != ours {
                if let Some(file) = &mut self.file {
                    // Written between the last read and the turn.
                    file.read_to_end(&mut bytes)?;
                }
                self.file = open_to_read(&self.path)?;
                if let Some(file) = &mut self.file {
                    file.read_to_end(&mut bytes)?;
                }
            }
            Ok(())
        };
        more().map_err(io_error("read", &self.path))?;
        Ok(bytes)
    }

    /// All whole lines that have come.
    pub fn lines(&mut self) -> Result<Vec<String>, FleetError> {
        let bytes = self.read()?;
        self.rest.extend(bytes);
        let end = self
            .rest
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        if self.rest.len() > LINE_MAX {
            self.rest.clear();
        }
        Ok(String::from_utf8_lossy(&whole)
            .lines()
            .map(str::to_owned)
            .collect())
    }
}

fn open_to_read(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{EventKind, Identity};

    fn event(kind: EventKind) -> Event {
        Event::now(Identity::new().unwrap(), kind)
    }

    #[test]
    fn a_follower_sees_lines_that_many_write_whole_and_across_a_turn() {
        let folder = tempfile::tempdir().unwrap();
        append(folder.path(), &event(EventKind::Created)).unwrap();
        let mut late = Follower::journal(folder.path(), false).unwrap();
        let mut all = Follower::journal(folder.path(), true).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        append(folder.path(), &event(EventKind::Paused)).unwrap();
                    }
                });
            }
        });
        assert_eq!(all.lines().unwrap().len(), 201);
        let file = OpenOptions::new().append(true).open(path(folder.path())).unwrap();
        file.set_len(SIZE_MAX).unwrap();
        append(folder.path(), &event(EventKind::Removed)).unwrap();
        let lines = late.lines().unwrap();
        assert!(lines.last().unwrap().contains("removed"), "{:?}", lines.last());
        assert!(aside(&path(folder.path()), 1).exists());
        assert!(
            lines
                .iter()
                .filter(|line| line.contains("paused"))
                .all(|line| line.ends_with('}'))
        );
    }

    #[test]
    fn a_file_that_comes_later_is_followed_and_half_a_line_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut follower = Follower::new(&path, true).unwrap();
        assert!(follower.lines().unwrap().is_empty());
        fs::write(&path, "one\ntw").unwrap();
        assert_eq!(follower.lines().unwrap(), ["one"]);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"o\n").unwrap();
        assert_eq!(follower.lines().unwrap(), ["two"]);
    }
}
