//! What a VM has done so far, in numbers: counters that the threads of the VM count for themselves, and their reading.
//!
//! A counter belongs to one thread, which adds to it without an atomic read-modify-write; each thread's counters lie on cache
//! lines of their own. Whoever reads them reads a moment that may be a little past.
#![forbid(unsafe_code)]

mod api;
mod prometheus;
mod report;
mod vcpu;

use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use api::ApiMetrics;
pub(crate) use prometheus::prometheus;
pub(crate) use report::{Report, firecracker_line, report};
pub(crate) use vcpu::{Exit, VcpuCounters};

/// Adds to a counter of this thread's own.
fn add(counter: &AtomicU64, count: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(count),
        Ordering::Relaxed,
    );
}
