//! `berth run`: from arguments and a file to a VM, and from its end to an exit code.

use std::path::PathBuf;
use std::time::Instant;

use super::args::RunArgs;
use super::say::{complain, print};
use crate::api::Api;
use crate::exit_code;
use crate::logging;
use crate::machine::{LoadRequest, Overrides};
use crate::run::{self, RunOptions};
use crate::snapshot::{SnapshotRequest, SnapshotTarget};
use crate::spec::{self, ByteSize, Fault, Limits, SerialSpec, ValidSpec, VmSpec};

/// Runs it. Returns the exit code.
pub(super) fn run(mut args: RunArgs, start: Instant) -> u8 {
    let (log_level, log_file) = (args.log_level.take().unwrap_or_default(), args.log_file.take());
    let options = RunOptions {
        boot_timing: args.boot_timing,
        start,
        wait: args.api_only,
        load: args.restore.take().map(|path| LoadRequest {
            from: SnapshotTarget::Directory(path),
            resume: true,
            overrides: Overrides {
                serial: args.serial.clone(),
                timeout: args.timeout,
                taps: args.net.iter().map(|net| net.tap.clone()).collect(),
                disks: args.disk.iter().map(|disk| disk.path.clone()).collect(),
                keep_clock: args.keep_clock,
            },
            verify: args.verify,
        }),
        save_when_ready: args.snapshot_when_ready.take().map(SnapshotRequest::to),
        identity: None,
    };
    let (dry_run, api_sock) = (args.dry_run, args.api_sock.take());
    let spec = match resolve(args) {
        Ok(spec) => spec,
        Err(error) => {
            complain(&error);
            return exit_code::USER;
        }
    };
    let valid = match spec::validate(&spec, Limits::of_host(&spec)) {
        Ok(valid) => valid,
        Err(faults) => {
            for fault in &faults {
                complain(fault);
            }
            return exit_code::USER;
        }
    };
    if dry_run {
        return match to_toml(valid) {
            Ok(text) => print(&text),
            Err(fault) => {
                complain(&fault);
                exit_code::USER
            }
        };
    }
    let log = match logging::start(&log_level, log_file.as_deref()) {
        Ok(log) => log,
        Err(fault) => {
            complain(&fault);
            return exit_code::USER;
        }
    };
    let serve = |control| match &api_sock {
        Some(path) => Ok(Some(Api::start(path, control)?)),
        None => Ok(None),
    };
    match run::run(valid.into_inner(), options, serve) {
        Ok(reason) => {
            let (code, sentence) = exit_code::of(&reason, &spec);
            if let Some(sentence) = sentence {
                complain(&sentence);
            }
            code
        }
        Err(error) => {
            for sentence in error.sentences() {
                complain(&sentence);
            }
            if error.is_user() {
                log.discard_empty_file();
                exit_code::USER
            } else {
                exit_code::FAULT
            }
        }
    }
}

/// The VM that the arguments describe: the file's, if there is one, with what the flags say in its place.
pub fn resolve(args: RunArgs) -> Result<VmSpec, spec::FileError> {
    let mut spec = match &args.config {
        Some(path) => spec::read(path)?,
        None => VmSpec::default(),
    };
    apply(args, &mut spec);
    Ok(spec)
}

/// Firecracker's memory, for machines that are configured as Firecracker's are.
const API_ONLY_MEMORY: ByteSize = ByteSize(128 << 20);

fn apply(args: RunArgs, spec: &mut VmSpec) {
    let VmSpec {
        cpus,
        memory,
        kernel,
        entry,
        initrd,
        cmdline,
        cmdline_replace,
        cmdline_base,
        command,
        disks,
        nets,
        balloon,
        rng,
        serial,
        timeout,
        assist,
    } = spec;
    set(cpus, args.cpus);
    let memory_of_firecracker = args.api_only && args.config.is_none();
    set(memory, memory_of_firecracker.then_some(API_ONLY_MEMORY));
    set(memory, args.memory);
    set(kernel, args.kernel.map(Some));
    set(entry, args.entry.map(Into::into));
    set(initrd, args.initrd.map(Some));
    set(
        cmdline,
        Some(args.cmdline.join(" ")).filter(|_| !args.cmdline.is_empty()),
    );
    set(cmdline_replace, args.cmdline_replace.map(Some));
    set(cmdline_base, args.cmdline_base.map(Some));
    set(command, Some(args.command).filter(|words| !words.is_empty()));
    set(disks, Some(args.disk).filter(|disks| !disks.is_empty()));
    set(nets, Some(args.net).filter(|nets| !nets.is_empty()));
    set(balloon, args.balloon.map(Some));
    set(rng, args.rng);
    set(serial, args.serial);
    set(timeout, args.timeout.map(Some));
    set(assist, args.assist);
}

fn set<T>(field: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *field = value;
    }
}

/// The VM as a file that means the same wherever it lies.
fn to_toml(spec: ValidSpec) -> Result<String, Fault> {
    let mut spec = spec.into_inner();
    let folder = std::env::current_dir()
        .map_err(|cause| Fault::new("dry-run", format!("the working folder cannot be found: {cause}")))?;
    spec.take_paths_from(&folder);
    let paths = spec
        .kernel
        .iter()
        .chain(&spec.initrd)
        .chain(spec.disks.iter().map(|disk| &disk.path));
    if let Some(path) = paths
        .chain(serial_path(&spec.serial))
        .find(|path| path.to_str().is_none())
    {
        let shown = path.display();
        return Err(Fault::new(
            "dry-run",
            format!("the path {shown} is not UTF-8, which no VM file can hold; rename the file"),
        ));
    }
    toml::to_string(&spec).map_err(|cause| Fault::new("dry-run", cause.to_string()))
}

fn serial_path(serial: &SerialSpec) -> Option<&PathBuf> {
    match serial {
        SerialSpec::File(path) | SerialSpec::Socket(path) => Some(path),
        SerialSpec::Stdio | SerialSpec::Null | SerialSpec::Pty => None,
    }
}
