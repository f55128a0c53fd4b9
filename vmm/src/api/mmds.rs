//! The metadata service: what the guest can ask for, and where it is answered.

use berth_devices::virtio::net::mmds::{MetadataError, is_possible_address};
use hyper::StatusCode;
use serde_json::Value;

use super::configure::{amend, before_start};
use super::error::ApiError;
use super::route::Scene;
use super::types::{MmdsConfig, MmdsContents};
use crate::spec::{MmdsSpec, VmSpec};

impl From<MetadataError> for ApiError {
    fn from(error: MetadataError) -> Self {
        match error {
            MetadataError::TooLarge { .. } => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("The MMDS patch or data request doesn't fit: {error}."),
            ),
            MetadataError::Empty => Self::bad("The MMDS data store is not initialized."),
        }
    }
}

/// `GET /mmds`
pub(crate) fn get(scene: &mut Scene<'_>) -> Result<MmdsContents, ApiError> {
    match scene.machine.metadata().get() {
        Value::Object(contents) => Ok(MmdsContents(contents)),
        _ => Ok(MmdsContents::default()),
    }
}

/// `PUT /mmds`
pub(crate) fn put(scene: &mut Scene<'_>, _: &str, contents: MmdsContents) -> Result<(), ApiError> {
    Ok(scene.machine.metadata().put(Value::Object(contents.0))?)
}

/// `PATCH /mmds`
pub(crate) fn patch(scene: &mut Scene<'_>, _: &str, change: MmdsContents) -> Result<(), ApiError> {
    Ok(scene.machine.metadata().patch(Value::Object(change.0))?)
}

/// `PUT /mmds/config`
pub(crate) fn put_config(scene: &mut Scene<'_>, _: &str, config: MmdsConfig) -> Result<(), ApiError> {
    before_start(scene)?;
    check(&config, scene.machine.spec())?;
    amend(scene, |spec| {
        let file = spec.mmds.take().and_then(|mmds| mmds.file);
        spec.mmds = Some(MmdsSpec {
            version: config.version,
            nets: config.network_interfaces,
            address: config.ipv4_address,
            imds_compat: config.imds_compat,
            file,
        });
    })
}

fn check(config: &MmdsConfig, spec: &VmSpec) -> Result<(), ApiError> {
    if config.network_interfaces.is_empty() {
        return Err(ApiError::bad(
            "network_interfaces: The list of network interface IDs that allow forwarding MMDS requests is empty.",
        ));
    }
    let known = |id: &String| (1..).zip(&spec.nets).any(|(number, net)| net.name(number) == *id);
    if let Some(id) = config.network_interfaces.iter().find(|id| !known(id)) {
        return Err(ApiError::bad(format!(
            "network_interfaces: there is no network interface {id:?}; PUT /network-interfaces/{id} first."
        )));
    }
    if !is_possible_address(config.ipv4_address) {
        return Err(ApiError::bad(format!(
            "ipv4_address: The MMDS IPv4 address is not link local: {}; give one from 169.254.1.0 to 169.254.254.255.",
            config.ipv4_address
        )));
    }
    Ok(())
}

/// The service as Firecracker describes it.
pub(crate) fn of(spec: &VmSpec) -> Option<MmdsConfig> {
    let mmds = spec.mmds.as_ref()?;
    let on = (1..)
        .zip(&spec.nets)
        .filter(|(number, net)| mmds.on(*number, net).is_some());
    Some(MmdsConfig {
        version: mmds.version,
        network_interfaces: on.map(|(number, net)| net.name(number)).collect(),
        ipv4_address: mmds.address,
        imds_compat: mmds.imds_compat,
    })
}
