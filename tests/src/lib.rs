//! Berth end to end: the harness with which tests and benchmarks run the real program as a user would.
//!
//! - [`invocation`] starts `berth`, feeds it, waits for what it says and for its end, always with a deadline
//! - [`guests`] are the kernels to run in it; [`formats`] wraps a kernel the ways kernels come; [`prepared`] is a folder of all of them
//!   for the test files of `boot/`
//! - [`netns`] is a network of the test's own, [`debian`] a Debian root image, [`memory`] what the program's memory is made of
//! - [`api`] speaks to a running program; [`soak`] saves and restores a guest under load
//! - [`fleet`] is a state directory with VMs
//! - [`served`] is a program with an API and what it answers, [`clients`] are those of others
//! - [`fuzz`] holds the entry points that the fuzzers and the tests on stable Rust share
//!
//! Nothing is skipped: a test that lacks a right, a package or `/dev/kvm` fails with a sentence that names it.
#![forbid(unsafe_code)]
// A harness fails by panicking, and says why when it does.
#![allow(clippy::missing_panics_doc)]

pub mod api;
pub mod clients;
pub mod debian;
pub mod fleet;
pub mod formats;
pub mod fuzz;
pub mod guests;
pub mod invocation;
pub mod memory;
pub mod netns;
mod outcome;
pub mod prepared;
pub mod program;
pub mod served;
pub mod soak;
pub mod tools;

pub use berth_devices::virtio::conformance::noise;
