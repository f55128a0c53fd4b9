//! Root images made without a hypervisor, without root rights and without mounts, and what an image is.
//!
//! Directories and tar files are laid over one another in a tree in memory; what files hold stays where it is until the
//! image is written. So owners, modes, attributes and device nodes survive that no ordinary user could make on disk.
#![forbid(unsafe_code)]

mod error;
mod options;

pub use error::ImageError;
pub use options::{BuildOptions, Built, ImageFormat, Owner};

/// Makes the image that `options` describe. Its file is complete or not there at all.
pub fn build(options: &BuildOptions) -> Result<Built, ImageError> {
    let format = options.format()?;
    Err(ImageError::Option {
        field: "format",
        what: format!("{format} images cannot be made by this version"),
    })
}
