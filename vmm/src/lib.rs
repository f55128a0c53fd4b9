//! Berth, a hosted hypervisor on KVM.

pub mod cli;
pub mod client;
mod console;
pub mod control;
pub mod doctor;
mod event;
pub mod events;
pub mod exit_code;
pub mod fleet;
mod footprint;
mod guest;
mod io_thread;
mod irq;
pub mod logging;
pub mod machine;
mod memory;
mod page_returner;
pub mod rotate;
pub mod run;
mod signals;
pub mod snapshot;
pub mod spec;
pub mod stop;
mod timing;
mod unix;
mod vcpu;
pub mod vm;
