//! The metadata service in a description: what a guest is told at a link-local address.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use berth_devices::virtio::net::mmds::{self, MmdsConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NetSpec, VmSpec};

/// Metadata for the guest, by HTTP on its network interfaces, as Firecracker's MMDS and EC2's instance metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MmdsSpec {
    /// Whether the guest must fetch a token first.
    pub version: MmdsVersion,
    /// The interfaces on which it answers, by their ids or as `net1` and so on; all, if none is named.
    pub nets: Vec<String>,
    /// Where it answers, from 169.254.1.0 to 169.254.254.255.
    pub address: Ipv4Addr,
    /// Whether it answers in plain text whatever the guest asks for, as EC2 does.
    pub imds_compat: bool,
    /// A file with the metadata, a JSON object, read when the VM starts.
    pub file: Option<PathBuf>,
}

/// Versions of the metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum MmdsVersion {
    /// Anybody may ask.
    #[default]
    V1,
    /// Only with a token.
    V2,
}

impl Default for MmdsSpec {
    fn default() -> Self {
        Self {
            version: MmdsVersion::default(),
            nets: Vec::new(),
            address: mmds::DEFAULT_ADDRESS,
            imds_compat: false,
            file: None,
        }
    }
}

impl MmdsSpec {
    /// How it answers on interface `number`, from 1; not at all, perhaps.
    pub(crate) fn on(&self, number: usize, net: &NetSpec) -> Option<MmdsConfig> {
        let named = self.nets.is_empty() || self.nets.contains(&net.name(number));
        named.then_some(MmdsConfig {
            address: self.address,
            tokens: self.version == MmdsVersion::V2,
            imds_compat: self.imds_compat,
        })
    }

    /// What is wrong with it.
    pub(super) fn fault(&self, spec: &VmSpec) -> Option<String> {
        let names: Vec<_> = (1..)
            .zip(&spec.nets)
            .map(|(number, net)| net.name(number))
            .collect();
        if names.is_empty() {
            return Some(
                "there is no network interface for it to answer on; give one, or leave it out".to_owned(),
            );
        }
        if let Some(unknown) = self.nets.iter().find(|name| !names.contains(name)) {
            let names = names.join(", ");
            return Some(format!(
                "there is no network interface {unknown:?}; there are {names}"
            ));
        }
        if !mmds::is_possible_address(self.address) {
            let address = self.address;
            return Some(format!(
                "the address {address} is not for metadata; give one from 169.254.1.0 to 169.254.254.255"
            ));
        }
        None
    }
}
