//! Firecracker's rate limiters and Berth's limits, which are the same in other words.

use berth_devices::limiter::{BucketConfig, LimiterChange};

use super::types::{RateLimiter, TokenBucket};
use crate::spec::{BandwidthSpec, ByteSize, OpsSpec, RateLimitSpec};

/// A bucket as a device takes it. One without a size or a time limits nothing.
fn bucket(bucket: TokenBucket) -> BucketConfig {
    BucketConfig {
        size: bucket.size,
        refill_ms: bucket.refill_time,
        burst: bucket.one_time_burst.unwrap_or_default(),
    }
}

/// What a PATCH says: what it leaves out stays.
pub(super) fn change(limiter: Option<RateLimiter>) -> LimiterChange {
    let limiter = limiter.unwrap_or_default();
    LimiterChange {
        bandwidth: limiter.bandwidth.map(bucket),
        ops: limiter.ops.map(bucket),
    }
}

fn bytes(bucket: BucketConfig) -> Option<BandwidthSpec> {
    bucket.limits().then_some(BandwidthSpec {
        size: ByteSize(bucket.size),
        refill_ms: bucket.refill_ms,
        burst: ByteSize(bucket.burst),
    })
}

/// A limit in bytes alone, in a description.
pub(super) fn bandwidth(limit: TokenBucket) -> Option<BandwidthSpec> {
    bytes(bucket(limit))
}

/// Brings what a PUT or PATCH says into a description.
pub(super) fn merge(own: &mut Option<RateLimitSpec>, limiter: Option<RateLimiter>) {
    let LimiterChange { bandwidth, ops } = change(limiter);
    let mut limit = own.take().unwrap_or_default();
    if let Some(bucket) = bandwidth {
        limit.bandwidth = bytes(bucket);
    }
    if let Some(bucket) = ops {
        limit.ops = bucket.limits().then_some(OpsSpec {
            size: bucket.size,
            refill_ms: bucket.refill_ms,
            burst: bucket.burst,
        });
    }
    *own = Some(limit).filter(|limit| *limit != RateLimitSpec::default());
}

/// What a PUT says, in a description.
pub(super) fn spec(limiter: Option<RateLimiter>) -> Option<RateLimitSpec> {
    let mut limit = None;
    merge(&mut limit, limiter);
    limit
}

/// A description's limits as Firecracker has them.
pub(super) fn of(limit: Option<&RateLimitSpec>) -> Option<RateLimiter> {
    let config = limit.map(|limit| RateLimitSpec::config(Some(limit)))?;
    let bucket = |bucket: BucketConfig| TokenBucket {
        size: bucket.size,
        one_time_burst: Some(bucket.burst).filter(|burst| *burst > 0),
        refill_time: bucket.refill_ms,
    };
    Some(RateLimiter {
        bandwidth: config.bandwidth.map(bucket),
        ops: config.ops.map(bucket),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(bandwidth: Option<u64>, ops: Option<u64>) -> RateLimiter {
        let bucket = |size| TokenBucket {
            size,
            one_time_burst: None,
            refill_time: 100,
        };
        RateLimiter {
            bandwidth: bandwidth.map(bucket),
            ops: ops.map(bucket),
        }
    }

    #[test]
    fn a_limiter_comes_back_as_it_was_given() {
        let both = limiter(Some(1000), Some(5));
        assert_eq!(of(spec(Some(both)).as_ref()), Some(both));
        assert_eq!(of(spec(None).as_ref()), None);
        assert_eq!(spec(Some(limiter(Some(0), None))), None, "no size is no limit");
    }

    #[test]
    fn a_patch_leaves_what_it_does_not_name() {
        let mut own = spec(Some(limiter(Some(1000), Some(5))));
        merge(&mut own, Some(limiter(None, Some(7))));
        assert_eq!(of(own.as_ref()), Some(limiter(Some(1000), Some(7))));
        merge(&mut own, Some(limiter(Some(0), None)));
        assert_eq!(of(own.as_ref()), Some(limiter(None, Some(7))));
        merge(&mut own, Some(limiter(None, Some(0))));
        assert_eq!(own, None);
    }
}
