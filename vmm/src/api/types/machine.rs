//! The machine itself: what it is, what it boots, what it does.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Balloon, Drive, EntropyDevice, MmdsConfig, NetworkInterface, Pmem, Vsock};
use crate::spec::{Capability, CpuidModifier, MsrModifier, table};

/// Which VM this is and where it is in its life.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct InstanceInfo {
    /// The program: `Berth`.
    pub(crate) app_name: &'static str,
    /// Which VM.
    pub(crate) id: String,
    /// Where it is in its life.
    pub(crate) state: InstanceState,
    /// Berth's version.
    pub(crate) vmm_version: &'static str,
}

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) enum InstanceState {
    /// It can be configured.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Its guest runs.
    Running,
    /// Its guest stands still.
    Paused,
}

/// The version of the API that is spoken here, and of the program that speaks it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FirecrackerVersion {
    /// The version of Firecracker whose API this is.
    pub(crate) firecracker_version: &'static str,
    /// Berth's own version.
    pub(crate) berth_version: &'static str,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineConfiguration {
    /// How many virtual CPUs.
    #[schemars(range(min = 1, max = 254))]
    pub(crate) vcpu_count: u32,
    /// Memory in MiB.
    #[schemars(range(min = 1))]
    pub(crate) mem_size_mib: u64,
    /// Simultaneous multithreading. Berth shows the guest a core for each virtual CPU, so only `false` is taken.
    #[serde(default)]
    pub(crate) smt: bool,
    /// Whether diff snapshots are wanted. Without effect: Berth tracks dirty pages when a snapshot asks for it.
    #[serde(default)]
    pub(crate) track_dirty_pages: bool,
    /// Huge pages. Only `None` is taken.
    #[serde(default)]
    pub(crate) huge_pages: HugePages,
    /// A static CPU template. Only `None` is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_template: Option<CpuTemplate>,
}

/// What is to change about the machine.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineUpdate {
    /// How many virtual CPUs.
    #[serde(default)]
    pub(crate) vcpu_count: Option<u32>,
    /// Memory in MiB.
    #[serde(default)]
    pub(crate) mem_size_mib: Option<u64>,
    /// Simultaneous multithreading; only `false` is taken.
    #[serde(default)]
    pub(crate) smt: Option<bool>,
    /// Whether diff snapshots are wanted; without effect.
    #[serde(default)]
    pub(crate) track_dirty_pages: Option<bool>,
    /// Huge pages; only `None` is taken.
    #[serde(default)]
    pub(crate) huge_pages: Option<HugePages>,
    /// A static CPU template; only `None` is taken.
    #[serde(default)]
    pub(crate) cpu_template: Option<CpuTemplate>,
}

/// Kinds of huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) enum HugePages {
    /// Pages of 4 KiB.
    #[default]
    None,
    /// Transparent huge pages.
    Transparent,
    /// Pages of 2 MiB from hugetlbfs.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// Firecracker's static CPU templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(clippy::upper_case_acronyms)]
pub(crate) enum CpuTemplate {
    /// For C3.
    C3,
    /// For T2.
    T2,
    /// For T2 and Skylake.
    T2S,
    /// For T2 and Cascade Lake.
    T2CL,
    /// For AMD.
    T2A,
    /// For Arm.
    V1N1,
    /// No template.
    None,
}

/// A custom CPU template.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CpuConfig {
    /// Capabilities that KVM must have, or with an exclamation mark need not have.
    pub(crate) kvm_capabilities: Vec<Capability>,
    /// Changes to CPUID.
    #[serde(deserialize_with = "table::list")]
    pub(crate) cpuid_modifiers: Vec<CpuidModifier>,
    /// Changes to model-specific registers.
    #[serde(deserialize_with = "table::list")]
    pub(crate) msr_modifiers: Vec<MsrModifier>,
    /// Changes to registers of Arm CPUs, which are refused.
    pub(crate) reg_modifiers: Vec<serde_json::Value>,
    /// Changes to features of Arm CPUs, which are refused.
    pub(crate) vcpu_features: Vec<serde_json::Value>,
}

/// What the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootSource {
    /// The kernel: ELF or bzImage, compressed or not.
    pub(crate) kernel_image_path: PathBuf,
    /// An initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) initrd_path: Option<PathBuf>,
    /// The kernel's arguments. Those for the devices, and for hosts that interpret guest kernels, are added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) boot_args: Option<String>,
}

/// Something to do at once.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InstanceActionInfo {
    /// What.
    pub(crate) action_type: ActionType,
}

/// What can be done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum ActionType {
    /// Write the metrics to their file.
    FlushMetrics,
    /// Build the machine and let its guest run.
    InstanceStart,
    /// Press Ctrl-Alt-Del on the guest's keyboard.
    SendCtrlAltDel,
}

/// The state to bring the VM to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vm {
    /// Which.
    pub(crate) state: VmState,
}

/// States to bring a VM to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum VmState {
    /// Stand still.
    Paused,
    /// Go on.
    Resumed,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logger {
    /// The least level that is logged, in any case of letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) level: Option<String>,
    /// A file or a pipe for the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log_path: Option<PathBuf>,
    /// Without effect: the level is always shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) show_level: Option<bool>,
    /// Without effect: the module is always shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) show_log_origin: Option<bool>,
    /// The only module that is logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) module: Option<String>,
}

/// Where metrics go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metrics {
    /// A file or a pipe; a line of JSON is written every 60 s and at FlushMetrics.
    pub(crate) metrics_path: PathBuf,
}

/// The whole configuration.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct FullVmConfiguration {
    pub(crate) balloon: Option<Balloon>,
    pub(crate) drives: Vec<Drive>,
    pub(crate) boot_source: Option<BootSource>,
    pub(crate) cpu_config: Option<CpuConfig>,
    pub(crate) logger: Option<Logger>,
    pub(crate) machine_config: MachineConfiguration,
    pub(crate) metrics: Option<Metrics>,
    pub(crate) memory_hotplug: Option<serde_json::Value>,
    pub(crate) mmds_config: Option<MmdsConfig>,
    pub(crate) network_interfaces: Vec<NetworkInterface>,
    pub(crate) pmem: Vec<Pmem>,
    pub(crate) vsock: Option<Vsock>,
    pub(crate) entropy: Option<EntropyDevice>,
}
