//! The numbers of a VM in Prometheus's text format.

use std::fmt::{Display, Write};

use super::api::BOUNDS;
use super::report::Report;

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
