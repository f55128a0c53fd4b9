//! A VM's own process, as its folder knows it: from the lock that it takes to the result that it leaves.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::entry::{Ended, Entry, Live, LiveState, start_ticks};
use super::{FleetError, error::io_error, journal};
use crate::events::{Event, EventHub, EventKind, timestamp};
use crate::unix;

/// What a process that is being waited for says when its guest runs.
pub(super) const STARTED: &[u8] = b"started\n";

/// A process's time with its VM. It ends with [`Tenure::end`], or leaves a dead VM behind.
#[derive(Debug)]
pub struct Tenure {
    entry: Entry,
    root: PathBuf,
    live: Arc<Mutex<Live>>,
    /// Given back by the kernel when the process ends, however it does.
    _lock: File,
}

impl Tenure {
    /// Takes `entry`, of the state directory `root`, for this process.
    pub fn begin(root: &Path, entry: Entry, console: bool) -> Result<Self, FleetError> {
        let Some(lock) = entry.try_lock()? else {
            return Err(FleetError::Runs {
                name: entry.name().to_owned(),
                what: "started again",
                hint: "stop it first",
            });
        };
        entry.forget_sockets()?;
        let pid = rustix::process::getpid().as_raw_pid();
        let live = Live {
            pid,
            ticks: start_ticks(pid).unwrap_or_default(),
            started: String::new(),
            state: LiveState::Starting,
            api_socket: Some(api_socket(&entry)?),
            console,
        };
        entry.write_live(&live)?;
        Ok(Self {
            entry,
            root: root.to_owned(),
            live: Arc::new(Mutex::new(live)),
            _lock: lock,
        })
    }

    /// Whose it is.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Where the VM's API is to listen.
    pub fn api_socket(&self) -> Option<PathBuf> {
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .api_socket
            .clone()
    }

    /// Writes down what happens to the machine from now on. Calls `started` once, when its guest runs.
    pub fn attend(&self, events: &EventHub, started: impl FnOnce(&Entry) + Send + 'static) {
        let mut scribe = Scribe {
            entry: self.entry.clone(),
            root: self.root.clone(),
            live: self.live.clone(),
        };
        let mut started = Some(started);
        events.listen(false, move |event| {
            if let Err(error) = scribe.note(event) {
                tracing::warn!("{error}");
            }
            if matches!(event.kind, EventKind::Started | EventKind::Resumed)
                && let Some(started) = started.take()
            {
                started(&scribe.entry);
            }
            true
        });
    }

    /// Gives the VM back. To be called when the machine is gone, or has not come to be.
    pub fn end(self) {
        if let Err(error) = self.entry.forget_live() {
            tracing::warn!("{error}");
        }
    }
}

/// Writes down what happens.
struct Scribe {
    entry: Entry,
    root: PathBuf,
    live: Arc<Mutex<Live>>,
}

impl Scribe {
    fn note(&mut self, event: &Event) -> Result<(), FleetError> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let state = match &event.kind {
            // The VM's folder was made before, and so it was told.
            EventKind::Created => return Ok(()),
            EventKind::Started | EventKind::Resumed => Some(LiveState::Running),
            EventKind::Restored { .. } | EventKind::Paused => Some(LiveState::Paused),
            EventKind::Stopped {
                reason,
                exit_code,
                message,
            } => {
                self.entry.write_ended(&Ended {
                    started: live.started.clone(),
                    stopped: timestamp(event.time),
                    reason: (*reason).to_owned(),
                    exit_code: *exit_code,
                    message: message.clone(),
                })?;
                None
            }
            _ => None,
        };
        if let Some(state) = state {
            live.state = state;
            let first = live.started.is_empty();
            if first {
                live.started = timestamp(event.time);
            }
            self.entry.write_live(&live)?;
            if first {
                self.entry.forget_ended()?;
            }
            if first && self.entry.meta().restore.is_some() {
                self.entry.forget_restore()?;
            }
        }
        drop(live);
        journal::append(&self.root, event)
    }
}

/// Tells the process that waits at the other end of standard output that the guest runs, and lets go of it: from now on
/// what is said goes to the VM's log.
pub fn report_started(entry: &Entry) {
    let mut stdout = std::io::stdout();
    // Whoever does not wait any more need not know.
    let _ = stdout.write_all(STARTED).and_then(|()| stdout.flush());
    let release = || -> std::io::Result<()> {
        let null = OpenOptions::new().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        let log = OpenOptions::new().append(true).create(true).open(entry.log())?;
        rustix::stdio::dup2_stderr(&log)?;
        Ok(())
    };
    if let Err(error) = release() {
        tracing::warn!("standard output cannot be let go of: {error}");
    }
}

/// Where a VM's API listens: where it was told to, else in its folder, or where paths are short if that one is too long for a socket's address.
fn api_socket(entry: &Entry) -> Result<PathBuf, FleetError> {
    if let Some(elsewhere) = &entry.meta().manner.api_socket {
        return Ok(elsewhere.clone());
    }
    let here = entry.api_socket_here();
    if here.as_os_str().as_bytes().len() <= unix::PATH_MAX {
        return Ok(here);
    }
    let short = short_folder()?;
    Ok(short.join(format!("{}.sock", entry.meta().id)))
}

/// A folder of this user's alone, with a short path.
fn short_folder() -> Result<PathBuf, FleetError> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let user = rustix::process::geteuid().as_raw();
    let folder = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(runtime) if runtime.is_absolute() && runtime.as_os_str().len() < 60 => runtime.join("berth"),
        _ => PathBuf::from(format!("/tmp/berth-{user}")),
    };
    match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(io_error("made", &folder)(error))
        }
        _ => {
            let data = std::fs::symlink_metadata(&folder).map_err(io_error("read", &folder))?;
            if data.is_dir() && data.uid() == user && data.mode() & 0o7777 == 0o700 {
                Ok(folder)
            } else {
                Err(FleetError::Broken {
                    path: folder,
                    cause: "it is not a folder of this user's alone".to_owned(),
                })
            }
        }
    }
}
