//! Berth, a hosted hypervisor on KVM.

mod console;
mod event;
mod guest;
mod io_thread;
mod irq;
mod memory;
pub mod run;
mod signals;
pub mod spec;
pub mod stop;
mod timing;
mod vcpu;
pub mod vm;
