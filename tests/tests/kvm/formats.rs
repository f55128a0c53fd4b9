//! A kernel boots the same however it is packed.

use std::fs;
use std::path::Path;

use berth_tests::invocation::{Invocation, run};
use berth_tests::{formats, guests};

fn tiny_in(file: &Path) -> Invocation {
    run(["--memory", "64M", "--cmdline", "do=exit:42", "--kernel"]).arg(file)
}

#[test]
fn every_compression_plain_and_in_a_bzimage_boots_the_kernel_that_the_elf_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let elf = fs::read(guests::tiny()).unwrap();
    tiny_in(guests::tiny()).finish().expect_code(42);
    for (name, _) in formats::COMPRESSIONS {
        let packed = formats::compress(name, &elf);
        for (container, bytes) in [
            ("packed", packed.clone()),
            ("bzimage", formats::bzimage(&packed, elf.len())),
        ] {
            let file = folder.path().join(format!("{name}.{container}"));
            fs::write(&file, bytes).unwrap();
            tiny_in(&file).finish().expect_code(42);
        }
    }
}
