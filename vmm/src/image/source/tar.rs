//! Tar files as a source: ustar, GNU tar's and POSIX's extensions, sparse files.
//!
//! Header blocks are taken apart by the crate `tar`. Its iterator is not used: it reads names as long as a header claims, splits
//! extended attributes at line ends, and knows only one kind of sparse file.

use std::collections::BTreeMap;
use std::io;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::super::ImageError;
use super::super::contents::{Contents, Piece};
use super::super::error::shown;
use super::super::tree::{Kind, Meta, Time};
use super::input::Input;
use super::layer::Layer;
use super::pax::Pax;
use super::sparse::Map;

const BLOCK: usize = 512;
/// The longest header of names and attributes that is read into memory.
const MAX_EXTENSION: u64 = 1 << 20;
/// Where the sum of a header's bytes stands.
const CHECKSUM: std::ops::Range<usize> = 148..156;
/// How much behind its end an archive may have: whoever writes it into a pipe is to see it read.
const MAX_REST: u64 = 16 << 20;

/// What stops the reading of an archive.
enum Stop {
    Io(io::Error),
    Said(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self::Said(what)
    }
}

/// Whether an archive that begins so is a tar file.
pub(super) fn is_tar(start: &[u8]) -> bool {
    let Some(block) = start.first_chunk::<BLOCK>() else {
        return false;
    };
    // An archive of nothing is its end.
    let end = start.len() >= 2 * BLOCK && start[..2 * BLOCK].iter().all(|byte| *byte == 0);
    end || sums(block)
}

fn sums(block: &[u8; BLOCK]) -> bool {
    let sum = |add: fn(u8) -> i64| -> i64 {
        let bytes = block.iter().enumerate();
        bytes
            .map(|(at, byte)| add(if CHECKSUM.contains(&at) { b' ' } else { *byte }))
            .sum()
    };
    let header = Header::from_byte_slice(block);
    let said = header.cksum().map(i64::from);
    // Some old programs added up signed bytes.
    said.is_ok_and(|said| said == sum(i64::from) || said == sum(|byte| i64::from(byte as i8)))
}

/// Reads all of an archive.
pub(super) fn read(name: &str, input: Input<'_>, layer: &mut Layer<'_>) -> Result<(), ImageError> {
    let mut reader = Reader {
        input,
        layer,
        global: Pax::default(),
        entry: String::new(),
    };
    reader.run().map_err(|stop| match stop {
        Stop::Io(cause) => ImageError::Io {
            name: name.to_owned(),
            cause,
        },
        Stop::Said(what) if reader.entry.is_empty() => ImageError::source(&name, what),
        Stop::Said(what) => ImageError::source(&name, format!("{}: {what}", reader.entry)),
    })
}

struct Reader<'a, 'b> {
    input: Input<'a>,
    layer: &'a mut Layer<'b>,
    /// Extended headers for every entry to come.
    global: Pax,
    /// The entry being read, as messages name it.
    entry: String,
}

const CUT: &str = "the archive ends in the middle of it; it is cut short, or the size in its header lies";
const IMPOSSIBLE: &str = "its header has a size that no file has; the archive is broken";

impl Reader<'_, '_> {
    fn run(&mut self) -> Result<(), Stop> {
        let mut pax = self.global.clone();
        let (mut long_name, mut long_link) = (None, None);
        while let Some(block) = self.header()? {
            let header = Header::from_byte_slice(&block);
            let kind = header.entry_type();
            if self.entry.is_empty() || !extends(kind) {
                self.entry = shown(&header.path_bytes());
            }
            match kind {
                EntryType::GNULongName => long_name = Some(self.name(header)?),
                EntryType::GNULongLink => long_link = Some(self.name(header)?),
                EntryType::XHeader => pax.read(&self.extension(header)?)?,
                EntryType::XGlobalHeader => {
                    let records = self.extension(header)?;
                    self.global.read(&records)?;
                    pax.read(&records)?;
                }
                _ => {
                    pax.path = pax.path.or(long_name.take());
                    pax.link = pax.link.or(long_link.take());
                    self.entry(header, &pax)?;
                    pax = self.global.clone();
                    self.entry.clear();
                }
            }
        }
        Ok(())
    }

    /// The next header; nothing at the archive's end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Stop> {
        let block = self.block()?;
        if block.iter().any(|byte| *byte != 0) {
            if sums(&block) {
                return Ok(Some(block));
            }
            return Err(format!(
                "the header {} is broken: its checksum is wrong",
                if self.entry.is_empty() {
                    "of an entry"
                } else {
                    "behind it"
                }
            )
            .into());
        }
        let mut rest = [0; BLOCK];
        let mut drained = 0;
        while drained < MAX_REST {
            let count = self.input.read(&mut rest)? as u64;
            if count == 0 {
                break;
            }
            drained += count;
        }
        Ok(None)
    }

    fn block(&mut self) -> Result<[u8; BLOCK], Stop> {
        let mut block = [0; BLOCK];
        if self.input.read(&mut block)? == BLOCK {
            return Ok(block);
        }
        let what = "the archive has no end mark; it is cut short";
        Err(Stop::Said(
            if self.entry.is_empty() { what } else { CUT }.to_owned(),
        ))
    }

    /// The data of a header that extends the next one.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, Stop> {
        let size = size(header)?;
        if size > MAX_EXTENSION {
            return Err(
                format!("an extended header of {size} bytes; Berth takes {MAX_EXTENSION} at most").into(),
            );
        }
        let mut bytes = vec![0; size as usize];
        if self.input.read(&mut bytes)? < bytes.len() {
            return Err(CUT.to_owned().into());
        }
        self.pad(size)?;
        Ok(bytes)
    }

    fn name(&mut self, header: &Header) -> Result<Vec<u8>, Stop> {
        let mut name = self.extension(header)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// Passes over what fills data of `len` bytes up to a whole block.
    fn pad(&mut self, len: u64) -> Result<(), Stop> {
        let padding = len.next_multiple_of(BLOCK as u64) - len;
        if self.input.skip(padding)? {
            Ok(())
        } else {
            Err(CUT.to_owned().into())
        }
    }

    fn entry(&mut self, header: &Header, pax: &Pax) -> Result<(), Stop> {
        let kind = header.entry_type();
        let path = pax.sparse.name.as_ref().or(pax.path.as_ref());
        let path = path.map_or_else(|| header.path_bytes().into_owned(), Clone::clone);
        self.entry = shown(&path);
        let link = || {
            let own = || header.link_name_bytes().map(std::borrow::Cow::into_owned);
            pax.link.clone().or_else(own).unwrap_or_default()
        };
        let node = match kind {
            EntryType::Link => {
                self.layer.link(&path, &link())?;
                return Ok(());
            }
            EntryType::Symlink => symlink(link())?,
            EntryType::Char | EntryType::Block => device(header)?,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Directory => Kind::Directory(BTreeMap::new()),
            // Before POSIX, a directory was a file whose name ends with a slash.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => {
                self.data(header, pax)?;
                Kind::Directory(BTreeMap::new())
            }
            EntryType::Regular | EntryType::Continuous => Kind::File(self.data(header, pax)?),
            EntryType::GNUSparse => Kind::File(self.gnu_sparse(header, pax)?),
            other => match other.as_byte() {
                // A dump's list of a directory.
                b'D' => {
                    self.data(header, pax)?;
                    Kind::Directory(BTreeMap::new())
                }
                // The label of a volume.
                b'V' => return Ok(()),
                b'M' => {
                    return Err("the archive goes on from another volume; join them first"
                        .to_owned()
                        .into());
                }
                byte => {
                    return Err(format!(
                        "an entry of the unknown type {:?}; Berth takes files, directories, links, devices and FIFOs",
                        char::from(byte)
                    )
                    .into());
                }
            },
        };
        self.layer.add(&path, meta(header, pax)?, node)?;
        Ok(())
    }

    /// The contents of a file.
    fn data(&mut self, header: &Header, pax: &Pax) -> Result<Contents, Stop> {
        let mut stored = match pax.size {
            Some(size) => size,
            None => size(header)?,
        };
        let whole = stored;
        if !pax.sparse.is_sparse() {
            return self.keep(stored, whole, stored, |from| {
                let piece = Piece {
                    offset: 0,
                    len: stored,
                    from,
                };
                Ok(Some(piece).filter(|piece| piece.len > 0).into_iter().collect())
            });
        }
        let map = if pax.sparse.map_in_data {
            let (map, taken) = Map::of_data(|| self.block())?;
            stored = stored
                .checked_sub(taken)
                .ok_or_else(|| "its sparse map is longer than its data".to_owned())?;
            map
        } else {
            Map::of_numbers(pax.sparse.map.as_deref().unwrap_or_default())?
        };
        let size = pax
            .sparse
            .size
            .ok_or_else(|| "it is sparse and its size is not said".to_owned())?;
        self.keep(stored, whole, size, |from| map.pieces(size, stored, from))
    }

    /// A sparse file whose map stands in GNU tar's own headers.
    fn gnu_sparse(&mut self, header: &Header, pax: &Pax) -> Result<Contents, Stop> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| "it is sparse by GNU tar's rules in an archive of another kind".to_owned())?;
        let broken = |error: io::Error| format!("its sparse header is broken: {error}");
        let push = |map: &mut Map, piece: &GnuSparseHeader| {
            if !is_possible(&piece.offset) || !is_possible(&piece.numbytes) {
                return Err(IMPOSSIBLE.to_owned());
            }
            map.push(piece.offset().map_err(broken)?, piece.length().map_err(broken)?)
        };
        let mut map = Map::default();
        for piece in gnu.sparse.iter().filter(|piece| !piece.is_empty()) {
            push(&mut map, piece)?;
        }
        let mut more = gnu.is_extended();
        while more {
            let mut next = GnuExtSparseHeader::new();
            next.as_mut_bytes().copy_from_slice(&self.block()?);
            for piece in next.sparse().iter().filter(|piece| !piece.is_empty()) {
                push(&mut map, piece)?;
            }
            more = next.is_extended();
        }
        let stored = match pax.size {
            Some(size) => size,
            None => size(header)?,
        };
        if !is_possible(&gnu.realsize) {
            return Err(IMPOSSIBLE.to_owned().into());
        }
        let whole = gnu.real_size().map_err(broken)?;
        self.keep(stored, stored, whole, |from| map.pieces(whole, stored, from))
    }

    /// Passes over `stored` bytes of data, the last of `padded` that are filled up to whole blocks.
    fn keep(
        &mut self,
        stored: u64,
        padded: u64,
        size: u64,
        pieces: impl FnOnce(u64) -> Result<Vec<Piece>, String>,
    ) -> Result<Contents, Stop> {
        if padded.checked_next_multiple_of(BLOCK as u64).is_none() {
            return Err(CUT.to_owned().into());
        }
        let from = self.input.keep(stored)?.ok_or_else(|| CUT.to_owned())?;
        self.pad(padded)?;
        Ok(Contents {
            size,
            pieces: pieces(from)?,
            origin: self.input.origin(),
        })
    }
}

/// Whether a header says more about the one behind it.
fn extends(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
    )
}

fn size(header: &Header) -> Result<u64, String> {
    if !is_possible(&header.as_old().size) {
        return Err(IMPOSSIBLE.to_owned());
    }
    header.entry_size().map_err(|_| field("size"))
}

/// Whether a number in binary form is none below zero and none that takes more than 64 bits, of which the crate reads the lowest.
fn is_possible(number: &[u8; 12]) -> bool {
    number[0] < 0x80 || number.starts_with(&[0x80, 0, 0, 0])
}

fn field(name: &str) -> String {
    format!("its header's {name} is no number")
}

fn symlink(target: Vec<u8>) -> Result<Kind, String> {
    if target.is_empty() || target.contains(&0) {
        return Err("it is a symlink to nothing".to_owned());
    }
    Ok(Kind::Symlink(target))
}

fn device(header: &Header) -> Result<Kind, String> {
    let number = |value: io::Result<Option<u32>>| {
        let value = value.map_err(|_| field("device number"))?;
        value.ok_or_else(|| "it is a device, in an archive of a kind that has none".to_owned())
    };
    let (major, minor) = (number(header.device_major())?, number(header.device_minor())?);
    // What a device number of Linux has room for.
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(format!(
            "it is the device {major}:{minor}; Linux has 4095:1048575 at most"
        ));
    }
    Ok(if header.entry_type() == EntryType::Char {
        Kind::CharDevice { major, minor }
    } else {
        Kind::BlockDevice { major, minor }
    })
}

fn meta(header: &Header, pax: &Pax) -> Result<Meta, String> {
    let id = |name: &str, extended: Option<u64>, own: io::Result<u64>| {
        let id = match extended {
            Some(id) => id,
            None => own.map_err(|_| field(name))?,
        };
        u32::try_from(id).map_err(|_| format!("its {name} {id} is more than Linux has"))
    };
    let mtime = match pax.mtime {
        Some(time) => time,
        None => Time {
            // In binary form it may be negative.
            seconds: header.mtime().map_err(|_| field("mtime"))? as i64,
            nanos: 0,
        },
    };
    Ok(Meta {
        mode: (header.mode().map_err(|_| field("mode"))? & 0o7777) as u16,
        uid: id("uid", pax.uid, header.uid())?,
        gid: id("gid", pax.gid, header.gid())?,
        mtime: Some(mtime),
        xattrs: pax.xattrs.clone(),
    })
}
