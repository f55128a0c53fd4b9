//! Images that QEMU makes are read and written right, and QEMU reads what was written.

use berth_devices::storage::{FileDisk, OverlayDisk, open_disk};
use proptest::arbitrary::any;
use proptest::proptest;
use proptest::test_runner::Config;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

const SIZE: usize = 5 << 20;

/// Does random things to a disk and to a plain copy of it.
fn exercise(disk: &mut Qcow2Disk, model: &mut [u8], noise: &mut Noise, steps: usize) {
    let mut guest = Guest::new();
    let sectors = model.len() as u64 / 512;
    for step in 0..steps {
        let first = noise.below(sectors);
        // Mostly small ones, some that span clusters.
        let most = if noise.below(4) == 0 { 4096 } else { 32 };
        let count = 1 + noise.below((sectors - first).min(most));
        let (offset, len) = (first * 512, count * 512);
        let here = offset as usize..(offset + len) as usize;
        match noise.below(8) {
            0..=2 => {
                let bytes = pattern(len as usize, noise.next());
                guest.write(disk, offset, &bytes).unwrap();
                model[here].copy_from_slice(&bytes);
            }
            3 => {
                let unmap = noise.below(2) == 0;
                now(disk, Operation::WriteZeroes { offset, len, unmap }).unwrap();
                model[here].fill(0);
            }
            4 => match now(disk, Operation::Discard { offset, len }) {
                Ok(()) => {
                    // Anything, but only there.
                    let now = guest.read(disk, offset, len as usize).unwrap();
                    model[here].copy_from_slice(&now);
                }
                Err(cause) => assert_eq!(cause.kind(), io::ErrorKind::Unsupported),
            },
            5 => now(disk, Operation::Flush).unwrap(),
            _ => {
                let found = guest.read(disk, offset, len as usize).unwrap();
                assert!(found == model[here], "step {step}: {len} bytes at {offset}");
            }
        }
    }
    assert!(contents(disk)[..model.len()] == *model, "all of it");
}

#[test]
fn every_kind_of_image_holds_what_is_written_and_qemu_finds_no_fault() {
    let base = pattern(SIZE, 1);
    for (number, (kind, options)) in [
        ("plain", "cluster_size=64k"),
        ("plain", "cluster_size=4k"),
        ("plain", "cluster_size=512"),
        ("plain", "cluster_size=2M"),
        ("plain", "cluster_size=64k,preallocation=metadata"),
        ("plain", "cluster_size=4k,refcount_bits=1"),
        ("plain", "cluster_size=4k,refcount_bits=64"),
        ("plain", "cluster_size=64k,lazy_refcounts=on"),
        ("plain", "compat=0.10"),
        ("on raw", "cluster_size=64k"),
        ("on raw", "cluster_size=2M"),
        ("on raw", "cluster_size=4k,compat=0.10"),
        ("on qcow2", "cluster_size=4k"),
        ("on qcow2", "cluster_size=64k"),
        ("compressed", "cluster_size=64k"),
        ("compressed", "cluster_size=4k"),
        ("snapshots", "cluster_size=64k"),
    ]
    .into_iter()
    .enumerate()
    {
        let images = Images::new();
        images.raw("base.raw", &base);
        let size = SIZE + 1536;
        let mut model = base.clone();
        match kind {
            "plain" => {
                images.qemu(&format!("create -q -f qcow2 -o {options} disk {size}"));
                model.clear();
            }
            // The disk is larger than what it stands on.
            "on raw" => images.qemu(&format!(
                "create -q -f qcow2 -o {options} -b base.raw -F raw disk {size}"
            )),
            "on qcow2" => {
                images.qemu("convert -q -c -f raw -O qcow2 base.raw middle");
                images.qemu("create -q -f qcow2 -o cluster_size=4k -b middle -F qcow2 upper");
                images.qemu(&format!(
                    "create -q -f qcow2 -o {options} -b upper -F qcow2 disk {size}"
                ));
            }
            _ => {
                images.qemu(&format!(
                    "convert -q -c -f raw -O qcow2 -o {options} base.raw disk"
                ));
                images.qemu(&format!("resize -q -f qcow2 disk {size}"));
            }
        }
        model.resize(size, 0);
        if kind == "snapshots" {
            images.qemu("snapshot -c before disk");
        }
        let mut noise = Noise(number as u64);
        for round in 0..3 {
            let mut disk = images.open("disk");
            assert_eq!(disk.size(), size as u64);
            exercise(&mut disk, &mut model, &mut noise, 60);
            drop(disk);
            images.raw("model", &model);
            // Leaked clusters cost space only; 3 is for those.
            let (good, said) = images.try_qemu("check -f qcow2 disk");
            assert!(good, "{kind}, {options}, round {round}: {said}");
            images.qemu("compare -q -f qcow2 -F raw disk model");
        }
        if kind == "snapshots" {
            images.qemu("snapshot -a before disk");
            images.qemu(&format!("resize -q -f raw base.raw {size}"));
            images.qemu("compare -q -f qcow2 -F raw disk base.raw");
        }
        assert!(kind == "snapshots" || std::fs::read(images.path("base.raw")).unwrap() == base);
    }
}

proptest! {
    #![proptest_config(Config::with_cases(12))]

    #[test]
    fn a_crash_loses_nothing_that_was_flushed_and_damages_nothing(seed in any::<u64>()) {
        let images = Images::new();
        let mut model = pattern(SIZE, 1);
        images.raw("base.raw", &model);
        images.qemu("create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw disk");
        let mut disk = images.open("disk");
        let mut noise = Noise(seed);
        exercise(&mut disk, &mut model[..SIZE / 2], &mut noise, 40);
        now(&mut disk, Operation::Flush).unwrap();
        // The other half is written behind the flush.
        let mut guest = Guest::new();
        for _ in 0..noise.below(40) {
            let at = SIZE as u64 / 2 + noise.below(SIZE as u64 / 1024 - 64) * 512;
            guest.write(&mut disk, at, &pattern(64 * 512, noise.next())).unwrap();
        }
        // What is in memory goes with the process; the lock is the file's, and a copy has none.
        std::fs::copy(images.path("disk"), images.path("crashed")).unwrap();
        let (_, said) = images.try_qemu("check -f qcow2 crashed");
        proptest::prop_assert!(!said.contains("ERROR") && !said.contains("corrupt"), "{said}");
        let crashed = contents(&images.open("crashed"));
        proptest::prop_assert!(crashed[..SIZE / 2] == model[..SIZE / 2]);
    }
}

#[test]
fn what_several_threads_do_at_once_is_all_there() {
    const PART: usize = SIZE / 4;
    let images = Images::new();
    let mut model = pattern(SIZE, 1);
    images.raw("base.raw", &model);
    images.qemu("convert -q -c -f raw -O qcow2 base.raw middle");
    images.qemu("create -q -f qcow2 -o cluster_size=4k -b middle -F qcow2 disk");
    let mut disk = images.open("disk");
    disk.notify(Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
    let mut guests = [(); 4].map(|()| Guest::new());
    let mut noise = Noise(5);
    for _ in 0..150 {
        let mut reads = [None, None, None, None];
        for (number, guest) in guests.iter_mut().enumerate() {
            let len = 512 * (1 + noise.below(64)) as usize;
            let at = number * PART + 512 * noise.below(((PART - len) / 512) as u64) as usize;
            let (offset, here) = (at as u64, at..at + len);
            let operation = match noise.below(4) {
                0 => {
                    model[here].fill(0);
                    let len = len as u64;
                    Operation::WriteZeroes {
                        offset,
                        len,
                        unmap: true,
                    }
                }
                1 => {
                    reads[number] = Some(here);
                    Operation::Read {
                        offset,
                        to: guest.io(len),
                    }
                }
                _ => {
                    let bytes = pattern(len, noise.next());
                    guest.put(&bytes);
                    model[here].copy_from_slice(&bytes);
                    Operation::Write {
                        offset,
                        from: guest.io(len),
                    }
                }
            };
            assert!(disk.submit(number as u16, operation).is_none(), "it is begun");
        }
        let mut done: Vec<u16> = guests
            .iter()
            .map(|_| {
                let (token, result) = disk.completed(true).unwrap();
                result.unwrap();
                token
            })
            .collect();
        done.sort_unstable();
        assert_eq!(done, [0, 1, 2, 3]);
        for (guest, here) in guests.iter().zip(reads) {
            if let Some(here) = here {
                assert!(guest.get(here.len()) == model[here]);
            }
        }
    }
    disk.settle().unwrap();
    assert!(contents(&disk) == model);
    drop(disk);
    images.raw("model", &model);
    images.qemu("check -q -f qcow2 disk");
    images.qemu("compare -q -f qcow2 -F raw disk model");
}

#[test]
fn the_image_and_what_it_stands_on_are_locked() {
    let images = Images::new();
    images.raw("base.raw", &pattern(1 << 20, 1));
    images.qemu("create -q -f qcow2 -b base.raw -F raw disk");
    images.qemu("create -q -f qcow2 -b base.raw -F raw other");
    let disk = images.open("disk");
    let refused = |made: Result<Qcow2Disk, DiskError>| matches!(made, Err(DiskError::InUse { .. }));
    assert!(refused(Qcow2Disk::open(&images.path("disk"), OPTIONS)));
    assert!(matches!(
        FileDisk::open(images.path("base.raw"), false),
        Err(DiskError::InUse { .. })
    ));
    assert!(!images.try_qemu("check -f qcow2 disk").0, "QEMU is kept away too");
    // Others may stand on it too.
    images.open("other");
    drop(disk);
    let read_only = FileOptions {
        read_only: true,
        ..OPTIONS
    };
    let mut readers = [(); 2].map(|()| Qcow2Disk::open(&images.path("disk"), read_only).unwrap());
    assert!(refused(Qcow2Disk::open(&images.path("disk"), OPTIONS)));
    let before = std::fs::read(images.path("disk")).unwrap();
    assert!(!readers[0].writable());
    assert!(Guest::new().write(&mut readers[0], 0, &[1; 512]).is_err());
    drop(readers);
    assert!(std::fs::read(images.path("disk")).unwrap() == before);
}

#[test]
fn the_format_is_as_it_is_said_and_looked_for_only_on_demand() {
    let images = Images::new();
    let bytes = pattern(1 << 20, 1);
    images.raw("base.raw", &bytes);
    images.qemu("convert -q -f raw -O qcow2 base.raw disk");
    let length = std::fs::metadata(images.path("disk")).unwrap().len();
    for (format, name, size) in [
        (ImageFormat::Raw, "base.raw", 1 << 20),
        (ImageFormat::Raw, "disk", length),
        (ImageFormat::Qcow2, "disk", 1 << 20),
        (ImageFormat::Detect, "base.raw", 1 << 20),
        (ImageFormat::Detect, "disk", 1 << 20),
    ] {
        let opened = open_disk(&images.path(name), FileOptions { format, ..OPTIONS }).unwrap();
        assert_eq!(opened.size(), size, "{format:?}, {name}");
        assert_eq!(opened.options().format, format);
    }
    assert_eq!(
        images.refusal("base.raw"),
        "base.raw: is no qcow2 image; leave its format out if it is a raw one"
    );
}

#[test]
fn an_overlay_stands_on_an_image() {
    let images = Images::new();
    let mut model = pattern(1 << 20, 1);
    images.raw("base.raw", &model);
    images.qemu("convert -q -c -f raw -O qcow2 base.raw disk");
    let before = std::fs::read(images.path("disk")).unwrap();
    let overlay = images.path("overlay");
    let open = || OverlayDisk::open(&images.path("disk"), ImageFormat::Qcow2, &overlay).unwrap();
    let mut disk = open();
    let mut guest = Guest::new();
    let data = pattern(4096, 2);
    guest.memory.write_slice(&data, GuestAddress(0)).unwrap();
    let from = guest.io(4096);
    disk.submit(0, Operation::Write { offset: 70_144, from })
        .unwrap()
        .unwrap();
    model[70_144..74_240].copy_from_slice(&data);
    let to = guest.io(1 << 20);
    disk.submit(0, Operation::Read { offset: 0, to })
        .unwrap()
        .unwrap();
    let mut found = vec![0; 1 << 20];
    guest.memory.read_slice(&mut found, GuestAddress(0)).unwrap();
    assert!(found == model);
    drop(disk);
    open().read_at(0, &mut found).unwrap();
    assert!(found == model);
    assert!(std::fs::read(images.path("disk")).unwrap() == before);
}

#[test]
fn a_file_that_takes_its_place_is_of_the_same_format() {
    let images = Images::new();
    for name in ["one", "two"] {
        images.raw(
            "base.raw",
            &vec![name.as_bytes()[0]; if name == "one" { 1 << 20 } else { 2 << 20 }],
        );
        images.qemu(&format!("convert -q -f raw -O qcow2 base.raw {name}"));
    }
    let options = images.open("one").options();
    let next = open_disk(&images.path("two"), options).unwrap();
    assert_eq!((next.size(), next.options()), (2 << 20, OPTIONS));
    let mut disk = images.open("one");
    assert!(matches!(disk.refresh(&images.path("one")), Some(Ok(()))));
    assert!(disk.refresh(&images.path("two")).is_none());
}
