//! The bytes of an archive: what files hold is left where it is if it can be read there later, and kept aside if not.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::contents::{CHUNK, Origin};

/// Where an archive's bytes come from.
pub(super) enum Archive<'a> {
    /// A file, not compressed.
    File { file: Arc<File>, len: u64 },
    /// Memory.
    Bytes(Arc<[u8]>),
    /// Something that can be read once.
    Stream {
        reader: Box<dyn Read + 'a>,
        folder: PathBuf,
        spool: Option<Arc<File>>,
        spooled: u64,
    },
    /// Something whose files' data nobody will ask for.
    Passing(Box<dyn Read + 'a>),
}

impl<'a> Archive<'a> {
    pub(super) fn stream(reader: Box<dyn Read + 'a>, folder: &Path) -> Self {
        Self::Stream {
            reader,
            folder: folder.to_owned(),
            spool: None,
            spooled: 0,
        }
    }
}

/// An archive and how far it has been read.
pub(super) struct Input<'a> {
    archive: Archive<'a>,
    at: u64,
}

impl<'a> Input<'a> {
    pub(super) fn new(archive: Archive<'a>) -> Self {
        Self { archive, at: 0 }
    }

    /// Fills `buffer` as far as there is something. Returns how far.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let rest = &mut buffer[done..];
            let at = self.at + done as u64;
            let count = match &mut self.archive {
                Archive::File { file, .. } => file.read_at(rest, at),
                Archive::Bytes(bytes) => (&bytes[(at as usize).min(bytes.len())..]).read(rest),
                Archive::Stream { reader, .. } | Archive::Passing(reader) => reader.read(rest),
            };
            match count {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.at += done as u64;
        Ok(done)
    }

    /// Passes over `len` bytes, to be read later from where this says in [`origin`](Self::origin); nothing if the archive ends
    /// before.
    pub(super) fn keep(&mut self, len: u64) -> io::Result<Option<u64>> {
        if let Archive::Stream {
            reader,
            folder,
            spool,
            spooled,
        } = &mut self.archive
        {
            let file = match spool {
                Some(file) => file,
                None => spool.insert(Arc::new(tempfile::tempfile_in(folder)?)),
            };
            let start = *spooled;
            // The file's position is its end: it is read elsewhere by offsets only.
            let mut sink = BufWriter::with_capacity(len.min(CHUNK as u64) as usize, &**file);
            let kept = io::copy(&mut reader.take(len), &mut sink)?;
            sink.flush()?;
            *spooled += kept;
            self.at += kept;
            return Ok((kept == len).then_some(start));
        }
        let start = self.at;
        Ok(self.skip(len)?.then_some(start))
    }

    /// Passes over `len` bytes. Returns whether there were as many.
    pub(super) fn skip(&mut self, len: u64) -> io::Result<bool> {
        let end = match &mut self.archive {
            Archive::File { len: end, .. } => *end,
            Archive::Bytes(bytes) => bytes.len() as u64,
            Archive::Stream { reader, .. } | Archive::Passing(reader) => {
                let skipped = io::copy(&mut reader.take(len), &mut io::sink())?;
                self.at += skipped;
                return Ok(skipped == len);
            }
        };
        match self.at.checked_add(len) {
            Some(next) if next <= end => {
                self.at = next;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// What kept bytes are read from; asked for after they were kept.
    pub(super) fn origin(&self) -> Origin {
        match &self.archive {
            Archive::File { file, .. } => Origin::File(Arc::clone(file)),
            Archive::Bytes(bytes) => Origin::Bytes(Arc::clone(bytes)),
            Archive::Stream { spool, .. } => match spool {
                Some(file) => Origin::File(Arc::clone(file)),
                None => Origin::Bytes(Arc::new([])),
            },
            Archive::Passing(_) => Origin::Bytes(Arc::new([])),
        }
    }
}
