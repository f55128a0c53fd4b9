//! What Berth's own paths take and answer.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::machine::MachineState;
use crate::spec::VmSpec;

/// A VM.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct BerthVm {
    /// Which.
    pub(crate) id: String,
    /// What its user calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Where it is in its life.
    #[schemars(with = "String")]
    pub(crate) state: MachineState,
    /// The process that runs it.
    pub(crate) pid: u32,
    /// What it is.
    pub(crate) spec: VmSpec,
    /// When its guest started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) started_at: Option<String>,
    /// Berth's version.
    pub(crate) berth_version: &'static str,
}

/// The log.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BerthLog {
    /// What is logged: a level, or directives per module such as `info,berth::vcpu=debug`.
    pub(crate) level: String,
}

/// The window in which a console is shown.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BerthWindow {
    /// Characters from top to bottom.
    pub(crate) rows: u16,
    /// Characters from left to right.
    pub(crate) columns: u16,
}

/// A snapshot to take.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BerthSnapshot {
    /// The folder to make.
    pub(crate) path: PathBuf,
    /// Whether to save all memory or what changed.
    #[serde(default)]
    pub(crate) kind: BerthSnapshotKind,
    /// Whether the guest runs afterwards; without it, if it ran before.
    #[serde(default)]
    pub(crate) resume: Option<bool>,
    /// Whether it must outlast a crash of the host from the moment it is done; it does unless this is false.
    #[serde(default)]
    pub(crate) durable: Option<bool>,
    /// Whether the guest stands still only until its state is saved: a copy of the process then writes the memory as it was, and
    /// the answer comes when that is done. What the guest writes meanwhile takes memory twice.
    #[serde(default)]
    pub(crate) beside: bool,
}

/// How much a snapshot saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BerthSnapshotKind {
    /// All.
    #[default]
    Full,
    /// What changed since the last one.
    Diff,
}
