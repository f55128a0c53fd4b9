//! Disks: what a file says of one, and the short form of the flag.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use berth_devices::storage::{Engine, FileOptions, ImageFormat, NO_MEDIUM};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limit::FlagLimit;
use super::options::{key_value, lossy, number, once, one, path_first, set};
use super::{OptionError, RateLimitSpec, table};

pub(super) const FORM: &str = "PATH[,ro][,format=FORMAT][,overlay=FILE][,serial=NAME][,queues=N][,cache=writethrough][,direct][,engine=ENGINE][,io-thread=N][,bandwidth=SIZE][,ops=NUMBER]";

/// A disk (virtio-blk).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// What the API calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// An image file or a block device; `/dev/null` is a drive without a medium.
    pub path: PathBuf,
    /// What the image's bytes mean.
    #[serde(default)]
    pub format: FormatSpec,
    /// A file that keeps what the guest writes, while the image stays as it is; made if it is not there.
    #[serde(default)]
    pub overlay: Option<PathBuf>,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// What the guest reads as the disk's serial number, at most 20 characters of ASCII.
    #[schemars(length(max = 20))]
    #[serde(default)]
    pub serial: Option<String>,
    /// How many queues the guest may use at once, 1 to 16; one for each virtual CPU at most is of use.
    #[schemars(range(min = 1, max = 16))]
    #[serde(default = "one")]
    pub queues: u16,
    /// When what the guest writes is safe.
    #[serde(default)]
    pub cache: CacheSpec,
    /// Whether the host's page cache is passed by.
    #[serde(default)]
    pub direct: bool,
    /// Who does the reading and writing on the host.
    #[serde(default)]
    pub engine: EngineSpec,
    /// The I/O thread that it belongs to, counted from 0.
    #[serde(default)]
    pub io_thread: u32,
    /// Limits to reading and writing.
    #[serde(default, deserialize_with = "table::optional")]
    pub rate_limit: Option<RateLimitSpec>,
}

/// What an image's bytes mean. It is never guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FormatSpec {
    /// They are the disk's.
    #[default]
    Raw,
    /// A qcow2 image, with the backing files that it names.
    Qcow2,
    /// A qcow2 image if it begins like one, else raw. Only for images that no guest has written as raw ones.
    Detect,
}

impl FormatSpec {
    pub(crate) fn image(self) -> ImageFormat {
        match self {
            Self::Raw => ImageFormat::Raw,
            Self::Qcow2 => ImageFormat::Qcow2,
            Self::Detect => ImageFormat::Detect,
        }
    }
}

/// When what the guest writes is safe from a crash of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheSpec {
    /// When the guest flushes.
    #[default]
    Writeback,
    /// When the write is answered. The guest is told that it need not flush.
    Writethrough,
}

/// Who does a disk's reading and writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EngineSpec {
    /// What the page cache has is done at once; the rest goes to io_uring, or to threads where the host gives none.
    #[default]
    Auto,
    /// Everything goes to io_uring.
    #[serde(rename = "io_uring")]
    IoUring,
    /// Everything goes to threads.
    Threads,
    /// One request after the other.
    Sync,
}

impl Default for DiskSpec {
    fn default() -> Self {
        Self {
            id: None,
            path: PathBuf::new(),
            format: FormatSpec::default(),
            overlay: None,
            read_only: false,
            serial: None,
            queues: one(),
            cache: CacheSpec::default(),
            direct: false,
            engine: EngineSpec::default(),
            io_thread: 0,
            rate_limit: None,
        }
    }
}

impl DiskSpec {
    /// Whether there is anything in the drive.
    pub(crate) fn has_medium(&self) -> bool {
        self.path != Path::new(NO_MEDIUM)
    }

    /// Reads `PATH` and the options behind it, each after a comma.
    pub fn from_option(text: &OsStr) -> Result<Self, OptionError> {
        let (path, parts) = path_first(text, FORM)?;
        let mut disk = Self {
            path,
            ..Self::default()
        };
        let (mut format, mut queues, mut cache) = (None, None, None);
        let (mut engine, mut io_thread) = (None, None);
        let mut limit = FlagLimit::default();
        for part in parts {
            let (key, value) = key_value(&part);
            if limit.take(key, value)? {
                continue;
            }
            match (key, value) {
                (b"ro", None) => once(&mut disk.read_only, "ro")?,
                (b"direct", None) => once(&mut disk.direct, "direct")?,
                (b"serial", Some(value)) => set(&mut disk.serial, value, "serial")?,
                (b"overlay", Some(_)) if disk.overlay.is_some() => return Err(OptionError::Twice("overlay")),
                (b"overlay", Some(value)) => disk.overlay = Some(PathBuf::from(OsStr::from_bytes(value))),
                (b"format", Some(value)) => set(&mut format, value, "format")?,
                (b"queues", Some(value)) => set(&mut queues, value, "queues")?,
                (b"cache", Some(value)) => set(&mut cache, value, "cache")?,
                (b"io-thread", Some(value)) => set(&mut io_thread, value, "io-thread")?,
                (b"engine", Some(value)) => set(&mut engine, value, "engine")?,
                _ => {
                    return Err(OptionError::Unknown {
                        option: lossy(&part),
                        form: FORM,
                    });
                }
            }
        }
        if let Some(queues) = queues {
            disk.queues = number(&queues)?;
        }
        if let Some(thread) = io_thread {
            disk.io_thread = number(&thread)?;
        }
        if let Some(value) = format {
            disk.format = word("format", value, "raw, qcow2 and detect")?;
        }
        if let Some(value) = cache {
            disk.cache = word("cache", value, "writeback and writethrough")?;
        }
        if let Some(value) = engine {
            disk.engine = word("engine", value, "auto, io_uring, threads and sync")?;
        }
        disk.rate_limit = limit.finish();
        Ok(disk)
    }

    /// What it is called as disk `number`, from 1: one by a flag may have no id.
    pub fn name(&self, number: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("disk{number}"))
    }

    /// How its file is used.
    pub(crate) fn options(&self) -> FileOptions {
        FileOptions {
            read_only: self.read_only,
            direct: self.direct,
            format: self.format.image(),
            engine: match self.engine {
                EngineSpec::Auto => Engine::Auto,
                EngineSpec::IoUring => Engine::Ring,
                EngineSpec::Threads => Engine::Threads,
                EngineSpec::Sync => Engine::Sync,
            },
        }
    }
}

/// One of the words that files have for it too.
fn word<T: for<'a> Deserialize<'a>>(
    option: &'static str,
    value: String,
    words: &'static str,
) -> Result<T, OptionError> {
    let read = T::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(
        &value,
    ));
    read.map_err(|_| OptionError::Word { option, value, words })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<DiskSpec, OptionError> {
        DiskSpec::from_option(text.as_ref())
    }

    fn disk(path: &str, read_only: bool, serial: Option<&str>) -> DiskSpec {
        DiskSpec {
            path: path.into(),
            read_only,
            serial: serial.map(str::to_owned),
            ..DiskSpec::default()
        }
    }

    #[test]
    fn disks_with_their_options_in_any_order() {
        for (text, expected) in [
            ("a.img", disk("a.img", false, None)),
            ("a.img,ro", disk("a.img", true, None)),
            ("a.img,serial=x,ro", disk("a.img", true, Some("x"))),
            ("a,,b.img,serial=1,,2=3", disk("a,b.img", false, Some("1,2=3"))),
            ("a,,,ro", disk("a,", true, None)),
            ("key=value", disk("key=value", false, None)),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
        assert_eq!(read("a,format=qcow2").unwrap().format, FormatSpec::Qcow2);
        let used = read("a,queues=4,direct,engine=io_uring,cache=writethrough").unwrap();
        assert_eq!((used.queues, used.direct), (4, true));
        assert_eq!(
            (used.engine, used.cache),
            (EngineSpec::IoUring, CacheSpec::Writethrough)
        );
    }

    #[test]
    fn each_mistake_has_its_sentence() {
        for (text, expected) in [
            ("", format!("\"\" names no file; write it as {FORM}")),
            (",ro", format!("\",ro\" names no file; write it as {FORM}")),
            (
                "a,rw",
                format!(
                    "unknown option \"rw\"; it takes {FORM}, and a comma that is part of a name is written twice"
                ),
            ),
            (
                "a,ro=1",
                format!(
                    "unknown option \"ro=1\"; it takes {FORM}, and a comma that is part of a name is written twice"
                ),
            ),
            ("a,ro,ro", "the option ro is given twice; give it once".to_owned()),
            (
                "a,direct,direct",
                "the option direct is given twice; give it once".to_owned(),
            ),
            (
                "a,serial=1,serial=2",
                "the option serial is given twice; give it once".to_owned(),
            ),
            (
                "a,queues=x",
                "\"x\" is not a number; give a whole number".to_owned(),
            ),
            (
                "a,format=vmdk",
                "format=vmdk is none of raw, qcow2 and detect; choose one of them".to_owned(),
            ),
            (
                "a,engine=fast",
                "engine=fast is none of auto, io_uring, threads and sync; choose one of them".to_owned(),
            ),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), expected, "{text}");
        }
    }
}
