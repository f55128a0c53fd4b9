//! The folder of guests that the test files of `boot/` boot. They find it by its place in cargo's target folder, so that `berth test`
//! runs them by hand as well, once the tests have made it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::{debian, formats, guests, program};

/// The folder, with everything in it as new as this program.
pub fn folder() -> &'static Path {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = program::cache().join("guests");
        for inner in ["packed", "initrd"] {
            fs::create_dir_all(folder.join(inner)).unwrap_or_else(|error| panic!("{inner}: {error}"));
        }
        for (name, target) in [
            ("tiny", guests::tiny()),
            ("io", guests::io()),
            ("vmlinux", guests::linux()),
            ("rootfs.erofs", guests::root()),
            ("debian.ext4", &debian::image()),
        ] {
            link(&folder.join(name), target);
        }
        let read = |path: &Path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let linux = read(guests::linux());
        let tiny = read(guests::tiny());
        let mut files = vec![
            ("empty".to_owned(), vec![0; 8 << 20]),
            ("new".to_owned(), [b"new".as_slice(), &[0; 8 * 512 - 3]].concat()),
            (
                "bzImage".to_owned(),
                formats::bzimage(&formats::compress("zstd", &linux), linux.len()),
            ),
        ];
        for (name, _) in formats::COMPRESSIONS {
            let packed = formats::compress(name, &tiny);
            let bzimage = formats::bzimage(&packed, tiny.len());
            files.push((format!("packed/{name}.packed"), packed));
            files.push((format!("packed/{name}.bzimage"), bzimage));
        }
        for (name, bytes) in &files {
            guests::write_whole(&folder.join(name), bytes);
        }
        let init = folder.join("initrd/init");
        fs::copy(guests::init(), &init).unwrap_or_else(|error| panic!("{}: {error}", init.display()));
        folder
    });
    &PATH
}

/// Makes `path` a link to `target`, whatever it was.
fn link(path: &Path, target: &Path) {
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    // What an interrupted run has left.
    let _ = fs::remove_file(&fresh);
    symlink(target, &fresh)
        .and_then(|()| fs::rename(&fresh, path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
