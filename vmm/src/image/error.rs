//! Why an image cannot be made or read, each as one sentence for the user.

use std::fmt::Display;
use std::io;
use std::path::Path;

use super::ImageFormat;
use crate::spec::ByteSize;

/// Why an image cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// An option has a value that cannot be.
    #[error("{field}: {what}")]
    Option {
        /// The option.
        field: &'static str,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// A file could not be opened, read or written.
    #[error("{name}: {cause}")]
    Io {
        /// The file.
        name: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A source is broken, or holds what must not be.
    #[error("{name}: {what}")]
    Source {
        /// The source.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The kind of image cannot hold something.
    #[error("{path}: {what}, which {format} cannot hold; {instead}")]
    Unfit {
        /// What it is about, as a path in the image.
        path: String,
        /// What there is of it.
        what: String,
        /// The kind of image.
        format: ImageFormat,
        /// What to do.
        instead: &'static str,
    },
    /// The image would be larger than asked for.
    #[error("size: {size} is too little for what is to be in the image; it needs at least {needs}")]
    TooSmall {
        /// What was asked for.
        size: ByteSize,
        /// The least that does.
        needs: ByteSize,
    },
    /// A program of the system is missing, or not able to do what is needed.
    #[error("{program}: {what}")]
    Tool {
        /// The program.
        program: &'static str,
        /// What is wrong with it, and which package to install.
        what: String,
    },
}

impl ImageError {
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |cause| Self::Io {
            name: path.display().to_string(),
            cause,
        }
    }

    pub(super) fn source(name: &dyn Display, what: impl Into<String>) -> Self {
        Self::Source {
            name: name.to_string(),
            what: what.into(),
        }
    }
}

/// A path in an image as it is shown to users.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
