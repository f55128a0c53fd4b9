//! x86_64: the only CPU so far.

pub mod assist;
pub mod cpuid;
pub mod layout;
