//! Why a VM cannot be built.

use berth_arch::probe::kvm::KvmError;
use berth_arch::x86_64::acpi::AcpiError;
use berth_arch::x86_64::assist::AssistError;
use berth_arch::x86_64::boot_regs::BootRegsError;
use berth_arch::x86_64::cpu_template::CpuTemplateError;
use berth_arch::x86_64::cpuid::CpuidError;
use berth_arch::x86_64::kind::KindError;
use berth_arch::x86_64::mptable::MpTableError;
use berth_boot::BootError;
use berth_devices::bus::BusError;
use berth_devices::storage::DiskError;
use berth_devices::virtio::console::PortError;
use berth_devices::virtio::net::TapError;
use berth_devices::virtio::vsock::VsockError;

use super::{PmemError, StateError};
use crate::console::ConsoleError;
use crate::irq::IrqError;
use crate::memory::MemoryError;
use crate::net_user::UserNetError;

/// Why a VM cannot be built. Displays as a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No interrupt lines.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// The vCPUs cannot be told what they are.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// The vCPUs cannot be as the template says.
    #[error("cpu_template: {0}")]
    CpuTemplate(#[from] CpuTemplateError),
    /// A vCPU cannot be set up.
    #[error(transparent)]
    Registers(#[from] BootRegsError),
    /// The kind of host cannot be found out.
    #[error(transparent)]
    Kind(#[from] KindError),
    /// The assist cannot work on this host.
    #[error(transparent)]
    Assist(#[from] AssistError),
    /// The kernel, initrd or command line is wrong.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// No ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// No MP table.
    #[error(transparent)]
    MpTable(#[from] MpTableError),
    /// A disk is wrong.
    #[error("disk {number}: {cause}")]
    Disk {
        /// Which, from 1, in the spec's order.
        number: usize,
        /// What is wrong.
        cause: DiskError,
    },
    /// A file in memory is wrong.
    #[error("pmem {number}: {cause}")]
    Pmem {
        /// Which, from 1, in the spec's order.
        number: usize,
        /// What is wrong.
        cause: PmemError,
    },
    /// A network interface is wrong.
    #[error("net {number}: {cause}")]
    Net {
        /// Which, from 1, in the spec's order.
        number: usize,
        /// What is wrong.
        cause: TapError,
    },
    /// A user-mode network interface is wrong.
    #[error("net {number}: {cause}")]
    UserNet {
        /// Which, from 1, in the spec's order.
        number: usize,
        /// What is wrong.
        cause: UserNetError,
    },
    /// The vsock is wrong.
    #[error("vsock: {0}")]
    Vsock(#[from] VsockError),
    /// A console's port leads nowhere.
    #[error("console {number}: {cause}")]
    Port {
        /// Which, from 1, in the spec's order.
        number: usize,
        /// What is wrong.
        cause: PortError,
    },
    /// The serial line leads nowhere.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A saved state does not fit.
    #[error(transparent)]
    State(#[from] StateError),
    /// Two devices want the same addresses.
    #[error("the devices do not fit the machine: {0}")]
    Bus(#[from] BusError),
    /// KVM refused something else.
    #[error("{ioctl} failed: {cause}")]
    Ioctl {
        /// Name of the call.
        ioctl: &'static str,
        /// What KVM said.
        cause: kvm_ioctls::Error,
    },
    /// The host refused something else.
    #[error("the host refused {what}: {cause}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// What the system said.
        cause: std::io::Error,
    },
}

impl BuildError {
    /// Whether what the user asked for is wrong, and not the host or Berth.
    pub fn is_user(&self) -> bool {
        matches!(
            self,
            Self::Kvm(_)
                | Self::CpuTemplate(_)
                | Self::Memory(MemoryError::Map { .. } | MemoryError::Handler { .. })
                | Self::Boot(_)
                | Self::Disk { .. }
                | Self::Pmem { .. }
                | Self::Net { .. }
                | Self::UserNet { .. }
                | Self::Vsock(_)
                | Self::Port { .. }
                | Self::Console(_)
                | Self::State(_)
        )
    }
}
