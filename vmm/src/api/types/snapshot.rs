//! Snapshots, as Firecracker's API has them.
#![allow(clippy::struct_excessive_bools, reason = "they are Firecracker's")]

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::{Described, table};

/// A snapshot to take of a paused VM.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotCreateParams {
    /// The file for the guest's memory.
    pub(crate) mem_file_path: PathBuf,
    /// The file for everything else.
    pub(crate) snapshot_path: PathBuf,
    /// Whether to save all memory or what changed.
    #[serde(default)]
    pub(crate) snapshot_type: SnapshotType,
}

/// How much a snapshot saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) enum SnapshotType {
    /// All.
    #[default]
    Full,
    /// What changed since the last one.
    Diff,
}

/// A snapshot to go on from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what is without effect is read to be accepted")]
pub(crate) struct SnapshotLoadParams {
    /// The file with everything but memory.
    pub(crate) snapshot_path: PathBuf,
    /// The file with the guest's memory: the old way to say it.
    #[serde(default)]
    pub(crate) mem_file_path: Option<PathBuf>,
    /// Where the guest's memory comes from.
    #[serde(default, deserialize_with = "table::optional")]
    pub(crate) mem_backend: Option<MemoryBackend>,
    /// The old name of `track_dirty_pages`.
    #[serde(default)]
    pub(crate) enable_diff_snapshots: bool,
    /// Whether diff snapshots are wanted later.
    #[serde(default)]
    pub(crate) track_dirty_pages: bool,
    /// Whether the guest goes on at once.
    #[serde(default)]
    pub(crate) resume_vm: bool,
    /// Other taps than those in the snapshot.
    #[serde(default, deserialize_with = "table::list")]
    pub(crate) network_overrides: Vec<NetworkOverride>,
    /// Another socket for vsock than that in the snapshot.
    #[serde(default, deserialize_with = "table::optional")]
    pub(crate) vsock_override: Option<VsockOverride>,
    /// Whether the guest's clock passes the time that it missed; without it, it does.
    #[serde(default)]
    pub(crate) clock_realtime: Option<bool>,
    /// Huge pages; only `None` is taken.
    #[serde(default)]
    pub(crate) huge_pages: super::HugePages,
}

/// Where memory comes from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryBackend {
    /// Which kind.
    pub(crate) backend_type: MemoryBackendType,
    /// The file, or the socket of the handler of page faults.
    pub(crate) backend_path: PathBuf,
}

/// Kinds of memory backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum MemoryBackendType {
    /// A file.
    File,
    /// A process that serves page faults.
    Uffd,
}

/// Another tap for an interface.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkOverride {
    /// Which interface.
    pub(crate) iface_id: String,
    /// The tap.
    pub(crate) host_dev_name: String,
}

/// Another socket for vsock.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct VsockOverride {
    /// Where.
    pub(crate) uds_path: PathBuf,
}

impl Described for MemoryBackend {
    const WHAT: &str = "a memory backend; give an object with backend_type and backend_path";
}

impl Described for NetworkOverride {
    const WHAT: &str = "another tap; give an object with iface_id and host_dev_name";
}

impl Described for VsockOverride {
    const WHAT: &str = "another socket; give an object with uds_path";
}
