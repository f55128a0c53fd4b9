//! The one description of a VM: flags, TOML, JSON and REST bodies fill this type and nothing else does.
//!
//! Every field has a default, so an empty description is the guest that ships with Berth. What a file or a flag filled is
//! only text in the right places; [`validate`] says whether it makes sense, and only a [`ValidSpec`] can be run.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod balloon;
mod console;
mod cpu_template;
mod disk;
mod file;
mod limit;
mod mmds;
mod net;
mod options;
mod pmem;
mod ready;
mod serial;
mod size;
pub(crate) mod table;
mod threads;
mod validate;
mod vsock;

pub use balloon::BalloonSpec;
pub use console::ConsoleSpec;
pub use cpu_template::{
    Capability, CpuTemplateSpec, CpuidModifier, MsrModifier, Number, Register, RegisterModifier,
};
pub use disk::{CacheSpec, DiskSpec, EngineSpec, FormatSpec};
pub use file::{FileError, Format, ParseError, parse, read};
pub(crate) use file::{json, nearest_of, text, toml};
pub use limit::{BandwidthSpec, OpsSpec, RateLimitSpec};
pub use mmds::{MmdsSpec, MmdsVersion};
pub(crate) use net::mac_text;
pub use net::{NetSpec, PublishError, PublishSpec};
pub use options::OptionError;
pub(crate) use options::{is_one, one};
pub use pmem::PmemSpec;
pub use ready::ReadySpec;
pub use size::{ByteSize, SizeError};
pub(crate) use table::Described;
pub use threads::{CpuList, CpuListError, ThreadsSpec};
pub use validate::{Fault, Limits, MEMORY_MIN, ValidSpec, validate};
pub use vsock::VsockSpec;

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VmSpec {
    /// How many virtual CPUs, 1 to 254.
    #[schemars(range(min = 1, max = 254))]
    pub cpus: u32,
    /// What of the CPU the guest is to see otherwise than this host's KVM has it.
    #[serde(deserialize_with = "table::optional")]
    pub cpu_template: Option<CpuTemplateSpec>,
    /// Guest memory, at least 2M and a multiple of 4K.
    pub memory: ByteSize,
    /// The kernel: ELF (vmlinux), bzImage, or either compressed. Without it the guest that ships with Berth boots.
    pub kernel: Option<PathBuf>,
    /// Which of the kernel's entry points to take.
    pub entry: Entry,
    /// An initial RAM disk, given to the guest as it is.
    pub initrd: Option<PathBuf>,
    /// Appended to the kernel command line that Berth makes, printable ASCII.
    pub cmdline: String,
    /// The whole kernel command line, instead of what Berth makes; `cmdline` is still appended.
    pub cmdline_replace: Option<String>,
    /// What begins the kernel command line instead of Berth's `console=ttyS0 reboot=k panic=-1`; what the devices and the
    /// host need is still added.
    pub cmdline_base: Option<String>,
    /// A command for the shipped guest to run instead of a shell: the program and its arguments.
    pub command: Vec<String>,
    /// Disks, in the order the guest sees them. The shipped guest's own root comes before them.
    #[serde(deserialize_with = "table::list")]
    pub disks: Vec<DiskSpec>,
    /// Files in the guest's memory, in the order the guest sees them.
    #[serde(deserialize_with = "table::list")]
    pub pmem: Vec<PmemSpec>,
    /// Network interfaces, in the order the guest sees them.
    #[serde(deserialize_with = "table::list")]
    pub nets: Vec<NetSpec>,
    /// Metadata that the guest can ask for on its network interfaces.
    #[serde(deserialize_with = "table::optional")]
    pub mmds: Option<MmdsSpec>,
    /// Sockets between guest and host.
    #[serde(deserialize_with = "table::optional")]
    pub vsock: Option<VsockSpec>,
    /// A balloon, through which the guest gives memory back.
    #[serde(deserialize_with = "table::optional")]
    pub balloon: Option<BalloonSpec>,
    /// Ports of a console beside the serial port (virtio-console), the first of which is a console.
    #[serde(deserialize_with = "table::list")]
    pub consoles: Vec<ConsoleSpec>,
    /// Whether the guest has a source of entropy (virtio-rng).
    pub rng: bool,
    /// Limits to the source of entropy.
    #[serde(deserialize_with = "table::optional")]
    pub rng_rate_limit: Option<RateLimitSpec>,
    /// Where the first serial port leads.
    pub serial: SerialSpec,
    /// A limit to what the guest may write to the first serial port; what is more is dropped.
    #[serde(deserialize_with = "table::optional")]
    pub serial_rate_limit: Option<BandwidthSpec>,
    /// Seconds after which a guest that still runs is ended as hung; 0 or nothing means never.
    pub timeout: Option<u64>,
    /// Whether a guest with a kernel of its own goes on from where it was booted to before, or is kept when it says that it is ready.
    pub warm: bool,
    /// How the guest says that it is ready.
    pub ready: ReadySpec,
    /// The threads that run it.
    pub threads: ThreadsSpec,
    /// Whether to complete what this host's KVM cannot run itself, where it interprets guest kernels, and to tell Linux so.
    pub assist: bool,
}

impl Default for VmSpec {
    fn default() -> Self {
        Self {
            cpus: 1,
            cpu_template: None,
            memory: ByteSize(256 << 20),
            kernel: None,
            entry: Entry::Auto,
            initrd: None,
            cmdline: String::new(),
            cmdline_replace: None,
            cmdline_base: None,
            command: Vec::new(),
            disks: Vec::new(),
            pmem: Vec::new(),
            nets: Vec::new(),
            mmds: None,
            vsock: None,
            balloon: None,
            consoles: Vec::new(),
            rng: true,
            rng_rate_limit: None,
            serial: SerialSpec::Stdio,
            serial_rate_limit: None,
            timeout: None,
            warm: false,
            ready: ReadySpec::Port,
            threads: ThreadsSpec::default(),
            assist: true,
        }
    }
}

impl VmSpec {
    /// Every path in it, for a file's paths to be taken from where the file lies.
    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let serial = match &mut self.serial {
            SerialSpec::File(path) | SerialSpec::Socket(path) | SerialSpec::Kept(path) => Some(path),
            SerialSpec::Stdio | SerialSpec::Null | SerialSpec::Pty => None,
        };
        let disks = self
            .disks
            .iter_mut()
            .flat_map(|disk| std::iter::once(&mut disk.path).chain(&mut disk.overlay));
        let pmem = self.pmem.iter_mut().map(|pmem| &mut pmem.path);
        let metadata = self.mmds.iter_mut().flat_map(|mmds| &mut mmds.file);
        let vsock = self.vsock.iter_mut().map(|vsock| &mut vsock.path);
        let consoles = self.consoles.iter_mut().flat_map(ConsoleSpec::paths_mut);
        self.kernel
            .iter_mut()
            .chain(&mut self.initrd)
            .chain(disks)
            .chain(pmem)
            .chain(metadata)
            .chain(vsock)
            .chain(consoles)
            .chain(serial)
    }

    /// Makes what a description may leave to Berth and what lasts as long as the VM: hardware addresses.
    pub fn fill_in(&mut self) -> std::io::Result<()> {
        for (number, net) in (1..).zip(&mut self.nets) {
            if net.mac.is_none() {
                let mac = net.own_mac(number)?;
                net.mac = Some(mac_text(mac));
            }
        }
        Ok(())
    }

    /// Takes relative paths from `folder`. An empty path stays empty, for [`validate`] to refuse.
    pub fn take_paths_from(&mut self, folder: &Path) {
        for path in self.paths_mut().filter(|path| !path.as_os_str().is_empty()) {
            // Joined to an absolute path, that path is the result.
            *path = folder.join(&*path);
        }
    }
}

/// A kernel's entry points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// The 64-bit entry for Linux, PVH for kernels that have only that.
    #[default]
    Auto,
    /// The 64-bit entry of the Linux boot protocol.
    Linux64,
    /// The PVH entry.
    Pvh,
}

/// Where a serial port leads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SerialSpec {
    /// Standard input and output; a terminal is made raw.
    #[default]
    Stdio,
    /// Nowhere.
    Null,
    /// Output is appended to this file; there is no input.
    File(PathBuf),
    /// A new pseudo-terminal, whose name is printed.
    Pty,
    /// A Unix socket at this path, for one client at a time.
    Socket(PathBuf),
    /// A folder: output is kept in its `console.log`, one client at a time attaches at its `console.sock`, and the guest never
    /// waits for one.
    Kept(PathBuf),
}

#[cfg(test)]
pub(crate) mod tests;
