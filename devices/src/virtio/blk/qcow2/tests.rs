use std::fs::File;
use std::os::unix::fs::FileExt;

use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2;

use super::*;
use crate::virtio::blk::format::ImageFormat;
use crate::virtio::blk::tests::{disk, pattern, write_or_read};
use crate::virtio::blk::{BlockConfig, Engine};
use crate::virtio::conformance::{self, Subject};

/// An image of 64 sectors; the second half is of patterns, which a backing file may have.
fn image(folder: &Path, backed: bool) -> PathBuf {
    let path = folder.join("disk");
    let file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut builder = Qcow2::<imago::file::File>::create_builder(file.try_into().unwrap()).size(64 * 512);
    let half: Vec<u8> = (0..64_u32).step_by(2).flat_map(pattern).collect();
    if backed {
        let below = File::create(folder.join("base")).unwrap();
        below.write_all_at(&half, half.len() as u64).unwrap();
        builder = builder.backing("base".to_owned(), "raw".to_owned());
    }
    builder.create().unwrap();
    if !backed {
        let disk = Qcow2Disk::open(&path, OPTIONS).unwrap();
        disk.image.shared().write(&half, half.len() as u64).unwrap();
    }
    path
}

const OPTIONS: FileOptions = FileOptions {
    read_only: false,
    direct: false,
    engine: Engine::Auto,
    format: ImageFormat::Qcow2,
};

#[test]
fn a_qcow2_disk_conforms_on_threads_and_without() {
    for (engine, backed) in [(Engine::Auto, false), (Engine::Auto, true), (Engine::Sync, true)] {
        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path(), backed);
        let options = FileOptions { engine, ..OPTIONS };
        conformance::run(&Subject {
            make: Box::new(move || {
                let backend = Qcow2Disk::open(&path, options).unwrap();
                disk(backend, BlockConfig::default())
            }),
            request: write_or_read(),
        });
    }
}
