//! What is wrong with disks, files in memory and network interfaces, each by itself and together.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use berth_devices::storage::NO_MEDIUM;
use berth_devices::virtio::blk::MAX_QUEUES;
use berth_devices::virtio::net::MAX_PAIRS;

use super::Faults;
use crate::spec::{DiskSpec, EngineSpec, FormatSpec, NetSpec, PmemSpec, RateLimitSpec, VmSpec};

/// What virtio-blk has room for.
const DISK_SERIAL_MAX: usize = 20;
/// What Linux has room for (IFNAMSIZ, less the NUL).
const TAP_NAME_MAX: usize = 15;

impl Faults {
    pub(super) fn devices(&mut self, spec: &VmSpec) {
        for (index, disk) in spec.disks.iter().enumerate() {
            self.disk(index, disk, spec);
        }
        self.shared_disks(&spec.disks);
        for (index, pmem) in spec.pmem.iter().enumerate() {
            self.pmem(index, pmem, spec);
        }
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

    fn disk(&mut self, index: usize, disk: &DiskSpec, spec: &VmSpec) {
        let field = format!("disk {}", index + 1);
        self.limit(&field, "rate_limit", disk.rate_limit.as_ref());
        self.path(&field, &disk.path, "name an image file or a block device");
        if disk.overlay.is_some() && !disk.has_medium() {
            self.add(
                &field,
                format!("an overlay stands on an image, and {NO_MEDIUM} is none; leave the overlay out"),
            );
        }
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
            let Some(earlier) = earlier
                .filter(|&earlier| disk.has_medium() && !(only_read(disk) && only_read(&disks[earlier])))
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

    fn pmem(&mut self, index: usize, pmem: &PmemSpec, spec: &VmSpec) {
        let field = format!("pmem {}", index + 1);
        self.limit(&field, "rate_limit", pmem.rate_limit.as_ref());
        self.path(&field, &pmem.path, "name a file");
        self.io_thread(&field, pmem.io_thread, spec);
        let own = Identity::of(&pmem.path);
        // What lies under an overlay is only read.
        let disks = (1..).zip(&spec.disks).flat_map(|(number, disk)| {
            let name = format!("disk {number}");
            let read_only = disk.read_only || disk.overlay.is_some();
            let overlay = disk.overlay.iter().map(|path| (path, false));
            let files = std::iter::once((&disk.path, read_only)).chain(overlay);
            files.map(move |(path, read_only)| (name.clone(), path, read_only))
        });
        let earlier = (1..)
            .zip(&spec.pmem[..index])
            .map(|(number, other)| (format!("pmem {number}"), &other.path, other.read_only));
        let other = disks
            .chain(earlier)
            .find(|(_, path, read_only)| !(pmem.read_only && *read_only) && Identity::of(path) == own);
        if let Some((other, ..)) = other {
            self.add(
                field,
                format!(
                    "{} is {other} already; give it once, or both times read-only",
                    pmem.path.display()
                ),
            );
        }
    }

    fn net(&mut self, index: usize, net: &NetSpec, spec: &VmSpec) {
        let field = format!("net {}", index + 1);
        self.io_thread(&field, net.io_thread, spec);
        self.limit(&field, "rx_rate_limit", net.rx_rate_limit.as_ref());
        self.limit(&field, "tx_rate_limit", net.tx_rate_limit.as_ref());
        self.mac(&field, net);
        self.pairs(&field, index + 1, net, spec);
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

    /// Its pairs of queues, and who serves them.
    fn pairs(&mut self, field: &str, number: usize, net: &NetSpec, spec: &VmSpec) {
        let queues = net.queues;
        if !(1..=MAX_PAIRS).contains(&queues) {
            self.add(
                field,
                format!("queues: {queues} is not 1 to {MAX_PAIRS}; one for each CPU is enough"),
            );
        } else if queues > 1 && net.user {
            self.add(
                field,
                format!("queues: {queues} are for a tap, and a user-mode network has one pair of queues; leave it out"),
            );
        } else if queues > 1
            && spec
                .mmds
                .as_ref()
                .is_some_and(|mmds| mmds.on(number, net).is_some())
        {
            self.add(
                field,
                format!("queues: {queues} cannot be where the guest asks for metadata, which is answered on one pair of queues; leave it out, or name other interfaces in mmds.nets"),
            );
        }
        if !net.spread {
            return;
        }
        let last = net.io_thread.saturating_add(u32::from(queues.max(1)) - 1);
        if queues < 2 {
            self.add(
                field,
                "spread is for several pairs of queues, and it has one; give queues=2 or more, or leave it out",
            );
        } else if last >= spec.threads.io {
            let threads = spec.threads.io;
            self.add(
                field,
                format!("spread: {queues} pairs of queues from I/O thread {} on need {} threads; raise threads.io, which is {threads}, or leave it out", net.io_thread, u64::from(last) + 1),
            );
        }
        if net.rx_rate_limit.is_some() || net.tx_rate_limit.is_some() {
            self.add(
                field,
                "spread: limits are for what one thread serves; leave out them or spread",
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
