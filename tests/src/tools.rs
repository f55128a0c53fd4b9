//! Programs of the system that tests use, each with the package to install where it is missing.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

const PACKAGES: &[(&str, &str)] = &[
    ("bzip2", "bzip2"),
    ("debootstrap", "debootstrap"),
    ("debugfs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("fsck.erofs", "erofs-utils"),
    ("ip", "iproute2"),
    ("lz4", "lz4"),
    ("mkfs.ext4", "e2fsprogs"),
    ("nsenter", "util-linux"),
    ("python3", "python3-venv"),
    ("setcap", "libcap2-bin"),
    ("setfattr", "attr"),
    ("setpriv", "util-linux"),
    ("setsid", "util-linux"),
    ("taskset", "util-linux"),
    ("tar", "tar"),
    ("unshare", "util-linux"),
    ("unsquashfs", "squashfs-tools"),
    ("xmllint", "libxml2-utils"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// Explains why `program` could not be started.
pub fn missing(program: &str, error: &std::io::Error) -> ! {
    match PACKAGES.iter().find(|(name, _)| *name == program) {
        Some((_, package)) => {
            panic!("this test needs {program} (package {package}; tests/run installs it): {error}")
        }
        None => panic!("this test needs {program}: {error}"),
    }
}

/// Runs a tool to its end and fails with what it said if it fails.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Output {
    feed(program, arguments, &[])
}

/// The same with `input` on the tool's standard input.
pub fn feed<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>, input: &[u8]) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| missing(program, &error));
    let mut stdin = child.stdin.take().expect("it is piped");
    let output = std::thread::scope(|scope| {
        // A tool may end without reading it all; its status says whether that was right.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output()
    });
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} failed ({}): {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Fails with a sentence unless the tests run as root.
pub fn need_root(what: &str) {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test must run as root: it {what}"
    );
}
