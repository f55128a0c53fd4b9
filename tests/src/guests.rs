//! The guests that tests boot: two kernels of our own, and the Linux that ships with Berth.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::program;

/// The test guest (`guests/guest.c`): does what `do=WORD[:NUMBER]` on its command line says. Both entries, 47 KB.
pub fn tiny() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/guest"))
}

/// The guest of the start-up benchmark (`guests/byte.S`): a byte to the serial port, then the exit port.
pub fn byte() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/byte"))
}

/// The I/O bench guest (`guests/io`): drives virtio devices as its command line says, see `docs/performance.md`. Both entries.
pub fn io() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/io-guest"))
}

/// A program for Linux (`guests/vectors.c`): whether two processes keep their vector registers.
pub fn vectors() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/vectors"))
}

/// A program for Linux (`guests/load.c`): I/O on a disk that checks itself.
pub fn load() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/load"))
}

/// The init of an initramfs (`guests/init.c`): says so and ends the machine with status 21.
pub fn init() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/init"))
}

/// A program for the host (`guests/words.c`): what the shipped guest's init makes of its words.
pub fn words() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/words"))
}

/// A program for Linux (`guests/sockets.c`): both sides of vsock connections.
pub fn sockets() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/sockets"))
}

/// A program for Linux and the init of images (`guests/facts.c`): what every file of a tree is.
pub fn facts() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/facts"))
}

/// The folder of the guest that ships with Berth.
pub fn shipped() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/guest"))
}

/// The shipped kernel, unpacked: an ELF file of Linux.
pub fn linux() -> &'static Path {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| unpacked("vmlinux"));
    &PATH
}

/// The shipped root image, unpacked.
pub fn root() -> &'static Path {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| unpacked("rootfs.erofs"));
    &PATH
}

/// Unpacks an artefact into the cache, unless what lies there is newer.
fn unpacked(name: &str) -> PathBuf {
    let packed = shipped().join(format!("{name}.zst"));
    let path = program::cache().join(name);
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    if matches!((changed(&path), changed(&packed)), (Ok(have), Ok(source)) if have >= source) {
        return path;
    }
    let file = File::open(&packed).unwrap_or_else(|error| panic!("{}: {error}", packed.display()));
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(file)
        .unwrap_or_else(|error| panic!("{}: {error}", packed.display()))
        .read_to_end(&mut bytes)
        .unwrap_or_else(|error| panic!("{}: {error}", packed.display()));
    write_whole(&path, &bytes);
    path
}

/// Writes a file of the cache so that another test sees all of it or nothing.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) {
    let folder = path.parent().expect("it lies in the cache");
    let mut file = tempfile::NamedTempFile::new_in(folder).expect("the cache can be written");
    file.write_all(bytes).expect("the cache has room");
    file.persist(path).expect("the cache can be written");
}
