//! Running a VM of the state directory in this process: in the background, as [`launch`](crate::fleet::launch) starts it, or
//! in the foreground under a name.

use std::path::Path;
use std::time::Instant;

use super::super::args::RunArgs;
use super::super::run::{self as foreground, Session};
use super::super::say::complain;
use super::args::StateDir;
use super::{life, open, refuse};
use crate::api::Prepared;
use crate::detach;
use crate::exit_code;
use crate::fleet::process::{self, Tenure};
use crate::fleet::{Entry, Fleet, FleetError};
use crate::logging::{self, Filter, Target};
use crate::machine::{LoadRequest, Overrides};
use crate::run::RunOptions;
use crate::snapshot::{SnapshotRequest, SnapshotTarget};
use crate::spec::{SerialSpec, VmSpec};

/// `berth run --managed`: the VM in `folder`, in the background.
pub(in super::super) fn run_managed(folder: &Path, state: StateDir, start: Instant) -> u8 {
    if let Err(cause) = detach::detach() {
        complain(&format_args!("the VM's process cannot be detached: {cause}"));
        return exit_code::FAULT;
    }
    match begin(folder, state) {
        Ok((fleet, tenure)) => {
            let entry = tenure.entry().clone();
            let code = run(tenure, start);
            if entry.meta().remove
                && let Err(error) = fleet.remove(&entry)
            {
                tracing::warn!("{error}");
            }
            code
        }
        Err(error) => refuse(&error),
    }
}

fn begin(folder: &Path, state: StateDir) -> Result<(Fleet, Tenure), FleetError> {
    let fleet = open(state)?;
    let entry = Entry::read(folder)?.ok_or_else(|| FleetError::Missing {
        reference: folder.display().to_string(),
        near: None,
    })?;
    let tenure = Tenure::begin(fleet.root(), entry, true)?;
    Ok((fleet, tenure))
}

fn run(tenure: Tenure, start: Instant) -> u8 {
    let entry = tenure.entry().clone();
    let code = prepare(&entry).map(|mut session| {
        session.options.start = start;
        foreground::execute(session, Some(&tenure), process::report_started)
    });
    tenure.end();
    code.unwrap_or_else(|code| code)
}

/// Fails with the exit code, and has said why.
fn prepare(entry: &Entry) -> Result<Session, u8> {
    let mut spec = entry.spec().map_err(|error| refuse(&error))?;
    if spec.serial == SerialSpec::Stdio {
        spec.serial = SerialSpec::Kept(entry.folder().to_owned());
    }
    let valid = foreground::check(&spec)?;
    let filter = entry
        .meta()
        .manner
        .log_level
        .as_deref()
        .map_or(Ok(Filter::default()), str::parse);
    let log = entry.log();
    let target = Target {
        file: Some((&log, logging::BOUND)),
        adjustable: true,
    };
    let log = logging::start(&filter.unwrap_or_default(), target).map_err(|fault| {
        complain(&fault);
        exit_code::USER
    })?;
    Ok(Session {
        spec: valid,
        log,
        api: None,
        prepared: Prepared::default(),
        end: None,
        options: RunOptions {
            load: load(entry, &spec),
            ..options(entry, Instant::now())
        },
    })
}

/// How a VM of the state directory is run.
fn options(entry: &Entry, start: Instant) -> RunOptions {
    let manner = &entry.meta().manner;
    RunOptions {
        cold: manner.cold,
        save_when_ready: manner.snapshot_when_ready.clone().map(SnapshotRequest::to),
        identity: Some(entry.identity()),
        ..RunOptions::new(start)
    }
}

/// The snapshot that a VM goes on from, if it does, with what is its own.
fn load(entry: &Entry, spec: &VmSpec) -> Option<LoadRequest> {
    let path = entry.meta().restore.clone()?;
    Some(LoadRequest {
        from: SnapshotTarget::Directory(path),
        resume: true,
        overrides: Overrides {
            serial: Some(spec.serial.clone()),
            timeout: spec.timeout,
            ..Overrides::of_devices(
                &spec.disks,
                &spec.pmem,
                &spec.nets,
                &spec.consoles,
                spec.vsock.as_ref(),
            )
        },
        verify: false,
        handler: None,
        prefetch: entry.meta().manner.prefetch,
    })
}

/// `berth run --name`: a VM in the foreground that the other verbs know.
pub(in super::super) fn run_registered(args: RunArgs, start: Instant) -> u8 {
    let state = StateDir {
        state_dir: args.state.state_dir.clone(),
    };
    let fleet = match open(state) {
        Ok(fleet) => fleet,
        Err(error) => return refuse(&error),
    };
    let log = match foreground::start_log(&args, true) {
        Ok(log) => log,
        Err(code) => return code,
    };
    let (boot_timing, remove) = (args.boot_timing, args.rm);
    let entry = match life::register(&fleet, args, false) {
        Ok(entry) => entry,
        Err(code) => {
            log.discard_empty_file();
            return code;
        }
    };
    let code = (|| {
        let spec = entry.spec().map_err(|error| refuse(&error))?;
        let valid = foreground::check(&spec)?;
        let kept = matches!(&spec.serial, SerialSpec::Kept(folder) if folder == entry.folder());
        let tenure = Tenure::begin(fleet.root(), entry.clone(), kept).map_err(|error| refuse(&error))?;
        let session = Session {
            spec: valid,
            log,
            api: None,
            prepared: Prepared::default(),
            end: None,
            options: RunOptions {
                boot_timing,
                ..options(&entry, start)
            },
        };
        let code = foreground::execute(session, Some(&tenure), |_| ());
        tenure.end();
        Ok(code)
    })();
    // One that never ran is no VM that anybody would look for.
    let ran = entry.status().is_ok_and(|status| status.ended.is_some());
    if (remove || !ran)
        && let Err(error) = fleet.remove(&entry)
    {
        tracing::warn!("{error}");
    }
    code.unwrap_or_else(|code| code)
}
