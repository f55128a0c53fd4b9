//! Tar files, good and bad.

use proptest::prelude::*;
use tar::Header;

use super::super::testing::{Archive, job, paths, plain, sampler, write_image};
use super::super::tree::Tree;
use super::super::write::write_tar;
use super::super::{ImageError, ImageFormat};
use super::lay_bytes;

fn laid(archives: &[Vec<u8>]) -> Result<Tree, ImageError> {
    let mut tree = Tree::new();
    for archive in archives {
        lay_bytes(archive, &mut tree)?;
    }
    Ok(tree)
}

fn one(archive: Archive) -> Tree {
    laid(&[archive.end()]).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(bytes: &[u8]) -> String {
    laid(&[bytes.to_vec()]).expect_err("it is refused").to_string()
}

fn tar_of(tree: &mut Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    let job = job(tree, ImageFormat::Squashfs);
    write_tar(&job, &mut bytes, &|cause| panic!("{cause}")).unwrap();
    bytes
}

#[test]
fn a_tree_goes_through_a_tar_file_unchanged() {
    let mut tree = sampler();
    let archive = tar_of(&mut tree);
    let mut again = laid(&[archive]).unwrap();
    let (mut expected, mut found) = (plain(&tree), plain(&again));
    // The root is not written.
    expected.remove("");
    found.remove("");
    assert_eq!(found, expected);
    assert_eq!(tar_of(&mut again), tar_of(&mut tree));
}

#[test]
fn the_tree_does_not_depend_on_the_order_of_entries() {
    let parts = |order: [usize; 4]| {
        let add: [fn(Archive) -> Archive; 4] = [
            |archive| archive.directory("a"),
            |archive| archive.file("a/x", "1"),
            |archive| archive.file("b", "2"),
            |archive| archive.link(b'2', "a/l", "x"),
        ];
        one(order
            .into_iter()
            .fold(Archive::default(), |archive, at| add[at](archive)))
    };
    let expected = plain(&parts([0, 1, 2, 3]));
    for order in [[3, 2, 1, 0], [1, 0, 3, 2]] {
        assert_eq!(plain(&parts(order)), expected);
    }
}

#[test]
fn later_entries_replace_earlier_ones_and_directories_keep_what_is_in_them() {
    let tree = one(Archive::default()
        .file("a/x", "old")
        .file("a/x", "new")
        .entry(b'5', "a", b"", |header| header.set_mode(0o700))
        .file("b", "a file")
        .directory("b")
        .file("b/y", ""));
    assert_eq!(paths(&tree), ["a", "a/x", "b", "b/y"]);
    let plain = plain(&tree);
    assert_eq!(plain["a/x"].bytes, b"new");
    assert_eq!(plain["a"].meta.mode, 0o700);
}

#[test]
fn names_are_kept_byte_for_byte_and_absolute_ones_begin_at_the_root() {
    let mut archive = Archive::default().file("/etc/passwd", "x").file("./y/./z", "");
    archive = archive.entry(b'0', "", b"", |header| {
        header.as_old_mut().name[..2].copy_from_slice(b"\xff\n");
    });
    assert_eq!(
        paths(&one(archive)),
        ["etc", "etc/passwd", "y", "y/z", "\u{fffd}\n"]
    );
}

#[test]
fn nothing_leaves_the_tree() {
    for (archive, words) in [
        (
            Archive::default().file("a/../../b", ""),
            "a/../../b leads upwards by ..",
        ),
        (Archive::default().file("..", ""), "leads upwards by .."),
        (
            Archive::default().link(b'1', "a", "../etc/passwd"),
            "leads upwards by ..",
        ),
        (
            Archive::default().link(b'1', "a", "etc/passwd"),
            "hard link to etc/passwd, which is not in the image",
        ),
        (
            Archive::default().directory("d").link(b'1', "a", "d"),
            "hard link to a directory",
        ),
        (Archive::default().link(b'2', "a", ""), "symlink to nothing"),
        (
            Archive::default().file("a", "").file("a/b", ""),
            "a on its way is no directory",
        ),
        (
            Archive::default().link(b'2', "a", "a").file("a/b", ""),
            "more than 40 symlinks",
        ),
    ] {
        let said = refusal(&archive.end());
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn symlinks_on_the_way_lead_within_the_tree() {
    let tree = one(Archive::default()
        .directory("usr/lib")
        .link(b'2', "lib", "usr/lib")
        .link(b'2', "out", "../../../usr")
        .link(b'2', "abs", "/usr")
        .file("lib/a", "")
        .file("out/b", "")
        .file("abs/lib/c", ""));
    assert_eq!(
        paths(&tree),
        [
            "abs",
            "lib",
            "out",
            "usr",
            "usr/b",
            "usr/lib",
            "usr/lib/a",
            "usr/lib/c"
        ]
    );
}

#[test]
fn whiteouts_hide_what_lower_layers_brought_and_nothing_of_their_own() {
    let lower = Archive::default()
        .file("a/x", "")
        .file("a/sub/y", "")
        .file("b/x", "")
        .file("c", "")
        .end();
    let upper = Archive::default()
        .file("a/new", "")
        .file("a/sub/new", "")
        .file("a/.wh..wh..opq", "")
        .file("b/.wh.x", "")
        .file(".wh.c", "")
        .file(".wh.nowhere", "")
        .file("no/such/.wh.folder", "")
        .file(".wh..wh.plnk", "")
        .end();
    let tree = laid(&[lower, upper]).unwrap();
    assert_eq!(paths(&tree), ["a", "a/new", "a/sub", "a/sub/new", "b"]);
    for name in [".wh.", ".wh..", ".wh...", "a/.wh..."] {
        assert!(
            refusal(&Archive::default().file(name, "").end()).contains("hides no name"),
            "{name}"
        );
    }
}

#[test]
fn what_a_header_claims_is_not_believed() {
    let claim = |kind, size: u64| {
        Archive::default()
            .entry(kind, "a", b"", |header| header.set_size(size))
            .end()
    };
    for (bytes, words) in [
        (claim(b'0', 1 << 40), "a: the archive ends in the middle of it"),
        (claim(b'0', u64::MAX), "a: the archive ends in the middle of it"),
        (
            Archive::default()
                .entry(b'0', "a", b"", |header| {
                    header.as_old_mut().size = [0x80, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                })
                .end(),
            "a: its header has a size that no file has",
        ),
        (
            Archive::default()
                .entry(b'0', "a", b"", |header| header.as_old_mut().size = [0xff; 12])
                .end(),
            "a: its header has a size that no file has",
        ),
        (claim(b'x', 1 << 40), "an extended header of 1099511627776 bytes"),
        (claim(b'L', 2 << 20), "an extended header of 2097152 bytes"),
        (claim(b'x', 1 << 20), "ends in the middle"),
        (Archive::default().file("a", "x").0, "no end mark"),
        (
            Archive::default().file("a", "x").0[..700].to_vec(),
            "ends in the middle",
        ),
        (
            Archive::default().entry(b'x', "p", b"99 path=x\n", |_| {}).end(),
            "extended header is broken",
        ),
        (
            Archive::default().entry(b'Q', "a", b"", |_| {}).end(),
            "unknown type 'Q'",
        ),
        (
            Archive::default().entry(b'M', "a", b"", |_| {}).end(),
            "another volume",
        ),
        (
            Archive::default()
                .entry(b'0', "a", b"", |header| header.set_uid(1 << 40))
                .end(),
            "its uid 1099511627776",
        ),
        (
            Archive::default()
                .entry(b'3', "a", b"", |header| {
                    header.set_device_major(4096).unwrap();
                    header.set_device_minor(0).unwrap();
                })
                .end(),
            "device 4096:0",
        ),
        (
            Archive::default()
                .entry(b'0', "a", b"", |header| header.as_old_mut().mode = *b"rwxrwxrw")
                .end(),
            "mode is no number",
        ),
        (Vec::new(), "it is empty"),
        (vec![b'x'; 4096], "neither a directory nor a tar file"),
    ] {
        let said = refusal(&bytes);
        assert!(said.contains(words), "{said}");
        assert!(said.starts_with("the tar file: "), "{said}");
    }
    let mut broken = Archive::default().file("a", "").file("b", "").end();
    broken[512] ^= 1;
    assert!(refusal(&broken).contains("checksum is wrong"));
}

#[test]
fn long_names_come_by_both_extensions() {
    let long = "d/".repeat(100) + "x";
    let gnu = Archive::default().entry(b'L', "ext", format!("{long}\0").as_bytes(), |_| {});
    for archive in [gnu, Archive::default().pax(&[("path", &long)])] {
        let plain = plain(&one(archive.file("short", "data")));
        assert_eq!(plain[&long].bytes, b"data");
        assert!(!plain.contains_key("short"));
    }
    let too_long = "x/".repeat(2500);
    let archive = Archive::default().pax(&[("path", &too_long)]).file("s", "");
    assert!(refusal(&archive.end()).contains("its path has 5000 bytes"));
}

#[test]
fn sparse_files_of_every_kind_keep_their_holes() {
    let gnu = |change: fn(&mut Header)| {
        Archive::default().entry(b'S', "s", b"onetwo", |header| {
            let gnu = header.as_gnu_mut().unwrap();
            gnu.set_real_size(10_000);
            for (piece, (offset, len)) in gnu.sparse.iter_mut().zip([(100, 3), (5000, 3)]) {
                piece.set_offset(offset);
                piece.set_length(len);
            }
            change(header);
        })
    };
    let pax = |records: &[(&str, &str)], data: &[u8]| {
        Archive::default()
            .pax(records)
            .entry(b'0', "GNUSparseFile.1/s", data, |_| {})
    };
    let mut map = b"2\n100\n3\n5000\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"onetwo");
    let mut expected = vec![0; 10_000];
    expected[100..103].copy_from_slice(b"one");
    expected[5000..5003].copy_from_slice(b"two");
    let size = ("GNU.sparse.size", "10000");
    let name = ("GNU.sparse.name", "s");
    let offset = |value| ("GNU.sparse.offset", value);
    let len = ("GNU.sparse.numbytes", "3");
    let first = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        name,
        ("GNU.sparse.realsize", "10000"),
    ];
    for archive in [
        gnu(|_| {}),
        pax(&first, &map),
        pax(&[size, name, ("GNU.sparse.map", "100,3,5000,3")], b"onetwo"),
        pax(&[size, name, offset("100"), len, offset("5000"), len], b"onetwo"),
    ] {
        assert!(plain(&one(archive.file("z", "behind")))["s"].bytes == expected);
    }
    for (archive, words) in [
        (
            gnu(|header| header.as_gnu_mut().unwrap().set_real_size(5001)),
            "sparse map is broken",
        ),
        (
            gnu(|header| header.as_gnu_mut().unwrap().sparse[1].set_offset(101)),
            "sparse map is broken",
        ),
        (
            gnu(|header| header.as_gnu_mut().unwrap().sparse[1].set_length(2)),
            "is for 5 bytes and it has 6",
        ),
        (
            gnu(|header| header.as_gnu_mut().unwrap().sparse[1].set_length(u64::MAX)),
            "sparse map is broken",
        ),
        (pax(&[("GNU.sparse.map", "1")], b""), "sparse map is broken"),
        (pax(&[("GNU.sparse.map", "0,0")], b""), "its size is not said"),
        (
            pax(
                &[("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "1")],
                b"9999999\n",
            ),
            "more than a million",
        ),
        (
            pax(
                &[("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "1")],
                &[b'7'; 512],
            ),
            "sparse map is broken",
        ),
    ] {
        let said = refusal(&archive.end());
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_file_that_claims_to_be_huge_and_sparse_takes_no_room() {
    let archive = Archive::default().entry(b'S', "s", b"", |header| {
        header.as_gnu_mut().unwrap().set_real_size(1 << 50);
    });
    let mut tree = one(archive);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.cpio");
    let said = write_image(&job(&mut tree, ImageFormat::Cpio), &path)
        .unwrap_err()
        .to_string();
    assert_eq!(
        said,
        "s: a file of 1125899906842624 bytes, which cpio cannot hold; use ext4 for it"
    );
    assert!(!path.exists());
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(changes in proptest::collection::vec((0_usize..9000, any::<u8>()), 1..12)) {
        let mut bytes = Archive::default()
            .pax(&[("SCHILY.xattr.user.a", "\n\n")])
            .file("a/x", "data")
            .entry(b'S', "s", b"onetwo", |header| header.as_gnu_mut().unwrap().set_real_size(100))
            .link(b'1', "l", "a/x")
            .link(b'2', "m", "a")
            .file("m/.wh.x", "")
            .end();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
            // Half of the time with a sum that fits.
            if byte % 2 == 0 {
                let start = at / 512 * 512;
                let mut header = Header::from_byte_slice(&bytes[start..start + 512]).clone();
                header.set_cksum();
                bytes[start..start + 512].copy_from_slice(header.as_bytes());
            }
        }
        if let Ok(mut tree) = laid(&[bytes]) {
            tar_of(&mut tree);
        }
    }
}
