//! What a VM has done so far, in numbers: counters that the threads of the VM count for themselves, and their reading.
//!
//! A counter belongs to one thread, which adds to it without an atomic read-modify-write; each thread's counters lie on cache
//! lines of their own. Whoever reads them reads a moment that may be a little past.
#![forbid(unsafe_code)]

mod api;
mod prometheus;
mod report;

pub(crate) use api::ApiMetrics;
pub(crate) use prometheus::prometheus;
pub(crate) use report::{Report, firecracker_line, report};
