//! What the CPU dictates to Berth.
//!
//! Everything here is a fact about a processor or about KVM on the host: where things lie in guest memory, what CPUID says,
//! which registers a guest starts with, the tables that describe the machine, what the host offers, and what has to be completed
//! in user space on hosts whose KVM interprets guest kernels. One folder per CPU; nothing here knows a device or a VM's
//! description.

pub mod hex;
pub mod probe;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;
