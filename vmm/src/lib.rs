//! Berth, a hosted hypervisor on KVM.

pub mod api;
pub mod cli;
mod console;
pub mod control;
pub mod doctor;
mod event;
pub mod events;
pub mod exit_code;
mod footprint;
mod guest;
mod io_thread;
mod irq;
pub mod logging;
pub mod machine;
mod memory;
mod metrics;
mod page_returner;
pub mod run;
mod signals;
pub mod snapshot;
pub mod spec;
pub mod stop;
mod timing;
mod vcpu;
pub mod vm;
