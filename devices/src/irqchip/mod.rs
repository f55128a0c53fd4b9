//! The part of the interrupt controllers that lives outside the kernel (KVM's split irqchip).
//!
//! The local APICs stay in KVM. The I/O APIC is ours: an in-kernel one makes closing a VM wait for grace periods that
//! cost more than everything else in a short run. Its pins become message routes, so a device's irqfd still goes
//! straight from its event fd to the local APIC, with no thread of ours between.

mod ioapic;
mod pic;

pub use ioapic::{IoApic, IoApicState, MsiMessage, PINS, PinRouter};
pub use pic::PicStub;
