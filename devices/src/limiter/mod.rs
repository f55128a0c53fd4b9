//! A limit to how much a device does: bytes and operations by token buckets, and a timer for when there is more.
//!
//! ```text
//!   admit(bytes) ── there is enough: taken ──▶ true
//!                └─ else: the timer is set ──▶ false: the request stays in its ring
//!   the timer rings ──▶ the device asks again
//! ```

#![forbid(unsafe_code)]

mod bucket;

use std::io;
use std::time::{Duration, Instant};

pub use bucket::BucketConfig;

use crate::timer::Timer;
use crate::virtio::device::EventSource;
use bucket::Bucket;

/// The limits of a device or queue. What is absent is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimiterConfig {
    /// Bytes.
    pub bandwidth: Option<BucketConfig>,
    /// Requests, or frames.
    pub ops: Option<BucketConfig>,
}

/// New limits. What is absent stays as it is; a bucket without a size takes the limit away.
pub type LimiterChange = LimiterConfig;

/// A limiter. The device lists [`source`](Self::source) among its event sources.
#[derive(Debug)]
pub struct Limiter {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
    timer: Timer,
    waits: bool,
    start: Instant,
}

impl Limiter {
    /// A limiter with full buckets. It fails only if the host has no descriptor to give.
    pub fn new(config: LimiterConfig) -> io::Result<Self> {
        let mut limiter = Self {
            bandwidth: None,
            ops: None,
            timer: Timer::new()?,
            waits: false,
            start: Instant::now(),
        };
        limiter.change(config);
        Ok(limiter)
    }

    /// Ready when what was not admitted may be.
    pub fn source(&self, token: u32) -> EventSource {
        EventSource {
            fd: self.timer.fd(),
            token,
        }
    }

    /// Whether there is any limit.
    pub fn limits(&self) -> bool {
        self.bandwidth.is_some() || self.ops.is_some()
    }

    /// Whether one operation of `bytes` bytes may be done now; then it is counted. If not, the timer is set.
    pub fn admit(&mut self, bytes: u64) -> bool {
        if !self.limits() {
            return true;
        }
        self.admit_at(bytes, self.start.elapsed().as_nanos() as u64)
    }

    fn admit_at(&mut self, bytes: u64, now: u64) -> bool {
        let mut buckets = [(&mut self.bandwidth, bytes), (&mut self.ops, 1)];
        let mut wait = 0;
        for (bucket, amount) in &mut buckets {
            if let Some(bucket) = bucket
                && !bucket.allows(*amount, now)
            {
                wait = wait.max(bucket.wait(*amount));
            }
        }
        if wait > 0 {
            self.waits = true;
            self.timer.once(Duration::from_nanos(wait));
            return false;
        }
        for (bucket, amount) in buckets {
            if let Some(bucket) = bucket {
                bucket.take(amount);
            }
        }
        self.waits = false;
        true
    }

    /// Whether something was not admitted and its time has not come.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// Whether the timer rang: then it is time to ask again.
    pub fn rang(&mut self) -> bool {
        let rang = self.timer.rang();
        self.waits &= !rang;
        rang
    }

    /// Nothing waits any more: the queue stopped.
    pub fn forget(&mut self) {
        self.waits = false;
        self.timer.stop();
    }

    /// Sets new limits, with full buckets. What waits may be asked about again.
    pub fn change(&mut self, change: LimiterChange) {
        let now = self.start.elapsed().as_nanos() as u64;
        if let Some(config) = change.bandwidth {
            self.bandwidth = Bucket::new(config, now);
        }
        if let Some(config) = change.ops {
            self.ops = Bucket::new(config, now);
        }
        self.forget();
    }
}

/// A bucket alone, for what is dropped where there is not enough.
#[derive(Debug)]
pub struct Meter {
    bucket: Bucket,
    start: Instant,
}

impl Meter {
    /// A meter with a full bucket; nothing if `config` limits nothing.
    pub fn new(config: BucketConfig) -> Option<Self> {
        Some(Self {
            bucket: Bucket::new(config, 0)?,
            start: Instant::now(),
        })
    }

    /// Whether `amount` may pass now; then it is counted.
    pub fn admit(&mut self, amount: u64) -> bool {
        let allowed = self.bucket.allows(amount, self.start.elapsed().as_nanos() as u64);
        if allowed {
            self.bucket.take(amount);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(bandwidth: u64, ops: u64) -> Limiter {
        let bucket = |size| {
            Some(BucketConfig {
                size,
                refill_ms: 1000,
                burst: 0,
            })
        };
        Limiter::new(LimiterConfig {
            bandwidth: bucket(bandwidth),
            ops: bucket(ops),
        })
        .unwrap()
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn both_limits_hold_and_a_refusal_takes_nothing() {
        let mut limiter = limiter(1000, 3);
        let now = limiter.start.elapsed().as_nanos() as u64;
        assert!(limiter.admit_at(600, now));
        assert!(!limiter.admit_at(600, now));
        assert!(limiter.waits());
        assert!(limiter.admit_at(400, now));
        assert!(!limiter.waits());
        // The refusal took no operation, so there is one left.
        assert!(limiter.admit_at(0, now));
        assert!(!limiter.admit_at(0, now));
        assert!(limiter.admit_at(0, now + SECOND / 3 + 1));
    }

    #[test]
    fn no_limit_admits_everything() {
        let mut limiter = limiter(0, 0);
        assert!((0..10_000).all(|_| limiter.admit(u64::MAX)));
    }

    #[test]
    fn a_change_frees_what_waits_and_leaves_the_other_limit() {
        let mut limiter = limiter(1000, 1);
        assert!(limiter.admit(1));
        assert!(!limiter.admit(1));
        let free = BucketConfig::default();
        limiter.change(LimiterChange {
            bandwidth: None,
            ops: Some(free),
        });
        assert!(!limiter.waits());
        assert!(limiter.admit(999));
        assert!(!limiter.admit(1000));
    }
}
