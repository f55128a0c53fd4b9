//! qcow2 images that somebody else made, and a driver that does anything with them.

use berth_devices::storage::{DiskBackend, FileOptions, ImageFormat, Qcow2Disk};
use berth_devices::virtio::blk::{Block, BlockConfig};
use berth_devices::virtio::conformance;

/// Bytes of the image; what follows are requests.
const IMAGE: usize = 4096;
/// The smallest clusters there can be, so that an image of them fits.
const CLUSTER: usize = 512;

pub(super) fn run(data: &[u8]) {
    let (image, requests) = data.split_at(data.len().min(IMAGE));
    let options = FileOptions {
        read_only: requests.first().is_some_and(|byte| byte & 1 != 0),
        format: ImageFormat::Qcow2,
        ..FileOptions::default()
    };
    // A refusal is as good as a disk.
    let Ok(disk) = Qcow2Disk::open(&super::scratch(image), options) else {
        return;
    };
    let mut bytes = vec![0; disk.size().min(1 << 16) as usize];
    for offset in [0, disk.size() - bytes.len() as u64] {
        let _ = disk.read_at(offset, &mut bytes);
    }
    conformance::fuzz_queue(
        Box::new(Block::new(Box::new(disk), BlockConfig::default())),
        requests,
    );
}

/// An image of 30 sectors, of which it has one: header, reference counts (table and block), L1, L2, data.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut image = vec![0; IMAGE];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &9_u32.to_be_bytes());
    put(24, &(30 * CLUSTER as u64).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..6 {
        put(2 * CLUSTER + cluster * 2, &1_u16.to_be_bytes());
    }
    let copied = |cluster: usize| (1 << 63 | (cluster * CLUSTER) as u64).to_be_bytes();
    put(3 * CLUSTER, &copied(4));
    put(4 * CLUSTER, &copied(5));
    put(5 * CLUSTER, &[0xab; CLUSTER]);
    let requests = (0..=255).map(|byte: u8| byte.wrapping_mul(7));
    let writable = image.iter().copied().chain([0]).chain(requests.clone()).collect();
    let read_only = image.iter().copied().chain([1]).chain(requests).collect();
    vec![writable, read_only]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_images_that_are_used() {
        for seed in seeds() {
            let options = FileOptions {
                format: ImageFormat::Qcow2,
                ..FileOptions::default()
            };
            let disk = Qcow2Disk::open(&crate::fuzz::scratch(&seed[..IMAGE]), options).unwrap();
            let mut bytes = [0; 2 * CLUSTER];
            disk.read_at(0, &mut bytes).unwrap();
            assert!(bytes[..CLUSTER] == [0xab; CLUSTER] && bytes[CLUSTER..] == [0; CLUSTER]);
        }
    }
}
