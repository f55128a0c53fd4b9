//! The tests that need no Rust: the files in `boot/`, by `berth test`, as a user would run them.

use std::path::Path;
use std::time::Duration;

use berth_tests::invocation::berth;
use berth_tests::{prepared, program};

#[test]
fn every_test_file_passes_and_nothing_is_left() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/boot"));
    // The console of what fails is to be looked at, so it stays where the next run puts its own.
    let output = program::cache().join("boot");
    let guests = format!("GUESTS={}", prepared::folder().display());
    let outcome = berth(["test"])
        .behind(["env", "LC_ALL=C", &guests])
        .arg(folder)
        .arg("--output")
        .arg(&output)
        .within(Duration::from_secs(400))
        .finish();
    outcome.expect_code(0);
    assert!(!outcome.out().contains("skipped"), "{outcome}");
    let left: Vec<_> = output
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, [".berth-test"], "{outcome}");
}
