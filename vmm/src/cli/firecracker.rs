//! `berth firecracker`: Berth where a program expects the `firecracker` binary, by that binary's own arguments.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::run::{API_ONLY_MEMORY, Session, check, execute};
use super::say::{complain, print};
use crate::api::{FIRECRACKER, Preparation};
use crate::events::Identity;
use crate::exit_code;
use crate::logging::{self, Filter, Target};
use crate::run::RunOptions;
use crate::spec::{Fault, VmSpec};

/// The name by which the program is Firecracker.
const NAME: &str = "firecracker";

/// Where Firecracker has its socket if nobody says otherwise.
const SOCKET: &str = "/run/firecracker.socket";

/// The most characters of an id.
const ID_MAX: usize = 64;

/// Firecracker's arguments.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct FirecrackerArgs {
    /// Where the API's socket is
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub api_sock: PathBuf,

    /// What the VM is called: letters, digits and hyphens
    #[arg(long, value_name = "ID", default_value = "anonymous-instance", value_parser = id)]
    pub id: String,

    /// Configure and start the VM by this file; without it the VM waits for the API
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// Serve no API
    #[arg(long, requires = "config_file")]
    pub no_api: bool,

    /// Metadata for the guest: a JSON object
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,

    /// The most that the metadata may have, in bytes [default: that of a request's body]
    #[arg(long, value_name = "BYTES")]
    pub mmds_size_limit: Option<usize>,

    /// The largest body of a request, in bytes [default: 51200]
    #[arg(long, value_name = "BYTES")]
    pub http_api_max_payload_size: Option<usize>,

    /// A file or a pipe for the log, instead of standard error
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<PathBuf>,

    /// What is logged: Error, Warning, Info, Debug, Trace or Off
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<String>,

    /// The only module that is logged
    #[arg(long, value_name = "MODULE")]
    pub module: Option<String>,

    /// Without effect: the level is always shown
    #[arg(long)]
    pub show_level: bool,

    /// Without effect: the module is always shown
    #[arg(long)]
    pub show_log_origin: bool,

    /// A file or a pipe for metrics, a line of JSON a minute
    #[arg(long, value_name = "PATH")]
    pub metrics_path: Option<PathBuf>,

    /// Without effect
    #[arg(long)]
    pub no_seccomp: bool,

    /// Refused: filters of Firecracker's system calls do not fit Berth's
    #[arg(long, value_name = "FILE")]
    pub seccomp_filter: Option<PathBuf>,

    /// Refused: Berth has no boot timer device
    #[arg(long)]
    pub boot_timer: bool,

    /// Refused: Berth has no PCI
    #[arg(long)]
    pub enable_pci: bool,

    /// Refused: Firecracker's snapshots are not Berth's
    #[arg(long, value_name = "FILE")]
    pub describe_snapshot: Option<PathBuf>,

    /// Without effect
    #[arg(long, value_name = "MICROSECONDS")]
    pub start_time_us: Option<u64>,

    /// Without effect
    #[arg(long, value_name = "MICROSECONDS")]
    pub start_time_cpu_us: Option<u64>,

    /// Without effect
    #[arg(long, value_name = "MICROSECONDS")]
    pub parent_cpu_time_us: Option<u64>,

    /// Print the version of Firecracker whose API this is, and Berth's
    #[arg(long)]
    pub version: bool,
}

/// An id by Firecracker's rules.
fn id(text: &str) -> Result<String, String> {
    let known = |c: char| c == '-' || c.is_ascii_alphanumeric();
    if text.is_empty() || text.len() > ID_MAX || !text.chars().all(known) {
        return Err(format!(
            "{text:?} is no id; give 1 to {ID_MAX} letters, digits and hyphens"
        ));
    }
    Ok(text.to_owned())
}

/// Whether the program was called by Firecracker's name.
pub(super) fn is_called(program: Option<&std::ffi::OsString>) -> bool {
    program.is_some_and(|program| Path::new(program).file_name().is_some_and(|name| name == NAME))
}

/// Runs it. Returns the exit code.
pub(super) fn run(args: FirecrackerArgs, start: Instant) -> u8 {
    if args.version {
        let berth = env!("CARGO_PKG_VERSION");
        return print(&format!("Firecracker v{FIRECRACKER}\nBerth {berth}\n"));
    }
    if let Some(fault) = refused(&args) {
        complain(&fault);
        return exit_code::USER;
    }
    match session(args, start) {
        Ok(session) => execute(session, None, |_| ()),
        Err(code) => code,
    }
}

/// What would make another machine than was asked for.
fn refused(args: &FirecrackerArgs) -> Option<Fault> {
    let lacks = [
        (
            args.boot_timer,
            "--boot-timer",
            "Berth has no boot timer device; leave it out, and use berth run --boot-timing to see where a start's time goes",
        ),
        (
            args.enable_pci,
            "--enable-pci",
            "Berth's guests have no PCI; leave it out, and their devices are on virtio-mmio",
        ),
        (
            args.seccomp_filter.is_some(),
            "--seccomp-filter",
            "filters for Firecracker's system calls do not fit Berth's; leave it out",
        ),
        (
            args.describe_snapshot.is_some(),
            "--describe-snapshot",
            "Berth's snapshots have a format of their own; use berth snapshot info",
        ),
    ];
    let (_, flag, why) = lacks.into_iter().find(|(given, ..)| *given)?;
    Some(Fault::new(flag, why))
}

fn session(args: FirecrackerArgs, start: Instant) -> Result<Session, u8> {
    let user = |fault: Fault| {
        complain(&fault);
        exit_code::USER
    };
    let log = logging::start(
        &Filter::default(),
        Target {
            file: None,
            adjustable: true,
        },
    )
    .map_err(user)?;
    let wait = args.config_file.is_none();
    let preparation = Preparation {
        spec: VmSpec {
            memory: API_ONLY_MEMORY,
            ..VmSpec::default()
        },
        config: args.config_file,
        metadata: args.metadata,
        metadata_limit: args.mmds_size_limit,
        body_limit: args.http_api_max_payload_size,
        metrics: args.metrics_path,
        log_file: args.log_path,
        log_level: args.level,
        log_module: args.module,
        log: log.level(),
    };
    let prepared = preparation.prepare().map_err(user)?;
    let options = RunOptions {
        wait,
        cold: true,
        identity: Some(Identity {
            id: args.id,
            name: None,
        }),
        ..RunOptions::new(start)
    };
    Ok(Session {
        spec: check(&prepared.spec)?,
        log,
        options,
        api: (!args.no_api).then_some(args.api_sock),
        end: None,
        prepared,
    })
}
