//! qcow2 images as disks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};

use super::{disk, pattern, write_or_read};
use crate::storage::{Engine, FileOptions, ImageFormat, Qcow2Disk};
use crate::virtio::blk::BlockConfig;
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
        builder.create().unwrap();
    } else {
        let open = |image| Ok(Qcow2::builder(image).data_file(None).write(true));
        let made = builder.create_open(DenyImplicitOpenGate::default(), open);
        let layers = FormatAccess::new(made.unwrap());
        layers.write(&half, half.len() as u64).unwrap();
        layers.flush().unwrap();
    }
    path
}

#[test]
fn a_qcow2_disk_conforms_on_threads_and_without() {
    for (engine, backed) in [(Engine::Auto, false), (Engine::Auto, true), (Engine::Sync, true)] {
        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path(), backed);
        let options = FileOptions {
            engine,
            format: ImageFormat::Qcow2,
            ..FileOptions::default()
        };
        conformance::run(&Subject {
            make: Box::new(move || {
                let backend = Qcow2Disk::open(&path, options).unwrap();
                disk(backend, BlockConfig::default())
            }),
            request: write_or_read(),
        });
    }
}
