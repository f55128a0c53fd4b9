//! What every device and transport must pass, and the drivers, decent and hostile, that put them to it.
//!
//! A device's test is a few lines: [`run`] with a [`Subject`] that makes the device and knows one request. A fuzz target is
//! one call: [`fuzz_mmio`] for the registers, [`fuzz_queue`] for a device's request handlers, [`fuzz_chain`] for the walk.

// A suite speaks by panicking.
#![allow(clippy::missing_panics_doc)]
#![forbid(unsafe_code)]

mod chains;
mod handle;
mod hostile;
mod machine;
mod noise;
pub mod ring;
mod suite;

pub use chains::fuzz_chain;
pub use handle::LocalHandle;
pub use hostile::{fuzz_mmio, fuzz_queue, fuzz_restore, play};
pub use machine::{
    ACKNOWLEDGE, BUFFERS, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, MEMORY_END, Machine, NEEDS_RESET,
    RING_SIZE, VERSION_1,
};
pub use noise::noise;
pub use suite::{REQUEST_SPACE, Request, Subject, run};
