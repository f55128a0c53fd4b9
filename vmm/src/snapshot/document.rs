//! `vm.json`: all of a snapshot but its memory.
//!
//! ```json
//! {"format": "berth-snapshot", "version": 1, "crc32": "0123abcd", "body": { ... }}
//! ```
//! `version` is that of the body's own layout; components have theirs ([`Components`]). The sum is over the body's text as it
//! stands in the file. A reader refuses another format, a version that it does not know and a sum that does not match, in
//! this order, so that a snapshot of the future is called just that.
#![forbid(unsafe_code)]

use berth_arch::hex;
use berth_arch::x86_64::kind::HostKind;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

use super::Components;
use crate::guest::Streams;
use crate::spec::VmSpec;

const FORMAT: &str = "berth-snapshot";
/// Version of [`Body`].
const VERSION: u32 = 1;

/// Why a description cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON of the right shape.
    #[error("it is no description of a snapshot: {0}")]
    Foreign(String),
    /// Written by a Berth with another layout.
    #[error("it has version {found} of the format, but this Berth reads version {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// Bytes have changed.
    #[error("it has changed since it was written: its checksum does not match")]
    Damaged,
    /// The body is not what it should be.
    #[error("{0}")]
    Body(String),
}

/// A snapshot's id: 16 random bytes, as hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotId(pub(crate) [u8; 16]);

impl SnapshotId {
    pub(crate) fn random() -> std::io::Result<Self> {
        let mut id = [0; 16];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self(id))
    }
}

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::text(&self.0))
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = hex::parse(&text).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| de::Error::custom("an id is 32 hexadecimal digits"))
    }
}

/// What a snapshot says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// Its id, which its memory has too.
    pub id: SnapshotId,
    /// When it was taken, in seconds since 1970.
    pub created: u64,
    /// The Berth that took it.
    pub berth: String,
    /// The host it was taken on.
    pub host: HostFacts,
    /// The shipped guest that it runs, if it does.
    pub guest: Option<String>,
    /// How the shipped guest's streams lead to the host's.
    pub(crate) streams: Streams,
    /// Bytes of RAM.
    pub memory: u64,
    /// For a difference: the snapshot that it builds on.
    pub base: Option<SnapshotId>,
    /// The machine.
    pub spec: VmSpec,
    /// Its state.
    pub components: Components,
}

/// What of a host matters to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// What ran the guest's kernel.
    pub kind: HostKind,
    /// The CPU: maker and signature.
    pub cpu: String,
    /// The kernel's release.
    pub kernel: String,
}

impl HostFacts {
    /// This host's, whose kind is `kind`.
    pub(crate) fn here(kind: HostKind) -> Self {
        Self {
            kind,
            cpu: berth_arch::x86_64::cpuid::host_cpu(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    format: String,
    version: u32,
    crc32: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// The file's text.
pub fn encode(body: &Body) -> Result<Vec<u8>, DocumentError> {
    let wrong = |error: serde_json::Error| DocumentError::Body(error.to_string());
    let body = serde_json::value::to_raw_value(body).map_err(wrong)?;
    let envelope = Envelope {
        format: FORMAT.to_owned(),
        version: VERSION,
        crc32: sum(&body),
        body: &body,
    };
    let mut text = serde_json::to_vec(&envelope).map_err(wrong)?;
    text.push(b'\n');
    Ok(text)
}

fn sum(body: &RawValue) -> String {
    format!("{:08x}", crc32fast::hash(body.get().as_bytes()))
}

/// Reads the file's text.
pub fn decode(text: &[u8]) -> Result<Body, DocumentError> {
    let envelope: Envelope<'_> =
        serde_json::from_slice(text).map_err(|error| DocumentError::Foreign(error.to_string()))?;
    if envelope.format != FORMAT {
        return Err(DocumentError::Foreign(format!(
            "its format is {:?}",
            envelope.format
        )));
    }
    if envelope.version != VERSION {
        return Err(DocumentError::Version {
            found: envelope.version,
        });
    }
    if envelope.crc32 != sum(envelope.body) {
        return Err(DocumentError::Damaged);
    }
    let mut body = serde_json::Deserializer::from_str(envelope.body.get());
    serde_path_to_error::deserialize(&mut body).map_err(|error| DocumentError::Body(error.to_string()))
}
