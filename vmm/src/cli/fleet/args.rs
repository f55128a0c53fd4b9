//! The arguments of the verbs for many VMs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::super::args::option;
use super::super::completion::vms;
use crate::fleet::Manner;
use crate::logging::Filter;
use crate::spec::{ConsoleSpec, DiskSpec, NetSpec, PmemSpec, VsockSpec};

/// Where the VMs are.
#[derive(Debug, Default, Clone, Args)]
pub struct StateDir {
    /// Where VMs are kept [default: $XDG_STATE_HOME/berth, else ~/.local/state/berth]
    #[arg(
        long,
        value_name = "FOLDER",
        env = "BERTH_STATE_DIR",
        hide_env = true,
        help_heading = "Many VMs"
    )]
    pub state_dir: Option<PathBuf>,
}

/// VMs by name or id.
#[derive(Debug, Clone, Args)]
pub struct VmsArgs {
    /// The VMs, each by its name or the beginning of its id
    #[arg(required = true, value_name = "VM", add = vms())]
    pub vms: Vec<String>,
    /// Print the VMs as JSON instead of their names
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub state: StateDir,
}

/// Arguments of `berth stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// How long the guest may take to shut down before the VM is ended, in seconds
    #[arg(long, short, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub time: Duration,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub vms: VmsArgs,
}

/// Arguments of `berth rm`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// End VMs that still run
    #[arg(long, short)]
    pub force: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub vms: VmsArgs,
}

/// Arguments of `berth ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Also those that do not run
    #[arg(long, short)]
    pub all: bool,
    /// Only their ids
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub state: StateDir,
}

/// Arguments of `berth inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The VMs, each by its name or the beginning of its id
    #[arg(required = true, value_name = "VM", add = vms())]
    pub vms: Vec<String>,
    /// It is JSON in any case
    #[arg(long, hide = true)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub state: StateDir,
}

/// Arguments of `berth console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// The VM, by its name or the beginning of its id
    #[arg(add = vms())]
    pub vm: String,
    /// Attach to this port of its virtio console instead of its serial port: its name, or its number from 1
    ///
    /// The port must lead to a socket. The guest is told the size of this terminal's window if it is the first one.
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub state: StateDir,
}

/// Arguments of `berth logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The VM, by its name or the beginning of its id
    #[arg(add = vms())]
    pub vm: String,
    /// What its guest said (this is what is shown if nothing is asked for)
    #[arg(long, conflicts_with = "vmm")]
    pub console: bool,
    /// What Berth logged about it
    #[arg(long)]
    pub vmm: bool,
    /// Go on with what comes, until the VM ends
    #[arg(long, short)]
    pub follow: bool,
    /// Begin with the last lines, this many
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub state: StateDir,
}

/// Arguments of `berth snapshot`.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// The VM, by its name or the beginning of its id
    #[arg(required = true, add = vms())]
    pub vm: Option<String>,
    /// The directory to save it in, which is replaced if it is a snapshot [default: one in the state directory]
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Save only the memory that was written since the VM was restored
    #[arg(long)]
    pub diff: bool,
    /// Print what was done as JSON instead of the directory
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub state: StateDir,
}

/// Arguments of `berth restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The directory of the snapshot
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The new VM's name: a to z, 0 to 9, dot, dash, underscore
    #[arg(long)]
    pub name: Option<String>,
    /// Where a disk leads now, as berth run takes it; all of them, in their order, or none
    #[arg(long, value_name = "PATH[,ro][,format=FORMAT][,overlay=FILE][,serial=NAME]", value_parser = option(DiskSpec::from_option))]
    pub disk: Vec<DiskSpec>,
    /// Where a file in memory leads now, as berth run takes it; all of them, in their order, or none
    #[arg(long, value_name = "PATH[,…]", value_parser = option(PmemSpec::from_option))]
    pub pmem: Vec<PmemSpec>,
    /// Where a network interface leads now, as berth run takes it; all of them, in their order, or none
    #[arg(long, value_name = "tap=NAME[,create][,mac=ADDRESS]", value_parser = option(NetSpec::from_option))]
    pub net: Vec<NetSpec>,
    /// Where a port of its console leads now, as berth run takes it; all of them, in their order, or none
    #[arg(long, value_name = "socket=PATH|file=PATH|null", value_parser = option(ConsoleSpec::from_option))]
    pub console: Vec<ConsoleSpec>,
    /// Where its vsock leads now, and its CID, as berth run takes them
    #[arg(long, value_name = "[cid=NUMBER,]path=PATH", value_parser = option(VsockSpec::from_option))]
    pub vsock: Option<VsockSpec>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub go_on: GoOnArgs,
}

/// What `berth restore` and `berth fork` have in common: how VMs run that go on from what was saved.
#[derive(Debug, Clone, Args)]
pub struct GoOnArgs {
    /// End a guest that still runs after this many seconds
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// What to log
    #[arg(long, value_name = "LEVEL", value_parser = str::parse::<Filter>)]
    pub log_level: Option<Filter>,
    /// Read ahead what the VM before it needed until it was ready, or write that down for the next
    #[arg(long)]
    pub prefetch: bool,
    /// Remove each VM when it ends
    #[arg(long)]
    pub rm: bool,
    /// Print VMs as JSON instead of their names
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub state: StateDir,
}

impl GoOnArgs {
    /// How each VM is run.
    pub fn manner(&self) -> Manner {
        Manner {
            log_level: self.log_level.as_ref().map(ToString::to_string),
            prefetch: self.prefetch,
            ..Manner::default()
        }
    }
}

/// Arguments of `berth fork`.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// The VM, by its name or the beginning of its id, or the directory of a snapshot, with a slash in it
    #[arg(value_name = "VM|DIR", add = vms())]
    pub vm: String,
    /// How many clones to make
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: u32,
    /// What their names begin with; a dash and a number follow [default: the VM's name]
    #[arg(long, value_name = "PREFIX")]
    pub name: Option<String>,
    /// The tap of a network interface, with {} for the clone's number; once for each interface. One that does not exist is made
    #[arg(long, value_name = "PATTERN")]
    pub tap: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub go_on: GoOnArgs,
}

/// Arguments of `berth events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only what happens to these VMs
    #[arg(value_name = "VM", add = vms())]
    pub vms: Vec<String>,
    /// Begin with what is on record
    #[arg(long)]
    pub past: bool,
    /// Print what is on record and wait for nothing
    #[arg(long)]
    pub no_follow: bool,
    /// A JSON object on each line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub state: StateDir,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse()
        .ok()
        .filter(|seconds: &f64| (0.0..1e9).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("{text:?} is not a number of seconds; give one such as 10 or 0.5"))
}
