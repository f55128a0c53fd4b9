//! A virtual machine while it lives.
//!
//! ```text
//!           start()             pause()
//!   Built ──────────▶ Running ◀─────────▶ Paused
//!     │                  │     resume()      │
//!     └──────────────────┴─── stop() ────────┴──▶ Stopped(reason)
//! ```
//! A restored VM is Paused from the start.
//!
//! A guest that ends by itself puts the reason in the [`StopCell`]; whoever waits for that calls [`Vm::stop`]. The vCPU
//! and I/O threads are the VM's own; everything here is called by the control thread.

mod builder;
mod error;
mod handles;
mod notifier;
mod pmem;
mod ports;
mod state;
mod virtio;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use berth_arch::x86_64::assist::AssistCounts;
use berth_arch::x86_64::kind::HostKind;
use berth_devices::Memory;
use berth_devices::irqchip::IoApic;
use berth_devices::legacy::SerialPort;
use berth_devices::virtio::counters::DeviceCounts;
use kvm_ioctls::{Kvm, VmFd};

pub(crate) use builder::{Built, Saved, SavedMemory, build, restore};
pub use error::BuildError;
pub use handles::DeviceHandles;
pub use pmem::PmemError;
pub(crate) use pmem::try_pmem;
pub use state::StateError;
pub(crate) use state::cpuid_of;

use self::ports::Legacy;
use self::virtio::Virtio;
use crate::guest::Streams;
use crate::irq::IrqLines;
use crate::memory::GuestMemory;
use crate::memory::image::Origin;
use crate::metrics::VcpuCounters;
use crate::stop::{StopCell, StopReason};
use crate::vcpu::{self, VcpuParts, VcpuThread};

/// Where a VM is in its life.
enum State {
    Built(Vec<VcpuParts>),
    Running(Vec<VcpuThread>),
    Paused(Vec<VcpuThread>),
    Stopped,
}

/// A virtual machine.
pub(crate) struct Vm {
    state: State,
    /// What the vCPU threads count.
    counters: Vec<Arc<VcpuCounters>>,
    virtio: Virtio,
    legacy: Legacy,
    board: Board,
    stop: Arc<StopCell>,
    first_run: Arc<OnceLock<Instant>>,
}

/// What the devices and vCPUs stand on.
pub(crate) struct Board {
    kvm: Kvm,
    vm: Arc<VmFd>,
    memory: GuestMemory,
    /// Where the memory's contents came from.
    origin: Origin,
    ioapic: Arc<IoApic<IrqLines>>,
    /// What runs the guest's kernel.
    kind: HostKind,
    /// How the shipped guest's streams lead to the host's.
    streams: Streams,
}

/// How a VM ended.
pub(crate) struct Ended {
    pub(crate) reason: StopReason,
    /// What the assist did; none where it was not needed.
    pub(crate) assist: Option<AssistCounts>,
}

impl Vm {
    fn new(vcpus: Vec<VcpuParts>, virtio: Virtio, legacy: Legacy, board: Board, stop: Arc<StopCell>) -> Self {
        Self {
            counters: vcpus.iter().map(|vcpu| vcpu.counters.clone()).collect(),
            state: State::Built(vcpus),
            virtio,
            legacy,
            board,
            stop,
            first_run: Arc::default(),
        }
    }

    /// What the vCPU threads count, in their order.
    pub(crate) fn vcpu_counters(&self) -> &[Arc<VcpuCounters>] {
        &self.counters
    }

    /// What the virtio devices have done, each under the name of its kind, in the order the guest sees them.
    pub(crate) fn device_counts(&self) -> impl Iterator<Item = (&'static str, DeviceCounts)> {
        let transports = self.virtio.transports.iter();
        transports.map(|transport| (transport.traits().name, transport.counters().get()))
    }

    /// The ways to the devices that can be changed.
    pub(crate) fn handles(&self) -> &DeviceHandles {
        &self.virtio.handles
    }

    /// The first serial port.
    pub(crate) fn com1(&self) -> &Arc<SerialPort> {
        &self.legacy.com1
    }

    /// Where the end of the VM is told.
    pub(crate) fn stop_cell(&self) -> &Arc<StopCell> {
        &self.stop
    }

    /// Presses the power button; a guest with ACPI shuts down.
    pub(crate) fn press_power_button(&self) {
        self.legacy.power.press_power_button();
    }

    /// Tells the guest that its generation id has changed, if it looks for one.
    fn announce_generation(&self) {
        self.legacy.power.announce_generation();
    }

    /// Sends Ctrl-Alt-Del; a guest with a driver for the keyboard controller ends, or restarts.
    pub(crate) fn send_ctrl_alt_del(&self) {
        self.legacy.i8042.send_ctrl_alt_del();
    }

    /// When the first vCPU entered the guest.
    pub(crate) fn first_run(&self) -> Option<Instant> {
        self.first_run.get().copied()
    }

    /// Guest RAM, and where its contents came from.
    pub(crate) fn memory(&self) -> (&Arc<Memory>, &Origin) {
        (&self.board.memory.ram, &self.board.origin)
    }

    /// What runs the guest's kernel.
    pub(crate) fn kind(&self) -> HostKind {
        self.board.kind
    }

    /// How the shipped guest's streams lead to the host's.
    pub(crate) fn streams(&self) -> Streams {
        self.board.streams
    }

    /// Starts the vCPU threads: the guest runs.
    pub(crate) fn start(&mut self) -> Result<(), BuildError> {
        let threads = self.spawn(false)?;
        self.state = State::Running(threads);
        Ok(())
    }

    /// Starts the vCPU threads of a restored VM, which stay paused.
    pub(crate) fn start_paused(&mut self) -> Result<(), BuildError> {
        let threads = self.spawn(true)?;
        for thread in &threads {
            thread.wait_paused();
        }
        self.state = State::Paused(threads);
        Ok(())
    }

    fn spawn(&mut self, paused: bool) -> Result<Vec<VcpuThread>, BuildError> {
        let State::Built(vcpus) = std::mem::replace(&mut self.state, State::Stopped) else {
            return Ok(Vec::new());
        };
        vcpu::install_kick_handler().map_err(|error| BuildError::Host {
            what: "a signal handler",
            cause: std::io::Error::from_raw_os_error(error.errno()),
        })?;
        let mut threads = Vec::with_capacity(vcpus.len());
        for parts in vcpus {
            match VcpuThread::spawn(parts, self.first_run.clone(), paused) {
                Ok(thread) => threads.push(thread),
                Err(cause) => {
                    self.state = State::Running(threads);
                    return Err(BuildError::Host {
                        what: "a vCPU thread",
                        cause,
                    });
                }
            }
        }
        Ok(threads)
    }

    /// The threads of a paused VM.
    fn paused(&self) -> &[VcpuThread] {
        match &self.state {
            State::Paused(threads) => threads,
            _ => &[],
        }
    }

    /// Stops the vCPUs where they are, out of the guest. The devices' queues are stopped too, with nothing in flight.
    pub(crate) fn pause(&mut self) {
        let State::Running(threads) = std::mem::replace(&mut self.state, State::Stopped) else {
            return;
        };
        for thread in &threads {
            thread.pause();
        }
        for thread in &threads {
            thread.wait_paused();
        }
        for transport in &self.virtio.transports {
            transport.pause();
        }
        self.state = State::Paused(threads);
    }

    /// Whether the VM is paused.
    pub(crate) fn is_paused(&self) -> bool {
        matches!(self.state, State::Paused(_))
    }

    /// Lets a paused VM go on.
    pub(crate) fn resume(&mut self) {
        let State::Paused(threads) = std::mem::replace(&mut self.state, State::Stopped) else {
            return;
        };
        for transport in &self.virtio.transports {
            transport.resume();
        }
        for thread in &threads {
            // So that a guest's watchdogs forgive the time it stood still; refused where it has no KVM clock.
            thread.call(|parts| parts.vcpu.kvmclock_ctrl().is_ok());
            thread.resume();
        }
        self.state = State::Running(threads);
    }

    /// Ends the VM, whatever it does, and says why it ended: the first reason anybody gave, or `otherwise`.
    pub(crate) fn stop(mut self, otherwise: StopReason) -> Ended {
        self.stop.stop(otherwise);
        let mut assist: Option<AssistCounts> = None;
        if let State::Running(threads) | State::Paused(threads) =
            std::mem::replace(&mut self.state, State::Stopped)
        {
            for thread in &threads {
                thread.stop();
            }
            for counts in threads.into_iter().filter_map(VcpuThread::join) {
                match &mut assist {
                    Some(sum) => *sum += &counts,
                    None => assist = Some(counts),
                }
            }
        }
        for transport in &self.virtio.transports {
            transport.shut_down();
        }
        self.virtio.threads.clear();
        let reason = self.stop.reason().unwrap_or(StopReason::Shutdown);
        Ended { reason, assist }
    }
}
