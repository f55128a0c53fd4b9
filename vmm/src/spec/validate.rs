//! What makes a description one that can be run, in one place. Every fault is found, not only the first.
//!
//! Files and devices are looked at when they are opened, with one exception: whether two disks are the same file must be
//! known before either is written.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use berth_arch::x86_64::layout;
use berth_devices::virtio::blk::MAX_QUEUES;

use rustix::thread::CpuSet;

use crate::unix::PATH_MAX as SOCKET_PATH_MAX;

use super::{
    ByteSize, DiskSpec, EngineSpec, FormatSpec, MmdsSpec, NetSpec, RateLimitSpec, SerialSpec, VmSpec,
    VsockSpec, console,
};

/// The least memory: the boot structures and firmware tables take the first MiB, a kernel must lie above.
pub const MEMORY_MIN: ByteSize = ByteSize(2 << 20);

/// The longest time limit, in seconds: 136 years.
const TIMEOUT_MAX: u64 = u32::MAX as u64;
/// What virtio-blk has room for.
const DISK_SERIAL_MAX: usize = 20;
/// What Linux has room for (IFNAMSIZ, less the NUL).
const TAP_NAME_MAX: usize = 15;

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
            host_cpus: rustix::thread::sched_getaffinity(None).ok(),
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

    fn devices(&mut self, spec: &VmSpec) {
        for (index, disk) in spec.disks.iter().enumerate() {
            self.disk(index, disk, spec);
        }
        self.shared_disks(&spec.disks);
        for (index, net) in spec.nets.iter().enumerate() {
            self.net(index, net, spec);
        }
        self.shared_nets(&spec.nets);
        if let Some(fault) = spec.rng_rate_limit.as_ref().and_then(RateLimitSpec::fault) {
            self.add("rng_rate_limit", fault);
        }
    }

    fn io_thread(&mut self, field: &str, thread: u32, spec: &VmSpec) {
        let threads = spec.threads.io;
        if thread != 0 && thread >= threads {
            self.add(
                field,
                format!("io_thread: there is no I/O thread {thread}, they are counted from 0; raise threads.io, which is {threads}"),
            );
        }
    }

    fn limit(&mut self, field: &str, name: &str, limit: Option<&RateLimitSpec>) {
        if let Some(fault) = limit.and_then(RateLimitSpec::fault) {
            self.add(field, format!("{name}: {fault}"));
        }
    }

    fn disk(&mut self, index: usize, disk: &DiskSpec, spec: &VmSpec) {
        let field = format!("disk {}", index + 1);
        self.limit(&field, "rate_limit", disk.rate_limit.as_ref());
        self.path(&field, &disk.path, "name an image file or a block device");
        if let Some(overlay) = &disk.overlay {
            self.path(&field, overlay, "name the overlay's file, or leave it out");
            if disk.read_only {
                self.add(&field, "an overlay is for what the guest writes, but the disk is read-only; leave one of them out");
            }
            if disk.direct || disk.engine != EngineSpec::Auto {
                self.add(&field, "a disk with an overlay goes through the page cache and has an engine of its own; leave out direct and engine");
            }
        }
        if disk.format != FormatSpec::Raw && (disk.direct || disk.engine == EngineSpec::IoUring) {
            self.add(&field, "a qcow2 image, which format allows, goes through the page cache and is read and written by threads; leave out direct and engine=io_uring");
        }
        if !(1..=MAX_QUEUES).contains(&disk.queues) {
            let queues = disk.queues;
            self.add(
                &field,
                format!("queues: {queues} is not 1 to {MAX_QUEUES}; one for each CPU is enough"),
            );
        }
        self.io_thread(&field, disk.io_thread, spec);
        let Some(serial) = &disk.serial else { return };
        if let Some(character) = serial.chars().find(|character| !matches!(character, ' '..='~')) {
            self.add(
                &field,
                format!("the serial {serial:?} holds {character:?}; write it in printable ASCII"),
            );
        } else if serial.len() > DISK_SERIAL_MAX {
            let length = serial.len();
            self.add(
                &field,
                format!(
                    "the serial {serial:?} has {length} characters; it can have at most {DISK_SERIAL_MAX}"
                ),
            );
        }
    }

    /// Two writers, or a writer and a reader, would ruin each other's file systems.
    fn shared_disks(&mut self, disks: &[DiskSpec]) {
        // What lies under an overlay is only read.
        let only_read = |disk: &DiskSpec| disk.read_only || disk.overlay.is_some();
        self.shared_overlays(disks);
        if disks.len() < 2 || disks.iter().all(only_read) {
            return;
        }
        let identities: Vec<_> = disks.iter().map(|disk| Identity::of(&disk.path)).collect();
        for (index, disk) in disks.iter().enumerate() {
            let earlier = identities[..index]
                .iter()
                .position(|identity| *identity == identities[index]);
            let Some(earlier) = earlier.filter(|&earlier| !(only_read(disk) && only_read(&disks[earlier])))
            else {
                continue;
            };
            self.add(
                format!("disk {}", index + 1),
                format!(
                    "{} is disk {} already; give it once, or both times read-only",
                    disk.path.display(),
                    earlier + 1
                ),
            );
        }
    }

    /// An overlay belongs to one disk.
    fn shared_overlays(&mut self, disks: &[DiskSpec]) {
        for (index, disk) in disks.iter().enumerate() {
            let Some(overlay) = &disk.overlay else { continue };
            let own = Identity::of(overlay);
            let another = disks.iter().enumerate().find(|(at, other)| {
                let as_overlay = *at < index
                    && other
                        .overlay
                        .as_ref()
                        .is_some_and(|other| Identity::of(other) == own);
                as_overlay || Identity::of(&other.path) == own
            });
            if let Some((at, _)) = another {
                self.add(
                    format!("disk {}", index + 1),
                    format!(
                        "the overlay {} is a file of disk {} already; name another one",
                        overlay.display(),
                        at + 1
                    ),
                );
            }
        }
    }

    fn net(&mut self, index: usize, net: &NetSpec, spec: &VmSpec) {
        let field = format!("net {}", index + 1);
        self.io_thread(&field, net.io_thread, spec);
        self.limit(&field, "rx_rate_limit", net.rx_rate_limit.as_ref());
        self.limit(&field, "tx_rate_limit", net.tx_rate_limit.as_ref());
        self.mac(&field, net);
        if net.user {
            self.user_net(&field, net);
            return;
        }
        if !net.publish.is_empty() || net.loopback {
            let what = if net.loopback { "loopback" } else { "publish" };
            self.add(
                &field,
                format!("{what} is for user-mode networks, and this one is on a tap; leave it out, or set user instead of tap"),
            );
        }
        let tap = &net.tap;
        // What Linux takes for an interface's name; a percent sign would make it a pattern.
        let usable = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
        if tap.is_empty() {
            self.add(
                &field,
                "the tap's name is empty; name a tap interface of the host, such as tap0, or set user",
            );
        } else if tap.len() > TAP_NAME_MAX {
            self.add(
                &field,
                format!(
                    "the tap's name {tap:?} has {} bytes; Linux allows {TAP_NAME_MAX}",
                    tap.len()
                ),
            );
        } else if tap == "." || tap == ".." {
            self.add(
                &field,
                format!("{tap:?} cannot be the name of a tap; name one such as tap0"),
            );
        } else if let Some(character) = tap.chars().find(|&c| !usable(c)) {
            self.add(
                &field,
                format!("the tap's name {tap:?} holds {character:?}; name one such as tap0"),
            );
        }
    }

    fn user_net(&mut self, field: &str, net: &NetSpec) {
        if !net.tap.is_empty() || net.create {
            self.add(
                field,
                "it cannot be both on a tap and user-mode; leave out tap and create, or leave out user",
            );
        }
    }

    fn mac(&mut self, field: &str, net: &NetSpec) {
        let Some(mac) = &net.mac else { return };
        match net.mac_address() {
            None => self.add(field, format!("the mac {mac:?} is no hardware address; write it as 02:00:00:00:00:01")),
            Some([0, 0, 0, 0, 0, 0]) => {
                self.add(field, format!("the mac {mac} means no address at all; give one such as 02:00:00:00:00:01"));
            }
            Some([first, ..]) if first & 1 != 0 => self.add(
                field,
                format!("the mac {mac} is a multicast address; give one whose first byte is even, such as 02:00:00:00:00:01"),
            ),
            Some(_) => {}
        }
    }

    fn shared_nets(&mut self, nets: &[NetSpec]) {
        for (index, net) in nets.iter().enumerate() {
            let field = format!("net {}", index + 1);
            let earlier = &nets[..index];
            for (at, port) in net.publish.iter().enumerate() {
                let others = earlier
                    .iter()
                    .flat_map(|other| &other.publish)
                    .chain(&net.publish[..at]);
                if let Some(other) = others.into_iter().find(|other| other.collides(port)) {
                    self.add(
                        &field,
                        format!(
                            "the host's port of {port} is published as {other} already; publish another one"
                        ),
                    );
                }
            }
            let same_tap = |other: &NetSpec| !net.user && !other.user && other.tap == net.tap;
            if let Some(other) = earlier.iter().position(same_tap) {
                self.add(
                    &field,
                    format!(
                        "the tap {} is net {}'s already; make another tap for it",
                        net.tap,
                        other + 1
                    ),
                );
            }
            let Some(mac) = net.mac_address() else { continue };
            if let Some(other) = earlier.iter().position(|other| other.mac_address() == Some(mac)) {
                let shown = net.mac.as_deref().unwrap_or_default();
                self.add(
                    &field,
                    format!("the mac {shown} is net {}'s already; give it another", other + 1),
                );
            }
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
        let (disks, nets) = (spec.disks.len(), spec.nets.len());
        let fits = disks + nets <= room;
        if !fits {
            let field = if disks >= nets { "disks" } else { "nets" };
            self.add(
                field,
                format!("{disks} disks and {nets} network interfaces are more than the {room} devices a guest has room for; leave some out"),
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

/// What a path leads to, so that two names of one file are known as one.
#[derive(PartialEq, Eq)]
enum Identity<'a> {
    /// A block device, by its number.
    Device(u64),
    /// A file, by its file system and number there.
    File(u64, u64),
    /// Nothing that can be looked at; its opening will say why.
    Unknown(&'a OsStr),
}

impl<'a> Identity<'a> {
    fn of(path: &'a Path) -> Self {
        match fs::metadata(path) {
            Ok(found) if found.file_type().is_block_device() => Self::Device(found.rdev()),
            Ok(found) => Self::File(found.dev(), found.ino()),
            Err(_) => Self::Unknown(path.as_os_str()),
        }
    }
}

#[cfg(test)]
mod tests;
