//! Images that tools of the system and Berth's own writers made, and bytes that nobody made.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::testing::{Archive, job, plain, run, sampler, write_image};
use super::super::tree::Kind;
use super::super::{ImageFormat, initramfs_of_tar};
use super::{ImageInfo, cpio, info, info_of_bytes, text};

/// Berth's own image of the sampler.
fn built(folder: &Path, format: ImageFormat) -> PathBuf {
    let path = folder.join(format.name());
    write_image(&job(&mut sampler(), format), &path).unwrap();
    path
}

fn blank(folder: &Path, name: &str, mib: u64) -> String {
    let path = folder.join(name);
    fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_berth_builds_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let of = |format| info(&built(folder.path(), format)).unwrap();
    let ext4 = of(ImageFormat::Ext4);
    assert_eq!(
        (ext4.kind, ext4.block_size, ext4.root.possible),
        ("ext4", Some(4096), true)
    );
    assert!(ext4.features.contains(&"has_journal".to_owned()), "{ext4:?}");
    assert!(
        ext4.free_blocks.unwrap() > 0 && ext4.troubles.is_empty(),
        "{ext4:?}"
    );
    let erofs = of(ImageFormat::Erofs);
    assert_eq!(
        (erofs.kind, erofs.root.possible, erofs.uuid.is_some()),
        ("erofs", true, true)
    );
    let nodes = job(&mut sampler(), ImageFormat::Erofs).nodes().count() as u64;
    assert_eq!(erofs.inodes, Some(nodes));
    let squashfs = of(ImageFormat::Squashfs);
    assert_eq!((squashfs.kind, squashfs.root.possible), ("squashfs", false));
    assert!(squashfs.features.contains(&"zstd".to_owned()), "{squashfs:?}");
    let names = plain(&sampler()).len() as u64 - 1;
    for (format, compression) in [
        (ImageFormat::Cpio, None),
        (ImageFormat::CpioGz, Some("gzip")),
        (ImageFormat::CpioZst, Some("zstd")),
        (ImageFormat::CpioXz, Some("xz")),
        (ImageFormat::CpioLz4, Some("lz4")),
    ] {
        let found = of(format);
        assert_eq!(
            (found.kind, found.compression),
            ("cpio", compression),
            "{found:?}"
        );
        assert_eq!(
            (found.entries, found.init),
            (Some(names), Some(false)),
            "{found:?}"
        );
        assert!(found.troubles.is_empty(), "{found:?}");
    }
}

#[test]
fn what_mkfs_and_sfdisk_make_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let look = |path: &str| info(Path::new(path)).unwrap();
    for (kind, root) in [("ext2", true), ("ext3", true), ("ext4", true)] {
        let path = blank(folder.path(), kind, 16);
        run(&format!("mkfs.{kind}"), &["-q", "-F", "-L", "a label", &path], "");
        let found = look(&path);
        assert_eq!((found.kind, found.root.possible), (kind, root), "{found:?}");
        assert_eq!(found.label.as_deref(), Some("a label"));
        assert_eq!(found.blocks.unwrap() * found.block_size.unwrap(), 16 << 20);
    }
    let disk = blank(folder.path(), "gpt", 64);
    run(
        "sfdisk",
        &["-q", &disk],
        "label: gpt\n2048,20480,U,\nname=root,type=L\n",
    );
    let ext4 = fs::read(folder.path().join("ext4")).unwrap();
    let mut bytes = fs::read(&disk).unwrap();
    let start = look(&disk).partitions[1].start as usize;
    bytes[start..start + ext4.len()].copy_from_slice(&ext4);
    let found = info_of_bytes(&bytes).unwrap();
    let parts: Vec<_> = found
        .partitions
        .iter()
        .map(|part| (part.number, &part.kind[..], part.holds))
        .collect();
    assert_eq!(parts, [(1, "EFI system", "unknown"), (2, "Linux", "ext4")]);
    assert_eq!(found.partitions[1].name.as_deref(), Some("root"));
    assert!(
        found.root.possible && found.root.how.contains("root=/dev/vda2"),
        "{found:?}"
    );
    let disk = blank(folder.path(), "mbr", 64);
    run(
        "sfdisk",
        &["-q", &disk],
        "label: dos
         1 : start=2048, size=20480, type=83
         2 : start=22528, size=40960, type=5
         5 : start=24576, size=8192, type=82
         6 : start=36864, size=8192, type=83\n",
    );
    let found = look(&disk);
    let parts: Vec<_> = found
        .partitions
        .iter()
        .map(|part| (part.number, &part.kind[..]))
        .collect();
    assert_eq!(
        (found.kind, &parts[..]),
        (
            "mbr",
            &[(1, "Linux"), (2, "extended"), (5, "Linux swap"), (6, "Linux")][..]
        )
    );
}

#[test]
fn images_that_berth_cannot_run_are_told_with_what_to_do() {
    let mut iso = vec![0; 40 << 10];
    iso[32768..32774].copy_from_slice(b"\x01CD001");
    iso[32808..32813].copy_from_slice(b"DISC1");
    let mut qcow2 = vec![0; 512];
    qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    qcow2[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 5]);
    qcow2[16..24].copy_from_slice(&[0, 0, 0, 5, 0, 0, 0, 16]);
    qcow2[24..32].copy_from_slice(&(5_u64 << 30).to_be_bytes());
    qcow2[256..261].copy_from_slice(b"below");
    let mut xfs = vec![0; 4096];
    xfs[..16].copy_from_slice(b"XFSB\0\0\x10\0\0\0\0\0\0\0\0\x01");
    let mut btrfs = vec![0; 70 << 10];
    btrfs[65600..65608].copy_from_slice(b"_BHRfS_M");
    for (bytes, kind, words) in [
        (iso, "iso9660", "DISC1"),
        (qcow2, "qcow2", "qemu-img convert"),
        (xfs, "xfs", "its kernel has no XFS"),
        (btrfs, "btrfs", "its kernel has no Btrfs"),
        (b"conectix".to_vec(), "vhd", "qemu-img"),
        (vec![0; 100], "unknown", "none of the images"),
        (Vec::new(), "unknown", "none of the images"),
    ] {
        let found = info_of_bytes(&bytes).unwrap();
        assert_eq!((found.kind, found.root.possible), (kind, false), "{found:?}");
        assert!(text(&found).contains(words), "{}", text(&found));
        if kind == "qcow2" {
            assert_eq!(
                (found.disk_size, found.backing_file.as_deref()),
                (Some(5 << 30), Some("below"))
            );
        }
    }
}

#[test]
fn what_is_cut_short_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for format in [
        ImageFormat::Ext4,
        ImageFormat::Erofs,
        ImageFormat::Squashfs,
        ImageFormat::Cpio,
        ImageFormat::CpioGz,
    ] {
        let bytes = fs::read(built(folder.path(), format)).unwrap();
        let found = info_of_bytes(&bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(found.troubles.len(), 1, "{found:?}");
    }
    let tar = Archive::default()
        .file("a", "x")
        .file("b", &"y".repeat(1000))
        .end();
    let found = info_of_bytes(&tar[..1600]).unwrap();
    assert_eq!((found.kind, found.troubles.len()), ("tar", 1), "{found:?}");
}

#[test]
fn archives_behind_one_another_are_one_initramfs() {
    let one = |name| initramfs_of_tar(&Archive::default().file(name, "x").end()).unwrap();
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(&one("init")[..], flate2::Compression::fast())
        .read_to_end(&mut packed)
        .unwrap();
    let bytes = [one("kernel/microcode"), vec![0; 2000], packed].concat();
    let found = info_of_bytes(&bytes).unwrap();
    assert_eq!(
        (found.kind, found.entries, found.init),
        ("cpio", Some(3), Some(true)),
        "{found:?}"
    );
    assert!(found.root.possible && found.troubles.is_empty());
    let found = info_of_bytes(&[one("init"), b"rest".to_vec()].concat()).unwrap();
    assert_eq!(found.troubles, ["what follows an archive in it is none"]);
}

#[test]
fn a_tree_goes_through_an_initramfs_unchanged() {
    let mut tree = sampler();
    let mut archive = Vec::new();
    let folder = tempfile::tempdir().unwrap();
    archive.extend(fs::read(built(folder.path(), ImageFormat::Cpio)).unwrap());
    let mut found = Vec::new();
    cpio::read(&archive[..], &mut |entry, data| {
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes)?;
        found.push((entry.clone(), bytes));
        Ok(())
    })
    .unwrap();
    let job = job(&mut tree, ImageFormat::Cpio);
    let expected = plain(job.tree);
    let names: Vec<_> = job.walked.iter().skip(1).collect();
    assert_eq!(found.len(), names.len());
    for ((entry, bytes), walked) in found.iter().zip(names) {
        assert_eq!(entry.name, walked.path);
        let node = &expected[&String::from_utf8_lossy(&walked.path).into_owned()];
        let meta = &node.meta;
        assert_eq!(entry.mode, u32::from(meta.mode | node.bits));
        assert_eq!(
            (entry.uid, entry.gid, entry.device),
            (meta.uid, meta.gid, node.device)
        );
        assert_eq!(entry.links, job.links[walked.node]);
        assert_eq!(
            i64::from(entry.mtime),
            meta.mtime.unwrap().seconds.clamp(0, u32::MAX.into())
        );
        // Of several names the last one comes with the data.
        let mut others = found.iter().filter(|(other, _)| other.number == entry.number);
        let last = others
            .next_back()
            .is_some_and(|(last, _)| last.name == entry.name);
        let holds = last || !matches!(job.tree.node(walked.node).kind, Kind::File(_));
        assert_eq!(bytes == &node.bytes, holds || node.bytes.is_empty());
    }
}

fn changed(mut bytes: Vec<u8>, changes: &[(usize, u8)]) -> ImageInfo {
    for (at, byte) in changes {
        let at = at % bytes.len();
        bytes[at] = *byte;
    }
    info_of_bytes(&bytes).unwrap()
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(changes in proptest::collection::vec((0_usize..4096, any::<u8>()), 1..20), which in 0_usize..4) {
        let tar = Archive::default().file("init", "x").link(b'2', "l", "init").end();
        let bytes = match which {
            0 => initramfs_of_tar(&tar).unwrap(),
            1 => tar,
            2 => {
                let mut disk = vec![0; 4096];
                disk[510..512].copy_from_slice(&[0x55, 0xaa]);
                disk[450] = 5;
                disk[454] = 1;
                disk[512..520].copy_from_slice(b"EFI PART");
                disk[584] = 2;
                disk[592] = 4;
                disk[596] = 128;
                disk
            }
            _ => {
                let mut ext4 = vec![0; 4096];
                ext4[1080..1082].copy_from_slice(&[0x53, 0xef]);
                ext4
            }
        };
        text(&changed(bytes, &changes));
    }
}
