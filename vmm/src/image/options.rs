//! What to build, by flags or by a file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ImageError;
use crate::spec::ByteSize;

/// An image to build.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BuildOptions {
    /// Directories and tar files, compressed or not, `-` for a tar file on standard input; later ones are laid over earlier ones.
    pub from: Vec<PathBuf>,
    /// The image's file, which is replaced if it is there.
    pub output: PathBuf,
    /// What kind of image; without it, what the end of the output's name says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// Size of an ext4 image; without it, what the contents need and some room. Other images are as large as their contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Seconds since 1970: when the image says it was made, and the latest time that a file in it has. Without it, the
    /// variable SOURCE_DATE_EPOCH; without that, the time of the newest file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// The file system's UUID; without it, one that its contents determine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The file system's label, at most 16 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Who owns what comes from directories, as `0:0`; without it, who owns it on the host. Tar files say it themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

impl BuildOptions {
    /// The kind of image, by `format` or by the output's name.
    pub fn format(&self) -> Result<ImageFormat, ImageError> {
        self.format
            .or_else(|| ImageFormat::of_name(&self.output))
            .ok_or_else(|| ImageError::Option {
                field: "format",
                what: format!(
                    "the name {} does not say what kind of image to make; give one of {}",
                    self.output.display(),
                    ImageFormat::names()
                ),
            })
    }

    /// The label as it stands in a superblock.
    pub(super) fn label_bytes(&self) -> Result<[u8; 16], ImageError> {
        let text = self.label.as_deref().unwrap_or_default();
        let label = text.as_bytes();
        let mut bytes = [0; 16];
        match bytes.get_mut(..label.len()) {
            Some(place) if !label.contains(&0) => place.copy_from_slice(label),
            _ => {
                return Err(ImageError::Option {
                    field: "label",
                    what: format!("{text:?} is longer than 16 bytes, or has a byte 0 in it"),
                });
            }
        }
        Ok(bytes)
    }

    /// The UUID asked for.
    pub(super) fn uuid_bytes(&self) -> Result<Option<[u8; 16]>, ImageError> {
        let Some(text) = &self.uuid else { return Ok(None) };
        let uuid = uuid::Uuid::parse_str(text).map_err(|_| ImageError::Option {
            field: "uuid",
            what: format!("{text:?} is no UUID; write one like 01234567-89ab-8def-8123-456789abcdef"),
        })?;
        Ok(Some(uuid.into_bytes()))
    }

    /// Takes relative paths from `folder`.
    pub fn take_paths_from(&mut self, folder: &Path) {
        let inputs = self.from.iter_mut().filter(|path| path.as_os_str() != "-");
        let output = Some(&mut self.output).filter(|path| !path.as_os_str().is_empty());
        for path in inputs.chain(output) {
            // Joined to an absolute path, that path is the result.
            *path = folder.join(&*path);
        }
    }
}

/// A UUID as it is written.
pub(super) fn uuid_text(bytes: [u8; 16]) -> String {
    uuid::Uuid::from_bytes(bytes).to_string()
}

/// A kind of image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ImageFormat {
    /// ext4, which the guest can write.
    #[serde(rename = "ext4")]
    Ext4,
    /// EROFS, read-only, not compressed.
    #[serde(rename = "erofs")]
    Erofs,
    /// SquashFS, read-only, compressed; made by sqfstar of squashfs-tools.
    #[serde(rename = "squashfs")]
    Squashfs,
    /// An initramfs.
    #[serde(rename = "cpio")]
    Cpio,
    /// An initramfs in gzip.
    #[serde(rename = "cpio.gz")]
    CpioGz,
    /// An initramfs in zstd.
    #[serde(rename = "cpio.zst")]
    CpioZst,
    /// An initramfs in xz.
    #[serde(rename = "cpio.xz")]
    CpioXz,
    /// An initramfs in the LZ4 framing of kernels.
    #[serde(rename = "cpio.lz4")]
    CpioLz4,
}

impl ImageFormat {
    /// Every one, as users name it.
    const ALL: [(&'static str, Self); 8] = [
        ("ext4", Self::Ext4),
        ("erofs", Self::Erofs),
        ("squashfs", Self::Squashfs),
        ("cpio", Self::Cpio),
        ("cpio.gz", Self::CpioGz),
        ("cpio.zst", Self::CpioZst),
        ("cpio.xz", Self::CpioXz),
        ("cpio.lz4", Self::CpioLz4),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(_, format)| *format == self)
            .map_or("", |(name, _)| name)
    }

    fn names() -> String {
        Self::ALL.map(|(name, _)| name).join(", ")
    }

    /// The kind that a file with this name is, by its end: `root.ext4`, `initrd.cpio.gz`.
    pub fn of_name(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy();
        Self::ALL
            .into_iter()
            .find(|(end, _)| name.strip_suffix(end).is_some_and(|stem| stem.ends_with('.')))
            .map(|(_, format)| format)
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ImageFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|(name, _)| *name == text)
            .map(|(_, format)| format)
            .ok_or_else(|| format!("{text:?} is no kind of image; give one of {}", Self::names()))
    }
}

/// A user and a group by their numbers, written `UID:GID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Owner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse().ok().filter(|_| plain)
        };
        let numbers = text
            .split_once(':')
            .and_then(|(uid, gid)| Some((number(uid)?, number(gid)?)));
        match numbers {
            Some((uid, gid)) => Ok(Self { uid, gid }),
            None => Err(format!(
                "{text:?} is no owner; give the numbers of a user and a group, as in 0:0"
            )),
        }
    }
}

impl TryFrom<String> for Owner {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        format!("{}:{}", owner.uid, owner.gid)
    }
}

/// An image that was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Built {
    /// Its file.
    pub path: PathBuf,
    /// What kind it is.
    pub format: ImageFormat,
    /// Its size in bytes.
    pub size: u64,
    /// How many files, directories and other nodes are in it, names of the same file counted once.
    pub nodes: u64,
    /// The file system's UUID, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_name_says_the_kind_of_image() {
        for (name, format) in [
            ("root.ext4", Some(ImageFormat::Ext4)),
            ("a/b.c.erofs", Some(ImageFormat::Erofs)),
            ("initrd.cpio", Some(ImageFormat::Cpio)),
            ("initrd.cpio.zst", Some(ImageFormat::CpioZst)),
            ("ext4", None),
            ("root.img", None),
            ("root.gz", None),
        ] {
            assert_eq!(ImageFormat::of_name(Path::new(name)), format, "{name}");
        }
    }

    #[test]
    fn a_file_describes_an_image() {
        let text = "from = [\"base\", \"layer.tar\"]\nformat = \"cpio.gz\"\nsize = \"2G\"\nowner = \"0:0\"\n";
        let mut options: BuildOptions = toml::from_str(text).unwrap();
        options.take_paths_from(Path::new("/x"));
        assert_eq!(
            options.from,
            [PathBuf::from("/x/base"), PathBuf::from("/x/layer.tar")]
        );
        assert_eq!(options.format, Some(ImageFormat::CpioGz));
        assert_eq!(options.owner, Some(Owner { uid: 0, gid: 0 }));
        assert_eq!(options.output, PathBuf::new());
        assert!(toml::from_str::<BuildOptions>("owner = \"root\"").is_err());
        assert!(toml::from_str::<BuildOptions>("source = \"x\"").is_err());
    }
}
