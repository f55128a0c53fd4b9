//! The verbs for many VMs.

pub(super) mod args;
mod console;
mod life;
mod managed;
mod show;
mod snapshot;

pub(super) use console::console;
pub(super) use life::{create, kill, pause, remove, resume, run_detached, start, stop, wait};
pub(super) use managed::{run_managed, run_registered};
pub(super) use show::{events, inspect, logs, ps};
pub(super) use snapshot::{fork, restore, snapshot};

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::say::{complain, print, print_json};
use crate::exit_code;
use crate::fleet::{Entry, Fleet, FleetError};
use args::{StateDir, VmsArgs};

/// The VMs of a state directory.
fn open(state: StateDir) -> Result<Fleet, FleetError> {
    Fleet::open(state.state_dir)
}

/// The caller's folder is not the VM's.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Says what is wrong. Returns the exit code.
fn refuse(error: &FleetError) -> u8 {
    for sentence in error.sentences() {
        complain(&sentence);
    }
    error.exit_code()
}

/// The exit code of a verb that is done, or could not be.
fn code(result: Result<u8, FleetError>) -> u8 {
    result.unwrap_or_else(|error| refuse(&error))
}

/// Does something to every VM named, all at once, and says how each went: its name, or a sentence. The exit code is that
/// of the first that failed.
fn each(args: VmsArgs, act: impl Fn(&Fleet, &Entry) -> Result<(), FleetError> + Sync) -> u8 {
    let fleet = match open(args.state) {
        Ok(fleet) => fleet,
        Err(error) => return refuse(&error),
    };
    let found = args.vms.iter().map(|reference| fleet.find(reference));
    let done: Vec<_> = std::thread::scope(|scope| {
        let (fleet, act) = (&fleet, &act);
        let threads: Vec<_> = found
            .map(|entry| scope.spawn(move || entry.and_then(|entry| act(fleet, &entry).map(|()| entry))))
            .collect();
        // A thread that panics ends the program by itself.
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    });
    tell(&done, args.json)
}

/// Says how each went.
fn tell(done: &[Result<Entry, FleetError>], json: bool) -> u8 {
    let mut first = exit_code::OK;
    let mut note = |code| {
        if first == exit_code::OK {
            first = code;
        }
    };
    for error in done.iter().filter_map(|result| result.as_ref().err()) {
        note(refuse(error));
    }
    let entries: Vec<_> = done.iter().filter_map(|result| result.as_ref().ok()).collect();
    if json {
        let values: Vec<_> = entries.iter().map(|entry| describe(entry)).collect();
        note(print_json(&Value::Array(values)));
    } else {
        note(print(&lines(entries.iter().map(|entry| entry.name()))));
    }
    first
}

/// Each word on a line.
fn lines<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.flat_map(|word| [word, "\n"]).collect()
}

/// All that is known about a VM in a few words, but for what it is.
fn describe(entry: &Entry) -> Value {
    let meta = entry.meta();
    let mut value = json!({
        "id": meta.id,
        "name": meta.name,
        "created": meta.created,
        "folder": entry.folder().to_string_lossy(),
    });
    if let Some(path) = &meta.restored_from {
        value["restored_from"] = path.to_string_lossy().into();
    }
    // Removed meanwhile: then there is no more to say.
    let Ok(status) = entry.status() else { return value };
    value["state"] = json!(status.state);
    if status.is_live()
        && let Some(live) = &status.live
    {
        value["pid"] = live.pid.into();
        value["started"] = live.started.as_str().into();
        if let Some(socket) = &live.api_socket {
            value["api_socket"] = socket.to_string_lossy().into();
        }
    }
    if let Some(ended) = &status.ended {
        value["started"] = ended.started.as_str().into();
        value["stopped"] = ended.stopped.as_str().into();
        value["reason"] = ended.reason.as_str().into();
        value["exit_code"] = ended.exit_code.into();
        if let Some(message) = &ended.message {
            value["message"] = message.as_str().into();
        }
    }
    value
}
