//! The arguments of the `berth` program, and their help.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::completion::words;
use super::deferred::Deferred;
use super::firecracker::FirecrackerArgs;
use super::fleet::args::{
    ConsoleArgs, EventsArgs, ForkArgs, InspectArgs, LogsArgs, PsArgs, RemoveArgs, RestoreArgs, SaveArgs,
    StateDir, StopArgs, VmsArgs,
};
use super::image::ImageArgs;
use super::kernel::KernelArgs;
use super::test::{self, TestArgs};
use crate::exit_code;
use crate::logging::Filter;
use crate::spec::{
    BalloonSpec, ByteSize, ConsoleSpec, CpuList, DiskSpec, Entry, NetSpec, OptionError, PmemSpec, ReadySpec,
    SerialSpec, VsockSpec,
};

/// Berth runs virtual machines on KVM.
#[derive(Debug, Parser)]
#[command(
    name = "berth",
    version,
    about = "Berth runs virtual machines on KVM",
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a VM in the foreground until it ends
    #[command(long_about = RUN_ABOUT)]
    Run(Deferred<Box<RunArgs>>),
    /// Make a VM that runs when it is started
    #[command(long_about = CREATE_ABOUT, after_help = CREATE_EXAMPLES, after_long_help = CREATE_EXAMPLES)]
    Create(Deferred<Box<RunArgs>>),
    /// Start VMs in the background
    Start(Deferred<VmsArgs>),
    /// Have guests shut down, and end those that do not
    #[command(long_about = STOP_ABOUT)]
    Stop(Deferred<StopArgs>),
    /// End VMs at once
    Kill(Deferred<VmsArgs>),
    /// Stop guests where they are
    Pause(Deferred<VmsArgs>),
    /// Let paused guests go on
    Resume(Deferred<VmsArgs>),
    /// List VMs
    Ps(Deferred<PsArgs>),
    /// Print all about VMs as JSON
    Inspect(Deferred<InspectArgs>),
    /// Attach to a VM's console; Ctrl-A d detaches
    #[command(long_about = CONSOLE_ABOUT)]
    Console(Deferred<ConsoleArgs>),
    /// Print what a VM's guest said, or what Berth logged about it
    Logs(Deferred<LogsArgs>),
    /// Wait until VMs end, print their exit codes and end with theirs
    Wait(Deferred<VmsArgs>),
    /// Save a VM, which goes on afterwards; look into snapshots and join them
    #[command(long_about = SNAPSHOT_ABOUT)]
    Snapshot(Deferred<SnapshotArgs>),
    /// Make a VM that goes on from a snapshot, in the background
    Restore(Deferred<RestoreArgs>),
    /// Make clones of a VM that go on from where it is, in the background
    #[command(long_about = FORK_ABOUT)]
    Fork(Deferred<ForkArgs>),
    /// Remove VMs that do not run
    Rm(Deferred<RemoveArgs>),
    /// Print what happens to VMs, as it happens
    Events(Deferred<EventsArgs>),
    /// Make root images from directories and tar files, and say what an image is
    Image(Deferred<ImageArgs>),
    /// Say what a kernel file is
    Kernel(Deferred<KernelArgs>),
    /// List the guests that are kept booted for warm starts, or clear them
    #[command(long_about = CACHE_ABOUT)]
    Cache(Deferred<CacheArgs>),
    /// Be Firecracker: take its arguments and serve its API
    #[command(long_about = FIRECRACKER_ABOUT)]
    Firecracker(Deferred<Box<FirecrackerArgs>>),
    /// Say what this host offers to virtual machines, and what to do where something lacks
    #[command(after_help = "The exit code is 0 if guests can run here, and 125 if not.")]
    Doctor(Deferred<DoctorArgs>),
    /// Run boot tests
    #[command(long_about = test::ABOUT, after_help = test::AFTER)]
    Test(Deferred<Box<TestArgs>>),
    /// Print the JSON Schema of VM files, or of test files
    Schema {
        /// Of which files
        #[arg(value_name = "FILES", value_enum)]
        of: Option<SchemaArg>,
    },
    /// Print Berth's manual page, or write one for each verb into a folder
    #[command(after_help = "Example:\n  berth man ~/.local/share/man/man1")]
    Man {
        /// The folder, which must be there
        #[arg(value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
    /// Print a script that completes arguments in your shell
    #[command(after_help = "Example, for ~/.bashrc:\n  source <(berth completions bash)")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

const RUN_ABOUT: &str = "\
Run a VM in the foreground until it ends.

Without a kernel, the Linux guest that ships with Berth boots: to a shell on this terminal, or to the command behind --, whose exit \
status becomes Berth's. On a terminal, Ctrl-A x ends the VM and Ctrl-A h shows what else the keys can do.";

const CREATE_ABOUT: &str = "\
Make a VM that runs when it is started.

It takes the arguments of berth run and prints the VM's name. The VM stays, also when it has ended, until berth rm removes it.";

const CREATE_EXAMPLES: &str = "\
Examples:
  berth create --name web --memory 1G --disk web.img
  berth start web && berth console web";

const STOP_ABOUT: &str = "\
Have guests shut down, and end those that do not.

A guest is asked by its power button, then by Ctrl-Alt-Del; when its time is over its VM is ended. Several are stopped at once.";

const SNAPSHOT_ABOUT: &str = "\
Save a VM, which goes on afterwards.

It stands still while its state and memory are written. Its disks are not part of the snapshot: keep what they hold.";

const FORK_ABOUT: &str = "\
Make clones of a VM that go on from where it is, in the background.

The VM stands still only until its state is saved. The clones share its memory, and its disks where the file system can, until they write. \
What must not be the same twice, a guest that notices (VM generation id) changes by itself.";

const CONSOLE_ABOUT: &str = "\
Attach to a VM's console; Ctrl-A d detaches.

What the guest said while nobody was attached comes first, up to 256 KiB; berth logs has more. One can be attached at a time. When \
the VM ends, this ends with the VM's exit code.";

const FIRECRACKER_ABOUT: &str = "\
Be Firecracker: take its arguments and serve its API.

For programs that start the firecracker binary: under that name, as by a symbolic link, berth is this verb. What would make another \
machine than was asked for is refused, what means nothing here is taken without effect.";

const CACHE_ABOUT: &str = "\
List the guests that are kept booted for warm starts, or clear them.

berth run boots the shipped guest once for each set of arguments that shape it (CPUs, memory, devices), keeps it as it was when it was \
ready, and goes on from there ever after. They lie in $BERTH_CACHE_DIR, $XDG_CACHE_HOME/berth or ~/.cache/berth, take 1 GiB at most, \
and hold nothing of any run. A new boot of the host, another CPU or another Berth makes new ones.";

const RUN_EXAMPLES: &str = "\
Examples:
  berth run
  berth run -- uname -a
  berth run --cpus 2 --memory 1G --disk data.img --net tap=tap0
  berth run --kernel vmlinux --disk root.img,ro --cmdline \"root=/dev/vda\"
  berth run --config vm.toml --memory 2G";

/// Arguments of `berth run`.
#[derive(Debug, Default, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(
    after_help = format!("{RUN_EXAMPLES}\n\nMore, and the exit codes: berth run --help"),
    after_long_help = format!("{RUN_EXAMPLES}\n\n{}", exit_code::HELP),
)]
pub struct RunArgs {
    /// Read the VM from this file (.toml or .json, - for standard input); flags override what it says
    ///
    /// Relative paths in the file are taken from its folder. A flag that can be repeated replaces the file's whole list. The
    /// fields are those that --dry-run prints and `berth schema` describes.
    #[arg(long, value_name = "FILE", help_heading = "VM")]
    pub config: Option<PathBuf>,

    /// Virtual CPUs, 1 to 254 [default: 1]
    #[arg(long, value_name = "N", value_parser = cpus, help_heading = "VM")]
    pub cpus: Option<u32>,

    /// Memory, such as 512M or 2G [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = str::parse::<ByteSize>, help_heading = "VM")]
    pub memory: Option<ByteSize>,

    /// An image file or block device as a disk; repeatable
    ///
    /// `ro` makes it read-only; `format` is raw (if nothing is said), qcow2, or detect to look at what the image begins with; with `overlay` the image stays as it is, and FILE keeps what the guest writes; `serial` is the number that the guest reads, at most 20 characters. `bandwidth` and `ops` limit
    /// bytes and requests a second. `queues` is how many queues the guest may use at once; `cache=writethrough` answers a write when it is safe; `direct` passes by the host's page cache; `engine` is auto, io_uring, threads or sync. Write a comma in a name twice.
    #[arg(long, value_name = "PATH[,ro][,format=FORMAT][,overlay=FILE][,serial=NAME][,queues=N][,cache=writethrough][,direct][,engine=ENGINE][,io-thread=N][,bandwidth=SIZE][,ops=NUMBER]", value_parser = option(DiskSpec::from_option), help_heading = "VM")]
    pub disk: Vec<DiskSpec>,

    /// A file that the guest has in its memory, as /dev/pmem0 and so on; repeatable
    ///
    /// What the guest writes is in the file when it flushes; one that can be written is a multiple of 2M long. `ro` makes it read-only.
    #[arg(long, value_name = "PATH[,ro][,id=NAME][,io-thread=N][,bandwidth=SIZE][,ops=NUMBER]", value_parser = option(PmemSpec::from_option), help_heading = "VM")]
    pub pmem: Vec<PmemSpec>,

    /// A network interface on a tap of the host, or by user-mode networking; repeatable
    ///
    /// The tap must exist: ip tuntap add tap0 mode tap user $USER. With `create`, one that does not is made, which takes root's
    /// rights, and goes with the VM. Without a mac Berth makes one.
    /// `user` takes no rights: the guest shares the host's network through passt, which must be installed. `publish` leads a port
    /// of the host to one of the guest's, as 8080:80, 53:53/udp or 127.0.0.1:8080:80; repeatable. `loopback` has the guest reach the
    /// host's own services at its gateway.
    /// `bandwidth` and `ops` limit bytes and frames a second, either way.
    #[arg(long, value_name = "tap=NAME[,create][,queues=N][,spread] or user[,publish=HOST:GUEST]…[,loopback], and [,mac=ADDRESS][,io-thread=N][,bandwidth=SIZE][,ops=NUMBER]", value_parser = option(NetSpec::from_option), help_heading = "VM")]
    pub net: Vec<NetSpec>,

    /// Sockets between guest and host
    ///
    /// A host program connects to the Unix socket at PATH, writes `CONNECT <port>` and a newline, and has the guest program that
    /// listens on that port. A guest program that connects to CID 2 has the host program that listens at PATH_<port>.
    #[arg(long, value_name = "[cid=NUMBER,]path=PATH", value_parser = option(VsockSpec::from_option), help_heading = "VM")]
    pub vsock: Option<VsockSpec>,

    /// A balloon, through which the guest gives memory back
    ///
    /// `size` is how much it is to give back from the start. `deflate-on-oom` lets it take memory back rather than end programs,
    /// `stats` has it report on its memory every so many seconds, `reporting` gives back what it does not use as it goes, and
    /// `hinting` does that when asked.
    #[arg(
        long,
        value_name = "[size=SIZE][,deflate-on-oom][,stats=SECONDS][,reporting][,hinting]",
        value_parser = option(BalloonSpec::from_option),
        help_heading = "VM"
    )]
    pub balloon: Option<BalloonSpec>,

    /// A port of a console beside the serial port; repeatable
    ///
    /// The first one is a console (hvc0), the others are found by their names in the guest.
    #[arg(
        long,
        value_name = "[name=NAME,]socket=PATH|file=PATH|null",
        value_parser = option(ConsoleSpec::from_option),
        help_heading = "VM"
    )]
    pub console: Vec<ConsoleSpec>,

    /// Whether the guest has a source of entropy [default: on]
    #[arg(long, value_name = "on|off", value_parser = switch, add = words(&["on", "off"]), help_heading = "VM")]
    pub rng: Option<bool>,

    /// Whether to complete instructions that this host's KVM cannot interpret [default: on]
    ///
    /// It does nothing on hosts whose KVM runs guest kernels natively. `berth doctor` tells which kind this one is.
    #[arg(long, value_name = "on|off", value_parser = switch, add = words(&["on", "off"]), help_heading = "VM")]
    pub assist: Option<bool>,

    /// How many threads do I/O; disks and networks choose one with io-thread=N, counted from 0 [default: 1]
    #[arg(long, value_name = "N", help_heading = "Threads")]
    pub io_threads: Option<u32>,

    /// How many microseconds an I/O thread looks for more work where that comes quickly, before it sleeps; 0 is never [default: 50]
    #[arg(long, value_name = "MICROSECONDS", help_heading = "Threads")]
    pub io_poll: Option<u32>,

    /// Host CPUs of all virtual CPUs, or, repeated, of each in order: 2, 0-3 or 0-3,8
    #[arg(long, value_name = "CPUS", help_heading = "Threads")]
    pub vcpu_cpus: Vec<CpuList>,

    /// Host CPUs of all I/O threads, or, repeated, of each in order
    #[arg(long, value_name = "CPUS", help_heading = "Threads")]
    pub io_cpus: Vec<CpuList>,

    /// Kernel to boot: ELF (vmlinux) or bzImage, compressed or not [default: the guest that ships with Berth]
    #[arg(long, value_name = "FILE", help_heading = "Kernel")]
    pub kernel: Option<PathBuf>,

    /// Entry point of the kernel to take [default: auto]
    #[arg(long, value_name = "ENTRY", value_enum, help_heading = "Kernel")]
    pub entry: Option<EntryArg>,

    /// Initial RAM disk, given to the guest as it is
    #[arg(long, value_name = "FILE", help_heading = "Kernel")]
    pub initrd: Option<PathBuf>,

    /// Append to the kernel command line; repeatable
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        help_heading = "Kernel"
    )]
    pub cmdline: Vec<String>,

    /// The whole kernel command line instead of the one that Berth makes
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        help_heading = "Kernel"
    )]
    pub cmdline_replace: Option<String>,

    /// What begins the kernel command line instead of Berth's own words; what devices and host need is still added
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        help_heading = "Kernel"
    )]
    pub cmdline_base: Option<String>,

    /// Where the first serial port leads: stdio, null, pty, file=PATH, socket=PATH or kept=FOLDER [default: stdio]
    ///
    /// With kept, output goes to console.log in the folder, and one client at a time attaches at its console.sock.
    #[arg(long, value_name = "PLACE", value_parser = option(SerialSpec::from_option), add = words(&["stdio", "null", "pty", "file=", "socket=", "kept="]), help_heading = "Console and log")]
    pub serial: Option<SerialSpec>,

    /// What to log: off, error, warn, info, debug, trace, or directives such as info,berth::vcpu=debug [default: warn]
    #[arg(long, value_name = "LEVEL", value_parser = str::parse::<Filter>, add = words(&["off", "error", "warn", "info", "debug", "trace"]), help_heading = "Console and log")]
    pub log_level: Option<Filter>,

    /// Append the log to this file instead of writing it to standard error
    #[arg(long, value_name = "FILE", help_heading = "Console and log")]
    pub log_file: Option<PathBuf>,

    /// End a guest that still runs after this many seconds, with exit code 124 [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = "Run")]
    pub timeout: Option<u64>,

    /// Keep the VM under this name, for the other verbs: a to z, 0 to 9, dot, dash, underscore
    #[arg(long, value_name = "NAME", help_heading = "Many VMs")]
    pub name: Option<String>,

    /// Run the VM in the background and print its name
    #[arg(long, short, help_heading = "Many VMs")]
    pub detach: bool,

    /// Remove the VM when it ends
    #[arg(long, help_heading = "Many VMs")]
    pub rm: bool,

    /// Print the VM as JSON instead of its name
    #[arg(long, help_heading = "Many VMs")]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub state: StateDir,

    /// Run the VM of this folder of the state directory
    #[arg(long, value_name = "FOLDER", hide = true)]
    pub managed: Option<PathBuf>,

    /// Serve the REST API on a Unix socket at this path, for this user alone
    ///
    /// A VM with a name has its socket in the state directory unless this is given.
    #[arg(long, value_name = "PATH", help_heading = "Run")]
    pub api_sock: Option<PathBuf>,

    /// Wait for the API to configure and start the VM, as Firecracker does
    ///
    /// Memory is then 128M unless said otherwise. The process ends when the VM does, or by a signal.
    #[arg(long, requires = "api_sock", conflicts_with_all = ["name", "detach"], help_heading = "Run")]
    pub api_only: bool,

    /// Print the VM as a TOML file for --config, and run nothing
    #[arg(long, help_heading = "Run")]
    pub dry_run: bool,

    /// Print how long each step took from the start to the guest's first instruction
    #[arg(long, help_heading = "Run")]
    pub boot_timing: bool,

    /// Go on from the snapshot in this directory instead of booting
    ///
    /// What the machine is comes from the snapshot. --serial and --timeout apply; --disk, --pmem and --net say where its disks, files in memory and network
    /// interfaces lead now, all of them, in their order, --console the same for the ports of its console, and --vsock where its vsock
    /// does and what its CID is.
    #[arg(long, value_name = "DIR", help_heading = "Snapshot",
        conflicts_with_all = ["config", "cpus", "memory", "kernel", "entry", "initrd", "cmdline", "cmdline_replace", "cmdline_base", "balloon", "rng", "assist", "io_threads", "io_poll", "vcpu_cpus", "io_cpus", "ready", "cold", "api_only", "dry_run", "command", "name", "detach"])]
    pub restore: Option<PathBuf>,

    /// With --restore: read all of the memory first and compare its checksums
    #[arg(long, requires = "restore", help_heading = "Snapshot")]
    pub verify: bool,

    /// With --restore: have a page-fault handler that listens on this socket bring the memory, as Firecracker's do
    ///
    /// The memory's file is then the handler's affair.
    #[arg(
        long,
        value_name = "SOCKET",
        requires = "restore",
        conflicts_with = "verify",
        help_heading = "Snapshot"
    )]
    pub uffd: Option<PathBuf>,

    /// With --restore: read ahead what the machine before this one needed until it was ready, or write that down for the next
    #[arg(
        long,
        requires = "restore",
        conflicts_with = "uffd",
        help_heading = "Snapshot"
    )]
    pub prefetch: bool,

    /// With --restore: leave the guest's clocks where they were, instead of letting them pass the time that it missed
    #[arg(long, requires = "restore", help_heading = "Snapshot")]
    pub keep_clock: bool,

    /// Save the machine in this directory when its guest says that it is ready, and end
    ///
    /// How a guest says so stands at --ready.
    #[arg(long, value_name = "DIR", help_heading = "Snapshot")]
    pub snapshot_when_ready: Option<PathBuf>,

    /// Run for `berth test`: end with the process that started this one, take the standard streams for the guest's terminal, and
    /// write to FILE how the VM ended
    #[arg(long, value_name = "FILE", hide = true)]
    pub driven: Option<PathBuf>,

    /// Go on with this kernel and these disks from where they were booted to before, or boot and keep them when they are ready
    ///
    /// How a guest says so stands at --ready. Disks must be read-only. What is kept lies with that of the shipped guest (see
    /// `berth cache`).
    #[arg(long, conflicts_with_all = ["cold", "restore", "snapshot_when_ready", "api_only"], help_heading = "Run")]
    pub warm: bool,

    /// How the guest says that it is ready: it writes 1 to port 0xf5 (port), a regular expression matches what it writes to the first
    /// serial port (line=REGEX), or it connects to this port of the host over its vsock (vsock=PORT) [default: port]
    ///
    /// --warm and --snapshot-when-ready wait for it, and `berth events` tells of it.
    #[arg(long, value_name = "SIGN", value_parser = option(ReadySpec::from_option), add = words(&["port", "line=", "vsock="]), help_heading = "Run")]
    pub ready: Option<ReadySpec>,

    /// Boot the shipped guest, instead of going on with one that was booted before and kept (see `berth cache`)
    #[arg(long, help_heading = "Run")]
    pub cold: bool,

    /// Command for the shipped guest to run instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Arguments of `berth cache`.
#[derive(Debug, Args)]
pub struct CacheArgs {
    /// Print the list as JSON
    #[arg(long)]
    pub json: bool,
    /// What to do instead of listing
    #[command(subcommand)]
    pub verb: Option<CacheVerb>,
}

/// What `berth cache` can do.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum CacheVerb {
    /// Remove all of them; the next start boots
    Clear,
}

/// Arguments of `berth doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `berth snapshot`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct SnapshotArgs {
    /// What to do with snapshots.
    #[command(subcommand)]
    pub verb: Option<SnapshotVerb>,
    /// What to save, without a verb.
    #[command(flatten)]
    pub save: SaveArgs,
}

/// The verbs of `berth snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Say what is in a snapshot, and whether this host can restore it
    Info(SnapshotInfoArgs),
    /// Join a difference with the snapshot that it builds on, to a full snapshot
    Merge(SnapshotMergeArgs),
}

/// Arguments of `berth snapshot info`.
#[derive(Debug, Args)]
pub struct SnapshotInfoArgs {
    /// The snapshot
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,

    /// Read all of the memory and compare its checksums
    #[arg(long)]
    pub verify: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `berth snapshot merge`.
#[derive(Debug, Args)]
pub struct SnapshotMergeArgs {
    /// The full snapshot
    #[arg(value_name = "BASE")]
    pub base: PathBuf,

    /// The difference
    #[arg(value_name = "DIFF")]
    pub difference: PathBuf,

    /// The directory for the result; a snapshot there is replaced
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
}

/// What `berth schema` describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum SchemaArg {
    /// VM files
    #[default]
    Vm,
    /// Test files
    Test,
}

/// `--entry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EntryArg {
    /// The 64-bit entry for Linux, PVH for kernels that have only that
    Auto,
    /// The 64-bit entry of the Linux boot protocol
    Linux64,
    /// The PVH entry
    Pvh,
}

impl From<EntryArg> for Entry {
    fn from(entry: EntryArg) -> Self {
        match entry {
            EntryArg::Auto => Self::Auto,
            EntryArg::Linux64 => Self::Linux64,
            EntryArg::Pvh => Self::Pvh,
        }
    }
}

/// A short form of several options, see `spec::options`. Paths in it need not be text.
pub(super) fn option<T>(
    read: impl Fn(&std::ffi::OsStr) -> Result<T, OptionError> + Clone + Send + Sync + 'static,
) -> ValueParser
where
    T: Clone + Send + Sync + 'static,
{
    OsStringValueParser::new()
        .try_map(move |text: OsString| read(&text))
        .into()
}

fn cpus(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a number of vCPUs; give 1 to 254"))
}

fn seconds(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a number of seconds; give a whole number, 0 for no limit"))
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{text:?} is neither on nor off")),
    }
}
