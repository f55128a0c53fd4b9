//! The numbers of a VM in Prometheus's text format.

use std::fmt::{Display, Write};

use berth_devices::virtio::net::mmds::MMDS_COUNTS;

use super::api::BOUNDS;
use super::report::{DeviceReport, Report};
use super::vcpu::{ASSISTS, EXITS};

/// Writes `report` for Prometheus.
pub(crate) fn prometheus(report: &Report) -> String {
    let mut text = Text(String::new());
    text.family(
        "berth_vm_info",
        "gauge",
        "The VM, its state in a label.",
        [(
            labels(&[
                ("id", &report.id),
                ("name", report.name.as_deref().unwrap_or_default()),
                ("state", &report.state.to_string()),
                ("version", env!("CARGO_PKG_VERSION")),
            ]),
            1,
        )],
    );
    text.family(
        "berth_uptime_seconds",
        "gauge",
        "Seconds since the process started.",
        [(String::new(), seconds(report.uptime_us))],
    );
    text.family(
        "berth_resident_memory_bytes",
        "gauge",
        "Memory of the process that is in RAM, the guest's among it.",
        [(String::new(), report.resident_bytes)],
    );
    text.vcpus(report);
    text.devices(report);
    text.mmds(report);
    text.api(report);
    text.0
}

fn seconds(microseconds: u64) -> f64 {
    std::time::Duration::from_micros(microseconds).as_secs_f64()
}

struct Text(String);

impl Text {
    fn family<V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            self.sample(name, &labels, value);
        }
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn vcpus(&mut self, report: &Report) {
        let by = |names: &'static [&'static str], label: &'static str, values: Vec<Vec<u64>>| {
            let mut samples = Vec::new();
            for (vcpu, values) in values.iter().enumerate() {
                for (name, value) in names.iter().zip(values) {
                    samples.push((labels(&[("vcpu", &vcpu.to_string()), (label, name)]), *value));
                }
            }
            samples
        };
        let exits = report.vcpus.iter().map(|vcpu| vcpu.exits().to_vec()).collect();
        self.family(
            "berth_vcpu_exits_total",
            "counter",
            "How often a vCPU left the guest, and why.",
            by(&EXITS, "reason", exits),
        );
        let assists = report.vcpus.iter().map(|vcpu| vcpu.assist.to_vec()).collect();
        self.family(
            "berth_vcpu_assists_total",
            "counter",
            "What was done for KVM where it interprets guest kernels.",
            by(&ASSISTS, "kind", assists),
        );
    }

    fn devices(&mut self, report: &Report) {
        type Field = fn(&DeviceReport) -> u64;
        let families: [(&str, &str, Field); 6] = [
            ("requests", "Requests that a device answered.", |device| {
                device.requests
            }),
            (
                "from_guest_bytes",
                "Bytes in buffers that the guest gave to be read.",
                |device| device.bytes_from_guest,
            ),
            (
                "to_guest_bytes",
                "Bytes written to the guest's buffers.",
                |device| device.bytes_to_guest,
            ),
            ("turns", "How often a device looked for requests.", |device| {
                device.turns
            }),
            (
                "interrupts",
                "How often a device interrupted the guest.",
                |device| device.interrupts,
            ),
            ("failures", "How often a driver broke the protocol.", |device| {
                device.failures
            }),
        ];
        for (name, help, field) in families {
            let samples = report.devices.iter().map(|device| {
                let labels = labels(&[("kind", device.kind), ("id", &device.id)]);
                (labels, field(device))
            });
            self.family(&format!("berth_device_{name}_total"), "counter", help, samples);
        }
    }

    fn mmds(&mut self, report: &Report) {
        for (name, help) in MMDS_COUNTS {
            let count = report.mmds.get(name).map(|count| (String::new(), *count));
            self.family(&format!("berth_mmds_{name}_total"), "counter", help, count);
        }
    }

    fn api(&mut self, report: &Report) {
        let verbs = &report.api;
        let by_verb = |verb: &str| labels(&[("verb", verb)]);
        self.family(
            "berth_api_failures_total",
            "counter",
            "Requests that the API refused.",
            verbs.iter().map(|verb| (by_verb(verb.verb), verb.failures)),
        );
        let name = "berth_api_request_seconds";
        self.family::<u64>(name, "histogram", "How long the API's requests took.", []);
        for verb in verbs {
            for (bound, count) in BOUNDS.iter().zip(verb.buckets) {
                let labels = labels(&[("verb", verb.verb), ("le", &seconds(*bound).to_string())]);
                self.sample(&format!("{name}_bucket"), &labels, count);
            }
            let all = labels(&[("verb", verb.verb), ("le", "+Inf")]);
            self.sample(&format!("{name}_bucket"), &all, verb.requests);
            self.sample(
                &format!("{name}_sum"),
                &by_verb(verb.verb),
                seconds(verb.microseconds),
            );
            self.sample(&format!("{name}_count"), &by_verb(verb.verb), verb.requests);
        }
    }
}

/// Labels in braces; values may hold anything.
fn labels(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            format!("{name}=\"{value}\"")
        })
        .collect();
    format!("{{{}}}", pairs.join(","))
}
