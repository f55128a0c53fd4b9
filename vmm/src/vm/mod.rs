//! A virtual machine while it lives.
//!
//! ```text
//!           start()             pause()
//!   Built ──────────▶ Running ◀─────────▶ Paused
//!     │                  │     resume()      │
//!     └──────────────────┴─── stop() ────────┴──▶ Stopped(reason)
//! ```
//! A guest that ends by itself puts the reason in the [`StopCell`]; whoever waits for that calls [`Vm::stop`]. The vCPU
//! and I/O threads are the VM's own; everything here is called by the control thread.

mod builder;
mod error;
mod handles;
mod notifier;
mod ports;
mod virtio;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use berth_arch::x86_64::assist::AssistCounts;
use berth_devices::legacy::{AcpiPm, I8042, SerialPort};

pub(crate) use builder::{Built, build};
pub use error::BuildError;
pub use handles::DeviceHandles;

use self::virtio::Virtio;
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
    virtio: Virtio,
    com1: Arc<SerialPort>,
    i8042: Arc<I8042>,
    power: Arc<AcpiPm>,
    stop: Arc<StopCell>,
    first_run: Arc<OnceLock<Instant>>,
}

/// How a VM ended.
pub(crate) struct Ended {
    pub(crate) reason: StopReason,
    /// What the assist did; none where it was not needed.
    pub(crate) assist: Option<AssistCounts>,
}

impl Vm {
    fn new(
        vcpus: Vec<VcpuParts>,
        virtio: Virtio,
        com1: Arc<SerialPort>,
        i8042: Arc<I8042>,
        power: Arc<AcpiPm>,
        stop: Arc<StopCell>,
    ) -> Self {
        Self {
            state: State::Built(vcpus),
            virtio,
            com1,
            i8042,
            power,
            stop,
            first_run: Arc::default(),
        }
    }

    /// The ways to the devices that can be changed.
    pub(crate) fn handles(&self) -> &DeviceHandles {
        &self.virtio.handles
    }

    /// The first serial port.
    pub(crate) fn com1(&self) -> &Arc<SerialPort> {
        &self.com1
    }

    /// Where the end of the VM is told.
    pub(crate) fn stop_cell(&self) -> &Arc<StopCell> {
        &self.stop
    }

    /// Presses the power button; a guest with ACPI shuts down.
    pub(crate) fn press_power_button(&self) {
        self.power.press_power_button();
    }

    /// Sends Ctrl-Alt-Del; a guest with a driver for the keyboard controller ends, or restarts.
    pub(crate) fn send_ctrl_alt_del(&self) {
        self.i8042.send_ctrl_alt_del();
    }

    /// When the first vCPU entered the guest.
    pub(crate) fn first_run(&self) -> Option<Instant> {
        self.first_run.get().copied()
    }

    /// Lets the guest run.
    pub(crate) fn start(&mut self) -> Result<(), BuildError> {
        let State::Built(vcpus) = std::mem::replace(&mut self.state, State::Stopped) else {
            return Ok(());
        };
        vcpu::install_kick_handler().map_err(|error| BuildError::Host {
            what: "a signal handler",
            cause: std::io::Error::from_raw_os_error(error.errno()),
        })?;
        let mut threads = Vec::with_capacity(vcpus.len());
        for parts in vcpus {
            match VcpuThread::spawn(parts, self.first_run.clone()) {
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
        self.state = State::Running(threads);
        Ok(())
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
        drop(self.virtio.thread.take());
        let reason = self.stop.reason().unwrap_or(StopReason::Shutdown);
        Ended { reason, assist }
    }
}
