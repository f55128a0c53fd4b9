//! Root images made without a hypervisor, without root rights and without mounts, and what an image is.
//!
//! Directories and tar files are laid over one another in a tree in memory; what files hold stays where it is until the
//! image is written. So owners, modes, attributes and device nodes survive that no ordinary user could make on disk.
#![forbid(unsafe_code)]

mod compress;
mod contents;
mod error;
pub mod info;
mod options;
mod output;
mod source;
#[cfg(test)]
mod testing;
mod tree;
mod write;

use std::env;

pub use error::ImageError;
pub use options::{BuildOptions, Built, ImageFormat, Owner};
use output::Output;
pub use output::Partial;
use tree::Tree;

/// What reproducible builds take as the time of everything (reproducible-builds.org/specs/source-date-epoch).
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Makes the image that `options` describe. Its file is complete or not there at all.
pub fn build(options: &BuildOptions) -> Result<Built, ImageError> {
    build_with(options, &Partial::default())
}

/// The same, where `partial` knows of a file that must be removed if the program is ended.
pub fn build_with(options: &BuildOptions, partial: &Partial) -> Result<Built, ImageError> {
    let format = options.format()?;
    write::check(options, format)?;
    if options.from.is_empty() {
        return Err(ImageError::Option {
            field: "from",
            what: "nothing is named; give directories or tar files".to_owned(),
        });
    }
    let (label, uuid) = (options.label_bytes()?, options.uuid_bytes()?);
    let latest = timestamp(options)?;
    let output = Output::create(&options.output, partial)?;
    let mut tree = Tree::new();
    source::lay_all(options, &mut tree, &output.folder())?;
    let name = options.output.display().to_string();
    let job = write::Job {
        label,
        uuid,
        size: options.size.map(|size| size.0),
        ..write::Job::new(&mut tree, latest, format, name)
    };
    let uuid = write::write(&job, &output)?;
    let size = output
        .file()
        .metadata()
        .map_err(ImageError::io(&options.output))?
        .len();
    output.commit()?;
    Ok(Built {
        path: options.output.clone(),
        format,
        size,
        nodes: job.nodes().count() as u64,
        uuid: uuid.map(options::uuid_text),
    })
}

/// A tar file in memory, not compressed, as an initramfs in memory.
pub fn initramfs_of_tar(bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    let mut tree = Tree::new();
    source::lay_bytes(bytes, &mut tree)?;
    let job = write::Job::new(&mut tree, None, ImageFormat::Cpio, "the initramfs".to_owned());
    write::write_cpio(&job, Vec::new())
}

/// The time that nothing in the image is to be later than.
fn timestamp(options: &BuildOptions) -> Result<Option<i64>, ImageError> {
    let (field, seconds) = if let Some(seconds) = options.timestamp {
        ("timestamp", Some(seconds))
    } else {
        let Some(text) = env::var_os(EPOCH).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        (EPOCH, text.to_str().and_then(|text| text.parse().ok()))
    };
    let seconds = seconds.and_then(|seconds| i64::try_from(seconds).ok());
    seconds.map(Some).ok_or_else(|| ImageError::Option {
        field,
        what: "it is no number of seconds since 1970".to_owned(),
    })
}
