//! The ways a kernel comes: each compression, and a bzImage around one.

use crate::tools;

/// A compression and the command that packs with it as kernel builds do.
pub const COMPRESSIONS: &[(&str, &[&str])] = &[
    ("gzip", &["gzip", "-n", "-c", "-6"]),
    (
        "xz",
        &["xz", "-c", "-1", "--check=crc32", "--x86", "--lzma2=dict=1MiB"],
    ),
    ("zstd", &["zstd", "-q", "-c", "-3"]),
    ("lz4", &["lz4", "-q", "-l", "-c"]),
    ("lz4-frame", &["lz4", "-q", "-c"]),
    ("bzip2", &["bzip2", "-c"]),
    ("lzma", &["xz", "--format=lzma", "-c", "-1"]),
];

/// `data` packed with the compression called `name` in [`COMPRESSIONS`].
pub fn compress(name: &str, data: &[u8]) -> Vec<u8> {
    let (_, command) = COMPRESSIONS
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("no compression is called {name}"));
    tools::feed(command[0], &command[1..], data).stdout
}

/// A bzImage around a packed kernel, by Documentation/arch/x86/boot.rst: boot sector, setup header, payload, and after it
/// the unpacked size, which kernel builds append to some compressions.
///
/// There is no code in it: Berth unpacks the payload and starts that.
pub fn bzimage(payload: &[u8], unpacked: usize) -> Vec<u8> {
    const STUB: usize = 64;
    let mut file = vec![0; 2 * 512];
    let length = payload.len() + 4;
    for (at, bytes) in [
        (0x1f1, &[1][..]), // setup_sects: one after the boot sector
        (0x1f4, &(((STUB + length) / 16 + 1) as u32).to_le_bytes()), // syssize
        (0x1fe, &[0x55, 0xaa]),
        (0x202, b"HdrS"),
        (0x206, &0x20f_u16.to_le_bytes()),
        (0x211, &[1]),                           // loadflags: LOADED_HIGH
        (0x236, &3_u16.to_le_bytes()),           // xloadflags: 64-bit entry
        (0x248, &(STUB as u32).to_le_bytes()),   // payload_offset
        (0x24c, &(length as u32).to_le_bytes()), // payload_length
    ] {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    file.resize(file.len() + STUB, 0xcc);
    file.extend(payload);
    file.extend((unpacked as u32).to_le_bytes());
    file.resize(file.len().next_multiple_of(16), 0);
    file
}
