//! The manifest of the guest that ships with Berth says what lies beside it.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Read;
use std::path::Path;

use berth_tests::guests;
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    kernel_release: String,
    kernel_config_sha256: String,
    kernel_patches_sha256: String,
    programs_sha256: String,
    artefact: Vec<Artefact>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Artefact {
    file: String,
    what: String,
    size: u64,
    sha256: String,
    unpacked_size: u64,
    unpacked_sha256: String,
    made_from: Vec<Source>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    package: String,
    version: String,
    licence: String,
}

fn read(name: &str) -> Vec<u8> {
    let path = guests::shipped().join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifest() -> Manifest {
    toml::from_str(&String::from_utf8(read("MANIFEST.toml")).unwrap()).unwrap()
}

/// The files of a folder one after the other, in the order of their names.
fn folder(name: &str) -> Vec<u8> {
    let mut paths: Vec<_> = fs::read_dir(guests::shipped().join(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().flat_map(|path| fs::read(path).unwrap()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(packed)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

#[test]
fn every_artefact_has_the_sizes_and_checksums_the_manifest_says() {
    let manifest = manifest();
    for artefact in &manifest.artefact {
        let packed = read(&artefact.file);
        assert_eq!(packed.len() as u64, artefact.size, "{}", artefact.file);
        assert_eq!(sha256(&packed), artefact.sha256, "{}", artefact.file);
        let unpacked = unpack(&packed);
        assert_eq!(unpacked.len() as u64, artefact.unpacked_size, "{}", artefact.file);
        assert_eq!(sha256(&unpacked), artefact.unpacked_sha256, "{}", artefact.file);
    }
}

#[test]
fn every_artefact_in_the_folder_is_in_the_manifest_with_its_packages_and_licences() {
    let manifest = manifest();
    let mut listed: Vec<_> = manifest
        .artefact
        .iter()
        .map(|artefact| artefact.file.clone())
        .collect();
    let mut present: Vec<_> = fs::read_dir(guests::shipped())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension() == Some("zst".as_ref()))
        .collect();
    listed.sort();
    present.sort();
    assert_eq!(listed, present);
    for artefact in &manifest.artefact {
        assert!(
            !artefact.what.is_empty() && !artefact.made_from.is_empty(),
            "{}",
            artefact.file
        );
        for source in &artefact.made_from {
            for text in [&source.package, &source.version, &source.licence] {
                assert!(!text.is_empty(), "{}", artefact.file);
            }
        }
    }
}

#[test]
fn kernel_and_programs_were_built_from_the_sources_beside_them() {
    let manifest = manifest();
    assert_eq!(
        sha256(&read("kernel.config")),
        manifest.kernel_config_sha256,
        "run resources/guest/build.sh"
    );
    assert_eq!(
        sha256(&folder("patches")),
        manifest.kernel_patches_sha256,
        "run resources/guest/build.sh"
    );
    assert_eq!(
        sha256(&[folder("init"), folder("tools")].concat()),
        manifest.programs_sha256,
        "run resources/guest/build.sh"
    );
    let kernel = unpack(&read("vmlinux.zst"));
    let banner = format!("Linux version {}", manifest.kernel_release);
    assert!(
        kernel
            .windows(banner.len())
            .any(|window| window == banner.as_bytes()),
        "{banner}"
    );
}
