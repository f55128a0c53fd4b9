//! Interrupt lines: 24 pins, an irqfd each, routed as messages by KVM's split irqchip.

use std::sync::{Arc, Mutex, PoisonError};

use berth_devices::irqchip::{MsiMessage, PINS, PinRouter};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why the interrupt lines cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// No split irqchip.
    #[error("KVM refused a split interrupt controller (KVM_CAP_SPLIT_IRQCHIP): {0}")]
    Split(kvm_ioctls::Error),
    /// No event fd.
    #[error("the host refused an event descriptor: {0}")]
    EventFd(std::io::Error),
    /// No irqfd.
    #[error("KVM refused the interrupt line {gsi} (KVM_IRQFD): {cause}")]
    Line {
        /// Number of the line.
        gsi: u32,
        /// What KVM said.
        cause: kvm_ioctls::Error,
    },
}

/// The lines of one VM. Shared by the I/O APIC, which routes them, and the builder, which hands them out.
#[derive(Clone)]
pub(crate) struct IrqLines {
    inner: Arc<Inner>,
}

struct Inner {
    vm: Arc<VmFd>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lines: [Option<EventFd>; PINS],
    routes: [Option<MsiMessage>; PINS],
}

impl IrqLines {
    /// Switches the VM to the split irqchip. Memory slots must be set and no vCPU may exist yet.
    pub(crate) fn new(vm: Arc<VmFd>) -> Result<Self, IrqError> {
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..Default::default()
        };
        cap.args[0] = PINS as u64;
        vm.enable_cap(&cap).map_err(IrqError::Split)?;
        Ok(Self {
            inner: Arc::new(Inner {
                vm,
                state: Mutex::default(),
            }),
        })
    }

    /// The event fd that pulses line `gsi` (below [`PINS`]): writing it raises the interrupt, with no thread between.
    pub(crate) fn line(&self, gsi: u32) -> Result<EventFd, IrqError> {
        let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(IrqError::EventFd)?;
        self.inner
            .vm
            .register_irqfd(&fd, gsi)
            .map_err(|cause| IrqError::Line { gsi, cause })?;
        let handle = fd.try_clone().map_err(IrqError::EventFd)?;
        state.lines[gsi as usize] = Some(fd);
        Ok(handle)
    }
}

impl PinRouter for IrqLines {
    fn route(&self, pin: usize, message: Option<MsiMessage>) {
        let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.routes[pin] = message;
        self.inner.apply(&state.routes);
    }

    fn route_all(&self, messages: [Option<MsiMessage>; PINS]) {
        let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.routes = messages;
        self.inner.apply(&state.routes);
    }

    fn pulse(&self, pin: usize) {
        let state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = &state.lines[pin] {
            // Fails only when the counter is full, and then an interrupt is pending anyway.
            let _ = line.write(1);
        }
    }
}

impl Inner {
    fn apply(&self, routes: &[Option<MsiMessage>; PINS]) {
        if let Err(cause) = self.set_routes(routes) {
            tracing::error!("KVM refused the interrupt routes (KVM_SET_GSI_ROUTING): {cause}");
        }
    }

    fn set_routes(&self, routes: &[Option<MsiMessage>; PINS]) -> Result<(), kvm_ioctls::Error> {
        let entries: Vec<_> = (0..)
            .zip(routes)
            .filter_map(|(gsi, route)| route.map(|message| msi_entry(gsi, message)))
            .collect();
        let routing =
            KvmIrqRouting::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        self.vm.set_gsi_routing(&routing)
    }
}

fn msi_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: message.address,
                address_hi: 0,
                data: message.data,
                ..Default::default()
            },
        },
        ..Default::default()
    }
}
