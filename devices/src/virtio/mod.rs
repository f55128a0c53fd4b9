//! Virtio (version 1.3): the core that every device shares, the transports, and the devices.

pub mod device;
pub mod handle;
