//! Counters of the API's server: requests by verb, and how long they took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::add;

/// The bounds of the buckets of latency, in microseconds. What takes longer is in none but the total.
pub(crate) const BOUNDS: [u64; 8] = [50, 100, 200, 500, 1_000, 10_000, 100_000, 1_000_000];

/// What the server has done.
#[derive(Debug, Default)]
pub(crate) struct ApiMetrics {
    verbs: [VerbMetrics; VERBS.len()],
}

/// The verbs that are counted on their own; the rest count as the last.
const VERBS: [&str; 6] = ["get", "put", "patch", "post", "delete", "other"];

#[derive(Debug, Default)]
struct VerbMetrics {
    requests: AtomicU64,
    failures: AtomicU64,
    microseconds: AtomicU64,
    buckets: [AtomicU64; BOUNDS.len()],
}

/// What was asked with one verb.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct VerbReport {
    /// The verb.
    pub(crate) verb: &'static str,
    /// Requests that were answered.
    pub(crate) requests: u64,
    /// Those of them that were refused.
    pub(crate) failures: u64,
    /// How long all of them took together, in microseconds.
    pub(crate) microseconds: u64,
    /// How many of them took no longer than 50, 100, 200, 500 us, 1, 10, 100 ms and 1 s.
    pub(crate) buckets: [u64; BOUNDS.len()],
}

impl ApiMetrics {
    /// A request with `verb`, as HTTP writes it, was answered after `took`.
    pub(crate) fn served(&self, verb: &str, failed: bool, took: Duration) {
        let index = VERBS
            .iter()
            .position(|known| known.eq_ignore_ascii_case(verb))
            .unwrap_or(VERBS.len() - 1);
        let metrics = &self.verbs[index];
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        add(&metrics.requests, 1);
        add(&metrics.failures, failed.into());
        add(&metrics.microseconds, microseconds);
        for (bucket, bound) in metrics.buckets.iter().zip(BOUNDS) {
            add(bucket, (microseconds <= bound).into());
        }
    }

    /// The verbs that were used.
    pub(crate) fn report(&self) -> Vec<VerbReport> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let verbs = VERBS.iter().zip(&self.verbs).map(|(verb, metrics)| VerbReport {
            verb,
            requests: get(&metrics.requests),
            failures: get(&metrics.failures),
            microseconds: get(&metrics.microseconds),
            buckets: std::array::from_fn(|index| get(&metrics.buckets[index])),
        });
        verbs.filter(|verb| verb.requests > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_verb_and_in_every_bucket_they_fit() {
        let metrics = ApiMetrics::default();
        metrics.served("GET", false, Duration::from_micros(90));
        metrics.served("GET", true, Duration::from_millis(2));
        metrics.served("BREW", true, Duration::from_secs(9));
        let report = metrics.report();
        assert_eq!(report.len(), 2);
        assert_eq!(
            (report[0].verb, report[0].requests, report[0].failures),
            ("get", 2, 1)
        );
        assert_eq!(report[0].microseconds, 2090);
        assert_eq!(report[0].buckets, [0, 1, 1, 1, 1, 2, 2, 2]);
        assert_eq!((report[1].verb, report[1].buckets), ("other", [0; 8]));
    }
}
