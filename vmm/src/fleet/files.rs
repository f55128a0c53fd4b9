//! The files of the state directory, which are whole whenever they are read.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::FleetError;
use super::error::io_error;
use crate::whole_file;

/// Writes `bytes` to `path`, whole or not at all. `durable`: also if the host loses power.
pub(super) fn write(path: &Path, bytes: &[u8], durable: bool) -> Result<(), FleetError> {
    whole_file::write(path, bytes, durable).map_err(io_error("written", path))
}

/// Writes `value` as JSON.
pub(super) fn write_json(path: &Path, value: &impl Serialize, durable: bool) -> Result<(), FleetError> {
    let mut text = serde_json::to_string_pretty(value).map_err(|cause| FleetError::Spec {
        cause: cause.to_string(),
    })?;
    text.push('\n');
    write(path, text.as_bytes(), durable)
}

/// Reads JSON; nothing if there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FleetError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(io_error("read", path)(error)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|cause| FleetError::Broken {
            path: path.to_owned(),
            cause: cause.to_string(),
        })
}

/// Makes names in a folder survive the host's losing power, as far as its file system can.
pub(super) fn sync_folder(path: &Path) {
    if let Ok(folder) = File::open(path) {
        // Some file systems cannot, and need not.
        let _ = folder.sync_all();
    }
}

/// Removes a file that may not be there.
pub(super) fn remove(path: &Path) -> Result<(), FleetError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removed", path)(error)),
        _ => Ok(()),
    }
}
