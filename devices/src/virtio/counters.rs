//! What a device has done, in numbers that its own thread alone writes and anybody may read.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// What was done on all queues of a device. One thread runs them all, so that nothing here needs more than a store.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct DeviceCounters {
    requests: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    turns: AtomicU64,
    interrupts: AtomicU64,
    failures: AtomicU64,
}

/// The counters of a device at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceCounts {
    /// Requests that were answered.
    pub requests: u64,
    /// Bytes of the buffers that the driver gave to be read.
    pub read: u64,
    /// Bytes that were written to the driver's buffers.
    pub written: u64,
    /// How often the device looked for requests.
    pub turns: u64,
    /// How often the driver was interrupted.
    pub interrupts: u64,
    /// How often the driver broke the protocol so that it must reset the device.
    pub failures: u64,
}

impl DeviceCounters {
    /// The counters at this moment.
    pub fn get(&self) -> DeviceCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeviceCounts {
            requests: get(&self.requests),
            read: get(&self.read),
            written: get(&self.written),
            turns: get(&self.turns),
            interrupts: get(&self.interrupts),
            failures: get(&self.failures),
        }
    }

    pub(super) fn taken(&self, readable: u32) {
        add(&self.read, readable.into());
    }

    /// Requests of that length together were put back.
    pub(super) fn put_back(&self, readable: u64) {
        add(&self.read, readable.wrapping_neg());
    }

    pub(super) fn answered(&self, written: u32) {
        add(&self.requests, 1);
        add(&self.written, written.into());
    }

    pub(super) fn turned(&self) {
        add(&self.turns, 1);
    }

    pub(super) fn interrupted(&self) {
        add(&self.interrupts, 1);
    }

    pub(super) fn failed(&self) {
        add(&self.failures, 1);
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(count),
        Ordering::Relaxed,
    );
}
