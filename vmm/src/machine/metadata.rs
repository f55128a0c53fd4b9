//! Metadata from a file, for a guest that will ask for it.

use std::path::Path;

use berth_devices::virtio::net::mmds::MetadataStore;
use serde_json::{Map, Value};

use super::MachineError;
use crate::spec::{self, Fault, VmSpec};

/// A longer file, in MiB, is no metadata but a mistake.
const MIB_MAX: u64 = 16;

/// Reads the file that `spec` names into `store`, if it names one and nobody has put anything there before.
pub(super) fn load(spec: &VmSpec, store: &MetadataStore) -> Result<(), MachineError> {
    let Some(file) = spec.mmds.as_ref().and_then(|mmds| mmds.file.as_deref()) else {
        return Ok(());
    };
    if store.is_empty() {
        read(file, store).map_err(|fault| MachineError::Faults(vec![fault]))?;
    }
    Ok(())
}

/// Reads `file` into `store`.
pub(crate) fn read(file: &Path, store: &MetadataStore) -> Result<(), Fault> {
    let fault = |why: String| Fault::new("mmds", format!("{}: {why}", file.display()));
    let text = spec::text(file, MIB_MAX, "metadata").map_err(|cause| fault(cause.to_string()))?;
    let object: Map<String, Value> =
        spec::json(&text, "the metadata").map_err(|cause| fault(cause.to_string()))?;
    store
        .put(Value::Object(object))
        .map_err(|cause| fault(format!("the metadata does not fit: {cause}")))
}
