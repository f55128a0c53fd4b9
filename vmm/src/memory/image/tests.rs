//! Memory files: what comes back is what was written, and what is damaged is found out.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt;

use vm_memory::{Bytes, GuestAddress};

use berth_devices::virtio::balloon::PageReturner;

use super::super::{map, map_image};
use super::*;
use crate::page_returner::ReturnPages;

const SIZE: u64 = 24 << 20;
const ID: [u8; 16] = *b"0123456789abcdef";

fn identity(difference: bool) -> Identity {
    Identity {
        id: ID,
        size: SIZE,
        difference,
    }
}

fn contents(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

fn fill(memory: &Memory, at: u64, len: usize, seed: u8) {
    let bytes: Vec<u8> = (0..len).map(|n| (n as u8).wrapping_mul(31) ^ seed | 1).collect();
    memory.write_slice(&bytes, GuestAddress(at)).unwrap();
}

fn saved(memory: &Memory, origin: &Origin, difference: bool) -> (File, Written) {
    let file = tempfile::tempfile().unwrap();
    let written = write(memory, origin, &file, identity(difference), false).unwrap();
    (file, written)
}

fn open(file: File) -> Image {
    Image::open(file, ID, SIZE).unwrap()
}

#[test]
fn what_was_written_comes_back_and_the_rest_is_holes() {
    let memory = map(SIZE).unwrap();
    fill(&memory, 5 << 20, 3 << 20, 1);
    fill(&memory, SIZE - 4096, 4096, 2);
    memory
        .write_slice(&vec![0; 1 << 20], GuestAddress(1 << 20))
        .unwrap();
    let (file, written) = saved(&memory, &Origin::Nothing, false);
    assert_eq!(written.bytes, (3 << 20) + 4096);
    assert_eq!(written.zeros, 1 << 20);
    assert!(
        file.metadata().unwrap().blocks() * 512 < 4 << 20,
        "zeros are holes"
    );
    let image = open(file);
    image.verify().unwrap();
    let restored = map_image(&image).unwrap();
    assert_eq!(contents(&restored), contents(&memory));
}

#[test]
fn a_restored_memory_is_saved_whole_with_what_changed() {
    let memory = map(SIZE).unwrap();
    fill(&memory, 0, 20 << 20, 1);
    let image = open(saved(&memory, &Origin::Nothing, false).0);
    let restored = map_image(&image).unwrap();
    let origin = Origin::Image(image);
    // Read, written, written with zeros.
    let _: u8 = restored.read_obj(GuestAddress(3 << 20)).unwrap();
    fill(&restored, (7 << 20) + 123, 10_000, 9);
    restored.write_slice(&[0; 8192], GuestAddress(9 << 20)).unwrap();
    fill(&restored, 22 << 20, 4096, 3);
    let (file, written) = saved(&restored, &origin, false);
    assert!(written.bytes <= 8 * 4096, "{written:?}");
    let again = open(file);
    again.verify().unwrap();
    assert_eq!(contents(&map_image(&again).unwrap()), contents(&restored));
    let Origin::Image(image) = origin else {
        unreachable!()
    };
    image.verify().expect("the first file is as it was");
}

#[test]
fn a_difference_holds_what_changed_zeros_included() {
    let memory = map(SIZE).unwrap();
    fill(&memory, 0, 4 << 20, 1);
    let image = open(saved(&memory, &Origin::Nothing, false).0);
    let restored = map_image(&image).unwrap();
    let origin = Origin::Image(image);
    restored.write_slice(&[0; 4096], GuestAddress(1 << 20)).unwrap();
    fill(&restored, 2 << 20, 4096, 7);
    let (file, written) = saved(&restored, &origin, true);
    assert_eq!(written.bytes, 2 * 4096);
    let difference = open(file);
    difference.verify().unwrap();
    assert!(difference.identity.difference);

    let Origin::Image(base) = origin else {
        unreachable!()
    };
    let file = tempfile::tempfile().unwrap();
    let id = *b"fedcba9876543210";
    assert_eq!(merge(&base, &difference, &file, id).unwrap().bytes, 2 * 4096);
    let joined = Image::open(file, id, SIZE).unwrap();
    joined.verify().unwrap();
    assert!(!joined.identity.difference);
    assert_eq!(contents(&map_image(&joined).unwrap()), contents(&restored));
}

#[test]
fn what_a_restored_guest_gave_back_is_zeros_in_the_next_snapshot() {
    let memory = map(SIZE).unwrap();
    fill(&memory, 0, 20 << 20, 1);
    let image = open(saved(&memory, &Origin::Nothing, false).0);
    let restored = map_image(&image).unwrap();
    let origin = Origin::Image(image);
    // Across the border of two MiB, and one that was written first, another that is written after.
    for (at, len) in [(0x0f_f000, 0x2000), (5 << 20, 3 << 20), (12 << 20, 0x1000)] {
        fill(&restored, at, 4096, 9);
        ReturnPages.give_back(&restored, GuestAddress(at), len).unwrap();
    }
    fill(&restored, 6 << 20, 4096, 7);
    let (file, written) = saved(&restored, &origin, false);
    assert_eq!(written.bytes, 4096, "{written:?}");
    let blocks = file.metadata().unwrap().blocks() * 512;
    assert!(blocks < (18 << 20), "zeros are holes: {blocks}");
    let whole = open(file);
    whole.verify().unwrap();
    assert!(contents(&map_image(&whole).unwrap()) == contents(&restored));

    let difference = open(saved(&restored, &origin, true).0);
    difference.verify().unwrap();
    let Origin::Image(base) = origin else {
        unreachable!()
    };
    let out = tempfile::tempfile().unwrap();
    merge(&base, &difference, &out, ID).unwrap();
    let joined = open(out);
    joined.verify().unwrap();
    assert!(contents(&map_image(&joined).unwrap()) == contents(&restored));
}

#[test]
fn a_difference_knows_its_pages_when_its_holes_are_lost() {
    let memory = map(SIZE).unwrap();
    fill(&memory, 0, 4 << 20, 1);
    let base = open(saved(&memory, &Origin::Nothing, false).0);
    let restored = map_image(&base).unwrap();
    fill(&restored, 2 << 20, 4096, 7);
    let origin = Origin::Image(base);
    let (file, _) = saved(&restored, &origin, true);
    // A copy that was filled with zeros.
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let copy = tempfile::tempfile().unwrap();
    copy.write_all_at(&bytes, 0).unwrap();
    let Origin::Image(base) = origin else {
        unreachable!()
    };
    let out = tempfile::tempfile().unwrap();
    merge(&base, &open(copy), &out, ID).unwrap();
    assert_eq!(contents(&map_image(&open(out)).unwrap()), contents(&restored));
}

#[test]
fn damage_is_found_wherever_it_is() {
    let memory = map(SIZE).unwrap();
    fill(&memory, 2 << 20, 2 << 20, 1);
    let refused = |change: &dyn Fn(&File)| {
        let (file, _) = saved(&memory, &Origin::Nothing, false);
        change(&file);
        Image::open(file, ID, SIZE)
            .and_then(|image| image.verify())
            .unwrap_err()
    };
    let flip = |file: &File, at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    };
    assert_eq!(
        refused(&|file| flip(file, (3 << 20) + 77)),
        ImageError::Damaged { at: 3 << 20 }
    );
    assert_eq!(
        refused(&|file| flip(file, 17 << 20)),
        ImageError::Damaged { at: 17 << 20 }
    );
    for at in [
        SIZE,
        SIZE + 20,
        SIZE + 40,
        SIZE + 48,
        SIZE + 4000,
        SIZE + 4096 + 9,
    ] {
        let error = refused(&|file| flip(file, at));
        assert!(
            matches!(error, ImageError::Trailer | ImageError::Foreign),
            "{at}: {error}"
        );
    }
    for size in [0, 1, SIZE, SIZE + 4096] {
        let error = refused(&|file| file.set_len(size).unwrap());
        assert!(matches!(error, ImageError::Size { .. }), "{size}: {error}");
    }
    assert!(matches!(
        refused(&|mut file| file.write_all(b"x").unwrap()),
        ImageError::Damaged { at: 0 }
    ));
    let (file, _) = saved(&memory, &Origin::Nothing, false);
    assert_eq!(Image::open(file, [0; 16], SIZE).unwrap_err(), ImageError::Foreign);
}
