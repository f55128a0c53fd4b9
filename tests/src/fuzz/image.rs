//! Tar files and images that somebody else made.

use berth::image::info::{info_of_bytes, text};
use berth::image::initramfs_of_tar;

pub(super) fn tar(data: &[u8]) {
    let Ok(archive) = initramfs_of_tar(data) else {
        return;
    };
    let info = info_of_bytes(&archive).expect("memory can be read");
    assert_eq!((info.kind, &info.troubles[..]), ("cpio", &[][..]));
}

pub(super) fn image(data: &[u8]) {
    let info = info_of_bytes(data).expect("memory can be read");
    text(&info);
}

/// A header of tar with its checksum, and a block of data.
fn entry(kind: u8, name: &[u8], link: &[u8], data: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    for (at, digits) in [
        (100, "0000644"),
        (108, "0000001"),
        (116, "0000002"),
        (329, "0000005"),
        (337, "0000001"),
    ] {
        block[at..at + digits.len()].copy_from_slice(digits.as_bytes());
    }
    block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    block[136..147].copy_from_slice(b"00000000001");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

pub(super) fn tars() -> Vec<Vec<u8>> {
    let end = vec![0; 1024];
    vec![
        [
            entry(b'5', b"bin", b"", b""),
            entry(b'0', b"bin/sh", b"", b"#!"),
            entry(b'1', b"sh", b"bin/sh", b""),
            entry(b'2', b"lib", b"bin", b""),
            entry(b'3', b"dev/console", b"", b""),
            entry(b'0', b"lib/.wh.sh", b"", b""),
            end.clone(),
        ]
        .concat(),
        [
            entry(b'x', b"pax", b"", b"14 mtime=1.25\n26 SCHILY.xattr.user.a=\n\n\n"),
            entry(b'0', b"file", b"", b"data"),
            entry(b'L', b"long", b"", &b"d/".repeat(100)),
            entry(b'6', b"fifo", b"", b""),
            end.clone(),
        ]
        .concat(),
        [
            entry(
                b'x',
                b"pax",
                b"",
                b"22 GNU.sparse.major=1\n28 GNU.sparse.realsize=9000\n",
            ),
            entry(
                b'0',
                b"sparse",
                b"",
                &[&b"1\n4096\n3\n"[..], &[0; 502], b"abc"].concat(),
            ),
            end,
        ]
        .concat(),
    ]
}

/// What the shipped root image begins with, archives, and a disk with both kinds of partition table.
pub(super) fn images() -> Vec<Vec<u8>> {
    let root = std::fs::read(crate::guests::root()).expect("it was unpacked");
    let mut seeds = vec![root[..4096].to_vec()];
    for tar in tars() {
        seeds.extend(initramfs_of_tar(&tar));
        seeds.push(tar);
    }
    let mut disk = vec![0; 4096];
    disk[450] = 0x05;
    disk[454] = 1;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    seeds.push(disk.clone());
    disk[512..520].copy_from_slice(b"EFI PART");
    disk[584] = 2;
    disk[592] = 16;
    disk[596] = 128;
    disk[1024..1040].fill(7);
    disk[1056] = 4;
    disk[1064] = 5;
    seeds.push(disk);
    seeds
}
