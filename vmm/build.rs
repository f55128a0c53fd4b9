//! Unpacks the guest that ships with Berth, so that the program carries it ready for use and no start unpacks anything.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let guest = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"))
        .join("../resources/guest");
    let mut sum = crc32fast::Hasher::new();
    for name in ["vmlinux", "rootfs.erofs"] {
        let packed = guest.join(format!("{name}.zst"));
        println!("cargo::rerun-if-changed={}", packed.display());
        match unpack(&packed, &out.join(name)) {
            Ok(bytes) => sum.update(&bytes),
            Err(error) => println!(
                "cargo::error={}: {error}; make it with resources/guest/build.sh",
                packed.display()
            ),
        }
    }
    println!("cargo::rustc-env=BERTH_GUEST_ID={:08x}", sum.finalize());
}

fn unpack(packed: &Path, to: &Path) -> Result<Vec<u8>, String> {
    let packed = fs::File::open(packed).map_err(|error| error.to_string())?;
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    decoder
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    fs::write(to, &bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}
