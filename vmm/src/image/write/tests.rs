//! Images against the system's own programs, and against themselves.

use std::fs;
use std::path::Path;

use super::super::testing::{self, job, sampler, write_image};
use super::super::tree::Tree;
use super::super::{ImageError, ImageFormat};
use super::Job;

fn image(
    folder: &Path,
    tree: &mut Tree,
    format: ImageFormat,
    size: Option<u64>,
) -> Result<Vec<u8>, ImageError> {
    let path = folder.join(format.name());
    let job = Job {
        size,
        ..job(tree, format)
    };
    write_image(&job, &path)?;
    Ok(fs::read(path).unwrap())
}

fn run(program: &str, arguments: &[&str]) -> String {
    testing::run(program, arguments, "")
}

#[test]
fn the_same_tree_makes_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    for format in [
        ImageFormat::Ext4,
        ImageFormat::Erofs,
        ImageFormat::Cpio,
        ImageFormat::CpioZst,
    ] {
        let first = image(folder.path(), &mut sampler(), format, None).unwrap();
        let second = image(folder.path(), &mut sampler(), format, None).unwrap();
        assert!(first == second, "{format}");
    }
}

#[test]
fn fsck_finds_ext4_of_every_size_clean() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ext4");
    for size in [None, Some(8 << 20), Some(200 << 20), Some(5 << 30)] {
        image(folder.path(), &mut sampler(), ImageFormat::Ext4, size).unwrap();
        run("e2fsck", &["-fn", path.to_str().unwrap()]);
    }
}

#[test]
fn a_size_that_is_too_little_is_refused_with_one_that_does() {
    let folder = tempfile::tempdir().unwrap();
    let make = |size| image(folder.path(), &mut sampler(), ImageFormat::Ext4, Some(size));
    let said = make(1 << 20).unwrap_err().to_string();
    let needs = said
        .strip_prefix("size: 1M is too little for what is to be in the image; it needs at least ")
        .unwrap_or_else(|| panic!("{said}"));
    let needs: crate::spec::ByteSize = needs.parse().unwrap();
    assert_eq!(make(needs.0).unwrap().len() as u64, needs.0);
    run("e2fsck", &["-fn", folder.path().join("ext4").to_str().unwrap()]);
    let said = make(5_000_001).unwrap_err().to_string();
    assert_eq!(said, "size: 5000001 is not a multiple of 4096; take 5001216");
}

#[test]
fn a_size_that_ext4_does_not_have_is_refused_as_too_much() {
    let folder = tempfile::tempdir().unwrap();
    for size in [16 << 40, u64::MAX] {
        let said = image(folder.path(), &mut sampler(), ImageFormat::Ext4, Some(size));
        let said = said.unwrap_err().to_string();
        assert!(
            said.ends_with(" is more than ext4 has here; give less than 16T"),
            "{said}"
        );
    }
}

#[test]
fn debugfs_reads_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    image(folder.path(), &mut sampler(), ImageFormat::Ext4, None).unwrap();
    let path = folder.path().join("ext4");
    let ask = |request: &str| run("debugfs", &["-R", request, path.to_str().unwrap()]);
    let stat = ask("stat /bin/run");
    for words in [
        "Mode:  0755",
        "User: 70000",
        "Group:     5",
        "Links: 3",
        "mtime: 0x0000000b:00000008",
    ] {
        assert!(stat.contains(words), "{words}: {stat}");
    }
    assert!(ask("ea_list /bin/run").contains("security.capability (4) = 01 0a 0a 02"));
    assert!(ask("ea_list /large").contains("user.large (2000)"));
    assert!(ask("stat /disk").contains("Device major/minor number: 259:70000"));
    assert!(ask("stat /null").contains("Device major/minor number: 01:03"));
    assert_eq!(ask("cat /bin/run").matches("#!\n").count(), 3000);
    assert!(ask("stat /long").contains("Size: 400"));
    assert!(ask("ls -l /many").contains("number 299"));
}

#[test]
fn fsck_finds_erofs_clean() {
    let folder = tempfile::tempdir().unwrap();
    image(folder.path(), &mut sampler(), ImageFormat::Erofs, None).unwrap();
    run("fsck.erofs", &[folder.path().join("erofs").to_str().unwrap()]);
}

#[test]
fn unsquashfs_reads_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let first = image(folder.path(), &mut sampler(), ImageFormat::Squashfs, None).unwrap();
    let path = folder.path().join("squashfs");
    let list = run("unsquashfs", &["-lln", "-UTC", path.to_str().unwrap()]);
    for words in [
        "drwxr-xr-x 0/0",
        "-rws--x--x 70000/5",
        "squashfs-root/bin/run",
        "squashfs-root/null",
        "squashfs-root/short -> bin/run",
    ] {
        assert!(list.contains(words), "{words}: {list}");
    }
    assert!(first == image(folder.path(), &mut sampler(), ImageFormat::Squashfs, None).unwrap());
}

#[test]
fn what_a_kind_of_image_cannot_hold_is_said_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let with = |name: &str, value: &[u8]| {
        let mut tree = sampler();
        let mut meta = super::super::tree::Meta::default();
        meta.xattrs.insert(name.into(), value.to_vec());
        tree.insert(b"etc/x", meta, super::super::tree::Kind::Fifo)
            .unwrap();
        tree
    };
    for (name, value, format, said) in [
        (
            "nfs4.acl",
            &b""[..],
            ImageFormat::Ext4,
            "etc/x: the extended attribute nfs4.acl, which ext4 cannot hold; remove it",
        ),
        (
            "nfs4.acl",
            b"",
            ImageFormat::Erofs,
            "etc/x: the extended attribute nfs4.acl, which erofs cannot hold; remove it",
        ),
        (
            "user.x",
            &[0; 4096],
            ImageFormat::Ext4,
            "etc/x: 4120 bytes of extended attributes, which ext4 cannot hold; it takes one block of them; use erofs",
        ),
    ] {
        let error = image(folder.path(), &mut with(name, value), format, None).unwrap_err();
        assert_eq!(error.to_string(), said);
    }
    let names = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 0, "something half-made is left");
}
