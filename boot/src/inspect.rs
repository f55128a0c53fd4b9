//! What a kernel file is, without a guest: format, version, entry points, and its configuration where it carries that.

use std::collections::BTreeMap;
use std::io::Read;

use memchr::memmem;

use crate::image::{self, Image};
use crate::{BootError, Compression, Format, KernelSource, bzimage, elf};

/// What comes before the version that a kernel prints first.
const BANNER: &[u8] = b"Linux version ";
/// The longest version that is believed.
const MAX_VERSION: usize = 256;
/// What surrounds a configuration (the kernel's kernel/configs.c).
const CONFIG_START: &[u8] = b"IKCFG_ST";
/// What an unpacked configuration may come to; those of distributions have 300 KB.
const MAX_CONFIG: u64 = 16 << 20;

/// What a kernel file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelReport {
    /// Its container.
    pub format: Format,
    /// How it, or its payload, is compressed.
    pub compression: Option<Compression>,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of the ELF file in it.
    pub unpacked: u64,
    /// The version, and who built it when, as far as it says so.
    pub version: Option<String>,
    /// Guest physical address of the 64-bit entry.
    pub linux64: Option<u64>,
    /// Guest physical address of the PVH entry.
    pub pvh: Option<u64>,
    /// Version of the boot protocol, of a bzImage.
    pub protocol: Option<(u8, u8)>,
    /// The longest command line, as a bzImage says it.
    pub cmdline: Option<u32>,
    /// Its configuration by names without `CONFIG_`, if it carries one (IKCONFIG).
    pub config: Option<BTreeMap<String, String>>,
}

/// Looks into a kernel file, unless it unpacks to more than `limit` bytes.
pub fn inspect(source: &KernelSource, limit: u64) -> Result<KernelReport, BootError> {
    let name = source.name();
    let read = |cause| BootError::Read {
        what: "kernel",
        name: name.clone(),
        cause,
    };
    let opened = Image::open(source)?;
    let size = opened.len();
    let header = bzimage::header(&opened).map_err(read)?;
    let (unpacked, info) = image::unpack(&name, opened, limit).map_err(|error| match error {
        BootError::Bomb { name, .. } => BootError::Malformed {
            name,
            what: format!(
                "it unpacks to more than {} MiB, which no kernel does",
                limit >> 20
            ),
        },
        other => other,
    })?;
    let entries = elf::entries(&name, &unpacked)?;
    let bytes = unpacked.into_bytes().map_err(read)?;
    let header = header.filter(|_| info.format == Format::BzImage);
    Ok(KernelReport {
        format: info.format,
        compression: info.compression,
        size,
        unpacked: bytes.len() as u64,
        version: version(&bytes).or_else(|| header.as_ref().and_then(|header| header.version.clone())),
        linux64: entries.linux64,
        pvh: entries.pvh,
        protocol: header.as_ref().map(|header| header.protocol),
        cmdline: header.and_then(|header| header.cmdline),
        config: config(&bytes),
    })
}

/// The version behind the banner, to the end of its line.
fn version(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes;
    while let Some(at) = memmem::find(rest, BANNER) {
        rest = &rest[at + BANNER.len()..];
        // The banner is there as a format, too.
        if rest.first().is_some_and(u8::is_ascii_digit) {
            let end = rest
                .iter()
                .take(MAX_VERSION)
                .position(|byte| !(b' '..0x7f).contains(byte));
            return Some(String::from_utf8_lossy(&rest[..end?]).trim_end().to_owned());
        }
    }
    None
}

fn config(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    let start = memmem::find(bytes, CONFIG_START)? + CONFIG_START.len();
    let mut text = String::new();
    flate2::bufread::GzDecoder::new(&bytes[start..])
        .take(MAX_CONFIG)
        .read_to_string(&mut text)
        .ok()?;
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='));
    Some(
        lines
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    )
}
