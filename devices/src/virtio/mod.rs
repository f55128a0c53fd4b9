//! Virtio (version 1.3): the core that every device shares, the transports, and the devices.

pub mod balloon;
pub mod blk;
pub mod config_change;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod console;
pub mod counters;
pub mod device;
mod file_control;
pub mod handle;
pub mod mailbox;
pub mod mmio;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod rng;
pub mod vsock;
