//! The numbers of a VM at one moment, as JSON.

use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use berth_devices::virtio::counters::DeviceCounts;
use berth_devices::virtio::net::mmds::MMDS_COUNTS;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::api::{ApiMetrics, VerbReport};
use super::vcpu::VcpuReport;
use crate::machine::{Machine, MachineState};

/// The numbers of a VM at one moment.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Report {
    /// When, in milliseconds since 1970.
    pub(crate) utc_timestamp_ms: u64,
    /// Which VM.
    pub(crate) id: String,
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// `not started`, `running` or `paused`.
    #[schemars(with = "String")]
    pub(crate) state: MachineState,
    /// Microseconds since the process started.
    pub(crate) uptime_us: u64,
    /// Memory of the process that is in the host's RAM, in bytes, the guest's among it.
    pub(crate) resident_bytes: u64,
    /// The virtual CPUs, in their order.
    pub(crate) vcpus: Vec<VcpuReport>,
    /// The virtio devices, in the order the guest sees them.
    pub(crate) devices: Vec<DeviceReport>,
    /// The metadata service, all interfaces together.
    pub(crate) mmds: BTreeMap<&'static str, u64>,
    /// The API's requests.
    pub(crate) api: Vec<VerbReport>,
}

/// The counters of one device at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct DeviceReport {
    /// `blk`, `net` and so on.
    pub(crate) kind: &'static str,
    /// Which of its kind: the name that the description gives it, or its number.
    pub(crate) id: String,
    /// Requests that were answered.
    pub(crate) requests: u64,
    /// Bytes in the buffers that the guest gave to be read.
    pub(crate) bytes_from_guest: u64,
    /// Bytes that were written to the guest's buffers.
    pub(crate) bytes_to_guest: u64,
    /// How often the device looked for requests.
    pub(crate) turns: u64,
    /// How often the guest was interrupted.
    pub(crate) interrupts: u64,
    /// How often the guest's driver broke the protocol.
    pub(crate) failures: u64,
}

/// Takes the numbers of `machine`.
pub(crate) fn report(machine: &Machine, api: &ApiMetrics) -> Report {
    let identity = machine.events().vm().clone();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Report {
        utc_timestamp_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        id: identity.id,
        name: identity.name,
        state: machine.state(),
        uptime_us: u64::try_from(machine.uptime().as_micros()).unwrap_or(u64::MAX),
        resident_bytes: resident(),
        vcpus: machine.vcpu_counters().map(|vcpu| vcpu.report()).collect(),
        devices: devices(machine),
        mmds: MMDS_COUNTS
            .iter()
            .zip(machine.metadata().counts())
            .map(|((name, _), count)| (*name, count))
            .collect(),
        api: api.report(),
    }
}

fn devices(machine: &Machine) -> Vec<DeviceReport> {
    let spec = machine.spec();
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    // The shipped guest's own root comes before the disks of the description.
    let own_disks = usize::from(spec.kernel.is_none());
    let report = |(kind, counts): (&'static str, DeviceCounts)| {
        let number = numbers.entry(kind).or_default();
        let at = *number;
        *number += 1;
        let named = match kind {
            "blk" => at
                .checked_sub(own_disks)
                .and_then(|at| spec.disks.get(at)?.id.clone()),
            "pmem" => spec.pmem.get(at).and_then(|pmem| pmem.id.clone()),
            "net" => spec.nets.get(at).and_then(|net| net.id.clone()),
            _ => None,
        };
        DeviceReport {
            kind,
            id: named.unwrap_or_else(|| at.to_string()),
            requests: counts.requests,
            bytes_from_guest: counts.read,
            bytes_to_guest: counts.written,
            turns: counts.turns,
            interrupts: counts.interrupts,
            failures: counts.failures,
        }
    };
    machine.device_counts().map(report).collect()
}

/// Memory of this process that is in RAM, in bytes; 0 where the system does not say.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * rustix::param::page_size() as u64
}

/// The numbers as Firecracker writes them, for what means the same there; Berth's own stand below `berth`.
pub(crate) fn firecracker_line(report: &Report) -> String {
    let mut requests = [Map::new(), Map::new(), Map::new()];
    for verb in &report.api {
        let index = ["get", "put", "patch"]
            .iter()
            .position(|known| *known == verb.verb);
        if let Some(index) = index {
            requests[index].insert("requests".to_owned(), verb.requests.into());
            requests[index].insert("failures".to_owned(), verb.failures.into());
        }
    }
    let [get, put, patch] = requests;
    let sum = |of: fn(&VcpuReport) -> u64| report.vcpus.iter().map(of).sum::<u64>();
    let line = json!({
        "utc_timestamp_ms": report.utc_timestamp_ms,
        "get_api_requests": get,
        "put_api_requests": put,
        "patch_api_requests": patch,
        "vcpu": {
            "exit_io_in": sum(|vcpu| vcpu.port_read),
            "exit_io_out": sum(|vcpu| vcpu.port_write),
            "exit_mmio_read": sum(|vcpu| vcpu.mmio_read),
            "exit_mmio_write": sum(|vcpu| vcpu.mmio_write),
        },
        "mmds": &report.mmds,
        "berth": serde_json::to_value(report).unwrap_or(Value::Null),
    });
    line.to_string()
}
