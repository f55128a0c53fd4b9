//! The one description of a VM: flags, TOML, JSON and REST bodies fill this type and nothing else does.
//!
//! Every field has a default, so an empty description is the guest that ships with Berth.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod size;

pub use size::ByteSize;

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VmSpec {
    /// How many virtual CPUs, 1 to 254.
    pub cpus: u32,
    /// Guest memory: bytes, or a number with K, M, G or T (powers of 1024).
    pub memory: ByteSize,
    /// The kernel: ELF (vmlinux), bzImage, or either compressed. Without it the guest that ships with Berth boots.
    pub kernel: Option<PathBuf>,
    /// Which of the kernel's entry points to take.
    pub entry: Entry,
    /// An initial RAM disk, given to the guest as it is.
    pub initrd: Option<PathBuf>,
    /// Appended to the kernel command line that Berth makes.
    pub cmdline: String,
    /// The whole kernel command line, instead of what Berth makes; `cmdline` is still appended.
    pub cmdline_replace: Option<String>,
    /// A command for the shipped guest to run instead of a shell: the program and its arguments.
    pub command: Vec<String>,
    /// Disks, in the order the guest sees them. The shipped guest's own root comes before them.
    pub disks: Vec<DiskSpec>,
    /// Network interfaces, in the order the guest sees them.
    pub nets: Vec<NetSpec>,
    /// Whether the guest has a source of entropy (virtio-rng).
    pub rng: bool,
    /// Where the first serial port leads.
    pub serial: SerialSpec,
    /// Seconds after which a guest that still runs is ended as hung; 0 or nothing = never.
    pub timeout: Option<u64>,
    /// Whether to complete what an interpreting KVM cannot run, where the host needs it, and to tell Linux about it.
    pub assist: bool,
}

impl Default for VmSpec {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: ByteSize(256 << 20),
            kernel: None,
            entry: Entry::Auto,
            initrd: None,
            cmdline: String::new(),
            cmdline_replace: None,
            command: Vec::new(),
            disks: Vec::new(),
            nets: Vec::new(),
            rng: true,
            serial: SerialSpec::Stdio,
            timeout: None,
            assist: true,
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

/// A disk (virtio-blk).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// A raw image file or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// What the guest reads as the disk's serial number, at most 20 bytes of ASCII.
    #[serde(default)]
    pub serial: Option<String>,
}

/// A network interface (virtio-net).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// Name of the host's tap interface, which must exist.
    pub tap: String,
    /// The guest's hardware address, as `02:00:00:00:00:01`; without it Berth makes one.
    #[serde(default)]
    pub mac: Option<String>,
}

/// Where a serial port leads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
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
}

impl NetSpec {
    /// The guest's hardware address, if one is given and it can be read.
    pub fn mac_address(&self) -> Option<[u8; 6]> {
        None
    }
}

/// A description with which nothing is wrong.
#[derive(Debug)]
pub struct ValidSpec(VmSpec);

impl std::ops::Deref for ValidSpec {
    type Target = VmSpec;

    fn deref(&self) -> &VmSpec {
        &self.0
    }
}
