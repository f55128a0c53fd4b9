//! The bodies of the API: what Firecracker's clients send and get, and what Berth's own paths have besides.

mod berth;
mod devices;
mod machine;
mod snapshot;

pub(crate) use berth::*;
pub(crate) use devices::*;
pub(crate) use machine::*;
pub(crate) use snapshot::*;
