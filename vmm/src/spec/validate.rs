//! What makes a description one that can be run, in one place. Every fault is found, not only the first.
//!
//! Files and devices are looked at when they are opened, with one exception: whether two disks are the same file must be
//! known before either is written.

mod devices;

use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use berth_arch::x86_64::layout;
use rustix::thread::CpuSet;

use super::{ByteSize, MmdsSpec, RateLimitSpec, SerialSpec, VmSpec, VsockSpec, console};
use crate::unix::PATH_MAX as SOCKET_PATH_MAX;

/// The least memory: the boot structures and firmware tables take the first MiB, a kernel must lie above.
pub const MEMORY_MIN: ByteSize = ByteSize(2 << 20);

/// The longest time limit, in seconds: 136 years.
const TIMEOUT_MAX: u64 = u32::MAX as u64;

/// One thing that is wrong with a description. Displays as a sentence without its full stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The field, as in `cpus` or `disk 2`.
    pub field: String,
    /// What is wrong with its value, and what to do.
    pub message: String,
}

impl Fault {
    /// A fault of `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// What the host sets a limit to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many vCPUs KVM gives a VM.
    pub cpus: u32,
    /// The host's RAM.
    pub memory: ByteSize,
    /// The host CPUs that may be used, if that was asked.
    pub host_cpus: Option<CpuSet>,
}

impl Limits {
    /// No limits but those of the guest's own architecture.
    pub const NONE: Self = Self {
        cpus: layout::MAX_CPUS,
        memory: ByteSize(u64::MAX),
        host_cpus: None,
    };

    /// This host's limits as far as `spec` can meet them: every KVM has one vCPU, so it need not be asked about that.
    /// Where KVM cannot be asked there is no limit to vCPUs: a start will say why it cannot.
    pub fn of_host(spec: &VmSpec) -> Self {
        let kvm = if spec.cpus > 1 {
            kvm_ioctls::Kvm::new().ok()
        } else {
            None
        };
        let cpus = kvm.map_or(layout::MAX_CPUS, |kvm| {
            u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX)
        });
        let system = rustix::system::sysinfo();
        let memory = u64::from(system.mem_unit).saturating_mul(system.totalram);
        Self {
            cpus,
            memory: ByteSize(memory),
            host_cpus: if spec.threads.names_cpus() {
                rustix::thread::sched_getaffinity(None).ok()
            } else {
                None
            },
        }
    }
}

/// A description that [`validate`] has found no fault with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidSpec(VmSpec);

impl ValidSpec {
    /// Notes what was changed of the VM that runs by it. `change` leaves it without fault.
    pub(crate) fn note(&mut self, change: impl FnOnce(&mut VmSpec)) {
        change(&mut self.0);
    }

    /// The description, to change it again.
    pub fn into_inner(self) -> VmSpec {
        self.0
    }
}

impl Deref for ValidSpec {
    type Target = VmSpec;

    fn deref(&self) -> &VmSpec {
        &self.0
    }
}

/// Says whether `spec` can be run within `limits`, or everything that is wrong with it.
pub fn validate(spec: &VmSpec, limits: Limits) -> Result<ValidSpec, Vec<Fault>> {
    let mut faults = Faults(Vec::new());
    faults.machine(spec, limits);
    faults.boot(spec);
    if let Some(fault) = spec.balloon.as_ref().and_then(|balloon| balloon.fault(spec)) {
        faults.add("balloon", fault);
    }
    for fault in spec.threads.faults(spec.cpus, limits.host_cpus.as_ref()) {
        faults.add("threads", fault);
    }
    if let Some(mmds) = &spec.mmds {
        faults.mmds(mmds, spec);
    }
    if let Some(vsock) = &spec.vsock {
        faults.vsock(vsock);
    }
    if let Some(fault) = spec.ready.fault(spec) {
        faults.add("ready", fault);
    }
    // Beyond their number, one sentence is more use than a thousand.
    if faults.device_count(spec) {
        faults.devices(spec);
        console::check(&mut faults, &spec.consoles);
    }
    faults.serial(&spec.serial);
    faults.limit(
        "serial_rate_limit",
        "limit",
        spec.serial_rate_limit
            .clone()
            .map(|bandwidth| RateLimitSpec {
                bandwidth: Some(bandwidth),
                ops: None,
            })
            .as_ref(),
    );
    if faults.0.is_empty() {
        Ok(ValidSpec(spec.clone()))
    } else {
        Err(faults.0)
    }
}

pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Fault::new(field, message));
    }

    fn machine(&mut self, spec: &VmSpec, limits: Limits) {
        let cpus = spec.cpus;
        if cpus == 0 {
            self.add("cpus", "0 vCPUs cannot run anything; give at least 1");
        } else if cpus > layout::MAX_CPUS {
            self.add(
                "cpus",
                format!(
                    "{cpus} vCPUs are more than a guest can have; give at most {}",
                    layout::MAX_CPUS
                ),
            );
        } else if cpus > limits.cpus {
            self.add(
                "cpus",
                format!(
                    "{cpus} vCPUs are more than this host's KVM allows; give at most {}",
                    limits.cpus
                ),
            );
        }
        let memory = spec.memory;
        if memory < MEMORY_MIN {
            // Whoever writes a small number alone most likely means MiB.
            let hint = match memory.0 {
                1..0x10000 => format!(" (a number alone is bytes; for {0} MiB write {0}M)", memory.0),
                _ => String::new(),
            };
            let message =
                format!("{memory} is too little to boot anything; give at least {MEMORY_MIN}{hint}");
            self.add("memory", message);
        } else if memory > limits.memory {
            let most = ByteSize(limits.memory.0 >> 20 << 20);
            self.add(
                "memory",
                format!("{memory} is more than this host has; give at most {most}"),
            );
        } else if !memory.0.is_multiple_of(layout::PAGE_SIZE) {
            let below = ByteSize(memory.0 / layout::PAGE_SIZE * layout::PAGE_SIZE);
            self.add(
                "memory",
                format!("{memory} is no whole number of pages; give a multiple of 4K, such as {below}"),
            );
        }
        if let Some(seconds) = spec.timeout.filter(|&seconds| seconds > TIMEOUT_MAX) {
            self.add(
                "timeout",
                format!(
                    "{seconds} seconds are too long; give at most {TIMEOUT_MAX}, or nothing for no limit"
                ),
            );
        }
    }

    fn boot(&mut self, spec: &VmSpec) {
        if let Some(kernel) = &spec.kernel {
            self.path(
                "kernel",
                kernel,
                "name a file, or leave it out for the guest that ships with Berth",
            );
        }
        if let Some(initrd) = &spec.initrd {
            self.path("initrd", initrd, "name a file, or leave it out");
        }
        self.command_line("cmdline", &spec.cmdline);
        if let Some(base) = &spec.cmdline_base {
            self.command_line("cmdline_base", base);
        }
        if let Some(replaced) = &spec.cmdline_replace {
            self.command_line("cmdline_replace", replaced);
        }
        let Some(program) = spec.command.first() else {
            return;
        };
        if spec.kernel.is_some() {
            let shown = spec.command.join(" ");
            self.add(
                "command",
                format!("{shown:?} can only be run by the guest that ships with Berth; leave out the kernel or the command"),
            );
        }
        if program.is_empty() {
            self.add(
                "command",
                "the program's name is empty; name a program of the guest, such as sh",
            );
        }
        if let Some(word) = spec.command.iter().find(|word| word.contains('\0')) {
            self.add(
                "command",
                format!("the word {word:?} holds a zero byte, which no program can be given; leave it out"),
            );
        }
    }

    fn command_line(&mut self, field: &str, text: &str) {
        if let Some(character) = text.chars().find(|character| !matches!(character, ' '..='~')) {
            let message =
                format!("a kernel command line cannot hold {character:?}; write it in printable ASCII");
            self.add(field, message);
        }
    }

    pub(super) fn path(&mut self, field: impl Into<String>, path: &Path, instead: &str) {
        if path.as_os_str().is_empty() {
            self.add(field, format!("the path is empty; {instead}"));
        } else if path.as_os_str().as_bytes().contains(&0) {
            let shown = path.to_string_lossy();
            self.add(
                field,
                format!("the path {shown:?} holds a zero byte, which no file's name can; {instead}"),
            );
        }
    }

    fn limit(&mut self, field: &str, name: &str, limit: Option<&RateLimitSpec>) {
        if let Some(fault) = limit.and_then(RateLimitSpec::fault) {
            self.add(field, format!("{name}: {fault}"));
        }
    }

    fn mmds(&mut self, mmds: &MmdsSpec, spec: &VmSpec) {
        if let Some(fault) = mmds.fault(spec) {
            self.add("mmds", fault);
        }
        if let Some(file) = &mmds.file {
            self.path("mmds", file, "name a file with a JSON object, or leave it out");
        }
    }

    fn vsock(&mut self, vsock: &VsockSpec) {
        self.path(
            "vsock",
            &vsock.path,
            "name a socket for Berth to make, as in path=vm.vsock",
        );
        for fault in vsock.cid_fault().into_iter().chain(vsock.path_fault()) {
            self.add("vsock", fault);
        }
    }

    /// Whether there is room for all devices.
    fn device_count(&mut self, spec: &VmSpec) -> bool {
        let own = [
            spec.kernel.is_none(),
            spec.rng,
            spec.balloon.is_some(),
            spec.vsock.is_some(),
            !spec.consoles.is_empty(),
        ];
        let own = own.iter().filter(|device| **device).count();
        let room = layout::VIRTIO_MMIO_MAX - own;
        let (disks, pmem, nets) = (spec.disks.len(), spec.pmem.len(), spec.nets.len());
        let fits = disks + pmem + nets <= room;
        if !fits {
            let (field, _) = [("nets", nets), ("pmem", pmem), ("disks", disks)]
                .into_iter()
                .max_by_key(|(_, count)| *count)
                .unwrap_or_default();
            let files = match pmem {
                0 => String::new(),
                _ => format!(", {pmem} files in memory"),
            };
            self.add(
                field,
                format!("{disks} disks{files} and {nets} network interfaces are more than the {room} devices a guest has room for; leave some out"),
            );
        }
        fits
    }

    fn serial(&mut self, serial: &SerialSpec) {
        match serial {
            SerialSpec::File(path) => self.path("serial", path, "name a file, as in file=console.log"),
            SerialSpec::Socket(path) => {
                self.path("serial", path, "name a socket, as in socket=console.sock");
                let length = path.as_os_str().len();
                if length > SOCKET_PATH_MAX {
                    self.add(
                        "serial",
                        format!(
                            "the socket's path {} has {length} bytes; Linux allows {SOCKET_PATH_MAX}",
                            path.display()
                        ),
                    );
                }
            }
            SerialSpec::Kept(path) => self.path("serial", path, "name a folder, as in kept=vm"),
            SerialSpec::Stdio | SerialSpec::Null | SerialSpec::Pty => {}
        }
    }
}

#[cfg(test)]
mod tests;
