//! The virtio-mmio transport, version 2 (virtio 1.3, section 4.2): registers in front of a device.
//!
//! The transport owns the handshake, the queues' set-up, interrupt status and notifications; the device behind it cannot
//! tell it from another. Register numbers are those of the specification, section 4.2.2.

#![forbid(unsafe_code)]

mod handshake;
mod registers;
mod shared;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::counters::DeviceCounters;
use super::device::{DeviceInterrupt, DeviceTraits, QueueResources, QueueState};
use super::handle::{DeviceHandle, Notifier, StartQueue};
use super::queue::rings_in_memory;
use crate::{Memory, warn_guest};
use shared::Shared;
pub use state::{MmioState, QueueSetup, RestoreError};

/// Bytes of address space that a transport answers: the registers and the configuration space.
pub const MMIO_LEN: u64 = 0x1000;

/// What no driver may leave out.
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// Registers in front of a device.
///
/// ```text
///  status   0 ──▶ ACKNOWLEDGE ──▶ DRIVER ──▶ FEATURES_OK ──────────▶ DRIVER_OK          (bits add up; 0 at any time: reset)
///                                  │          ▲ VERSION_1 and only    ▲ starts the queues that are ready,
///                                  │          │ offered bits, or the  │ attaches their ioeventfds
///                                  │          │ bit stays unset       │
///                          features are chosen         queues are set up; QueueReady checks the rings
///
///  queues   stopped ── DRIVER_OK ──▶ running ── pause() ──▶ paused, states kept ── resume() ──▶ running
///              ▲────── status 0 ───────┴──────────────────────────┘        ▲
///              └─────────────────────────── restore(state) ────────────────┘ (as paused)
///
///  NEEDS_RESET  set by bad rings (QueueReady, start) or by the device at any time; only a reset clears it
///  FAILED       set by the driver; then only a reset is listened to
/// ```
///
/// Two kinds of thread meet here. vCPUs come through [`BusDevice`](crate::bus::BusDevice): status, interrupt status and
/// its acknowledgement, notifications and the configuration generation are atomics; everything else takes the register
/// lock, under which a vCPU may wait for the device's I/O thread. That thread comes through [`DeviceInterrupt`], which is
/// atomics only, so it never waits for a vCPU. [`pause`](Self::pause) and its like wait for the I/O thread too: never call
/// them on it.
pub struct MmioTransport {
    traits: DeviceTraits,
    memory: Arc<Memory>,
    device: Arc<dyn DeviceHandle>,
    notifier: Arc<dyn Notifier>,
    /// One per queue, for good: a notification that arrives late is a spurious one.
    kicks: Vec<EventFd>,
    shared: Arc<Shared>,
    counters: Arc<DeviceCounters>,
    registers: Mutex<Registers>,
}

/// What the register lock guards.
struct Registers {
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    /// The driver accepted bits beyond the 64 there are.
    unknown_features: bool,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
    /// Queues with an ioeventfd.
    attached: Vec<bool>,
    /// DRIVER_OK was taken and the queues run, or would if the transport were not paused.
    live: bool,
    paused: bool,
    /// Where the queues of a live and paused device stand.
    stopped_at: Vec<(u16, QueueState)>,
}

impl MmioTransport {
    /// Puts registers in front of `device`. `irq` is written for each interrupt, an edge.
    ///
    /// It fails only if the host has no event descriptor to give.
    pub fn new(
        traits: DeviceTraits,
        memory: Arc<Memory>,
        device: Arc<dyn DeviceHandle>,
        notifier: Arc<dyn Notifier>,
        irq: EventFd,
    ) -> io::Result<Self> {
        let kicks = traits
            .queue_sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC));
        Ok(Self {
            kicks: kicks.collect::<io::Result<_>>()?,
            registers: Mutex::new(Registers::new(&traits)),
            traits,
            memory,
            device,
            notifier,
            shared: Arc::new(Shared::new(irq)),
            counters: Arc::default(),
        })
    }

    /// The device's type, features and queues, as the driver sees them.
    pub fn traits(&self) -> &DeviceTraits {
        &self.traits
    }

    /// What the device has done.
    pub fn counters(&self) -> &Arc<DeviceCounters> {
        &self.counters
    }

    /// The way to interrupt the driver outside of a queue: for who changes the device's configuration.
    ///
    /// The change and [`DeviceInterrupt::config_changed`] must happen in one go on the device's I/O thread. Then a driver
    /// that reads the configuration in pieces sees either the generation change or none of the new values.
    pub fn interrupt(&self) -> Arc<dyn DeviceInterrupt> {
        self.shared.clone()
    }

    /// Stops the queues and keeps where they stood. Once; a second call does nothing. The vCPUs should stand still.
    pub fn pause(&self) {
        let mut registers = self.lock();
        if registers.paused {
            return;
        }
        registers.paused = true;
        if registers.live {
            registers.stopped_at = self.device.stop();
        }
    }

    /// Goes on from where [`pause`](Self::pause) or [`restore`](Self::restore) left off.
    pub fn resume(&self) {
        let mut registers = self.lock();
        if !registers.paused {
            return;
        }
        registers.paused = false;
        if registers.live {
            let at = std::mem::take(&mut registers.stopped_at);
            self.start_queues(&mut registers, &at);
        }
        // An edge sent just before the pause may not have been saved with the interrupt controllers. One more is harmless.
        self.shared.raise_again();
    }

    /// Stops everything for good and takes the ioeventfds back, which KVM does faster than closing a VM that has them.
    pub fn shut_down(&self) {
        let mut registers = self.lock();
        self.reset(&mut registers);
    }

    /// What the driver sees.
    pub fn status(&self) -> u32 {
        self.shared.status()
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offered(&self) -> u64 {
        self.traits.features | VERSION_1
    }

    /// Starts every ready queue, where `at` says if it says something. If that fails the driver must reset.
    fn start_queues(&self, registers: &mut Registers, at: &[(u16, QueueState)]) {
        match self.try_start(registers, at) {
            Ok(()) => {
                for (index, kick) in (0..).zip(&self.kicks) {
                    let slot = usize::from(index);
                    if registers.queues[slot].ready && !registers.attached[slot] {
                        self.notifier.attach(index, kick);
                        registers.attached[slot] = true;
                    }
                }
            }
            Err(why) => {
                registers.live = false;
                warn_guest!("virtio-{}: its queues cannot start: {why}", self.traits.name);
                self.shared.needs_reset();
            }
        }
    }

    fn try_start(&self, registers: &Registers, at: &[(u16, QueueState)]) -> Result<(), String> {
        let mut queues = Vec::new();
        for (index, setup) in (0..).zip(&registers.queues) {
            if !setup.ready {
                continue;
            }
            let queue = self.checked_queue(index, setup, registers.driver_features);
            let resources = QueueResources {
                memory: self.memory.clone(),
                queue: queue
                    .ok_or_else(|| format!("the rings of queue {index} do not lie in guest memory"))?,
                kick: self.kicks[usize::from(index)]
                    .try_clone()
                    .map_err(|cause| format!("the host has no descriptor for queue {index}: {cause}"))?,
                interrupt: self.shared.clone(),
                features: registers.driver_features,
                counters: self.counters.clone(),
            };
            let at = at
                .iter()
                .find(|(which, _)| *which == index)
                .map(|(_, state)| *state);
            queues.push(StartQueue { index, resources, at });
        }
        if queues.is_empty() {
            return Ok(());
        }
        self.device.start(queues).map_err(|cause| cause.to_string())
    }

    /// The queue that the driver described, if it is one: a size that the device has, rings aligned and in guest memory.
    fn checked_queue(&self, index: u16, setup: &QueueSetup, features: u64) -> Option<Queue> {
        let max = *self.traits.queue_sizes.get(usize::from(index))?;
        let mut queue = Queue::new(max).ok()?;
        queue.try_set_size(u16::try_from(setup.size).ok()?).ok()?;
        queue.try_set_desc_table_address(GuestAddress(setup.desc)).ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(setup.driver))
            .ok()?;
        queue.try_set_used_ring_address(GuestAddress(setup.device)).ok()?;
        queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        queue.set_ready(true);
        rings_in_memory(&queue, &self.memory).then_some(queue)
    }

    fn detach(&self, registers: &mut Registers, index: u16) {
        if std::mem::take(&mut registers.attached[usize::from(index)]) {
            self.notifier.detach(index, &self.kicks[usize::from(index)]);
        }
    }
}

impl Registers {
    fn new(traits: &DeviceTraits) -> Self {
        Self {
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            unknown_features: false,
            queue_sel: 0,
            queues: traits
                .queue_sizes
                .iter()
                .map(|max| QueueSetup::new(*max))
                .collect(),
            attached: vec![false; traits.queue_sizes.len()],
            live: false,
            paused: false,
            stopped_at: Vec::new(),
        }
    }
}
