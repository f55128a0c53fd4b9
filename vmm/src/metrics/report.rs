//! The numbers of a VM at one moment, as JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::api::{ApiMetrics, VerbReport};
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
    /// The API's requests.
    pub(crate) api: Vec<VerbReport>,
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
        api: api.report(),
    }
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
    let line = json!({
        "utc_timestamp_ms": report.utc_timestamp_ms,
        "get_api_requests": get,
        "put_api_requests": put,
        "patch_api_requests": patch,
        "berth": serde_json::to_value(report).unwrap_or(Value::Null),
    });
    line.to_string()
}
