//! The ways to the devices of a VM that can be changed while it runs.
#![forbid(unsafe_code)]

use berth_devices::virtio::balloon::BalloonHandle;

/// The ways to a VM's devices, for whoever controls it.
#[derive(Clone, Default)]
pub struct DeviceHandles {
    /// The balloon, if the VM has one.
    pub balloon: Option<BalloonHandle>,
}
