//! Log lines that a guest can cause: at most one a second from each place, and a count of those left out.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lets one line a second through.
#[derive(Debug, Default)]
pub struct RateLimit {
    /// Second of the process's life in which the last line went out, plus one; 0 before the first.
    last: AtomicU64,
    suppressed: AtomicU64,
}

impl RateLimit {
    /// A limit that lets the first line through.
    pub const fn new() -> Self {
        Self {
            last: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Whether to write the line now; if so, how many were left out since the last.
    pub fn allow(&self) -> Option<u64> {
        static START: OnceLock<Instant> = OnceLock::new();
        self.allow_at(START.get_or_init(Instant::now).elapsed().as_secs())
    }

    fn allow_at(&self, second: u64) -> Option<u64> {
        // Two threads in the same instant: the swap lets only one of them see the older second.
        if self.last.swap(second + 1, Ordering::Relaxed) == second + 1 {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

/// `tracing::warn!` for what a guest does: at most one line a second from the place where it stands.
#[macro_export]
macro_rules! warn_guest {
    ($($arg:tt)+) => {{
        static LIMIT: $crate::ratelimit::RateLimit = $crate::ratelimit::RateLimit::new();
        match LIMIT.allow() {
            Some(0) => ::tracing::warn!($($arg)+),
            Some(more) => ::tracing::warn!("{} ({more} more like it left out)", format_args!($($arg)+)),
            None => {}
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_goes_out_and_the_rest_is_counted() {
        let limit = RateLimit::new();
        assert_eq!(limit.allow_at(0), Some(0));
        assert_eq!(limit.allow_at(0), None);
        assert_eq!(limit.allow_at(0), None);
        assert_eq!(limit.allow_at(7), Some(2));
        assert_eq!(limit.allow_at(8), Some(0));
    }

    #[test]
    fn each_place_has_its_own_limit() {
        for _ in 0..1000 {
            warn_guest!("descriptor {} is bad", 1);
        }
        warn_guest!("another kind of line");
    }
}
