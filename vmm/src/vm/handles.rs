//! The ways to the devices of a VM that can be changed while it runs.
#![forbid(unsafe_code)]

use berth_devices::virtio::balloon::BalloonHandle;
use berth_devices::virtio::blk::BlockHandle;
use berth_devices::virtio::console::ConsoleHandle;
use berth_devices::virtio::net::NetHandle;
use berth_devices::virtio::pmem::PmemHandle;

/// The ways to a VM's devices, for whoever controls it.
#[derive(Clone, Default)]
pub struct DeviceHandles {
    /// The disks of the description, in its order, with the names that it gives them.
    pub disks: Vec<(Option<String>, BlockHandle)>,
    /// The files in memory of the description, in its order, with the names that it gives them.
    pub pmem: Vec<(Option<String>, PmemHandle)>,
    /// The network interfaces of the description, in its order, with the names that it gives them.
    pub nets: Vec<(Option<String>, NetHandle)>,
    /// The balloon, if the VM has one.
    pub balloon: Option<BalloonHandle>,
    /// The console, if the VM has one.
    pub console: Option<ConsoleHandle>,
}
