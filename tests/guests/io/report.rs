//! The line of results: one JSON object, on the serial port.

use core::fmt::Write;

use crate::failure::Failure;
use crate::interrupts;
use crate::options::{Options, Wait};
use crate::serial::Serial;
use crate::timing::Histogram;
use crate::transport::Device;

/// What was counted between the beginning and the end of measuring.
pub struct Measured {
    /// Operations that were done.
    pub operations: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// Cycles from beginning to end.
    pub cycles: u64,
    /// Times that the device was notified.
    pub kicks: u64,
    /// Requests, frames or sectors whose content was compared.
    pub verified: u64,
    /// The sum of what the disk holds of this run, where it was compared.
    pub content: u64,
    /// Frames that did not come.
    pub lost: u64,
    /// Interrupts that came.
    pub interrupts: u64,
}

/// Cycles that an operation took, and a notification alone. Kept apart because they are large.
pub struct Times {
    pub operation: Histogram,
    pub kick: Histogram,
}

impl Times {
    pub const fn new() -> Self {
        Self {
            operation: Histogram::new(),
            kick: Histogram::new(),
        }
    }

    pub fn clear(&mut self) {
        self.operation.clear();
        self.kick.clear();
    }
}

/// Says what came out.
pub fn results(options: &Options, device: &Device, measured: &Measured, times: &Times) {
    let khz = options.tsc_khz;
    let ns = |cycles: u64| (cycles as u128 * 1_000_000).checked_div(khz as u128).unwrap_or(0) as u64;
    let bench = match options.bench {
        crate::options::Bench::Blk => "blk",
        crate::options::Bench::Net => "net",
    };
    let wait = match options.wait {
        Wait::Poll => "poll",
        Wait::Irq => "irq",
    };
    let _ = write!(
        Serial,
        "{{\"bench\":\"{bench}\",\"op\":\"{}\",\"bs\":{},\"depth\":{},\"queues\":{},\"wait\":\"{wait}\",\
         \"transport\":\"{}\",\"features\":{},\"tsc_khz\":{khz}",
        options.op.name(),
        options.bs,
        options.depth,
        options.queues,
        device.carrier(),
        device.features,
    );
    for (name, value) in [
        ("operations", measured.operations),
        ("bytes", measured.bytes),
        ("cycles", measured.cycles),
        ("ns", ns(measured.cycles)),
        ("min_ns", ns(times.operation.min())),
        ("p50_ns", ns(times.operation.percentile(50))),
        ("p99_ns", ns(times.operation.percentile(99))),
        ("max_ns", ns(times.operation.max())),
        ("kicks", measured.kicks),
        ("kick_min_ns", ns(times.kick.min())),
        ("kick_p50_ns", ns(times.kick.percentile(50))),
        ("interrupts", measured.interrupts),
        ("verified", measured.verified),
        ("content", measured.content),
        ("lost", measured.lost),
    ] {
        let _ = write!(Serial, ",\"{name}\":{value}");
    }
    let _ = Serial.write_str("}\n");
}

/// Says why nothing did.
pub fn failure(failure: &Failure) {
    let _ = writeln!(Serial, "{{\"error\":\"{failure}\"}}");
}

/// Interrupts so far.
pub fn interrupts() -> u64 {
    interrupts::count()
}
