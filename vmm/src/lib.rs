//! Berth, a hosted hypervisor on KVM.

pub mod spec;
