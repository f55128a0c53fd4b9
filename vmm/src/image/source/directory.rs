//! A directory of the host as a source. Sockets are left out: nothing but the program that made one can use it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, lgetxattr, llistxattr, major, minor, seek};
use rustix::io::Errno;

use super::super::ImageError;
use super::super::contents::{Contents, Origin, Piece};
use super::super::options::Owner;
use super::super::tree::{Kind, Meta, NodeId, Time};
use super::layer::Layer;

/// The most that the kernel gives of attributes' names, and of one's value.
const XATTR_MAX: usize = 64 << 10;

/// Reads `root` and all in it. `output` is left out where it lies in there.
pub(super) fn read(
    root: &Path,
    owner: Option<Owner>,
    output: &Path,
    layer: &mut Layer<'_>,
) -> Result<(), ImageError> {
    let identity = |data: &Metadata| (data.dev(), data.ino());
    let mut reader = Reader {
        owner,
        output: fs::metadata(output).ok().as_ref().map(identity),
        links: HashMap::new(),
        xattrs: Xattrs::new(),
    };
    let mut waiting = vec![(root.to_owned(), Vec::new())];
    while let Some((path, inside)) = waiting.pop() {
        // The root itself may be given through a symlink; what is in it is taken as it is.
        let data = if inside.is_empty() {
            fs::metadata(&path)
        } else {
            fs::symlink_metadata(&path)
        };
        let data = data.map_err(ImageError::io(&path))?;
        if data.file_type().is_socket() || reader.output == Some(identity(&data)) {
            continue;
        }
        let refused = |what: String| ImageError::source(&path.display(), what);
        if let Some(id) = reader.links.get(&identity(&data)) {
            layer.link_to(&inside, *id).map_err(refused)?;
            continue;
        }
        let meta = reader.meta(&path, &data)?;
        let kind = kind(&path, &data)?;
        if data.is_dir() {
            for child in names(&path)? {
                let mut below = inside.clone();
                below.push(b'/');
                below.extend_from_slice(child.as_os_str().as_bytes());
                waiting.push((path.join(&child), below));
            }
        }
        let id = layer.add(&inside, meta, kind).map_err(refused)?;
        if let Some(id) = id.filter(|_| data.nlink() > 1 && !data.is_dir()) {
            reader.links.insert(identity(&data), id);
        }
    }
    Ok(())
}

/// The names in a directory, in reverse order: the last one is taken first.
fn names(path: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let failed = ImageError::io(path);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(&failed)? {
        names.push(PathBuf::from(entry.map_err(&failed)?.file_name()));
    }
    names.sort_unstable_by(|one, other| other.as_os_str().cmp(one.as_os_str()));
    Ok(names)
}

struct Reader {
    owner: Option<Owner>,
    output: Option<(u64, u64)>,
    links: HashMap<(u64, u64), NodeId>,
    xattrs: Xattrs,
}

impl Reader {
    fn meta(&mut self, path: &Path, data: &Metadata) -> Result<Meta, ImageError> {
        let owner = self.owner.unwrap_or(Owner {
            uid: data.uid(),
            gid: data.gid(),
        });
        Ok(Meta {
            mode: (data.mode() & 0o7777) as u16,
            uid: owner.uid,
            gid: owner.gid,
            mtime: Some(Time {
                seconds: data.mtime(),
                nanos: data.mtime_nsec() as u32,
            }),
            xattrs: self.xattrs.read(path).map_err(ImageError::io(path))?,
        })
    }
}

fn kind(path: &Path, data: &Metadata) -> Result<Kind, ImageError> {
    let kind = data.file_type();
    let (major, minor) = (major(data.rdev()), minor(data.rdev()));
    Ok(if kind.is_dir() {
        Kind::Directory(BTreeMap::new())
    } else if kind.is_symlink() {
        let target = fs::read_link(path).map_err(ImageError::io(path))?;
        Kind::Symlink(target.into_os_string().as_encoded_bytes().to_vec())
    } else if kind.is_char_device() {
        Kind::CharDevice { major, minor }
    } else if kind.is_block_device() {
        Kind::BlockDevice { major, minor }
    } else if kind.is_fifo() {
        Kind::Fifo
    } else {
        Kind::File(Contents {
            size: data.len(),
            pieces: pieces(path, data).map_err(ImageError::io(path))?,
            origin: Origin::Path(path.to_owned()),
        })
    })
}

/// Where a file holds data. Only files that have fewer blocks than bytes are asked.
fn pieces(path: &Path, data: &Metadata) -> io::Result<Vec<Piece>> {
    let size = data.len();
    if size == 0 {
        return Ok(Vec::new());
    }
    // Opened even where that says nothing new: what cannot be read is to be said before anything is written.
    let file = File::open(path)?;
    let piece = |offset, len| Piece {
        offset,
        len,
        from: offset,
    };
    if data.blocks() * 512 >= size {
        return Ok(vec![piece(0, size)]);
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => break,
            Err(_) => return Ok(vec![piece(0, size)]),
        };
        let end = seek(&file, SeekFrom::Hole(start))?.min(size);
        if end <= start {
            break;
        }
        pieces.push(piece(start, end - start));
        at = end;
    }
    Ok(pieces)
}

/// Reads attributes into buffers as large as they can be.
struct Xattrs {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Xattrs {
    fn new() -> Self {
        Self {
            names: vec![0; XATTR_MAX],
            value: vec![0; XATTR_MAX],
        }
    }

    fn read(&mut self, path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let len = match llistxattr(path, &mut self.names[..]) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut found = BTreeMap::new();
        let names = self.names[..len].split(|byte| *byte == 0);
        for name in names.filter(|name| !name.is_empty()) {
            match lgetxattr(path, OsStr::from_bytes(name), &mut self.value[..]) {
                Ok(len) => {
                    found.insert(name.to_vec(), self.value[..len].to_vec());
                }
                // It has gone, or only the kernel's own parts may read it.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }
}
