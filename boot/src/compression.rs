//! The compressions that Linux kernels come in, told apart by their first bytes and unpacked on the host.

use std::io::{self, Read};

/// A compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// XZ, with the x86 filter that kernels use.
    Xz,
    /// RFC 8878.
    Zstd,
    /// LZ4: the frame format, or the legacy one that Linux uses.
    Lz4,
    /// Bzip2.
    Bzip2,
    /// LZMA, the format before XZ.
    Lzma,
}

const LZ4_FRAME: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What one block of the legacy format unpacks to at most.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

impl Compression {
    /// What data that begins with `magic` is compressed with, if it is.
    pub fn detect(magic: &[u8]) -> Option<Self> {
        let known: [(&[u8], Self); 8] = [
            (&[0x1f, 0x8b], Self::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Self::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
            (&LZ4_FRAME, Self::Lz4),
            (&LZ4_LEGACY, Self::Lz4),
            (b"BZh", Self::Bzip2),
            (&[0x5d, 0, 0], Self::Lzma),
            (&[0x6d, 0, 0], Self::Lzma),
        ];
        known
            .into_iter()
            .find(|(start, _)| magic.starts_with(start))
            .map(|(_, compression)| compression)
    }

    /// Its name as users know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
        }
    }

    /// Unpacks `packed`, or gives `None` once that has come to more than `limit` bytes. What follows the compressed data
    /// is ignored: kernel builds append the unpacked size.
    pub(crate) fn unpack(self, packed: &[u8], limit: u64) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Gzip => take(flate2::bufread::GzDecoder::new(packed), limit),
            Self::Xz => take(lzma_rust2::XzReader::new(packed, false), limit),
            Self::Zstd => take(
                ruzstd::decoding::StreamingDecoder::new(packed)
                    .map_err(|error| invalid(&error.to_string()))?,
                limit,
            ),
            Self::Lz4 if packed.starts_with(&LZ4_LEGACY) => unpack_lz4_legacy(packed, limit),
            Self::Lz4 => take(lz4_flex::frame::FrameDecoder::new(packed), limit),
            Self::Bzip2 => take(bzip2::bufread::BzDecoder::new(packed), limit),
            Self::Lzma => take(
                lzma_rust2::LzmaReader::new_mem_limit(packed, LZMA_MEMORY_KIB, None)?,
                limit,
            ),
        }
    }
}

/// What the decoder of one LZMA stream may allocate; dictionaries of kernels are 32 MiB at most.
const LZMA_MEMORY_KIB: u32 = 256 << 10;

fn take(decoder: impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut unpacked = Vec::new();
    decoder.take(limit + 1).read_to_end(&mut unpacked)?;
    Ok((unpacked.len() as u64 <= limit).then_some(unpacked))
}

/// Linux's own framing: after the magic, blocks of a 32-bit length and as many bytes, 8 MiB unpacked each but the last.
fn unpack_lz4_legacy(packed: &[u8], limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut rest = &packed[LZ4_LEGACY.len()..];
    let mut unpacked = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK];
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        if *length == LZ4_LEGACY {
            rest = after;
            continue;
        }
        let length = u32::from_le_bytes(*length) as usize;
        let Some(data) = after.get(..length) else {
            // The appended size looks like the length of one more block.
            if unpacked.is_empty() || !after.is_empty() {
                return Err(invalid("a block ends past the end of the data"));
            }
            break;
        };
        if data.is_empty() {
            break;
        }
        let size = lz4_flex::block::decompress_into(data, &mut block)
            .map_err(|error| invalid(&error.to_string()))?;
        unpacked.extend_from_slice(&block[..size]);
        if unpacked.len() as u64 > limit {
            return Ok(None);
        }
        rest = &after[length..];
    }
    Ok(Some(unpacked))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
