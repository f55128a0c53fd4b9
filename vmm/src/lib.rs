//! Berth, a hosted hypervisor on KVM.
