//! Driving VMs from outside: by their API, and by signals that reach the right process or nobody.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use serde_json::Value;

use super::error::io_error;
use super::{Entry, FleetError, State};
use crate::client::{self, ClientError};

/// How long a VM's API may take to answer.
const ANSWER: Duration = Duration::from_secs(120);
/// How long it may take where the VM is to be stopped anyway.
const SHORT_ANSWER: Duration = Duration::from_secs(2);
/// How long a guest may take to shut down at its power button before it gets Ctrl-Alt-Del as well.
const BUTTON: Duration = Duration::from_secs(4);
/// How long a process may take to end in order before it is killed.
const ORDERLY: Duration = Duration::from_secs(3);
/// How long a process that has been killed may take to be gone.
const KILLED: Duration = Duration::from_secs(30);

/// Sends a request to a VM's own API. `what` is what the VM cannot do if it does not run.
pub fn request(
    entry: &Entry,
    method: &str,
    path: &str,
    body: Option<&Value>,
    what: &'static str,
) -> Result<Value, FleetError> {
    request_within(entry, method, path, body, what, ANSWER)
}

fn request_within(
    entry: &Entry,
    method: &str,
    path: &str,
    body: Option<&Value>,
    what: &'static str,
    timeout: Duration,
) -> Result<Value, FleetError> {
    let status = entry.status()?;
    let socket = status.live.as_ref().filter(|_| status.is_live());
    let Some(socket) = socket.and_then(|live| live.api_socket.as_deref()) else {
        return Err(FleetError::RunsNot {
            name: entry.name().to_owned(),
            state: status.state,
            what,
        });
    };
    client::request(socket, method, path, body, timeout).map_err(|error: ClientError| FleetError::Refused {
        name: entry.name().to_owned(),
        user: error.is_user(),
        cause: error.to_string(),
    })
}

/// Has a VM do one of the things that need no more words: `pause`, `resume`, `power-button`, `ctrl-alt-del`, `kill`.
pub fn ask(entry: &Entry, verb: &str, what: &'static str) -> Result<Value, FleetError> {
    request(entry, "POST", &format!("/berth/v1/{verb}"), None, what)
}

/// Asks the guest to shut down, and ends the VM if it has not within `time`. A VM that does not run is stopped already.
pub fn stop(entry: &Entry, time: Duration) -> Result<(), FleetError> {
    let Some((process, _)) = entry.process()? else {
        return Ok(());
    };
    let deadline = Instant::now() + time;
    let asked = |verb: &str| {
        let path = format!("/berth/v1/{verb}");
        request_within(entry, "POST", &path, None, "be stopped", SHORT_ANSWER).is_ok()
    };
    // A paused guest hears nothing.
    if entry.status()?.state == State::Paused {
        asked("resume");
    }
    // The power button first: Ctrl-Alt-Del makes most guests start again instead of shutting down.
    let mut ended = false;
    if !time.is_zero() && asked("power-button") {
        ended = wait_for(&process, patience(entry).min(time / 2))?;
    }
    if !ended && !time.is_zero() && asked("ctrl-alt-del") {
        ended = wait_for(&process, deadline.saturating_duration_since(Instant::now()))?;
    }
    if ended { Ok(()) } else { end(entry, &process) }
}

/// How long to wait for what the power button does. The shipped guest has none, and shuts down at Ctrl-Alt-Del.
fn patience(entry: &Entry) -> Duration {
    let shipped = entry.spec().is_ok_and(|spec| spec.kernel.is_none());
    if shipped { Duration::ZERO } else { BUTTON }
}

/// Ends a VM whatever its guest does; says if there was one to end.
pub fn kill(entry: &Entry) -> Result<bool, FleetError> {
    match entry.process()? {
        Some((process, _)) => end(entry, &process).map(|()| true),
        None => Ok(false),
    }
}

/// In order if it can, so that it leaves a result.
fn end(entry: &Entry, process: &OwnedFd) -> Result<(), FleetError> {
    for (signal, patience) in [(Signal::TERM, ORDERLY), (Signal::KILL, KILLED)] {
        match pidfd_send_signal(process, signal) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(()),
            Err(error) => return Err(io_error("ended", entry.folder())(error.into())),
        }
        if wait_for(process, patience)? {
            return Ok(());
        }
    }
    Err(FleetError::Refused {
        name: entry.name().to_owned(),
        cause: "its process does not end, although it was killed".to_owned(),
        user: false,
    })
}

/// Waits for the end of a VM and says its exit code.
pub fn wait(entry: &Entry) -> Result<u8, FleetError> {
    loop {
        if let Some((process, _)) = entry.process()? {
            wait_for(&process, Duration::MAX)?;
        }
        let status = entry.status()?;
        match (status.state, status.ended) {
            (State::Stopped, Some(ended)) => return Ok(ended.exit_code),
            (State::Created, _) => {
                return Err(FleetError::RunsNot {
                    name: entry.name().to_owned(),
                    state: State::Created,
                    what: "end",
                });
            }
            (State::Dead, _) => {
                return Err(FleetError::Refused {
                    name: entry.name().to_owned(),
                    cause: "its process was killed, or the host went down, so it has no exit code".to_owned(),
                    user: false,
                });
            }
            // Between two states, or started again.
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Waits until a process has ended; says if it has within `time`.
pub fn wait_for(process: impl AsFd, time: Duration) -> Result<bool, FleetError> {
    let deadline = Instant::now().checked_add(time);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(io_error("waited for", std::path::Path::new("a process"))(
                    error.into(),
                ));
            }
        }
    }
}
