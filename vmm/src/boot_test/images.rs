//! Images that a test file has made before its VMs run.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::expand::{Scope, check_name, from_serde};
use super::file::{FileFault, Source};
use crate::image::{self, BuildOptions, ImageFormat, Partial};

/// An image to be made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What it is made of, and where it will be.
    pub options: BuildOptions,
    /// What is wrong if it cannot be made, but for why.
    pub fault: FileFault,
}

impl Setup {
    /// Makes it; nothing is left of it once `partial` is discarded.
    pub fn build(&self, partial: &Partial) -> Result<(), FileFault> {
        match image::build_with(&self.options, partial) {
            Ok(_) => Ok(()),
            Err(error) => Err(FileFault {
                message: error.to_string(),
                ..self.fault.clone()
            }),
        }
    }
}

/// The images of a file, each with the variable for its path.
pub(super) fn read(source: &Source, scope: &Scope<'_>) -> Result<Vec<(String, Setup)>, FileFault> {
    let mut setups = Vec::new();
    for (name, table) in &source.test.image {
        let field = format!("image.{name}");
        check_name(source, &field, name, "an image")?;
        let mut table = table.clone();
        scope.fill_value(source, &field, &mut table)?;
        if table.get("output").is_some() {
            let message =
                format!("the test puts it where it wants, and ${{{field}}} says where that is; leave it out");
            return Err(source.fault(format!("{field}.output"), message));
        }
        let mut options: BuildOptions =
            serde_path_to_error::deserialize(table).map_err(|error| from_serde(source, &field, &error))?;
        if options.from.iter().any(|path| path.as_os_str() == "-") {
            let message = "a test has no standard input; name directories and tar files";
            return Err(source.fault(format!("{field}.from"), message));
        }
        let format = *options.format.get_or_insert(ImageFormat::Ext4);
        options.take_paths_from(source.folder());
        options.output = place(source, name, format, scope.images);
        let fault = source.fault(field.clone(), "");
        setups.push((field, Setup { options, fault }));
    }
    Ok(setups)
}

/// Where image `name` will be: two files may have images of one name.
fn place(source: &Source, name: &str, format: ImageFormat, folder: &Path) -> PathBuf {
    let path = source.path.to_string_lossy();
    let number = crc32fast::hash(path.as_bytes());
    folder.join(format!("{number:08x}-{name}.{format}"))
}
