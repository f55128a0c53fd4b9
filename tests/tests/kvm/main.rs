//! Berth end to end, on /dev/kvm: the real program boots real guests.
//!
//! ```text
//! tests/run -p berth-tests --test kvm            all of it
//! tests/run -p berth-tests --test kvm ends::     one module
//! ```
#![forbid(unsafe_code)]

mod api;
mod api_clients;
mod bad_input;
mod balloon;
mod boot_tests;
mod codes;
mod console;
mod disk;
mod ends;
mod firecracker;
mod fleet;
mod footprint;
mod hostile;
mod image;
mod init;
mod io_guest;
mod mmds;
mod net;
mod net_user;
mod pauses;
mod pmem;
mod shipped;
mod snapshot;
mod streams;
mod test_files;
mod vsock;
mod warm;
