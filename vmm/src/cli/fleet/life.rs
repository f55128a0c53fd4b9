//! From a VM's making to its end: create, start, pause, resume, stop, kill, wait, rm.

use std::path::PathBuf;

use serde_json::Value;

use super::super::args::RunArgs;
use super::super::run as foreground;
use super::super::say::{complain, print, print_json};
use super::args::{RemoveArgs, StateDir, StopArgs, VmsArgs};
use super::{code, each, open, refuse, tell};
use crate::exit_code;
use crate::fleet::launch::{self, Launch};
use crate::fleet::{Entry, Fleet, FleetError, Manner, NewVm, State, drive};

/// `berth create`: a VM that does not run yet.
pub(in super::super) fn create(args: RunArgs) -> u8 {
    if args.dry_run {
        return foreground::dry_run(args);
    }
    for (given, flag, why) in [
        (args.detach, "--detach", "berth start runs it in the background"),
        (
            args.restore.is_some(),
            "--restore",
            "berth restore makes a VM that goes on from a snapshot",
        ),
        (
            args.api_only,
            "--api-only",
            "a VM of the state directory is what it was made as; only berth run can wait to be configured",
        ),
    ] {
        if given {
            complain(&format_args!("{flag}: is not for berth create: {why}"));
            return exit_code::USER;
        }
    }
    if let Err(code) = refuse_timing(&args) {
        return code;
    }
    match make(args) {
        Ok((_, entry, json)) => tell(&[Ok(entry)], json),
        Err(code) => code,
    }
}

/// `berth run --detach`: a VM that runs in the background.
pub(in super::super) fn run_detached(args: RunArgs) -> u8 {
    if let Err(code) = refuse_timing(&args) {
        return code;
    }
    let (fleet, entry, json) = match make(args) {
        Ok(made) => made,
        Err(code) => return code,
    };
    let started = launch::begin(&fleet, &entry).and_then(Launch::finish);
    if started.is_err() {
        // Nothing is left of what did not come to be. What cannot be removed can still be seen.
        let _ = fleet.remove(&entry);
    }
    tell(&[started], json)
}

/// How long the steps took is said on the terminal, which a VM in the background does not have.
fn refuse_timing(args: &RunArgs) -> Result<(), u8> {
    if !args.boot_timing {
        return Ok(());
    }
    complain(
        &"--boot-timing: is not for a VM in the background, which has no terminal to print on; use berth run without --detach",
    );
    Err(exit_code::USER)
}

/// Makes the VM that the arguments describe. Fails with the exit code, and has said why.
fn make(args: RunArgs) -> Result<(Fleet, Entry, bool), u8> {
    let json = args.json;
    let fleet = open(StateDir {
        state_dir: args.state.state_dir.clone(),
    })
    .map_err(|error| refuse(&error))?;
    let entry = register(&fleet, args, true)?;
    Ok((fleet, entry, json))
}

/// Makes an entry for the VM that the arguments describe. Fails with the exit code, and has said why.
pub(super) fn register(fleet: &Fleet, args: RunArgs, durable: bool) -> Result<Entry, u8> {
    let (name, remove) = (args.name.clone(), args.rm);
    let manner = manner(&args);
    let valid = foreground::validated(args)?;
    let spec = foreground::portable(valid).map_err(|fault| {
        complain(&fault);
        exit_code::USER
    })?;
    let new = NewVm {
        name: name.as_deref(),
        spec,
        manner,
        restore: None,
        bases: Vec::new(),
        remove,
        durable,
    };
    fleet.create(&new).map_err(|error| refuse(&error))
}

/// How the VM is to be run. Paths are the caller's, whose folder is not the VM's.
fn manner(args: &RunArgs) -> Manner {
    let absolute = |path: &Option<PathBuf>| path.as_deref().map(super::absolute);
    Manner {
        log_level: args.log_level.as_ref().map(ToString::to_string),
        log_file: absolute(&args.log_file),
        api_socket: absolute(&args.api_sock),
        cold: args.cold,
        prefetch: args.prefetch,
        snapshot_when_ready: absolute(&args.snapshot_when_ready),
    }
}

/// `berth start`.
pub(in super::super) fn start(args: VmsArgs) -> u8 {
    each(args, |fleet, entry| {
        let state = entry.status()?.state;
        match state {
            State::Created | State::Stopped | State::Dead => launch::begin(fleet, entry)?.finish().map(drop),
            State::Starting | State::Running | State::Paused => Err(FleetError::Runs {
                name: entry.name().to_owned(),
                what: "started again",
                hint: "stop it first",
            }),
        }
    })
}

/// `berth stop`.
pub(in super::super) fn stop(args: StopArgs) -> u8 {
    let time = args.time;
    each(args.vms, |_, entry| drive::stop(entry, time))
}

/// `berth kill`.
pub(in super::super) fn kill(args: VmsArgs) -> u8 {
    each(args, |_, entry| {
        let state = entry.status()?.state;
        if drive::kill(entry)? {
            Ok(())
        } else {
            Err(FleetError::RunsNot {
                name: entry.name().to_owned(),
                state,
                what: "be killed",
            })
        }
    })
}

/// `berth pause`.
pub(in super::super) fn pause(args: VmsArgs) -> u8 {
    each(args, |_, entry| drive::ask(entry, "pause", "be paused").map(drop))
}

/// `berth resume`.
pub(in super::super) fn resume(args: VmsArgs) -> u8 {
    each(args, |_, entry| {
        drive::ask(entry, "resume", "be resumed").map(drop)
    })
}

/// `berth rm`.
pub(in super::super) fn remove(args: RemoveArgs) -> u8 {
    let force = args.force;
    each(args.vms, |fleet, entry| {
        if force {
            drive::kill(entry)?;
        }
        fleet.remove(entry)
    })
}

/// `berth wait`: prints the exit code of each VM when it ends, and ends with the first that is not 0.
pub(in super::super) fn wait(args: &VmsArgs) -> u8 {
    code(open(args.state.clone()).map(|fleet| {
        let mut first = exit_code::OK;
        let mut values = Vec::new();
        for reference in &args.vms {
            let ended = fleet.find(reference).and_then(|entry| {
                let code = drive::wait(&entry)?;
                values.push(super::describe(&entry));
                Ok(code)
            });
            let code = match ended {
                Ok(code) => {
                    if !args.json {
                        let printed = print(&format!("{code}\n"));
                        if printed != exit_code::OK {
                            return printed;
                        }
                    }
                    code
                }
                Err(error) => refuse(&error),
            };
            if first == exit_code::OK {
                first = code;
            }
        }
        if args.json {
            print_json(&Value::Array(values));
        }
        first
    }))
}
