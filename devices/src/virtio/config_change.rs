//! Telling a driver that the configuration space changed, whether or not it can hear that now.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::device::DeviceInterrupt;

/// The way to the driver, while there is one. What changes meanwhile is told to the next.
#[derive(Default)]
pub struct ConfigChange {
    interrupt: Option<Arc<dyn DeviceInterrupt>>,
    untold: bool,
}

impl ConfigChange {
    /// A queue started: there is a driver.
    pub fn started(&mut self, interrupt: Arc<dyn DeviceInterrupt>) {
        if std::mem::take(&mut self.untold) {
            interrupt.config_changed();
        }
        self.interrupt = Some(interrupt);
    }

    /// All queues stopped.
    pub fn stopped(&mut self) {
        self.interrupt = None;
    }

    /// Something changed.
    pub fn announce(&mut self) {
        match &self.interrupt {
            Some(interrupt) => interrupt.config_changed(),
            None => self.untold = true,
        }
    }
}
