//! What every device and transport must pass, and the drivers, decent and hostile, that put them to it.

// A suite speaks by panicking.
#![allow(clippy::missing_panics_doc)]

pub mod ring;
