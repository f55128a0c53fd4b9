//! A VM's state as components, and a VM that becomes what was saved.
//!
//! | component | what |
//! |---|---|
//! | `clock` | KVM's clock |
//! | `vcpu N` | a vCPU, and what its assist remembers |
//! | `ioapic`, `pic N`, `com1`, `com2`, `i8042`, `cmos`, `pit`, `acpi-pm` | devices of the board |
//! | `virtio N` | a transport with its device, by window |
#![forbid(unsafe_code)]

use berth_arch::x86_64::assist::{AssistError, AssistState, VcpuAssist};
use berth_arch::x86_64::vcpu_state::{CpuidLeaf, StateReader, VcpuState, VcpuStateError};
use berth_devices::virtio::mmio;
use kvm_bindings::kvm_clock_data;
use serde::{Deserialize, Serialize};

use super::virtio::Virtio;
use super::{Board, State, Vm};
use crate::snapshot::{ComponentError, Components};
use crate::vcpu::VcpuThread;

/// Version of [`VcpuComponent`].
const VCPU: u32 = 1;
/// Version of [`ClockState`].
const CLOCK: u32 = 1;
/// Version of a transport's state.
const VIRTIO: u32 = 1;

/// Why a VM's state cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A component is missing, unknown or unreadable.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// A vCPU.
    #[error("vCPU {index}: {cause}")]
    Vcpu {
        /// Which.
        index: u32,
        /// What is wrong.
        cause: VcpuStateError,
    },
    /// An assist.
    #[error("vCPU {index}: {cause}")]
    Assist {
        /// Which.
        index: u32,
        /// What is wrong.
        cause: AssistError,
    },
    /// A vCPU thread has ended.
    #[error("vCPU {0} has stopped, and so has the guest")]
    Stopped(u32),
    /// A virtio device.
    #[error("virtio device {index}: {cause}")]
    Virtio {
        /// Which, by window.
        index: usize,
        /// What is wrong.
        cause: mmio::RestoreError,
    },
    /// KVM's clock.
    #[error("{ioctl} failed: {cause}")]
    Clock {
        /// Name of the call.
        ioctl: &'static str,
        /// What KVM said.
        cause: kvm_ioctls::Error,
    },
}

/// A vCPU.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VcpuComponent {
    pub(super) vcpu: VcpuState,
    pub(super) assist: Option<AssistState>,
}

/// KVM's clock, and the time of day when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClockState {
    /// KVM's clock in nanoseconds.
    pub(super) kvm: u64,
    /// The host's time of day then, nanoseconds since 1970.
    pub(super) realtime: u64,
}

fn vcpu_name(index: u32) -> String {
    format!("vcpu {index}")
}

impl Vm {
    /// The state of a paused VM, apart from its memory.
    pub(crate) fn save(&self) -> Result<Components, StateError> {
        let mut components = Components::default();
        let reader =
            StateReader::new(&self.board.kvm).map_err(|cause| StateError::Vcpu { index: 0, cause })?;
        for (index, thread) in (0..).zip(self.paused()) {
            let state = save_vcpu(index, thread, &reader, &self.board)?;
            components.put(vcpu_name(index), VCPU, &state)?;
        }
        let clock = self.board.vm.get_clock().map_err(|cause| StateError::Clock {
            ioctl: "KVM_GET_CLOCK",
            cause,
        })?;
        components.put(
            "clock",
            CLOCK,
            &ClockState {
                kvm: clock.clock,
                realtime: realtime(),
            },
        )?;
        components.put("ioapic", 1, &self.board.ioapic.save())?;
        self.legacy.save(&mut components)?;
        for (index, transport) in self.virtio.transports.iter().enumerate() {
            let state = transport
                .save()
                .map_err(|cause| StateError::Virtio { index, cause })?;
            components.put(format!("virtio {index}"), VIRTIO, &state)?;
        }
        Ok(components)
    }
}

impl Vm {
    /// Becomes what was saved, as far as the builder has not seen to it. Before its threads start.
    pub(super) fn restore(
        &mut self,
        mut components: Components,
        assists: Vec<Option<AssistState>>,
    ) -> Result<(), StateError> {
        let State::Built(vcpus) = &mut self.state else {
            return Ok(());
        };
        for (parts, saved) in vcpus.iter_mut().zip(assists) {
            if let (Some(assist), Some(saved)) = (&mut parts.assist, saved) {
                let index = parts.index;
                assist
                    .restore(saved, &parts.vcpu)
                    .map_err(|cause| StateError::Assist { index, cause })?;
            }
        }
        self.board.ioapic.restore(components.take("ioapic", 1)?);
        self.legacy.restore(&mut components)?;
        restore_virtio(&mut components, &self.virtio)?;
        Ok(components.finish()?)
    }
}

fn save_vcpu(
    index: u32,
    thread: &VcpuThread,
    reader: &StateReader,
    board: &Board,
) -> Result<VcpuComponent, StateError> {
    let (reader, vm) = (reader.clone(), board.vm.clone());
    let state = thread.call(move |parts| {
        let vcpu = reader.read(&vm, &parts.vcpu)?;
        let assist = parts.assist.as_ref().map(VcpuAssist::save);
        Ok(VcpuComponent { vcpu, assist })
    });
    state
        .ok_or(StateError::Stopped(index))?
        .map_err(|cause| StateError::Vcpu { index, cause })
}

/// Gives the transports, whose devices stand still, what was saved. They stay paused.
fn restore_virtio(components: &mut Components, virtio: &Virtio) -> Result<(), StateError> {
    for (index, transport) in virtio.transports.iter().enumerate() {
        let state = components.take(&format!("virtio {index}"), VIRTIO)?;
        transport
            .restore(&state)
            .map_err(|cause| StateError::Virtio { index, cause })?;
    }
    Ok(())
}

/// What the saved machine's first vCPU is told by CPUID.
pub(crate) fn cpuid_of(components: &Components) -> Result<Vec<CpuidLeaf>, StateError> {
    Ok(take_vcpu(&mut components.clone(), 0)?.vcpu.cpuid)
}

/// Takes a vCPU's state out.
pub(super) fn take_vcpu(components: &mut Components, index: u32) -> Result<VcpuComponent, StateError> {
    Ok(components.take(&vcpu_name(index), VCPU)?)
}

/// Sets KVM's clock to what was saved plus what `advance` makes of the real time since then, in nanoseconds, which it returns.
pub(super) fn restore_clock(
    components: &mut Components,
    vm: &kvm_ioctls::VmFd,
    advance: impl FnOnce(u64) -> u64,
) -> Result<u64, StateError> {
    let state: ClockState = components.take("clock", CLOCK)?;
    let advance = advance(realtime().saturating_sub(state.realtime));
    let clock = kvm_clock_data {
        clock: state.kvm.saturating_add(advance),
        ..Default::default()
    };
    vm.set_clock(&clock).map_err(|cause| StateError::Clock {
        ioctl: "KVM_SET_CLOCK",
        cause,
    })?;
    Ok(advance)
}

/// Nanoseconds since 1970; zero before.
fn realtime() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}
