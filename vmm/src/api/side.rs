//! What Firecracker's API knows of a VM that has no place in a [`VmSpec`](crate::spec::VmSpec): what was asked for without
//! effect, and what concerns the process rather than the VM.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::observe::MetricsFile;
use super::types::{BootSource, CacheType, EntropyDevice, HugePages, IoEngine, Logger, MachineConfiguration};
use crate::metrics::ApiMetrics;
use crate::spec::VmSpec;

/// Beside the machine.
#[derive(Default)]
pub(crate) struct Side {
    /// What the server counts.
    pub(crate) api: Arc<ApiMetrics>,
    /// What the VM file and the flags append to the kernel's command line, before anything the API appends.
    pub(crate) cmdline: Option<String>,
    pub(crate) boot: Option<BootSource>,
    pub(crate) track_dirty_pages: bool,
    /// What was said about drives, by their names.
    pub(crate) drives: BTreeMap<String, DriveExtra>,
    /// The file in memory that the root file system is on, by its name.
    pub(crate) root_pmem: Option<String>,
    pub(crate) entropy: Option<EntropyDevice>,
    pub(crate) logger: Option<Logger>,
    pub(crate) metrics: Option<MetricsFile>,
    /// Whether something was configured that a snapshot would bring along.
    pub(crate) configured: bool,
    /// When the guest started.
    pub(crate) started: Option<SystemTime>,
}

/// What a disk's description has no place for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DriveExtra {
    pub(crate) root: bool,
    pub(crate) partuuid: Option<String>,
    pub(crate) cache: CacheType,
    pub(crate) engine: IoEngine,
}

impl Side {
    /// The machine as Firecracker describes it.
    pub(crate) fn machine(&self, spec: &VmSpec) -> MachineConfiguration {
        MachineConfiguration {
            vcpu_count: spec.cpus,
            mem_size_mib: spec.memory.0 >> 20,
            smt: false,
            track_dirty_pages: self.track_dirty_pages,
            huge_pages: HugePages::None,
            cpu_template: None,
        }
    }
}
