//! What a process that serves the API knows before its first client: a configuration file of Firecracker's, its metadata, where
//! its log and metrics go. Each part of the file is handed to the route that takes it, so file and API cannot differ.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use berth_devices::virtio::net::mmds::MetadataStore;
use serde::Deserialize;
use serde_json::Value;

use super::error::ApiError;
use super::route::Scene;
use super::server::Limits;
use super::side::Side;
use super::types::{
    Balloon, BootSource, CpuConfig, Drive, EntropyDevice, Logger, MachineConfiguration, Metrics, MmdsConfig,
    NetworkInterface, Pmem, SerialDevice, Vsock,
};
use super::{balloon, configure, devices, mmds, observe, pmem};
use crate::events::{EventHub, Identity};
use crate::logging::LogLevel;
use crate::machine::{Machine, read_metadata};
use crate::spec::{self, Fault, VmSpec};
use crate::timing::Timing;

/// A longer file, in MiB, is no configuration but a mistake.
const MIB_MAX: u64 = 1;

/// What is known before the first client.
#[derive(Default)]
pub struct Prepared {
    /// The machine.
    pub spec: VmSpec,
    /// What its guest can ask for.
    pub metadata: Arc<MetadataStore>,
    pub(super) side: Side,
    pub(super) limits: Limits,
}

/// What to prepare.
#[derive(Debug, Default)]
pub struct Preparation {
    /// The machine to begin with.
    pub spec: VmSpec,
    /// A configuration file.
    pub config: Option<PathBuf>,
    /// A file with the guest's metadata.
    pub metadata: Option<PathBuf>,
    /// The most that the metadata may have, in bytes.
    pub metadata_limit: Option<usize>,
    /// The largest body of a request, in bytes.
    pub body_limit: Option<usize>,
    /// A file for metrics.
    pub metrics: Option<PathBuf>,
    /// A file for the log.
    pub log_file: Option<PathBuf>,
    /// The least level that is logged, as Firecracker calls it.
    pub log_level: Option<String>,
    /// The only module that is logged.
    pub log_module: Option<String>,
    /// What changes the log.
    pub log: Option<LogLevel>,
}

/// A configuration file: what `GET /vm/config` answers, and the serial port.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct ConfigFile {
    logger: Option<Logger>,
    metrics: Option<Metrics>,
    machine_config: Option<MachineConfiguration>,
    cpu_config: Option<CpuFile>,
    boot_source: Option<BootSource>,
    drives: Vec<Drive>,
    network_interfaces: Vec<NetworkInterface>,
    vsock: Option<Vsock>,
    balloon: Option<Balloon>,
    entropy: Option<EntropyDevice>,
    serial: Option<SerialDevice>,
    mmds_config: Option<MmdsConfig>,
    #[serde(deserialize_with = "spec::table::list")]
    pmem: Vec<Pmem>,
    memory_hotplug: Option<Value>,
}

/// A CPU template, or the file that holds one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum CpuFile {
    Path(PathBuf),
    Template(Value),
}

impl Preparation {
    /// Prepares it.
    pub fn prepare(self) -> Result<Prepared, Fault> {
        let identity = Identity {
            id: String::new(),
            name: None,
        };
        // Never started: it is what the routes work on.
        let timing = Timing::new(false, Instant::now());
        let mut machine = Machine::new(self.spec, timing, EventHub::new(identity));
        machine.set_log(self.log);
        let mut side = Side::default();
        let mut scene = Scene {
            machine: &mut machine,
            side: &mut side,
        };
        let logger = Logger {
            level: self.log_level,
            log_path: self.log_file,
            show_level: None,
            show_log_origin: None,
            module: self.log_module,
        };
        if logger.log_path.is_some() || logger.level.is_some() || logger.module.is_some() {
            told("log", observe::put_logger(&mut scene, "", logger))?;
        }
        if let Some(metrics_path) = self.metrics {
            told(
                "metrics-path",
                observe::put_metrics(&mut scene, "", Metrics { metrics_path }),
            )?;
        }
        if let Some(path) = &self.config {
            let name = path.display().to_string();
            let text = text(path).map_err(|why| Fault::new(&name, why))?;
            let file = spec::json(&text, "the configuration")
                .map_err(|cause| Fault::new(&name, cause.to_string()))?;
            told(&name, configure_by(file, &mut scene))?;
        }
        let mut limits = Limits::default();
        limits.body = self.body_limit.unwrap_or(limits.body);
        let metadata = machine.metadata().clone();
        // Firecracker takes the one limit for the other.
        if let Some(limit) = self.metadata_limit.or(self.body_limit) {
            metadata.set_limit(limit);
        }
        if let Some(path) = &self.metadata {
            read_metadata(path, &metadata)?;
        }
        Ok(Prepared {
            spec: machine.spec().clone(),
            metadata,
            side,
            limits,
        })
    }
}

fn told(field: &str, result: Result<(), ApiError>) -> Result<(), Fault> {
    result.map_err(|error| Fault::new(field, error.message.trim_end_matches('.')))
}

fn configure_by(file: ConfigFile, scene: &mut Scene<'_>) -> Result<(), ApiError> {
    if let Some(logger) = file.logger {
        observe::put_logger(scene, "", logger)?;
    }
    if let Some(metrics) = file.metrics {
        observe::put_metrics(scene, "", metrics)?;
    }
    if let Some(machine) = file.machine_config {
        configure::put_machine(scene, "", machine)?;
    }
    if let Some(cpu) = file.cpu_config {
        configure::put_cpu(scene, "", cpu.read()?)?;
    }
    if let Some(boot) = file.boot_source {
        configure::put_boot(scene, "", boot)?;
    }
    for drive in file.drives {
        devices::put_drive(scene, &drive.drive_id.clone(), drive)?;
    }
    for net in file.network_interfaces {
        devices::put_net(scene, &net.iface_id.clone(), net)?;
    }
    if let Some(vsock) = file.vsock {
        devices::put_vsock(scene, "", vsock)?;
    }
    if let Some(balloon) = file.balloon {
        balloon::put(scene, "", balloon)?;
    }
    if let Some(entropy) = file.entropy {
        devices::put_entropy(scene, "", entropy)?;
    }
    if let Some(serial) = file.serial {
        devices::put_serial(scene, "", serial)?;
    }
    if let Some(config) = file.mmds_config {
        mmds::put_config(scene, "", config)?;
    }
    for file in file.pmem {
        pmem::put(scene, &file.id.clone(), file)?;
    }
    match file.memory_hotplug {
        Some(plug) => devices::hotplug(scene, "", plug),
        None => Ok(()),
    }
}

impl CpuFile {
    fn read(self) -> Result<CpuConfig, ApiError> {
        let (name, text) = match self {
            Self::Path(path) => {
                let name = path.display().to_string();
                (
                    name.clone(),
                    text(&path).map_err(|why| ApiError::lacks(&name, &why))?,
                )
            }
            Self::Template(value) => ("cpu-config".to_owned(), value.to_string()),
        };
        spec::json(&text, "the CPU template").map_err(|cause| ApiError::lacks(&name, &cause.to_string()))
    }
}

fn text(path: &Path) -> Result<String, String> {
    spec::text(path, MIB_MAX, "configuration").map_err(|cause| cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{MmdsVersion, SerialSpec};

    fn prepare(config: &Value) -> Result<Prepared, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let preparation = Preparation {
            config: Some(path),
            ..Preparation::default()
        };
        preparation.prepare().map_err(|fault| fault.message)
    }

    #[test]
    fn a_configuration_file_says_the_same_as_the_api() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(4096).unwrap();
        let config = serde_json::json!({
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
            "boot-source": {"kernel_image_path": "/proc/self/exe", "boot_args": "a=b"},
            "drives": [{"drive_id": "root", "is_root_device": true, "path_on_host": disk.path()}],
            "network-interfaces": [],
            "cpu-config": {"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1"}]},
            "entropy": {},
            "serial": {"serial_out_path": "/tmp/console"},
            "vsock": null,
            "mmds-config": null,
        });
        let prepared = prepare(&config).unwrap();
        let spec = prepared.spec;
        assert_eq!((spec.cpus, spec.memory.0), (2, 64 << 20));
        assert_eq!(spec.cmdline_base.as_deref(), Some("a=b"));
        assert_eq!(spec.cmdline, "root=/dev/vda rw");
        assert_eq!(spec.serial, SerialSpec::File("/tmp/console".into()));
        assert!(spec.rng && spec.cpu_template.is_some());
        assert!(prepared.side.configured);
    }

    #[test]
    fn what_is_wrong_with_a_configuration_file_is_said() {
        for (config, words) in [
            (
                serde_json::json!({"machine-config": {"vcpu_count": 0, "mem_size_mib": 64}}),
                "vCPU number is invalid",
            ),
            (
                serde_json::json!({"machine-config": {"vcpu_count": 1}}),
                "machine-config",
            ),
            (
                serde_json::json!({"boot-source": {"kernel_image_path": "/none"}}),
                "/none",
            ),
            (serde_json::json!({"drive": []}), "did you mean drives?"),
            (
                serde_json::json!({"cpu-config": "/none/cpu.json"}),
                "/none/cpu.json",
            ),
            (serde_json::json!({"cpu-config": {"x": 1}}), "cpu-config"),
            (
                serde_json::json!({"mmds-config": {"network_interfaces": ["eth0"]}}),
                "no network interface",
            ),
            (
                serde_json::json!({"pmem": [{"id": "p", "path_on_host": "/x"}]}),
                "/x: there is no such file",
            ),
        ] {
            let refused = prepare(&config).err().expect("it is wrong");
            assert!(refused.contains(words), "{refused}");
        }
        let nets = serde_json::json!({"mmds-config": {"version": "V2", "network_interfaces": []}});
        assert!(prepare(&nets).is_err());
        assert_eq!(MmdsVersion::default(), MmdsVersion::V1);
    }
}
