//! Files as disks.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::*;
use crate::storage::engine::Work;
use crate::storage::store::{allocate, store_zeroes};

fn image(path: &Path) {
    File::create(path).unwrap().set_len(64 * SECTOR).unwrap();
}

fn refusal(path: &Path, read_only: bool) -> String {
    FileDisk::open(path, read_only).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_a_disk_is_refused_with_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.img");
    let name = path.display();
    let file = |size| File::create(&path).unwrap().set_len(size).unwrap();
    assert_eq!(
        refusal(&path, false),
        format!("{name}: there is no such file; create it, for example with truncate -s 1G {name}")
    );
    file(0);
    assert_eq!(
        refusal(&path, true),
        format!("{name}: is empty; give it a size, for example with truncate -s 1G {name}")
    );
    file(1000);
    assert_eq!(
        refusal(&path, false),
        format!(
            "{name}: size 1000 is not a multiple of 512 bytes; pad it, for example with truncate -s 1024 {name}"
        )
    );
    assert_eq!(
        refusal(folder.path(), true),
        format!(
            "{}: is a directory; a disk is a raw image file or a block device",
            folder.path().display()
        )
    );
    assert_eq!(
        refusal(Path::new("/dev/null"), false),
        "/dev/null: is neither a regular file nor a block device"
    );
    let cause = DiskError::Denied {
        path: "a".into(),
        read_only: false,
    };
    assert_eq!(
        cause.to_string(),
        "a: no permission to write it; change its owner or mode, or attach it read-only"
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing is left behind"
    );
}

#[test]
fn a_file_without_rights_is_refused_to_who_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    image(&path);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser may open it all the same.
    match FileDisk::open(&path, true) {
        Ok(_) => assert!(File::open(&path).is_ok()),
        Err(cause) => assert!(
            matches!(cause, DiskError::Denied { read_only: true, .. }),
            "{cause}"
        ),
    }
}

#[test]
fn writers_keep_a_file_for_themselves_and_readers_share_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    image(&path);
    let writer = FileDisk::open(&path, false).unwrap();
    assert!(refusal(&path, false).contains("is in use by another program (another VM?)"));
    assert!(refusal(&path, true).contains("is in use by another program, which writes to it"));
    drop(writer);
    let readers = [
        FileDisk::open(&path, true).unwrap(),
        FileDisk::open(&path, true).unwrap(),
    ];
    assert!(matches!(
        FileDisk::open(&path, false),
        Err(DiskError::InUse { read_only: false, .. })
    ));
    drop(readers);
    FileDisk::open(&path, false).unwrap();
}

#[test]
fn discarded_space_goes_back_to_the_host_and_zeroed_ranges_read_as_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let len = 1 << 20;
    std::fs::write(&path, vec![7; len as usize]).unwrap();
    let store = Store::new(open(&path, false).unwrap());
    store.run(Operation::Flush).unwrap();
    let before = store.file().metadata().unwrap().blocks();
    let zeros_from = |offset: u64, count: usize| {
        let mut bytes = vec![1; count];
        store.file().read_exact_at(&mut bytes, offset).unwrap();
        bytes.iter().all(|byte| *byte == 0)
    };
    match store.run(Operation::Discard {
        offset: 0,
        len: len / 2,
    }) {
        Ok(()) => assert!(store.file().metadata().unwrap().blocks() < before),
        // A file system without holes.
        Err(cause) => assert_eq!(cause.kind(), io::ErrorKind::Unsupported),
    }
    for (offset, unmap) in [(len / 2, true), (len / 4 * 3, false)] {
        store
            .run(Operation::WriteZeroes {
                offset,
                len: 5 * 512,
                unmap,
            })
            .unwrap();
        assert!(zeros_from(offset, 5 * 512) && !zeros_from(offset + 5 * 512, 1));
    }
    // The plain way.
    store_zeroes(store.file(), len - 200_192, 200_192 - 512).unwrap();
    assert!(zeros_from(len - 200_192, 200_192 - 512) && !zeros_from(len - 512, 1));
    assert_eq!(store.file().metadata().unwrap().len(), len);
}

#[test]
fn a_range_that_the_host_cannot_discard_is_unsupported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    image(&path);
    let cause = io::Error::from(rustix::io::Errno::OPNOTSUPP);
    assert_eq!(cause.kind(), io::ErrorKind::Unsupported);
    // What the fallback is taken for.
    let file = open(&path, false).unwrap();
    let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
    let mode = keep.union(rustix::fs::FallocateFlags::COLLAPSE_RANGE);
    let bad = allocate(&file, mode, 0, 512).unwrap_err();
    assert!([rustix::io::Errno::OPNOTSUPP, rustix::io::Errno::INVAL].contains(&bad));
}
