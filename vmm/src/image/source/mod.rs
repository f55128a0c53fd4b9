//! What images are made from: directories and tar files, each laid as a layer over those before it.

mod directory;
mod input;
mod layer;
mod pax;
mod sparse;
mod tar;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use self::input::{Archive, Input};
use self::layer::Layer;
use super::compress;
use super::tree::Tree;
use super::{BuildOptions, ImageError};

/// Standard input as a source.
const STDIN: &str = "-";
/// What is enough to tell what an archive is.
const PROBE: usize = 1024;

/// Lays every source on `tree`. What must be unpacked goes to nameless files in `spool`.
pub(super) fn lay_all(options: &BuildOptions, tree: &mut Tree, spool: &Path) -> Result<(), ImageError> {
    for path in &options.from {
        lay(path, options, tree, spool)?;
        tree.next_layer();
    }
    Ok(())
}

fn lay(path: &Path, options: &BuildOptions, tree: &mut Tree, spool: &Path) -> Result<(), ImageError> {
    if path.as_os_str() == STDIN {
        let reader = Box::new(io::stdin().lock());
        return lay_archive("standard input", Raw::Stream(reader), tree, spool);
    }
    let name = path.display().to_string();
    let file = File::open(path).map_err(ImageError::io(path))?;
    let kind = file.metadata().map_err(ImageError::io(path))?;
    if kind.is_dir() {
        return directory::read(path, options.owner, &options.output, &mut Layer::new(tree));
    }
    let raw = if kind.is_file() {
        Raw::File(file, kind.len())
    } else {
        Raw::Stream(Box::new(file))
    };
    lay_archive(&name, raw, tree, spool)
}

/// An archive as it comes.
enum Raw<'a> {
    File(File, u64),
    Stream(Box<dyn Read + 'a>),
}

fn lay_archive(name: &str, raw: Raw<'_>, tree: &mut Tree, spool: &Path) -> Result<(), ImageError> {
    let failed = |cause| ImageError::Io {
        name: name.to_owned(),
        cause,
    };
    let (mut file, mut reader): (_, Box<dyn Read + '_>) = match raw {
        Raw::File(file, len) => {
            let reader = file.try_clone().map_err(failed)?;
            (Some((file, len)), Box::new(reader))
        }
        Raw::Stream(reader) => (None, reader),
    };
    let mut start = probe(&mut reader).map_err(failed)?;
    if let Some(compression) = berth_boot::Compression::detect(&start) {
        let packed = io::Cursor::new(start).chain(reader);
        reader = Box::new(Named {
            inner: compress::reader(compression, packed).map_err(failed)?,
            compression,
        });
        start = probe(&mut reader).map_err(failed)?;
        file = None;
    }
    check_tar(name, &start)?;
    let archive = match file {
        Some((file, len)) => Archive::File {
            file: Arc::new(file),
            len,
        },
        None => Archive::stream(Box::new(io::Cursor::new(start).chain(reader)), spool),
    };
    tar::read(name, Input::new(archive), &mut Layer::new(tree))
}

/// Lays a tar file that is in memory.
pub(super) fn lay_bytes(bytes: &[u8], tree: &mut Tree) -> Result<(), ImageError> {
    check_tar("the tar file", &bytes[..bytes.len().min(PROBE)])?;
    let input = Input::new(Archive::Bytes(bytes.into()));
    tar::read("the tar file", input, &mut Layer::new(tree))?;
    tree.next_layer();
    Ok(())
}

/// What is in a tar file.
pub(super) struct TarCount {
    pub(super) entries: u64,
    /// What is wrong with it.
    pub(super) trouble: Option<String>,
}

/// Whether an archive that begins so is a tar file.
pub(super) fn is_tar(start: &[u8]) -> bool {
    tar::is_tar(start)
}

/// Reads a tar file without its data.
pub(super) fn count_tar<'a>(reader: impl Read + 'a) -> TarCount {
    let mut tree = Tree::new();
    let mut layer = Layer::new(&mut tree);
    let read = tar::read("it", Input::new(Archive::Passing(Box::new(reader))), &mut layer);
    TarCount {
        entries: layer.entries(),
        trouble: read.err().map(|error| match error {
            // Whoever asks knows which archive it is.
            ImageError::Source { what, .. } => what,
            error => error.to_string(),
        }),
    }
}

/// A decoder that says in its errors what it unpacks.
struct Named<R> {
    inner: R,
    compression: berth_boot::Compression,
}

impl<R: Read> Read for Named<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|cause| {
            let what = format!("its {} data cannot be unpacked: {cause}", self.compression.name());
            io::Error::new(cause.kind(), what)
        })
    }
}

fn probe(reader: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    reader.take(PROBE as u64).read_to_end(&mut start)?;
    Ok(start)
}

fn check_tar(name: &str, start: &[u8]) -> Result<(), ImageError> {
    if start.is_empty() {
        return Err(ImageError::source(&name, "it is empty and no tar file"));
    }
    if tar::is_tar(start) {
        return Ok(());
    }
    Err(ImageError::source(
        &name,
        "it is neither a directory nor a tar file; berth image info says what it is",
    ))
}
