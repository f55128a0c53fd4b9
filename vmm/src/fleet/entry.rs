//! One VM's folder: what it says about the VM, and whether that is so.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::error::io_error;
use super::{FleetError, files};
use crate::console::kept;
use crate::events::Identity;
use crate::spec::{self, VmSpec};

pub(super) const META: &str = "meta.json";
pub(super) const SPEC: &str = "vm.toml";
const LOCK: &str = "lock";
const LIVE: &str = "live.json";
const RESULT: &str = "result.json";
/// How often to try for the lock: whoever only looks holds it for microseconds.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// How a VM is run, apart from what it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manner {
    /// What it logs, as `--log-level` takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
    /// Where it logs, if not in its folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_file: Option<PathBuf>,
    /// Where its API listens, if not in its folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_socket: Option<PathBuf>,
    /// Whether it boots at every start, instead of going on with a guest that was booted before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
    /// Whether what it needs at the start is read ahead, where it goes on from a snapshot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prefetch: bool,
    /// Where it is saved, and ends, when its guest says that it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_when_ready: Option<PathBuf>,
}

/// What does not change about a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Twelve hexadecimal digits.
    pub id: String,
    /// The folder's name too.
    pub name: String,
    /// When it was made.
    pub created: String,
    /// How it is run.
    #[serde(flatten)]
    pub manner: Manner,
    /// The snapshot that its first start goes on from. Later ones boot: its disks are not what they were in the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<PathBuf>,
    /// The snapshot that it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_from: Option<PathBuf>,
    /// What it shares with other clones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<PathBuf>,
    /// Whether it is to be removed when it ends.
    #[serde(default)]
    pub remove: bool,
}

/// A process that runs a VM, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Its number.
    pub pid: i32,
    /// When it began, in the kernel's ticks since boot: no two processes have both in common.
    pub ticks: u64,
    /// When the guest was started; empty before.
    pub started: String,
    /// What the VM does.
    pub state: LiveState,
    /// Where its API is.
    pub api_socket: Option<PathBuf>,
    /// Whether its console is kept, and not on somebody's terminal.
    pub console: bool,
}

/// What a VM with a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LiveState {
    /// Its process makes it.
    Starting,
    /// Its guest runs.
    Running,
    /// Its guest stands still.
    Paused,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When it had been started.
    pub started: String,
    /// When it ended.
    pub stopped: String,
    /// Why, in a word.
    pub reason: String,
    /// Its process's exit code.
    pub exit_code: u8,
    /// The sentence about it, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has never run.
    Created,
    /// Its process makes it.
    Starting,
    /// Its guest runs.
    Running,
    /// Its guest stands still.
    Paused,
    /// It has ended.
    Stopped,
    /// Its process ended without a word: it was killed, or the host went down.
    Dead,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Dead => "dead",
        })
    }
}

/// What is known about a VM now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Where it is in its life.
    pub state: State,
    /// Its process, if it has one or had one that ended without a word.
    pub live: Option<Live>,
    /// How it ended, if it has.
    pub ended: Option<Ended>,
}

impl Status {
    /// Whether it has a process.
    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Starting | State::Running | State::Paused)
    }
}

/// A VM of a state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    folder: PathBuf,
    meta: Meta,
}

impl Entry {
    pub(super) fn new(folder: PathBuf, meta: Meta) -> Self {
        Self { folder, meta }
    }

    /// The VM in `folder`, if there is one.
    pub fn read(folder: &Path) -> Result<Option<Self>, FleetError> {
        let meta = files::read_json(&folder.join(META))?;
        Ok(meta.map(|meta| Self::new(folder.to_owned(), meta)))
    }

    /// What does not change.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.meta.name
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Which VM it is, for events.
    pub fn identity(&self) -> Identity {
        Identity {
            id: self.meta.id.clone(),
            name: Some(self.meta.name.clone()),
        }
    }

    /// What it is.
    pub fn spec(&self) -> Result<VmSpec, FleetError> {
        let path = self.folder.join(SPEC);
        spec::read(&path).map_err(|cause| FleetError::Broken {
            path,
            cause: cause.to_string(),
        })
    }

    /// Where its guest's output is.
    pub fn console_log(&self) -> PathBuf {
        self.folder.join(kept::LOG)
    }

    /// Where to attach to its console.
    pub fn console_socket(&self) -> PathBuf {
        self.folder.join(kept::SOCKET)
    }

    /// Where Berth's own log of it is.
    pub fn log(&self) -> PathBuf {
        let elsewhere = self.meta.manner.log_file.clone();
        elsewhere.unwrap_or_else(|| self.folder.join("log"))
    }

    /// The lock that its process holds; nothing if one does.
    pub(super) fn try_lock(&self) -> Result<Option<File>, FleetError> {
        for _ in 0..LOCK_TRIES {
            if let Some(lock) = self.flock(FlockOperation::NonBlockingLockExclusive)? {
                return Ok(Some(lock));
            }
            // Somebody may only be looking.
            std::thread::sleep(LOCK_PAUSE);
        }
        self.flock(FlockOperation::NonBlockingLockExclusive)
    }

    fn flock(&self, operation: FlockOperation) -> Result<Option<File>, FleetError> {
        let path = self.folder.join(LOCK);
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let file = match file {
            Ok(file) => file,
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FleetError::Missing {
                    reference: self.meta.name.clone(),
                    near: None,
                });
            }
            Err(error) => return Err(io_error("opened", &path)(error)),
        };
        match flock(&file, operation) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(io_error("locked", &path)(error.into())),
        }
    }

    /// Where it is in its life. The lock has the last word on whether there is a process.
    pub fn status(&self) -> Result<Status, FleetError> {
        // Shared, so that two that look do not see each other; given back at once.
        let is_live = self.flock(FlockOperation::NonBlockingLockShared)?.is_none();
        let live: Option<Live> = files::read_json(&self.folder.join(LIVE))?;
        let ended: Option<Ended> = files::read_json(&self.folder.join(RESULT))?;
        let state = match (&live, &ended) {
            (Some(live), _) if is_live => match live.state {
                LiveState::Starting => State::Starting,
                LiveState::Running => State::Running,
                LiveState::Paused => State::Paused,
            },
            (None, _) if is_live => State::Starting,
            (_, Some(_)) => State::Stopped,
            (Some(_), None) => State::Dead,
            (None, None) => State::Created,
        };
        let ended = ended.filter(|_| state == State::Stopped);
        Ok(Status { state, live, ended })
    }

    /// A descriptor of its process, if it has one. What is told it reaches that process or nobody.
    pub fn process(&self) -> Result<Option<(OwnedFd, Live)>, FleetError> {
        let status = self.status()?;
        let Some(live) = status.live.clone().filter(|_| status.is_live()) else {
            return Ok(None);
        };
        let Some(pid) = Pid::from_raw(live.pid) else {
            return Ok(None);
        };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(io_error("found", &self.folder.join(LIVE))(error.into())),
        };
        // From here on the descriptor means the process that has the number now. Is it the one that was written down?
        Ok((start_ticks(live.pid) == Some(live.ticks)).then_some((fd, live)))
    }

    /// Writes down what its process does.
    pub(super) fn write_live(&self, live: &Live) -> Result<(), FleetError> {
        files::write_json(&self.folder.join(LIVE), live, false)
    }

    /// Writes down how it ended.
    pub(super) fn write_ended(&self, ended: &Ended) -> Result<(), FleetError> {
        files::write_json(&self.folder.join(RESULT), ended, false)
    }

    /// Forgets the snapshot that it was to go on from.
    pub(super) fn forget_restore(&self) -> Result<(), FleetError> {
        let meta = Meta {
            restore: None,
            ..self.meta.clone()
        };
        files::write_json(&self.folder.join(META), &meta, false)
    }

    /// Forgets how it ended before.
    pub(super) fn forget_ended(&self) -> Result<(), FleetError> {
        files::remove(&self.folder.join(RESULT))
    }

    /// Forgets its process.
    pub(super) fn forget_live(&self) -> Result<(), FleetError> {
        files::remove(&self.folder.join(LIVE))
    }

    /// Removes the sockets of a process that was killed. To be called with the lock held.
    pub(super) fn forget_sockets(&self) -> Result<(), FleetError> {
        if let Some(Live {
            api_socket: Some(path),
            ..
        }) = files::read_json(&self.folder.join(LIVE))?
        {
            files::remove(&path)?;
        }
        files::remove(&self.api_socket_here())?;
        files::remove(&self.console_socket())
    }

    /// Where its API's socket is, if a socket's address has room for that.
    pub(super) fn api_socket_here(&self) -> PathBuf {
        self.folder.join("api.sock")
    }
}

/// When a process began, in ticks since the host booted (field 22 of `/proc/PID/stat`).
pub(super) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}
