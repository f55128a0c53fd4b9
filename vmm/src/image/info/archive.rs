//! Archives: initramfs and tar files, and what is compressed.

use std::io::{self, Read};

use berth_boot::Compression;

use super::super::source::{self, TarCount};
use super::cpio::{self, Broken};
use super::look::Look;
use super::{ImageInfo, Root};

/// What of a compressed file is unpacked to see what it is.
const PROBE: u64 = 4096;

/// The archive, if it is one.
pub(super) fn look_at(look: &Look<'_>) -> io::Result<Option<ImageInfo>> {
    let mut start = Vec::new();
    look.stream()?.take(PROBE).read_to_end(&mut start)?;
    let compression = Compression::detect(&start);
    let Some(compression) = compression else {
        return of_start(look, &start, None);
    };
    let mut unpacked = Vec::new();
    let tried =
        compress_reader(look, compression).and_then(|reader| reader.take(PROBE).read_to_end(&mut unpacked));
    let found = of_start(look, &unpacked, Some(compression))?;
    let mut found = found.unwrap_or_else(|| ImageInfo {
        kind: "unknown",
        root: Root::no("it is compressed; unpack it to see what is in it"),
        ..ImageInfo::default()
    });
    if let Err(cause) = tried {
        found.troubles = vec![format!(
            "its {} data cannot be unpacked: {cause}",
            compression.name()
        )];
    }
    found.compression = Some(compression.name());
    Ok(Some(found))
}

fn compress_reader<'a>(look: &'a Look<'_>, compression: Compression) -> io::Result<Box<dyn Read + 'a>> {
    super::super::compress::reader(compression, look.stream()?)
}

fn of_start(
    look: &Look<'_>,
    start: &[u8],
    compression: Option<Compression>,
) -> io::Result<Option<ImageInfo>> {
    if cpio::is_cpio(start) {
        return initramfs(look, compression).map(Some);
    }
    if source::is_tar(start) {
        return tar(look, compression).map(Some);
    }
    Ok(None)
}

fn initramfs(look: &Look<'_>, compression: Option<Compression>) -> io::Result<ImageInfo> {
    let (mut entries, mut init) = (0, false);
    let read = cpio::read(look.stream()?, &mut |entry, _| {
        entries += 1;
        let name = entry.name.strip_prefix(b"./").unwrap_or(&entry.name);
        init |= name.strip_prefix(b"/").unwrap_or(name) == b"init";
        Ok(())
    });
    let troubles = match read {
        Ok(()) => Vec::new(),
        Err(Broken::Io(cause)) => vec![cause.to_string()],
        Err(Broken::Said(what)) => vec![what.to_owned()],
    };
    let unpacks = matches!(compression, None | Some(Compression::Gzip));
    let root = if !unpacks {
        Root::no("its kernel unpacks gzip only")
    } else if init {
        Root::yes("--initrd FILE")
    } else {
        Root::no("it has no /init for the kernel to run")
    };
    Ok(ImageInfo {
        kind: "cpio",
        entries: Some(entries),
        init: Some(init),
        troubles,
        root,
        ..ImageInfo::default()
    })
}

fn tar(look: &Look<'_>, compression: Option<Compression>) -> io::Result<ImageInfo> {
    let reader = match compression {
        Some(compression) => compress_reader(look, compression)?,
        None => look.stream()?,
    };
    let TarCount { entries, trouble } = source::count_tar(reader);
    Ok(ImageInfo {
        kind: "tar",
        entries: Some(entries),
        troubles: trouble.into_iter().collect(),
        root: Root::no("berth image build makes an image of it"),
        ..ImageInfo::default()
    })
}
