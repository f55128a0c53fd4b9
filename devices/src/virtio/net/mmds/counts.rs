//! What the service has done, in numbers, under the names that Firecracker's metrics have for them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Something that is counted. Its number is its place in [`MMDS_COUNTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Accepted,
    Lost,
    Unusual,
    BadEthernet,
    InvalidToken,
    NoToken,
    Received,
    SentBytes,
    Sent,
    SendError,
    SentFrames,
    Connected,
    Disconnected,
}

/// What is counted: a name, and what it means.
pub const MMDS_COUNTS: [(&str, &str); 13] = [
    (
        "rx_accepted",
        "Frames of the guest's that were for the metadata service.",
    ),
    (
        "rx_accepted_err",
        "Frames for the metadata service that were lost for want of room for an answer.",
    ),
    (
        "rx_accepted_unusual",
        "Frames for the metadata service that nothing answers.",
    ),
    (
        "rx_bad_eth",
        "Frames of the guest's that are too short to be any.",
    ),
    (
        "rx_invalid_token",
        "Requests for metadata with a token that is not valid.",
    ),
    ("rx_no_token", "Requests for metadata that lack a token."),
    ("rx_count", "Frames that the metadata service has worked on."),
    ("tx_bytes", "Bytes in frames of the metadata service's."),
    (
        "tx_count",
        "How often the metadata service gave the guest a frame.",
    ),
    (
        "tx_errors",
        "Frames of the metadata service's for which the guest had too little room.",
    ),
    (
        "tx_frames",
        "Frames of the metadata service's that the guest was given.",
    ),
    (
        "connections_created",
        "Connections to the metadata service that were opened.",
    ),
    (
        "connections_destroyed",
        "Connections to the metadata service that ended.",
    ),
];

/// The numbers, counted by all cards of a VM.
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; MMDS_COUNTS.len()]);

impl Counters {
    pub(super) fn add(&self, event: Event, count: u64) {
        self.0[event as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// The numbers at this moment, in the order of [`MMDS_COUNTS`].
    pub(super) fn get(&self) -> [u64; MMDS_COUNTS.len()] {
        self.0.each_ref().map(|counter| counter.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_has_the_name_that_firecracker_gives_it() {
        for (event, name) in [
            (Event::Accepted, "rx_accepted"),
            (Event::NoToken, "rx_no_token"),
            (Event::Received, "rx_count"),
            (Event::SentBytes, "tx_bytes"),
            (Event::Sent, "tx_count"),
            (Event::SentFrames, "tx_frames"),
            (Event::Disconnected, "connections_destroyed"),
        ] {
            let counters = Counters::default();
            counters.add(event, 3);
            let at = MMDS_COUNTS.iter().position(|(known, _)| *known == name).unwrap();
            assert_eq!(
                (counters.get()[at], counters.get().iter().sum::<u64>()),
                (3, 3),
                "{name}"
            );
        }
    }
}
