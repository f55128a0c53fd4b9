//! The control side of a persistent memory device.

use super::Pmem;
use crate::limiter::LimiterChange;
use crate::virtio::mailbox::{Caller, DeviceGone};

/// A persistent memory device for whoever controls the VM. Every call returns when the device has done it.
#[derive(Clone)]
pub struct PmemHandle {
    pub(super) caller: Caller<Pmem>,
}

impl PmemHandle {
    /// Sets new limits to flushes.
    pub fn set_limits(&self, change: LimiterChange) -> Result<(), DeviceGone> {
        self.caller.call(move |pmem| pmem.set_limits(change))
    }
}
