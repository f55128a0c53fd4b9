//! x86_64: the only CPU so far.

pub mod acpi;
pub mod assist;
pub mod boot_regs;
pub mod cpu_template;
pub mod cpuid;
pub mod kind;
pub mod layout;
pub mod mptable;
mod msr;
pub mod vcpu_state;
mod xsave_buffer;
