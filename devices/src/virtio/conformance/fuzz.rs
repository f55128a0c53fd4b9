//! Entry points for fuzzers, one per device.

use std::io;

use super::{fuzz_mmio, fuzz_queue};
use crate::virtio::blk::{Block, BlockConfig, DiskBackend, Operation};
use crate::virtio::device::VirtioDevice;
use crate::virtio::rng::Rng;

/// Puts a device to a hostile driver twice: one that plays with everything, one that is after the request handler.
fn fuzz_device(make: impl Fn() -> Box<dyn VirtioDevice>, data: &[u8]) {
    fuzz_mmio(make(), data);
    fuzz_queue(make(), data);
}

/// The entropy device against `data`.
pub fn fuzz_rng(data: &[u8]) {
    fuzz_device(|| Box::new(Rng::new()), data);
}

/// The disk against `data`; its first bit says whether it is read-only.
pub fn fuzz_blk(data: &[u8]) {
    let read_only = data.first().is_some_and(|byte| byte & 1 != 0);
    let config = BlockConfig {
        read_only,
        serial: Some(*b"a serial number's 20"),
    };
    let disk = || Box::new(MemoryDisk(vec![0; 64 * 512]));
    fuzz_device(|| Box::new(Block::new(disk(), config)), data);
}

/// A disk in memory, so that a fuzzer leaves the host alone.
struct MemoryDisk(Vec<u8>);

impl DiskBackend for MemoryDisk {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn writable(&self) -> bool {
        true
    }

    fn submit(&mut self, _: u16, operation: Operation<'_>) -> Option<io::Result<()>> {
        // Ranges lie within the disk, or the slices below say so.
        match operation {
            Operation::Read { offset, mut to } => {
                let len = to.len() as usize;
                assert_eq!(to.copy_from(&self.0[offset as usize..][..len]), len);
            }
            Operation::Write { offset, mut from } => {
                let len = from.len() as usize;
                assert_eq!(from.copy_to(&mut self.0[offset as usize..][..len]), len);
            }
            Operation::Flush => {}
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                self.0[offset as usize..][..len as usize].fill(0);
            }
        }
        Some(Ok(()))
    }
}
