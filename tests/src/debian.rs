//! A Debian root image: minbase and python3, made once by debootstrap and kept in the cache.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, flock};

use crate::{guests, program, tools};

/// What the image is made of. Whoever changes that changes the name too.
const NAME: &str = "debian-bookworm-1.ext4";
const RELEASE: &str = "bookworm";
const SIZE: &str = "640M";

/// The image: an ext4 file system with Debian 12, python3 and, at `/opt/vectors`, the program of that name.
///
/// The first call downloads some 60 MB of packages and takes a minute or two.
pub fn image() -> PathBuf {
    let cache = program::cache();
    let path = cache.join(NAME);
    let lock = fs::File::create(cache.join("debian.lock")).expect("the cache can be written");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock can be waited for");
    if !path.exists() {
        tools::need_root("makes a Debian root image");
        let scratch = tempfile::tempdir_in(&cache).expect("the cache can be written");
        let root = scratch.path().join("root");
        bootstrap(&root);
        fs::create_dir_all(root.join("opt")).expect("it is our folder");
        fs::copy(guests::vectors(), root.join("opt/vectors")).expect("it is our folder");
        let image = scratch.path().join("image");
        let words = ["-q", "-F", "-L", "debian", "-E", "lazy_itable_init=1", "-d"];
        let words = words
            .map(Into::into)
            .into_iter()
            .chain([root.into(), image.clone().into(), SIZE.into()]);
        tools::run::<std::ffi::OsString>("mkfs.ext4", words);
        fs::rename(&image, &path).expect("it is one file system");
    }
    path
}

fn bootstrap(root: &std::path::Path) {
    let output = Command::new("debootstrap")
        .args(["--variant=minbase", "--include=python3", RELEASE])
        .arg(root)
        // debootstrap runs programs of sbin, which a user's path may lack.
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| tools::missing("debootstrap", &error));
    assert!(
        output.status.success(),
        "debootstrap failed ({}); it needs a Debian mirror: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .rev()
            .take(8)
            .collect::<Vec<_>>()
            .join(" / ")
    );
    for folder in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        clear(&root.join(folder));
    }
}

/// Removes the files in a folder of downloads, which nobody needs again.
fn clear(folder: &std::path::Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
}
