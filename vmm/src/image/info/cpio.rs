//! Reading initramfs archives: newc entries, several archives behind one another, each compressed or not (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Read};

use super::super::compress;

const HEADER: usize = 110;
/// The longest name, PATH_MAX.
const MAX_NAME: u32 = 4096;
const END: &[u8] = b"TRAILER!!!";
/// Archives in archives that no build makes.
const MAX_DEPTH: usize = 4;
/// What is read at most: decoders make very much of very little.
const MAX_BYTES: u64 = 64 << 30;

/// An entry's header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) number: u32,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    pub(super) mtime: u32,
    pub(super) size: u32,
    pub(super) device: (u32, u32),
}

/// Whether an archive that begins so is one of these.
pub(super) fn is_cpio(start: &[u8]) -> bool {
    start.starts_with(b"070701") || start.starts_with(b"070702")
}

/// Why an archive cannot be read to its end.
#[derive(Debug)]
pub(super) enum Broken {
    Io(io::Error),
    Said(&'static str),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Said("it is cut short")
        } else {
            Self::Io(error)
        }
    }
}

/// Gives every entry with what it holds to `sink`.
pub(super) fn read<R: Read>(
    reader: R,
    sink: &mut dyn FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
) -> Result<(), Broken> {
    segments(Box::new(reader.take(MAX_BYTES)), sink, 0)
}

type Sink<'a> = dyn FnMut(&Entry, &mut dyn Read) -> io::Result<()> + 'a;

fn segments(reader: Box<dyn Read + '_>, sink: &mut Sink<'_>, depth: usize) -> Result<(), Broken> {
    let mut archive = Reader { inner: reader, at: 0 };
    let mut first = true;
    // Zeros may fill what lies between archives.
    while let Some(byte) = archive.skip_zeros()? {
        let mut start = vec![byte];
        archive.part(5).read_to_end(&mut start)?;
        if is_cpio(&start) {
            archive.entries(sink)?;
            first = false;
            continue;
        }
        let Some(compression) = berth_boot::Compression::detect(&start) else {
            return Err(Broken::Said(if first {
                "it is no archive"
            } else {
                "what follows an archive in it is none"
            }));
        };
        if depth == MAX_DEPTH {
            return Err(Broken::Said("it is compressed many times over"));
        }
        let rest = io::Cursor::new(start).chain(archive.inner);
        return segments(compress::reader(compression, rest)?, sink, depth + 1);
    }
    Ok(())
}

struct Reader<R> {
    inner: R,
    /// How much has been read, for padding.
    at: u64,
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl<R: Read> Reader<R> {
    /// The next byte that is not zero.
    fn skip_zeros(&mut self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        loop {
            match self.read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) if byte[0] == 0 => {}
                Ok(_) => return Ok(Some(byte[0])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads the entries of an archive whose first six bytes have been read.
    fn entries(&mut self, sink: &mut Sink<'_>) -> Result<(), Broken> {
        // Padding counts from the archive's start.
        self.at = 6;
        let mut header = [0; HEADER];
        header[..6].copy_from_slice(b"070701");
        let mut from = 6;
        loop {
            self.read_exact(&mut header[from..])?;
            from = 0;
            if !is_cpio(&header) {
                return Err(Broken::Said(
                    "an entry in it does not begin with the format's magic number",
                ));
            }
            let (mut entry, name_len) =
                parse(&header).ok_or(Broken::Said("an entry in it has a field that is no number"))?;
            if name_len == 0 || name_len > MAX_NAME {
                return Err(Broken::Said("an entry in it has a name of no sensible length"));
            }
            entry.name.resize(name_len as usize, 0);
            self.read_exact(&mut entry.name)?;
            entry.name.pop();
            self.pad()?;
            if entry.name == END {
                return Ok(());
            }
            let mut data = self.part(entry.size.into());
            sink(&entry, &mut data)?;
            io::copy(&mut data, &mut io::sink())?;
            if data.limit() > 0 {
                return Err(Broken::Said("it is cut short"));
            }
            self.pad()?;
        }
    }

    /// The next bytes, as a reader of their own.
    fn part(&mut self, len: u64) -> io::Take<&mut Self> {
        self.take(len)
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = self.at.next_multiple_of(4) - self.at;
        self.read_exact(&mut [0; 4][..padding as usize])
    }
}

fn parse(header: &[u8; HEADER]) -> Option<(Entry, u32)> {
    let mut fields = [0; 13];
    for (field, digits) in fields.iter_mut().zip(header[6..].chunks_exact(8)) {
        let digits = std::str::from_utf8(digits).ok()?;
        *field = u32::from_str_radix(digits, 16)
            .ok()
            .filter(|_| !digits.starts_with('+'))?;
    }
    let [
        number,
        mode,
        uid,
        gid,
        links,
        mtime,
        size,
        _,
        _,
        major,
        minor,
        name_len,
        _,
    ] = fields;
    let entry = Entry {
        name: Vec::new(),
        number,
        mode,
        uid,
        gid,
        links,
        mtime,
        size,
        device: (major, minor),
    };
    Some((entry, name_len))
}
