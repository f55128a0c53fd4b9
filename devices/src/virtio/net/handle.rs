//! The control side of a network card.

#![forbid(unsafe_code)]

use super::Net;
use crate::limiter::LimiterChange;
use crate::virtio::mailbox::{Caller, DeviceGone};

/// A network card for whoever controls the VM. Every call returns when the device has done it.
#[derive(Clone)]
pub struct NetHandle {
    pub(super) caller: Caller<Net>,
}

impl NetHandle {
    /// Sets new limits to what the guest receives and sends.
    pub fn set_limits(&self, receive: LimiterChange, transmit: LimiterChange) -> Result<(), DeviceGone> {
        self.caller.call(move |net| net.set_limits(receive, transmit))
    }
}
