//! `berth run`: from arguments and a file to a VM, and from its end to an exit code.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::args::RunArgs;
use super::fleet;
use super::say::{complain, print};
use crate::api::{Api, MetricsWriter, Prepared};
use crate::boot_test::driven::{self, DrivenEnd};
use crate::control::ControlHandle;
use crate::exit_code;
use crate::fleet::Entry;
use crate::fleet::process::Tenure;
use crate::logging::{self, Filter, Log, Target};
use crate::machine::{LoadRequest, Overrides};
use crate::run::{self, RunOptions};
use crate::snapshot::{SnapshotRequest, SnapshotTarget};
use crate::spec::{self, ByteSize, ConsoleSpec, Fault, Limits, SerialSpec, ValidSpec, VmSpec};

/// Runs it. Returns the exit code.
pub(super) fn run(mut args: RunArgs, start: Instant) -> u8 {
    if args.dry_run {
        return dry_run(args);
    }
    if let Some(folder) = args.managed.take() {
        return fleet::run_managed(&folder, args.state, start);
    }
    if args.json && !args.detach {
        complain(&"--json: prints a VM that runs in the background; give --detach with it");
        return exit_code::USER;
    }
    // Clap does not ask for what is required where something excludes it, as a command excludes --restore.
    if args.restore.is_none()
        && let Some(flag) = of_restore(&args)
    {
        complain(&format_args!(
            "{flag}: it says how a snapshot is restored; leave it out, or name the snapshot with --restore"
        ));
        return exit_code::USER;
    }
    if args.detach {
        return fleet::run_detached(args);
    }
    if args.name.is_some() {
        return fleet::run_registered(args, start);
    }
    if args.driven.is_some()
        && let Err(error) = driven::end_with_parent()
    {
        complain(&format_args!("the end of the test cannot be waited for: {error}"));
        return exit_code::FAULT;
    }
    let options = options(&mut args, start);
    let (log_level, log_file) = (args.log_level.take(), args.log_file.take());
    let api = args.api_sock.take();
    let end = args.driven.take();
    let spec = match validated(args) {
        Ok(spec) => spec,
        Err(code) => return code,
    };
    match open_log(log_level, log_file.as_deref(), api.is_some()) {
        Ok(log) => {
            let session = Session {
                spec,
                log,
                options,
                api,
                prepared: Prepared::default(),
                end,
            };
            execute(session, None, |_| ())
        }
        Err(code) => code,
    }
}

/// The first argument that makes sense only with `--restore`.
fn of_restore(args: &RunArgs) -> Option<&'static str> {
    let flags = [
        ("verify", args.verify),
        ("uffd", args.uffd.is_some()),
        ("prefetch", args.prefetch),
        ("keep-clock", args.keep_clock),
    ];
    flags.into_iter().find_map(|(flag, given)| given.then_some(flag))
}

/// How the arguments say that the VM is to be run.
fn options(args: &mut RunArgs, start: Instant) -> RunOptions {
    RunOptions {
        boot_timing: args.boot_timing,
        wait: args.api_only,
        load: args.restore.take().map(|path| LoadRequest {
            from: SnapshotTarget::Directory(path),
            resume: true,
            overrides: Overrides {
                serial: args.serial.clone(),
                timeout: args.timeout,
                keep_clock: args.keep_clock,
                ..Overrides::of_devices(
                    &args.disk,
                    &args.pmem,
                    &args.net,
                    &args.console,
                    args.vsock.as_ref(),
                )
            },
            verify: args.verify,
            handler: args.uffd.take(),
            prefetch: args.prefetch,
        }),
        cold: args.cold,
        terminal: args.driven.is_some(),
        save_when_ready: args.snapshot_when_ready.take().map(SnapshotRequest::to),
        ..RunOptions::new(start)
    }
}

/// Starts the log that the arguments ask for. Fails with the exit code, and has said why.
pub(super) fn start_log(args: &RunArgs, adjustable: bool) -> Result<Log, u8> {
    open_log(args.log_level.clone(), args.log_file.as_deref(), adjustable)
}

fn open_log(level: Option<Filter>, file: Option<&Path>, adjustable: bool) -> Result<Log, u8> {
    let target = Target {
        file: file.map(|path| (path, logging::BOUND)),
        adjustable,
    };
    logging::start(&level.unwrap_or_default(), target).map_err(|fault| {
        complain(&fault);
        exit_code::USER
    })
}

/// A VM that can be run, and how.
pub(super) struct Session {
    pub(super) spec: ValidSpec,
    pub(super) log: Log,
    pub(super) options: RunOptions,
    /// Where its API is to listen, if not where the state directory says.
    pub(super) api: Option<PathBuf>,
    /// What its API knows before its first client.
    pub(super) prepared: Prepared,
    /// Where to write down how it ended, for a test that waits for that.
    pub(super) end: Option<PathBuf>,
}

/// Runs it to its end. A VM of the state directory is written down by `tenure`, which calls `started` when the guest runs.
pub(super) fn execute(
    session: Session,
    tenure: Option<&Tenure>,
    started: impl FnOnce(&Entry) + Send + 'static,
) -> u8 {
    let Session {
        spec,
        log,
        options,
        api,
        prepared,
        end,
    } = session;
    let api = api.or_else(|| tenure.and_then(Tenure::api_socket));
    let options = RunOptions {
        log: log.level(),
        metadata: prepared.metadata.clone(),
        ..options
    };
    let spec = spec.into_inner();
    let serve = |handle: ControlHandle| {
        if let Some(tenure) = tenure {
            tenure.attend(handle.events(), started);
        }
        match &api {
            Some(path) => Ok((Some(Api::start(path, handle, prepared)?), None)),
            None => Ok((None, MetricsWriter::start(handle, prepared)?)),
        }
    };
    match run::run(spec.clone(), options, serve) {
        Ok(reason) => {
            let (code, sentence) = exit_code::of(&reason, &spec);
            if let Some(file) = &end
                && let Err(error) = DrivenEnd::of(&reason, sentence.clone()).write(file)
            {
                complain(&format_args!("{}: {error}", file.display()));
            }
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

/// The VM that the arguments describe, if it makes sense. Fails with the exit code, and has said why.
pub(super) fn validated(args: RunArgs) -> Result<ValidSpec, u8> {
    let described = match described(&args) {
        Ok(described) => described,
        Err(error) => {
            complain(&error);
            return Err(exit_code::USER);
        }
    };
    let file = args.config.clone();
    let mut spec = described.clone();
    apply(args, &mut spec);
    spec::validate(&spec, Limits::of_host(&spec)).map_err(|faults| {
        let of_file = match file {
            // Those that the file has by itself.
            Some(_) => spec::validate(&described, Limits::of_host(&described)).err(),
            None => None,
        };
        for fault in &faults {
            match (&file, &of_file) {
                (Some(file), Some(own)) if own.contains(fault) => {
                    complain(&format_args!("{}: {fault}", file.display()));
                }
                _ => complain(fault),
            }
        }
        exit_code::USER
    })
}

/// The VM, if it makes sense on this host. Fails with the exit code, and has said why.
pub(super) fn check(spec: &VmSpec) -> Result<ValidSpec, u8> {
    spec::validate(spec, Limits::of_host(spec)).map_err(|faults| {
        for fault in &faults {
            complain(fault);
        }
        exit_code::USER
    })
}

/// Prints the VM that the arguments describe.
pub(super) fn dry_run(args: RunArgs) -> u8 {
    let valid = match validated(args) {
        Ok(valid) => valid,
        Err(code) => return code,
    };
    match to_toml(valid) {
        Ok(text) => print(&text),
        Err(fault) => {
            complain(&fault);
            exit_code::USER
        }
    }
}

/// The VM that the arguments describe: the file's, if there is one, with what the flags say in its place.
pub fn resolve(args: RunArgs) -> Result<VmSpec, spec::FileError> {
    let mut spec = described(&args)?;
    apply(args, &mut spec);
    Ok(spec)
}

/// The VM of the file that the arguments name, or else the shipped guest.
fn described(args: &RunArgs) -> Result<VmSpec, spec::FileError> {
    args.config
        .as_deref()
        .map_or_else(|| Ok(VmSpec::default()), spec::read)
}

/// Firecracker's memory, for machines that are configured as Firecracker's are.
pub(super) const API_ONLY_MEMORY: ByteSize = ByteSize(128 << 20);

fn apply(args: RunArgs, spec: &mut VmSpec) {
    let VmSpec {
        cpus,
        // Only files have it.
        cpu_template: _,
        memory,
        kernel,
        entry,
        initrd,
        cmdline,
        cmdline_replace,
        cmdline_base,
        command,
        disks,
        pmem,
        nets,
        // Only files have it.
        mmds: _,
        vsock,
        balloon,
        consoles,
        rng,
        // Only files have it.
        rng_rate_limit: _,
        serial,
        // Only files have it.
        serial_rate_limit: _,
        timeout,
        warm,
        ready,
        threads,
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
    set(command, given(args.command));
    set(disks, given(args.disk));
    set(pmem, given(args.pmem));
    set(nets, given(args.net));
    set(vsock, args.vsock.map(Some));
    set(balloon, args.balloon.map(Some));
    set(consoles, given(args.console));
    set(rng, args.rng);
    set(serial, args.serial);
    set(timeout, args.timeout.map(Some));
    set(warm, args.warm.then_some(true));
    set(ready, args.ready);
    set(&mut threads.io, args.io_threads);
    set(&mut threads.poll_us, args.io_poll);
    set(&mut threads.vcpu_cpus, given(args.vcpu_cpus));
    set(&mut threads.io_cpus, given(args.io_cpus));
    set(assist, args.assist);
}

/// A list that replaces another, unless it is empty.
fn given<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

fn set<T>(field: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *field = value;
    }
}

/// The VM as a file that means the same wherever it lies.
fn to_toml(spec: ValidSpec) -> Result<String, Fault> {
    toml::to_string(&portable(spec)?).map_err(|cause| Fault::new("dry-run", cause.to_string()))
}

/// The VM with paths that mean the same wherever it is written down, and can be.
pub(super) fn portable(spec: ValidSpec) -> Result<VmSpec, Fault> {
    let mut spec = spec.into_inner();
    let folder = std::env::current_dir()
        .map_err(|cause| Fault::new("VM", format!("the working folder cannot be found: {cause}")))?;
    spec.take_paths_from(&folder);
    let paths = spec
        .kernel
        .iter()
        .chain(&spec.initrd)
        .chain(spec.disks.iter().map(|disk| &disk.path))
        .chain(spec.pmem.iter().map(|pmem| &pmem.path))
        .chain(spec.mmds.iter().filter_map(|mmds| mmds.file.as_ref()))
        .chain(spec.consoles.iter().flat_map(ConsoleSpec::paths))
        .chain(spec.disks.iter().filter_map(|disk| disk.overlay.as_ref()));
    if let Some(path) = paths
        .chain(serial_path(&spec.serial))
        .find(|path| path.to_str().is_none())
    {
        let shown = path.display();
        return Err(Fault::new(
            "VM",
            format!("the path {shown} is not UTF-8, which no VM file can hold; rename the file"),
        ));
    }
    Ok(spec)
}

fn serial_path(serial: &SerialSpec) -> Option<&PathBuf> {
    match serial {
        SerialSpec::File(path) | SerialSpec::Socket(path) | SerialSpec::Kept(path) => Some(path),
        SerialSpec::Stdio | SerialSpec::Null | SerialSpec::Pty => None,
    }
}
