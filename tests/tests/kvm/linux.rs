//! The shipped Linux kernel in every container and by every entry, as if it was the user's own.

use std::fs;
use std::path::Path;

use berth_tests::invocation::run;
use berth_tests::{formats, guests};

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
