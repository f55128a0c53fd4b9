//! Saving VMs and going on from what was saved: snapshot, restore, fork.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::json;

use super::super::say::{print, print_json};
use super::args::{ForkArgs, RestoreArgs, SaveArgs};
use super::{absolute, code, open, refuse, tell};
use crate::fleet::fork::{self, Base, Clones};
use crate::fleet::launch::{self, Launch};
use crate::fleet::{Entry, Fleet, FleetError, NewVm, drive};

/// `berth snapshot`: prints the directory.
pub(in super::super) fn snapshot(args: SaveArgs) -> u8 {
    code(open(args.state).and_then(|fleet| {
        let entry = fleet.find(args.vm.as_deref().unwrap_or_default())?;
        let directory = match args.dir {
            Some(directory) => absolute(&directory),
            None => default_directory(&fleet, &entry)?,
        };
        let kind = if args.diff { "diff" } else { "full" };
        let body = json!({ "path": directory, "kind": kind });
        drive::request(&entry, "POST", "/berth/v1/snapshot", Some(&body), "be saved")?;
        let shown = directory.to_string_lossy();
        Ok(if args.json {
            print_json(&json!({ "id": entry.meta().id, "name": entry.name(), "path": shown, "kind": kind }))
        } else {
            print(&format!("{shown}\n"))
        })
    }))
}

fn default_directory(fleet: &Fleet, entry: &Entry) -> Result<PathBuf, FleetError> {
    use std::os::unix::fs::DirBuilderExt;
    let folder = fleet.root().join("snapshots");
    let mut private = std::fs::DirBuilder::new();
    let made = private.recursive(true).mode(0o700).create(&folder);
    made.map_err(|cause| FleetError::Io {
        path: folder.clone(),
        what: "made",
        cause,
    })?;
    let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    Ok(folder.join(format!("{}-{}", entry.name(), now.replace(':', ""))))
}

/// `berth restore`: a VM that goes on from a snapshot, in the background.
pub(in super::super) fn restore(args: RestoreArgs) -> u8 {
    let json = args.go_on.json;
    match start_restored(args) {
        Ok(entry) => tell(&[Ok(entry)], json),
        Err(error) => refuse(&error),
    }
}

fn start_restored(args: RestoreArgs) -> Result<Entry, FleetError> {
    let manner = args.go_on.manner();
    let fleet = open(args.go_on.state)?;
    let directory = absolute(&args.dir);
    let mut spec = fork::saved_spec(&directory)?;
    replace("disk", &mut spec.disks, args.disk)?;
    replace("pmem", &mut spec.pmem, args.pmem)?;
    replace("net", &mut spec.nets, args.net)?;
    replace("console", &mut spec.consoles, args.console)?;
    let mut vsock = spec.vsock.take().into_iter().collect();
    replace("vsock", &mut vsock, args.vsock.into_iter().collect())?;
    spec.vsock = vsock.pop();
    spec.timeout = args.go_on.timeout;
    spec.take_paths_from(&absolute(Path::new(".")));
    let entry = fleet.create(&NewVm {
        name: args.name.as_deref(),
        spec,
        manner,
        restore: Some(directory),
        bases: Vec::new(),
        remove: args.go_on.rm,
        durable: true,
    })?;
    let started = launch::begin(&fleet, &entry).and_then(Launch::finish);
    if started.is_err() {
        // Nothing is left of what did not come to be. What cannot be removed can still be seen.
        let _ = fleet.remove(&entry);
    }
    started
}

/// Puts what is given in the place of what was saved; all of it or nothing.
fn replace<T>(field: &str, saved: &mut Vec<T>, given: Vec<T>) -> Result<(), FleetError> {
    if given.is_empty() {
        return Ok(());
    }
    if given.len() != saved.len() {
        return Err(FleetError::Fork {
            why: format!(
                "{field}: the saved VM has {}, but {} are given; give all of them, in their order",
                saved.len(),
                given.len()
            ),
        });
    }
    *saved = given;
    Ok(())
}

/// `berth fork`: many VMs that go on from one point, in the background.
pub(in super::super) fn fork(args: ForkArgs) -> u8 {
    let json = args.go_on.json;
    match start_clones(args) {
        Ok(started) => tell(&started, json),
        Err(error) => refuse(&error),
    }
}

fn start_clones(args: ForkArgs) -> Result<Vec<Result<Entry, FleetError>>, FleetError> {
    let manner = args.go_on.manner();
    let fleet = open(args.go_on.state)?;
    let directory = absolute(Path::new(&args.vm));
    // No VM's name has a slash in it.
    let is_snapshot = args.vm.contains('/');
    let found = if is_snapshot {
        None
    } else {
        Some(fleet.find(&args.vm)?)
    };
    let prefix = match (&args.name, &found) {
        (Some(name), _) => name.clone(),
        (None, Some(entry)) => entry.name().to_owned(),
        (None, None) => "fork".to_owned(),
    };
    if !crate::fleet::valid_name(&format!("{prefix}-{}", u32::MAX)) {
        return Err(FleetError::Name { name: prefix });
    }
    let base = match &found {
        Some(entry) => Base::of_vm(&fleet, entry)?,
        None => Base::of_snapshot(&fleet, &directory)?,
    };
    let clones = Clones {
        prefix,
        count: args.count,
        taps: args.tap,
        timeout: args.go_on.timeout,
        manner,
        remove: args.go_on.rm,
    };
    let made = match base.clone_vms(&fleet, &clones) {
        Ok(made) => made,
        Err(error) => {
            base.discard();
            return Err(error);
        }
    };
    let started = start_all(&fleet, &made);
    for entry in made
        .iter()
        .zip(&started)
        .filter(|(_, started)| started.is_err())
        .map(|(entry, _)| entry)
    {
        // As above.
        let _ = fleet.remove(entry);
    }
    Ok(started)
}

/// How many processes to have on their way at once for each processor: some of their time they wait.
const AT_ONCE: usize = 4;

/// Starts them, several at once.
fn start_all(fleet: &Fleet, made: &[Entry]) -> Vec<Result<Entry, FleetError>> {
    let most = AT_ONCE * std::thread::available_parallelism().map_or(1, usize::from);
    let mut started = Vec::with_capacity(made.len());
    let mut under_way = std::collections::VecDeque::new();
    for entry in made {
        if under_way.len() == most
            && let Some(first) = under_way.pop_front()
        {
            started.push(Result::and_then(first, Launch::finish));
        }
        under_way.push_back(launch::begin(fleet, entry));
    }
    started.extend(
        under_way
            .into_iter()
            .map(|launch| launch.and_then(Launch::finish)),
    );
    started
}
