//! File systems by their superblocks.

use std::io;

use super::look::{Look, Numbers};
use super::{ImageInfo, Root, field_text, uuid};

/// Features by their bits.
type Names = &'static [(u32, &'static str)];

const EXT_COMPAT: Names = &[
    (0x4, "has_journal"),
    (0x10, "resize_inode"),
    (0x20, "dir_index"),
    (0x200, "sparse_super2"),
];
const EXT_INCOMPAT: Names = &[
    (0x1, "compression"),
    (0x2, "filetype"),
    (0x4, "needs_recovery"),
    (0x8, "journal_dev"),
    (0x10, "meta_bg"),
    (0x40, "extents"),
    (0x80, "64bit"),
    (0x100, "mmp"),
    (0x200, "flex_bg"),
    (0x400, "ea_inode"),
    (0x2000, "metadata_csum_seed"),
    (0x4000, "large_dir"),
    (0x8000, "inline_data"),
    (0x10000, "encrypt"),
    (0x20000, "casefold"),
];
const EXT_RO_COMPAT: Names = &[
    (0x1, "sparse_super"),
    (0x2, "large_file"),
    (0x8, "huge_file"),
    (0x10, "uninit_bg"),
    (0x20, "dir_nlink"),
    (0x40, "extra_isize"),
    (0x100, "quota"),
    (0x200, "bigalloc"),
    (0x400, "metadata_csum"),
    (0x1000, "read-only"),
    (0x2000, "project"),
    (0x8000, "verity"),
    (0x10000, "orphan_file"),
];
/// What the shipped kernel has no code for: compression, a journal as a file system, encrypt and casefold; and what nobody has yet.
const EXT_UNFIT: u32 = 0x1 | 0x8 | 0x10000 | 0x20000;

/// The file system, if it is a known one.
pub(super) fn look_at(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    for probe in [ext, erofs, squashfs, xfs, btrfs, fat] {
        if let Some(found) = probe(look)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn names(bits: u32, known: Names, rest: &str) -> Vec<String> {
    let mut names: Vec<String> = known
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    let unknown = bits & !known.iter().fold(0, |all, (bit, _)| all | bit);
    if unknown != 0 && !rest.is_empty() {
        names.push(format!("{rest} {unknown:#x}"));
    }
    names
}

/// A sentence if the file is shorter than its file system.
fn cut(look: &Look<'_>, bytes: u64) -> Vec<String> {
    let missing = bytes > look.len();
    let what = format!(
        "it is cut short: the file system has {bytes} bytes and the file {}",
        look.len()
    );
    Some(what).filter(|_| missing).into_iter().collect()
}

fn ext(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    let Some(block) = look.read::<1024>(1024)? else {
        return Ok(None);
    };
    let log_size = block.le32(24);
    if block.le16(56) != 0xef53 || log_size > 6 {
        return Ok(None);
    }
    let (compat, incompat, ro_compat) = (block.le32(92), block.le32(96), block.le32(100));
    let wide = |low, high| {
        u64::from(block.le32(low))
            | if incompat & 0x80 != 0 {
                u64::from(block.le32(high)) << 32
            } else {
                0
            }
    };
    let kind = if incompat & (0x40 | 0x80 | 0x200) != 0 || ro_compat & 0x8 != 0 {
        "ext4"
    } else if compat & 0x4 != 0 {
        "ext3"
    } else {
        "ext2"
    };
    let known = EXT_INCOMPAT.iter().fold(0, |all, (bit, _)| all | bit);
    let unfit = incompat & (EXT_UNFIT | !known);
    let mut features = names(compat, EXT_COMPAT, "");
    features.extend(names(incompat, EXT_INCOMPAT, "incompatible"));
    features.extend(names(ro_compat, EXT_RO_COMPAT, "read-only-compatible"));
    let (blocks, block_size) = (wide(4, 336), 1024 << log_size);
    let mut troubles = cut(look, blocks.saturating_mul(block_size));
    if block.le16(58) & 2 != 0 {
        troubles.push("errors were found in it; fsck.ext4 -f repairs them".to_owned());
    }
    Ok(Some(ImageInfo {
        kind,
        label: field_text(&block[120..136]),
        uuid: uuid(&block[104..120]),
        made: Some(block.le32(264).into()).filter(|made| *made != 0),
        block_size: Some(block_size),
        blocks: Some(blocks),
        free_blocks: Some(wide(12, 344)),
        inodes: Some(block.le32(0).into()),
        free_inodes: Some(block.le32(16).into()),
        features,
        troubles,
        root: if unfit == 0 {
            Root::yes("--disk FILE with root=/dev/vda")
        } else {
            Root::no(format!(
                "its kernel lacks {}",
                names(unfit, EXT_INCOMPAT, "features").join(", ")
            ))
        },
        ..ImageInfo::default()
    }))
}

fn erofs(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    const INCOMPAT: Names = &[
        (0x1, "lz4_0padding"),
        (0x2, "compr_cfgs"),
        (0x4, "chunked_file"),
        (0x8, "device_table"),
        (0x10, "ztailpacking"),
        (0x20, "fragments"),
        (0x40, "xattr_prefixes"),
    ];
    /// Compressions (Z_EROFS_COMPRESSION_*), of which the shipped kernel has the first.
    const METHODS: Names = &[(1, "lz4"), (2, "lzma"), (4, "deflate"), (8, "zstd")];
    let Some(block) = look.read::<128>(1024)? else {
        return Ok(None);
    };
    let bits = block[12];
    if block.le32(0) != 0xe0f5_e1e2 || !(9..=16).contains(&bits) {
        return Ok(None);
    }
    let incompat = block.le32(80);
    let methods = if incompat & 2 != 0 {
        u32::from(block.le16(84))
    } else {
        incompat & 1
    };
    let mut features = names(incompat, INCOMPAT, "incompatible");
    features.extend(names(methods, METHODS, "compression"));
    let known = INCOMPAT.iter().fold(0, |all, (bit, _)| all | bit);
    let blocks = u64::from(block.le32(36));
    let root = if methods & !1 != 0 {
        Root::no("its kernel reads EROFS that is not compressed, or by lz4")
    } else if incompat & !known != 0 {
        Root::no("it has features that came after its kernel")
    } else if incompat & 8 != 0 {
        Root::no("its data lies on further devices")
    } else {
        Root::yes("--disk FILE,ro with root=/dev/vda rootfstype=erofs")
    };
    Ok(Some(ImageInfo {
        kind: "erofs",
        label: field_text(&block[64..80]),
        uuid: uuid(&block[48..64]),
        made: Some(block.le64(24)),
        block_size: Some(1 << bits),
        blocks: Some(blocks),
        free_blocks: Some(0),
        inodes: Some(block.le64(16)),
        features,
        troubles: cut(look, blocks << bits),
        root,
        ..ImageInfo::default()
    }))
}

fn squashfs(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    const METHODS: [&str; 6] = ["gzip", "lzma", "lzo", "xz", "lz4", "zstd"];
    let Some(block) = look.read::<96>(0)? else {
        return Ok(None);
    };
    if !block.starts_with(b"hsqs") {
        return Ok(None);
    }
    let method = usize::from(block.le16(20))
        .checked_sub(1)
        .and_then(|at| METHODS.get(at));
    Ok(Some(ImageInfo {
        kind: "squashfs",
        made: Some(block.le32(8).into()),
        block_size: Some(block.le32(12).into()),
        inodes: Some(block.le32(4).into()),
        features: vec![
            format!("version {}.{}", block.le16(28), block.le16(30)),
            method.map_or_else(
                || format!("compression {}", block.le16(20)),
                |name| (*name).to_owned(),
            ),
        ],
        troubles: cut(look, block.le64(40)),
        root: no_driver("SquashFS"),
        ..ImageInfo::default()
    }))
}

fn no_driver(name: &str) -> Root {
    Root::no(format!(
        "its kernel has no {name}; boot one that has with --kernel"
    ))
}

fn xfs(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    let Some(block) = look.read::<512>(0)? else {
        return Ok(None);
    };
    if !block.starts_with(b"XFSB") {
        return Ok(None);
    }
    let (block_size, blocks) = (u64::from(block.be32(4)), block.be64(8));
    Ok(Some(ImageInfo {
        kind: "xfs",
        label: field_text(&block[108..120]),
        uuid: uuid(&block[32..48]),
        block_size: Some(block_size),
        blocks: Some(blocks),
        free_blocks: Some(block.be64(144)),
        inodes: Some(block.be64(128)),
        free_inodes: Some(block.be64(136)),
        features: vec![format!("version {}", block[101] & 0xf)],
        troubles: cut(look, blocks.saturating_mul(block_size)),
        root: no_driver("XFS"),
        ..ImageInfo::default()
    }))
}

fn btrfs(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    let Some(block) = look.read::<1024>(64 << 10)? else {
        return Ok(None);
    };
    if &block[64..72] != b"_BHRfS_M" {
        return Ok(None);
    }
    let (total, used, sector) = (
        block.le64(112),
        block.le64(120),
        u64::from(block.le32(144)).max(1),
    );
    Ok(Some(ImageInfo {
        kind: "btrfs",
        label: field_text(&block[299..555]),
        uuid: uuid(&block[32..48]),
        block_size: Some(sector),
        blocks: Some(total / sector),
        free_blocks: Some(total.saturating_sub(used) / sector),
        troubles: cut(look, total),
        root: no_driver("Btrfs"),
        ..ImageInfo::default()
    }))
}

fn fat(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    let Some(block) = look.read::<512>(0)? else {
        return Ok(None);
    };
    let (label, id) = if block[82..90] == *b"FAT32   " {
        (71..82, 67)
    } else if block[54..57] == *b"FAT" {
        (43..54, 39)
    } else {
        return Ok(None);
    };
    Ok(Some(ImageInfo {
        kind: "fat",
        label: field_text(&block[label]).filter(|label| label != "NO NAME"),
        uuid: Some(format!(
            "{:04X}-{:04X}",
            block.le32(id) >> 16,
            block.le32(id) & 0xffff
        )),
        block_size: Some(block.le16(11).into()),
        root: no_driver("FAT"),
        ..ImageInfo::default()
    }))
}
