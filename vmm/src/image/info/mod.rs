//! What an image is: told by its own structures, with nothing in them believed that has not been looked at.

mod archive;
mod cpio;
mod disk;
mod file_systems;
mod look;
#[cfg(test)]
mod tests;
mod text;

use std::path::Path;

use serde::Serialize;

pub use text::text;

use self::look::Look;
use super::{ImageError, options};

/// What an image is. What does not apply is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// Its kind, such as `ext4` or `gpt`; `unknown` if it is none of those that are known.
    pub kind: &'static str,
    /// Bytes of the file.
    pub size: u64,
    /// How the whole file is compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<&'static str>,
    /// Label of the file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// UUID of the file system or partition table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Seconds since 1970 when it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made: Option<u64>,
    /// Bytes of a block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u64>,
    /// How many blocks there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<u64>,
    /// How many of them are free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_blocks: Option<u64>,
    /// How many inodes there are; of read-only file systems, how many are in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// How many of them are free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_inodes: Option<u64>,
    /// How many entries an archive has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Whether an initramfs has `/init`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Bytes of the disk that an image in a format of its own stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u64>,
    /// The image below this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// Features that decide who can read it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// What is wrong with it, as far as that was seen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
    /// Its partitions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<Partition>,
    /// Whether the shipped kernel can have it as its root.
    pub root: Root,
}

/// Whether the shipped kernel can have an image as its root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Root {
    /// Whether it can.
    pub possible: bool,
    /// How, or why not.
    pub how: String,
}

impl Root {
    fn yes(how: &str) -> Self {
        Self {
            possible: true,
            how: how.to_owned(),
        }
    }

    fn no(why: impl Into<String>) -> Self {
        Self {
            possible: false,
            how: why.into(),
        }
    }
}

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Its number, as in /dev/vda1.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Its type: a name where it is a known one, its number where not.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its own UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// What is in it.
    pub holds: &'static str,
}

/// Looks at the file at `path`.
pub fn info(path: &Path) -> Result<ImageInfo, ImageError> {
    let look = Look::open(path).map_err(ImageError::io(path))?;
    look_at(&look).map_err(ImageError::io(path))
}

/// Looks at an image in memory.
pub fn info_of_bytes(bytes: &[u8]) -> Result<ImageInfo, ImageError> {
    look_at(&Look::of_bytes(bytes)).map_err(|cause| ImageError::Io {
        name: "the image".to_owned(),
        cause,
    })
}

fn look_at(look: &Look<'_>) -> std::io::Result<ImageInfo> {
    let mut found = match file_systems::look_at(look)? {
        Some(found) => found,
        None => match disk::look_at(look)? {
            Some(found) => found,
            None => archive::look_at(look)?.unwrap_or_else(unknown),
        },
    };
    found.size = look.len();
    Ok(found)
}

fn unknown() -> ImageInfo {
    ImageInfo {
        kind: "unknown",
        root: Root::no("it is none of the images that Berth knows"),
        ..ImageInfo::default()
    }
}

fn uuid(bytes: &[u8]) -> Option<String> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    Some(options::uuid_text(bytes)).filter(|_| bytes != [0; 16])
}

/// Text in a field that may be filled up with zeros or spaces.
fn field_text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned();
    Some(text).filter(|text| !text.is_empty())
}
