//! The two sides between which a transport stands: the device, which an I/O thread owns, and the driver's notifications.
//!
//! A transport's registers are touched by vCPU threads. Whatever must happen to the device goes through a
//! [`DeviceHandle`], which runs it on the device's own thread and returns when it is done; nothing on the data path does.

use vmm_sys_util::eventfd::EventFd;

use super::device::{DeviceState, DeviceStateError, QueueResources, QueueState, StartError};

/// A queue to be started.
pub struct StartQueue {
    /// Which.
    pub index: u16,
    /// What it runs on.
    pub resources: QueueResources,
    /// Where it stood, if it goes on.
    pub at: Option<QueueState>,
}

/// A device as its transport sees it. Every call returns when the device has done it.
pub trait DeviceHandle: Send + Sync {
    /// Reads configuration space; bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes configuration space.
    fn write_config(&self, offset: u64, data: &[u8]);
    /// Starts these queues, all or, if one cannot be started, none.
    fn start(&self, queues: Vec<StartQueue>) -> Result<(), StartError>;
    /// Stops every started queue, with nothing in flight, and returns where each stood, by ascending index.
    fn stop(&self) -> Vec<(u16, QueueState)>;
    /// What the device remembers beyond its queues, which are stopped.
    fn save(&self) -> DeviceState;
    /// Has the device, its queues stopped, become what was saved.
    fn restore(&self, state: &DeviceState) -> Result<(), DeviceStateError>;
}

/// Who brings a driver's notification to a queue without the vCPU thread. In a VM that is KVM's ioeventfd.
///
/// Both calls are best effort: a notification that is not attached arrives at the transport's register, which writes
/// the same event fd.
pub trait Notifier: Send + Sync {
    /// From now on a notification of `queue` is written to `kick`.
    fn attach(&self, queue: u16, kick: &EventFd);
    /// No longer.
    fn detach(&self, queue: u16, kick: &EventFd);
}
