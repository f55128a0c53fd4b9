//! The devices a Berth guest sees: buses, legacy devices, virtio core, transports, devices, and the storage under them.
//!
//! Nothing here knows KVM. A device gets guest memory, a way to interrupt and event fds, so all of it runs under a mock
//! driver on a machine without `/dev/kvm`.

pub mod bus;
pub mod contained;
pub mod irqchip;
pub mod legacy;
pub mod limiter;
pub mod ratelimit;
pub mod storage;
pub mod timer;
pub mod virtio;

/// Guest RAM as the devices see it. Written once here, so that dirty tracking can change its bitmap in one place.
pub type Memory = vm_memory::GuestMemoryMmap<()>;
