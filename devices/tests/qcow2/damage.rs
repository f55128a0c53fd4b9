//! Images that are damaged or made to harm: a sentence or failed requests, never a panic or a hang.

use super::*;

/// Opens an image that may be anything, and uses what opens.
fn survive(path: &Path, read_only: bool) -> Option<String> {
    let options = FileOptions { read_only, ..OPTIONS };
    let mut disk = match Qcow2Disk::open(path, options) {
        Ok(disk) => disk,
        Err(cause) => return Some(cause.to_string()),
    };
    let mut guest = Guest::new();
    let size = disk.size().min(1 << 40);
    let mut noise = Noise(size);
    for _ in 0..24 {
        let len = 512 * (1 + noise.below(256)).min(size / 512);
        let offset = 512 * noise.below((size - len) / 512 + 1);
        // Errors are as good as answers.
        let _ = match noise.below(6) {
            0 | 1 => guest.read(&mut disk, offset, len as usize).map(drop),
            2 | 3 => guest.write(&mut disk, offset, &pattern(len as usize, offset)),
            4 => now(&mut disk, Operation::Discard { offset, len }),
            _ => now(
                &mut disk,
                Operation::WriteZeroes {
                    offset,
                    len,
                    unmap: len > 9,
                },
            ),
        };
    }
    let _ = now(&mut disk, Operation::Flush);
    None
}

/// Where the tables of an image are, from its header.
fn tables(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let long = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let cluster = 1 << bytes[23];
    let l1 = long(40);
    let l2 = long(l1) & 0x00ff_ffff_ffff_fe00;
    let counts = long(48);
    let block = long(counts);
    let table = |at: usize, len: usize| at..(at + len).min(bytes.len());
    vec![
        0..112,
        table(l1, 8),
        table(l2, cluster.min(1024)),
        table(counts, 8),
        table(block, 64.min(cluster)),
    ]
}

#[test]
fn damage_gives_sentences_or_errors() {
    let images = Images::new();
    images.raw("base.raw", &pattern(1 << 20, 1));
    images.qemu("convert -q -f raw -O qcow2 -o cluster_size=4k base.raw plain");
    images.qemu("convert -q -c -f raw -O qcow2 -o cluster_size=64k base.raw packed");
    images.qemu("create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw above");
    Guest::new()
        .write(&mut images.open("above"), 4096, &pattern(65536, 3))
        .unwrap();
    let mut noise = Noise(7);
    for name in ["plain", "packed", "above"] {
        let good = std::fs::read(images.path(name)).unwrap();
        let tables = tables(&good);
        for number in 0..700 {
            let mut bytes = good.clone();
            for _ in 0..=noise.below(3) {
                let table = tables[noise.below(tables.len() as u64) as usize].clone();
                let at = table.start + noise.below(table.len() as u64) as usize;
                match noise.below(3) {
                    0 => bytes[at] ^= 1 << noise.below(8),
                    1 => bytes[at] = noise.next() as u8,
                    _ => {
                        let word = at & !7;
                        let offset = [0, 512, 4096, 1 << 40, u64::MAX, 1 << 63, noise.next()];
                        let entry = offset[noise.below(7) as usize] | noise.below(2) << 63;
                        bytes[word..word + 8].copy_from_slice(&entry.to_be_bytes());
                    }
                }
            }
            if noise.below(8) == 0 {
                bytes.truncate(noise.below(bytes.len() as u64) as usize);
            }
            let path = images.raw("damaged", &bytes);
            survive(&path, number % 3 == 0);
        }
    }
}

/// How an image is made, what is then written where, and what is said of it.
const REFUSED: &[(&str, u64, &[u8], &str)] = &[
    ("", 4, &[0, 0, 0, 9], "is of version 9 of qcow2"),
    (
        "",
        72,
        &[0, 0, 0, 0, 0, 0, 0, 1],
        "was not closed by the program that wrote it last",
    ),
    ("", 72, &[0, 0, 0, 0, 0, 0, 0, 3], "is marked as corrupt"),
    (
        "",
        72,
        &[0, 0, 0, 0, 0, 0, 0, 32],
        "needs features that are not known here (bits 0x20)",
    ),
    ("", 20, &[0, 0, 0, 8], "the size of its clusters is none of"),
    ("", 24, &[0xff; 8], "its disk has 18446744073709551615 bytes"),
    (
        "",
        24,
        &[0x00, 0xff, 0, 0, 0, 0, 0, 0],
        "its disk has 71776119061217280 bytes",
    ),
    ("", 24, &[0; 8], "its disk has 0 bytes"),
    ("", 24, &[0, 0, 1, 0, 0, 0, 0, 0], "its L1 table is too small"),
    ("", 36, &[0xff; 4], "its L1 table is not within the file"),
    (
        "",
        40,
        &[0, 0, 0, 1, 0, 0, 0, 0],
        "its L1 table is not within the file",
    ),
    ("", 48, &[0; 8], "its refcount table is not within the file"),
    ("", 56, &[0xff; 4], "its refcount table is not within the file"),
    (
        "",
        96,
        &[0, 0, 0, 7],
        "its reference counts are wider than 64 bits",
    ),
    ("", 100, &[0xff; 4], "its header has an impossible length"),
    (
        "",
        116,
        &[0xff; 4],
        "its header's extensions are longer than a cluster",
    ),
    ("-o extended_l2=on", 0, &[], "has extended L2 entries"),
    (
        "-o compression_type=zstd",
        0,
        &[],
        "is compressed by another method",
    ),
    ("-o data_file=data", 0, &[], "keeps its data in another file"),
    ("", 32, &[0, 0, 0, 2], "is encrypted"),
    (
        "-b base.raw -F raw",
        16,
        &[0, 0, 4, 0],
        "the name of its backing file is not in its first cluster",
    ),
    (
        "-u -b gone -F raw",
        0,
        &[],
        "cannot be used without its backing file: gone: there is no such file",
    ),
    (
        "-u -b . -F raw",
        0,
        &[],
        "cannot be used without its backing file: .: is a directory",
    ),
    (
        "-u -b nbd://host/disk -F raw",
        0,
        &[],
        "stands on something reached by \"nbd\"",
    ),
    (
        "-u -b base.raw -F vmdk",
        0,
        &[],
        "is said to be of the format \"vmdk\"; it can be raw or qcow2",
    ),
    (
        "-u -b base.raw -F qcow2",
        0,
        &[],
        "cannot be used without its backing file: base.raw: is no qcow2 image",
    ),
    (
        "-u -b ./../missing/disk -F qcow2",
        0,
        &[],
        "there is no such file",
    ),
];

#[test]
fn what_cannot_be_used_is_refused_with_the_reason() {
    let images = Images::new();
    images.raw("base.raw", &pattern(1 << 20, 1));
    let make = |options: &str| {
        images.qemu(&format!("create -q -f qcow2 {options} disk 1M"));
        images.path("disk")
    };
    for (options, at, bytes, expected) in REFUSED {
        let path = make(options);
        poke(&path, *at, bytes);
        let said = images.refusal("disk");
        assert!(
            said.starts_with("disk: ") && said.contains(expected),
            "{options} {at}: {said}"
        );
        assert!(!said.contains('\n'), "{said}");
    }
    // QEMU makes none such any more.
    let path = make("-b base.raw -F raw");
    let bytes = std::fs::read(&path).unwrap();
    let format = bytes
        .windows(4)
        .position(|four| four == [0xe2, 0x79, 0x2a, 0xca])
        .unwrap();
    poke(&path, format as u64, &[0x11, 0x22, 0x33, 0x44]);
    let said = images.refusal("disk");
    assert!(
        said.contains("does not say what format its backing file base.raw has"),
        "{said}"
    );
}

#[test]
fn a_chain_that_is_too_long_or_leads_back_is_refused() {
    let images = Images::new();
    images.qemu("create -q -f qcow2 image0 1M");
    for number in 1..=70 {
        images.qemu(&format!(
            "create -q -f qcow2 -u -b image{} -F qcow2 image{number} 1M",
            number - 1
        ));
    }
    images.open("image60");
    assert!(
        images
            .refusal("image70")
            .contains("stands on more than 64 other images")
    );
    images.qemu("create -q -f qcow2 -u -b image3 -F qcow2 image0 1M");
    assert!(images.refusal("image3").contains("stands on itself"));
}
