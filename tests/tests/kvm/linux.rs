//! The shipped Linux kernel in every container and by every entry, as if it was the user's own.

use std::fs;
use std::path::Path;

use berth_tests::invocation::run;
use berth_tests::{formats, guests};

use crate::codes;

/// Boots a Linux kernel on the shipped root and gives what its command, run by the shipped init, prints.
fn linux_says_its_version(kernel: &Path, entry: &str) {
    let root = format!("{},ro", guests::root().display());
    let outcome = run(["--entry", entry, "--disk", &root, "--kernel"])
        .arg(kernel)
        .args([
            "--cmdline",
            "quiet root=/dev/vda rootfstype=erofs ro -- run=uname%00-r",
        ])
        .finish();
    outcome.expect_code(0);
    assert!(outcome.out().contains("-berth"), "{outcome}");
}

#[test]
fn linux_boots_by_its_64_bit_entry() {
    linux_says_its_version(guests::linux(), "linux64");
}

#[test]
fn linux_boots_by_its_pvh_entry() {
    linux_says_its_version(guests::linux(), "pvh");
}

#[test]
fn linux_boots_from_a_bzimage() {
    let folder = tempfile::tempdir().unwrap();
    let elf = fs::read(guests::linux()).unwrap();
    let file = folder.path().join("bzImage");
    fs::write(
        &file,
        formats::bzimage(&formats::compress("zstd", &elf), elf.len()),
    )
    .unwrap();
    linux_says_its_version(&file, "auto");
}

#[test]
fn a_kernel_that_panics_ends_with_the_code_for_it_and_its_last_words() {
    let outcome = run(["--kernel"])
        .arg(guests::linux())
        .args(["--cmdline", "quiet root=/dev/nowhere"])
        .finish();
    let sentence = outcome.sentence(codes::PANIC);
    assert!(sentence.contains("Unable to mount root fs"), "{outcome}");
}

#[test]
fn an_initrd_is_handed_over_whole() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("initrd.cpio");
    fs::write(&archive, initramfs(&fs::read(guests::init()).unwrap())).unwrap();
    let outcome = run(["--memory", "128M", "--cmdline", "quiet", "--kernel"])
        .arg(guests::linux())
        .arg("--initrd")
        .arg(&archive)
        .finish();
    outcome.expect_code(21);
    assert!(outcome.out().contains("init of the initrd"), "{outcome}");
}

/// An initramfs, not compressed, with `init` and what it needs (the kernel's Documentation/driver-api/early-userspace).
fn initramfs(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, data, device) in [
        ("dev", 0o40755, &[][..], [0, 0]),
        ("dev/console", 0o20600, &[], [5, 1]),
        ("dev/port", 0o20600, &[], [1, 4]),
        ("init", 0o100_755, init, [0, 0]),
        ("TRAILER!!!", 0, &[], [0, 0]),
    ] {
        archive.extend(b"070701");
        let [major, minor] = device;
        for field in [
            0,
            mode,
            0,
            0,
            1,
            0,
            data.len(),
            0,
            0,
            major,
            minor,
            name.len() + 1,
            0,
        ] {
            archive.extend(format!("{field:08x}").bytes());
        }
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}
