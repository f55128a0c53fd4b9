//! A machine with one virtio-mmio device in it, and a driver's moves on its registers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::handle::LocalHandle;
use super::ring::Ring;
use crate::Memory;
use crate::bus::BusDevice;
use crate::virtio::device::{DeviceTraits, VirtioDevice};
use crate::virtio::handle::{DeviceHandle, Notifier};
use crate::virtio::mmio::MmioTransport;

/// Status: the guest saw the device.
pub const ACKNOWLEDGE: u32 = 1;
/// Status: it has a driver.
pub const DRIVER: u32 = 2;
/// Status: the driver is ready.
pub const DRIVER_OK: u32 = 4;
/// Status: features are agreed on.
pub const FEATURES_OK: u32 = 8;
/// Status: the device needs a reset.
pub const NEEDS_RESET: u32 = 64;
/// Status: the driver gave up.
pub const FAILED: u32 = 128;
/// Feature: virtio 1.0 or later.
pub const VERSION_1: u64 = 1 << 32;

/// Regions of guest memory: two that touch, and one apart.
const REGIONS: [(u64, usize); 3] = [(0, 0x20_0000), (0x20_0000, 0x20_0000), (0x100_0000, 0x10_0000)];
/// End of the guest memory that is in one piece.
pub const MEMORY_END: u64 = 0x40_0000;
/// The rings begin here, one after another.
const RINGS: u64 = 0x1000;
const RING_SPACE: u64 = 0x1000;
/// Buffers for requests lie from here on.
pub const BUFFERS: u64 = 0x10_0000;
/// Queues are no longer than this, whatever the device offers.
pub const RING_SIZE: u16 = 64;

/// A machine, switched on.
pub struct Machine {
    /// Guest RAM.
    pub memory: Arc<Memory>,
    /// The registers.
    pub transport: Arc<MmioTransport>,
    /// The device behind them.
    pub device: Arc<LocalHandle>,
    irq: EventFd,
    notifier: Arc<Attached>,
}

/// Counts which queues have an ioeventfd, and forwards nothing: notifications take the register.
#[derive(Default)]
struct Attached {
    queues: Mutex<Vec<u16>>,
    mistakes: AtomicU32,
}

impl Notifier for Attached {
    fn attach(&self, queue: u16, _: &EventFd) {
        let mut queues = self.queues.lock().expect("no panic before");
        if queues.contains(&queue) {
            self.mistakes.fetch_add(1, Ordering::Relaxed);
        }
        queues.push(queue);
    }

    fn detach(&self, queue: u16, _: &EventFd) {
        let mut queues = self.queues.lock().expect("no panic before");
        match queues.iter().position(|other| *other == queue) {
            Some(at) => drop(queues.remove(at)),
            None => drop(self.mistakes.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

impl Machine {
    /// A machine with fresh memory.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_memory(device, Self::memory())
    }

    /// Fresh memory for a machine.
    pub fn memory() -> Arc<Memory> {
        let regions = REGIONS.map(|(start, len)| (GuestAddress(start), len));
        Arc::new(Memory::from_ranges(&regions).expect("some megabytes of memory"))
    }

    /// A machine with the memory of another, as after a restore.
    pub fn with_memory(device: Box<dyn VirtioDevice>, memory: Arc<Memory>) -> Self {
        let traits = device.traits();
        let device = Arc::new(LocalHandle::new(device));
        Self::behind(traits, memory, device.clone(), device)
    }

    /// A machine whose transport reaches the device by `handle`, for one that is not `device` alone.
    pub fn behind(
        traits: DeviceTraits,
        memory: Arc<Memory>,
        handle: Arc<dyn DeviceHandle>,
        device: Arc<LocalHandle>,
    ) -> Self {
        let irq = EventFd::new(EFD_NONBLOCK).expect("an event descriptor");
        let notifier = Arc::new(Attached::default());
        let line = irq.try_clone().expect("an event descriptor");
        let transport =
            MmioTransport::new(traits, memory.clone(), handle, notifier.clone(), line).expect("descriptors");
        Self {
            memory,
            transport: Arc::new(transport),
            device,
            irq,
            notifier,
        }
    }

    /// Reads a register.
    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// Status register.
    pub fn status(&self) -> u32 {
        self.read(0x70)
    }

    /// Resets the device and checks that it is.
    pub fn reset(&self) {
        self.write(0x70, 0);
        assert_eq!(self.status(), 0, "status after a reset");
        assert_eq!(self.read(0x60), 0, "interrupt status after a reset");
        assert_eq!(self.attached(), [0; 0], "ioeventfds after a reset");
        self.interrupts();
    }

    /// Sets one more status bit.
    pub fn add_status(&self, bit: u32) {
        self.write(0x70, self.status() | bit);
    }

    /// Features that the device offers.
    pub fn offered(&self) -> u64 {
        self.write(0x14, 1);
        let high = self.read(0x10);
        self.write(0x14, 0);
        u64::from(high) << 32 | u64::from(self.read(0x10))
    }

    /// Writes the driver's features.
    pub fn choose(&self, features: u64) {
        self.write(0x24, 0);
        self.write(0x20, features as u32);
        self.write(0x24, 1);
        self.write(0x20, (features >> 32) as u32);
    }

    /// The handshake up to FEATURES_OK; whether the device agreed.
    pub fn negotiate(&self, features: u64) -> bool {
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        self.choose(features);
        self.add_status(FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    /// Largest size of queue `index`; 0 if there is none.
    pub fn queue_max(&self, index: u16) -> u32 {
        self.write(0x30, index.into());
        self.read(0x34)
    }

    /// Makes queue `index` ready over a new ring.
    pub fn set_up_queue(&self, index: u16) -> Ring {
        let max = self.queue_max(index);
        let size = RING_SIZE.min(u16::try_from(max).expect("a queue size"));
        let ring = Ring::new(self.memory.clone(), RINGS + u64::from(index) * RING_SPACE, size);
        self.describe_queue(index, &ring);
        self.write(0x44, 1);
        assert_eq!(self.read(0x44), 1, "queue {index} is ready");
        ring
    }

    /// Writes what `ring` is, but not that it is ready.
    pub fn describe_queue(&self, index: u16, ring: &Ring) {
        self.write(0x30, index.into());
        self.write(0x38, ring.size.into());
        for (register, address) in [(0x80, ring.desc), (0x90, ring.avail), (0xa0, ring.used)] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
    }

    /// From reset to a running device with `features` and every queue.
    pub fn bring_up(&self, features: u64) -> Vec<Ring> {
        self.reset();
        assert!(self.negotiate(features), "features {features:#x} are taken");
        let queues = (0..).take_while(|index| self.queue_max(*index) != 0);
        let rings: Vec<Ring> = queues.map(|index| self.set_up_queue(index)).collect();
        assert_eq!(self.attached(), [0; 0], "no ioeventfd before DRIVER_OK");
        self.add_status(DRIVER_OK);
        assert_eq!(
            self.status(),
            ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
            "status of a running device"
        );
        let all: Vec<u16> = (0..rings.len() as u16).collect();
        assert_eq!(self.attached(), all, "every queue has an ioeventfd");
        rings
    }

    /// Notifies queue `index` and lets the device work.
    pub fn notify(&self, index: u16) {
        self.write(0x50, index.into());
        self.device.pump();
    }

    /// Interrupts since the last call.
    pub fn interrupts(&self) -> u64 {
        self.irq.read().unwrap_or(0)
    }

    /// Handles the interrupt as a driver does; returns the status that it read.
    pub fn acknowledge(&self) -> u32 {
        let status = self.read(0x60);
        self.write(0x64, status);
        status
    }

    /// Queues with an ioeventfd.
    pub fn attached(&self) -> Vec<u16> {
        assert_eq!(
            self.notifier.mistakes.load(Ordering::Relaxed),
            0,
            "attached and detached in turn"
        );
        self.notifier.queues.lock().expect("no panic before").clone()
    }
}
