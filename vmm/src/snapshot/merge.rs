//! A difference and its base become one snapshot.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Instant;

use super::store::Staging;
use super::{Found, SnapshotError, SnapshotId, SnapshotReport, SnapshotTarget, document};
use crate::memory::image;

/// Joins the difference in the directory `difference` with the snapshot in `base` that it builds on, to a full snapshot in `out`.
pub fn merge(base: &Path, difference: &Path, out: &Path) -> Result<SnapshotReport, SnapshotError> {
    let start = Instant::now();
    let (base, difference) = (Found::open(base)?, Found::open(difference)?);
    let unfit = |found: &Found, why: String| SnapshotError::Unjoined {
        path: found.path.clone(),
        why,
    };
    let Some(wanted) = difference.body.base else {
        return Err(unfit(
            &difference,
            "it is a full snapshot and needs no base".to_owned(),
        ));
    };
    if base.body.base.is_some() {
        return Err(unfit(&base, "it is a difference itself".to_owned()));
    }
    if base.body.id != wanted || base.body.memory != difference.body.memory {
        return Err(unfit(
            &difference,
            format!(
                "it builds on the snapshot {wanted}, but {} is {}",
                base.path.display(),
                base.body.id
            ),
        ));
    }
    let (from, changed) = (base.image()?, difference.image()?);
    let write = |cause| SnapshotError::Write {
        path: out.to_owned(),
        cause,
    };
    let id = SnapshotId::random().map_err(write)?;
    let mut staging =
        Staging::new(&SnapshotTarget::Directory(out.to_owned()), &id.to_string()).map_err(write)?;
    let file = staging.create_memory().map_err(write)?;
    let memory = image::merge(&from, &changed, &file, id.0).map_err(write)?;
    file.sync_all().map_err(write)?;
    let mut body = difference.body;
    body.id = id;
    body.base = None;
    let text = document::encode(&body).map_err(|cause| write(std::io::Error::other(cause)))?;
    staging.write_state(&text, true).map_err(write)?;
    staging.commit(true).map_err(write)?;
    Ok(SnapshotReport {
        id,
        memory,
        milliseconds: start.elapsed().as_millis() as u64,
    })
}
