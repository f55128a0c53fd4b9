//! Compression of archives both ways, by the crates for each format.

use std::io::{self, BufReader, Read, Write};

use berth_boot::Compression;
use lz4_flex::block;
use lzma_rust2::{CheckType, XzOptions, XzReader, XzWriter};

use super::ImageFormat;

/// What a decoder may allocate for its window, in KiB: ten times what xz and zstd need at their highest usual levels.
const MEMORY_KIB: u32 = 1 << 20;
/// The framing of LZ4 that kernels unpack.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What one of its blocks unpacks to at most.
const LZ4_BLOCK: usize = 8 << 20;
/// What one block takes at most when nothing in it can be compressed.
const LZ4_PACKED: usize = LZ4_BLOCK + LZ4_BLOCK / 255 + 16;

/// Unpacks all that `packed` holds, also where it is several streams behind one another.
pub(super) fn reader<'a>(compression: Compression, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut packed = BufReader::with_capacity(64 << 10, packed);
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Compression::Xz => Box::new(XzReader::new_mem_limit(packed, true, MEMORY_KIB)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(packed)?),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
        Compression::Lzma => Box::new(lzma_rust2::LzmaReader::new_mem_limit(packed, MEMORY_KIB, None)?),
        Compression::Lz4 => {
            use std::io::BufRead;
            if packed.fill_buf()?.starts_with(&LZ4_LEGACY) {
                Box::new(Lz4Reader::new(packed))
            } else {
                Box::new(lz4_flex::frame::FrameDecoder::new(packed))
            }
        }
    })
}

/// The legacy framing of LZ4: after the magic, blocks of a 32-bit length and as many bytes.
struct Lz4Reader<R> {
    packed: R,
    block: Vec<u8>,
    at: usize,
}

impl<R: Read> Lz4Reader<R> {
    fn new(packed: R) -> Self {
        Self {
            packed,
            block: Vec::new(),
            at: 0,
        }
    }

    /// Unpacks the next block. Returns whether there was one.
    fn next(&mut self) -> io::Result<bool> {
        let mut length = [0; 4];
        loop {
            let mut start = Vec::new();
            (&mut self.packed).take(4).read_to_end(&mut start)?;
            if start.len() < length.len() {
                return if start.is_empty() {
                    Ok(false)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            length.copy_from_slice(&start);
            if length != LZ4_LEGACY {
                break;
            }
        }
        let length = u32::from_le_bytes(length) as usize;
        if length == 0 {
            return Ok(false);
        }
        if length > LZ4_PACKED {
            return Err(io::Error::other("a block claims more than a block may have"));
        }
        let mut data = Vec::new();
        (&mut self.packed).take(length as u64).read_to_end(&mut data)?;
        if data.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.block.resize(LZ4_BLOCK, 0);
        let len = block::decompress_into(&data, &mut self.block).map_err(io::Error::other)?;
        self.block.truncate(len);
        self.at = 0;
        Ok(true)
    }
}

impl<R: Read> Read for Lz4Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            if !self.next()? {
                return Ok(0);
            }
        }
        let count = (&self.block[self.at..]).read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

/// What compresses an initramfs so that kernels can unpack it.
pub(super) enum Packer<W: Write> {
    Plain(W),
    Gzip(flate2::write::GzEncoder<W>),
    Zstd(zstd::Encoder<'static, W>),
    Xz(Box<XzWriter<W>>),
    Lz4(Lz4Writer<W>),
}

impl<W: Write> Packer<W> {
    pub(super) fn new(format: ImageFormat, sink: W) -> io::Result<Self> {
        Ok(match format {
            ImageFormat::CpioGz => {
                Self::Gzip(flate2::write::GzEncoder::new(sink, flate2::Compression::best()))
            }
            // As Debian's initramfs-tools do.
            ImageFormat::CpioZst => Self::Zstd(zstd::Encoder::new(sink, 9)?),
            ImageFormat::CpioXz => {
                let mut options = XzOptions::with_preset(6);
                // The only check that Linux knows.
                options.set_check_sum_type(CheckType::Crc32);
                Self::Xz(Box::new(XzWriter::new(sink, options)?))
            }
            ImageFormat::CpioLz4 => Self::Lz4(Lz4Writer::new(sink)?),
            _ => Self::Plain(sink),
        })
    }

    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(sink) => Ok(sink),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Xz(encoder) => encoder.finish(),
            Self::Lz4(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Packer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(sink) => sink.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
            Self::Xz(encoder) => encoder.write(bytes),
            Self::Lz4(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the legacy framing of LZ4.
pub(super) struct Lz4Writer<W> {
    sink: W,
    block: Vec<u8>,
}

impl<W: Write> Lz4Writer<W> {
    fn new(mut sink: W) -> io::Result<Self> {
        sink.write_all(&LZ4_LEGACY)?;
        Ok(Self {
            sink,
            block: Vec::with_capacity(LZ4_BLOCK),
        })
    }

    fn flush_block(&mut self) -> io::Result<()> {
        let packed = block::compress(&self.block);
        self.sink.write_all(&(packed.len() as u32).to_le_bytes())?;
        self.sink.write_all(&packed)?;
        self.block.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() {
            self.flush_block()?;
        }
        Ok(self.sink)
    }
}

impl<W: Write> Write for Lz4Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(LZ4_BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..count]);
        if self.block.len() == LZ4_BLOCK {
            self.flush_block()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_the_same_and_always_packed_the_same() {
        let bytes: Vec<u8> = (0..(LZ4_BLOCK + 12345) as u32)
            .map(|at| ((at / 7).wrapping_mul(at) >> 9) as u8)
            .collect();
        for format in [
            ImageFormat::CpioGz,
            ImageFormat::CpioZst,
            ImageFormat::CpioXz,
            ImageFormat::CpioLz4,
        ] {
            let pack = || {
                let mut packer = Packer::new(format, Vec::new()).unwrap();
                packer.write_all(&bytes).unwrap();
                packer.finish().unwrap()
            };
            let packed = pack();
            assert!(packed == pack(), "{format}");
            let compression = Compression::detect(&packed).unwrap();
            let mut unpacked = Vec::new();
            reader(compression, &packed[..])
                .unwrap()
                .read_to_end(&mut unpacked)
                .unwrap();
            assert!(unpacked == bytes, "{format}");
        }
    }

    #[test]
    fn streams_behind_one_another_are_all_unpacked() {
        for format in [ImageFormat::CpioGz, ImageFormat::CpioZst, ImageFormat::CpioXz] {
            let mut packed = Vec::new();
            for part in ["one ", "two"] {
                let mut packer = Packer::new(format, packed).unwrap();
                packer.write_all(part.as_bytes()).unwrap();
                packed = packer.finish().unwrap();
            }
            let mut text = String::new();
            let compression = Compression::detect(&packed).unwrap();
            reader(compression, &packed[..])
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, "one two", "{format}");
        }
    }
}
