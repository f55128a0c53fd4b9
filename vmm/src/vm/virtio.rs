//! The machine's virtio devices: made from the spec, placed in windows, given to an I/O thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_arch::x86_64::layout;
use berth_devices::Memory;
use berth_devices::bus::Bus;
use berth_devices::storage::{DiskBackend, OverlayDisk, StaticDisk, open_disk};
use berth_devices::virtio::balloon::{Balloon, BalloonConfig, PAGE};
use berth_devices::virtio::blk::{Block, BlockConfig};
use berth_devices::virtio::console::{Console, FilePort, NullPort, PortBackend, PortError, SocketPort};
use berth_devices::virtio::device::VirtioDevice;
use berth_devices::virtio::handle::DeviceHandle;
use berth_devices::virtio::mmio::MmioTransport;
use berth_devices::virtio::net::mmds::{MetadataStore, Mmds};
use berth_devices::virtio::net::{Net, NetBackend, NetParts, Tap};
use berth_devices::virtio::rng::Rng;
use berth_devices::virtio::vsock::Vsock;
use kvm_ioctls::VmFd;
use rustix::process::{Resource, getrlimit, setrlimit};

use super::BuildError;
use super::handles::DeviceHandles;
use super::notifier::QueueNotify;
use super::pmem::Space;
use crate::guest;
use crate::io_thread::IoThread;
use crate::irq::IrqLines;
use crate::memory::files::MappedFile;
use crate::net_user;
use crate::page_returner::ReturnPages;
use crate::spec::{BalloonSpec, CacheSpec, ConsoleSpec, NetSpec, RateLimitSpec, ThreadsSpec, VmSpec};

/// Devices that were opened, and the ways to them.
#[derive(Default)]
pub(crate) struct Devices {
    list: Vec<Opened>,
    handles: DeviceHandles,
    /// The files that the guest is to have in its memory.
    pub(crate) files: Vec<MappedFile>,
}

/// A device that was opened.
struct Opened {
    /// The I/O thread that it belongs to.
    thread: u32,
    device: Box<dyn VirtioDevice>,
    /// Other parts of it, which belong to the threads that follow.
    others: Vec<Box<dyn VirtioDevice>>,
}

impl Opened {
    fn new(thread: u32, device: impl VirtioDevice + 'static) -> Self {
        Self {
            thread,
            device: Box::new(device),
            others: Vec::new(),
        }
    }
}

impl Devices {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }
}

/// Opens and makes the devices of `spec`, in the order the guest sees them: the shipped root, disks, files in memory,
/// nets, vsock, balloon, console, rng. `metadata` is what the guest can ask for where the spec lets it.
pub(crate) fn devices(spec: &VmSpec, metadata: &Arc<MetadataStore>) -> Result<Devices, BuildError> {
    let mut handles = DeviceHandles::default();
    let mut devices = Vec::new();
    if spec.kernel.is_none() {
        let config = BlockConfig {
            read_only: true,
            ..Default::default()
        };
        let root = Block::new(Box::new(StaticDisk::new(guest::root())), config);
        devices.push(Opened::new(0, root));
    }
    for (number, disk) in (1..).zip(&spec.disks) {
        let backend: Result<Box<dyn DiskBackend>, _> = match &disk.overlay {
            Some(overlay) => {
                OverlayDisk::open(&disk.path, disk.format.image(), overlay).map(|disk| Box::new(disk) as _)
            }
            None => open_disk(&disk.path, disk.options()),
        };
        let backend = backend.map_err(|cause| BuildError::Disk { number, cause })?;
        let config = BlockConfig {
            queues: disk.queues,
            write_through: disk.cache == CacheSpec::Writethrough,
            read_only: disk.read_only,
            serial: disk.serial.as_deref().map(serial_number),
        };
        let limits = RateLimitSpec::config(disk.rate_limit.as_ref());
        let made = Block::new(backend, config).controlled(limits);
        let (block, handle) = made.map_err(descriptor)?;
        devices.push(Opened::new(disk.io_thread, block));
        handles.disks.push((disk.id.clone(), handle));
    }
    let mut space = Space::behind(spec.memory.0);
    let mut files = Vec::with_capacity(spec.pmem.len());
    for (number, pmem) in (1..).zip(&spec.pmem) {
        let opened = space.open(pmem);
        let (device, file) = opened.map_err(|cause| BuildError::Pmem { number, cause })?;
        let made = device.controlled(RateLimitSpec::config(pmem.rate_limit.as_ref()));
        let (device, handle) = made.map_err(descriptor)?;
        devices.push(Opened::new(pmem.io_thread, device));
        handles.pmem.push((pmem.id.clone(), handle));
        files.push(file);
    }
    for (number, net) in (1..).zip(&spec.nets) {
        let mut card = card(number, net, spec, metadata)?;
        let others = if net.spread { card.split_off() } else { Vec::new() };
        let limits = |limit: &Option<_>| RateLimitSpec::config(limit.as_ref());
        let made = card.controlled(limits(&net.rx_rate_limit), limits(&net.tx_rate_limit));
        let (card, handle) = made.map_err(descriptor)?;
        devices.push(Opened {
            others: others.into_iter().map(|part| Box::new(part) as _).collect(),
            ..Opened::new(net.io_thread, card)
        });
        handles.nets.push((net.id.clone(), handle));
    }
    if let Some(vsock) = &spec.vsock {
        devices.push(Opened::new(0, Vsock::new(vsock.cid, &vsock.path)?));
        allow_descriptors();
    }
    if let Some(spec) = &spec.balloon {
        let made = Balloon::new(balloon(spec), Box::new(ReturnPages));
        let (balloon, handle) = made.map_err(descriptor)?;
        devices.push(Opened::new(0, balloon));
        handles.balloon = Some(handle);
    }
    if !spec.consoles.is_empty() {
        let ports = (1..).zip(&spec.consoles).map(|(number, spec)| {
            let backend = port(spec).map_err(|cause| BuildError::Port { number, cause })?;
            Ok((spec.name.clone(), backend))
        });
        let ports = ports.collect::<Result<_, BuildError>>()?;
        let (console, handle) = Console::new(ports).map_err(descriptor)?;
        devices.push(Opened::new(0, console));
        handles.console = Some(handle);
    }
    if spec.rng {
        let rng = match &spec.rng_rate_limit {
            Some(limit) => Rng::new()
                .limited(RateLimitSpec::config(Some(limit)))
                .map_err(descriptor)?,
            None => Rng::new(),
        };
        devices.push(Opened::new(0, rng));
    }
    Ok(Devices {
        list: devices,
        handles,
        files,
    })
}

/// What stands behind network interface `number`, from 1.
fn network(number: usize, net: &NetSpec, mac: [u8; 6]) -> Result<Box<dyn NetBackend>, BuildError> {
    if net.user {
        let stream = net_user::start(net, mac).map_err(|cause| BuildError::UserNet { number, cause })?;
        return Ok(Box::new(stream));
    }
    let tap = if net.create {
        Tap::open_or_make(&net.tap)
    } else {
        Tap::open(&net.tap)
    };
    Ok(Box::new(tap.map_err(|cause| BuildError::Net { number, cause })?))
}

/// The card of network interface `number`, from 1.
fn card(
    number: usize,
    net: &NetSpec,
    spec: &VmSpec,
    metadata: &Arc<MetadataStore>,
) -> Result<Net, BuildError> {
    let mac = match net.mac_address() {
        Some(mac) => mac,
        None => net.own_mac(number).map_err(|cause| BuildError::Host {
            what: "random bytes",
            cause,
        })?,
    };
    if net.queues > 1 {
        let opened = Tap::open_pairs(&net.tap, net.queues, net.create);
        let (taps, steering) = opened.map_err(|cause| BuildError::Net { number, cause })?;
        let backends = taps.into_iter().map(|tap| Box::new(tap) as _).collect();
        return Ok(Net::with_pairs(backends, Box::new(steering), mac));
    }
    let mut backend = network(number, net, mac)?;
    if let Some(config) = spec.mmds.as_ref().and_then(|mmds| mmds.on(number, net)) {
        backend = Box::new(Mmds::new(backend, config, metadata.clone()).map_err(descriptor)?);
    }
    Ok(Net::new(backend, mac))
}

/// Raises how many descriptors the process may have to what it may raise it to: each connection of the guest's is one.
fn allow_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(cause) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("the number of the guest's connections is limited to that of open files: {cause}");
    }
}

/// Where a console's port leads.
fn port(spec: &ConsoleSpec) -> Result<Box<dyn PortBackend>, PortError> {
    Ok(match (&spec.socket, &spec.file) {
        (Some(path), _) => Box::new(SocketPort::bind(path)?),
        (None, Some(path)) => Box::new(FilePort::open(path)?),
        (None, None) => Box::new(NullPort),
    })
}

fn descriptor(cause: std::io::Error) -> BuildError {
    BuildError::Host {
        what: "an event descriptor",
        cause,
    }
}

/// What a balloon is made to do. Validation has seen to its numbers.
fn balloon(spec: &BalloonSpec) -> BalloonConfig {
    BalloonConfig {
        target_pages: (spec.target.0 / PAGE) as u32,
        deflate_on_oom: spec.deflate_on_oom,
        stats_interval: Duration::from_secs(spec.stats_interval),
        free_page_reporting: spec.free_page_reporting,
        free_page_hinting: spec.free_page_hinting,
    }
}

/// A disk's serial number as GET_ID returns it. Validation has seen to its length.
fn serial_number(serial: &str) -> [u8; 20] {
    let mut bytes = [0; 20];
    for (to, from) in bytes.iter_mut().zip(serial.bytes()) {
        *to = from;
    }
    bytes
}

/// Devices in place: transports on the bus, devices on their thread.
pub(crate) struct Virtio {
    pub(crate) transports: Vec<Arc<MmioTransport>>,
    pub(crate) handles: DeviceHandles,
    /// Those that have devices.
    pub(crate) threads: Vec<IoThread>,
}

/// Places `devices` in windows from 0 on and gives them to the I/O threads of `spec`.
pub(crate) fn place(
    devices: Devices,
    spec: &ThreadsSpec,
    vm: &Arc<VmFd>,
    memory: &Arc<Memory>,
    lines: &IrqLines,
    bus: &mut Bus,
) -> Result<Virtio, BuildError> {
    let Devices {
        list: devices,
        handles: ways,
        ..
    } = devices;
    let traits: Vec<_> = devices.iter().map(|opened| opened.device.traits()).collect();
    let (threads, handles) = spawn(devices, spec)?;
    let mut transports = Vec::new();
    for (index, (traits, handle)) in traits.into_iter().zip(handles).enumerate() {
        let window = window(index);
        let notifier = Arc::new(QueueNotify::new(vm.clone(), window));
        let line = lines.line(layout::virtio_gsi(index))?;
        let transport =
            MmioTransport::new(traits, memory.clone(), handle, notifier, line).map_err(descriptor)?;
        let transport = Arc::new(transport);
        bus.insert(window, layout::VIRTIO_MMIO_SIZE, transport.clone())?;
        transports.push(transport);
    }
    Ok(Virtio {
        handles: ways,
        transports,
        threads,
    })
}

/// The way to a device on its thread, for its transport.
type Handle = Arc<dyn DeviceHandle>;

/// Starts the threads that have devices. Returns a handle for each device, in order.
fn spawn(devices: Vec<Opened>, spec: &ThreadsSpec) -> Result<(Vec<IoThread>, Vec<Handle>), BuildError> {
    let count = devices.len();
    let mut groups: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for (index, opened) in devices.into_iter().enumerate() {
        let parts = std::iter::once(opened.device).chain(opened.others);
        for (thread, part) in (opened.thread..).zip(parts) {
            groups.entry(thread).or_default().push((index, part));
        }
    }
    let mut threads = Vec::new();
    // Threads come in their order, and so do the parts of a device.
    let mut parts: Vec<Vec<Handle>> = (0..count).map(|_| Vec::new()).collect();
    for (number, group) in groups {
        let (indices, list): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let look = spec.poll();
        let (thread, handles) =
            IoThread::spawn(number, list, look, spec.of_io(number)).map_err(|cause| BuildError::Host {
                what: "an I/O thread",
                cause,
            })?;
        threads.push(thread);
        for (index, handle) in indices.into_iter().zip(handles) {
            parts[index].push(handle);
        }
    }
    let whole = parts.into_iter().filter_map(|mut parts| {
        let others = parts.split_off(parts.len().min(1));
        let first = parts.pop()?;
        Some(if others.is_empty() {
            first
        } else {
            Arc::new(NetParts::new(first, others))
        })
    });
    Ok((threads, whole.collect()))
}

/// Address of window `index`. Validation has seen to the number of devices.
fn window(index: usize) -> u64 {
    layout::VIRTIO_MMIO + index as u64 * layout::VIRTIO_MMIO_SIZE
}

/// How a kernel without ACPI is told of `count` devices (`drivers/virtio/virtio_mmio.c`).
pub(crate) fn command_line(count: usize) -> String {
    let words: Vec<_> = (0..count)
        .map(|index| {
            format!(
                "virtio_mmio.device=4K@{:#x}:{}",
                window(index),
                layout::virtio_gsi(index)
            )
        })
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_is_named_on_the_command_line_with_window_and_line() {
        assert_eq!(
            command_line(2),
            "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
        );
    }

    #[test]
    fn serial_numbers_are_padded_with_zeros() {
        assert_eq!(&serial_number("ab")[..3], b"ab\0");
    }
}
