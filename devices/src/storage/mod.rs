//! Storage: where the bytes of a disk or of persistent memory are, and what is done to them.
//!
//! ```text
//!   open_disk ─▶ FileDisk, Qcow2Disk          OverlayDisk ─▶ a base of either kind, which is only read
//!                   └─ what cannot be done at once ─▶ an io_uring, or threads (engine)
//! ```
//! Devices stand on a [`DiskBackend`] and know no more of it. Of virtio it knows how guest memory is read and written
//! ([`GuestIo`](crate::virtio::queue::GuestIo)), and no device.

mod backend;
mod engine;
#[cfg(test)]
mod faulty;
mod file;
mod format;
mod no_medium;
mod overlay;
mod pool;
mod qcow2;
mod ring;
mod store;

pub use backend::{DiskBackend, Operation, SECTOR, StaticDisk};
pub use engine::Engine;
#[cfg(test)]
pub(crate) use faulty::{Fault, Faults};
pub use file::{DiskError, FileDisk, FileOptions};
pub use format::{ImageFormat, open_disk};
pub use no_medium::NO_MEDIUM;
pub use overlay::OverlayDisk;
pub use qcow2::{Qcow2Disk, Qcow2Fault};
