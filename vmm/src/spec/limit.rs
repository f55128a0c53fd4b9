//! Limits to what a device does, in a description.

use berth_devices::limiter::{BucketConfig, LimiterConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::options::{OptionError, number};
use super::{ByteSize, table};

/// Limits to what a device does. What is left out is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimitSpec {
    /// Bytes.
    #[serde(deserialize_with = "table::optional")]
    pub bandwidth: Option<BandwidthSpec>,
    /// Requests, or frames of a network interface.
    #[serde(deserialize_with = "table::optional")]
    pub ops: Option<OpsSpec>,
}

/// A limit in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BandwidthSpec {
    /// Bytes that may pass at once, and again in each time of `refill_ms`.
    pub size: ByteSize,
    /// Milliseconds in which what was used comes back.
    #[serde(default = "second")]
    pub refill_ms: u64,
    /// Bytes that may pass once on top.
    #[serde(default)]
    pub burst: ByteSize,
}

/// A limit in operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpsSpec {
    /// Operations that may be done at once, and again in each time of `refill_ms`.
    pub size: u64,
    /// Milliseconds in which what was used comes back.
    #[serde(default = "second")]
    pub refill_ms: u64,
    /// Operations that may be done once on top.
    #[serde(default)]
    pub burst: u64,
}

/// Milliseconds of a second, in which a bucket fills if nothing else is said.
const SECOND: u64 = 1000;

fn second() -> u64 {
    SECOND
}

impl BandwidthSpec {
    /// The limit as a device takes it.
    pub(crate) fn bucket(&self) -> BucketConfig {
        BucketConfig {
            size: self.size.0,
            refill_ms: self.refill_ms,
            burst: self.burst.0,
        }
    }
}

impl RateLimitSpec {
    /// The limits as a device takes them.
    pub(crate) fn config(limit: Option<&Self>) -> LimiterConfig {
        let Some(Self { bandwidth, ops }) = limit else {
            return LimiterConfig::default();
        };
        LimiterConfig {
            bandwidth: bandwidth.as_ref().map(BandwidthSpec::bucket),
            ops: ops.as_ref().map(|limit| BucketConfig {
                size: limit.size,
                refill_ms: limit.refill_ms,
                burst: limit.burst,
            }),
        }
    }

    /// What is wrong with it.
    pub(super) fn fault(&self) -> Option<String> {
        let config = Self::config(Some(self));
        let buckets = [("bandwidth", config.bandwidth), ("ops", config.ops)];
        buckets.iter().find_map(|(name, bucket)| {
            let bucket = bucket.as_ref().filter(|bucket| !bucket.limits())?;
            let field = if bucket.size == 0 { "size" } else { "refill_ms" };
            Some(format!(
                "{name} has a {field} of 0, with which nothing could pass; give at least 1, or leave {name} out for no limit"
            ))
        })
    }
}

/// The limits that a flag names: so much a second.
#[derive(Default)]
pub(super) struct FlagLimit {
    limit: RateLimitSpec,
}

impl FlagLimit {
    /// Takes the option `key=value`, if it is a limit. Whether it was one.
    pub(super) fn take(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<bool, OptionError> {
        let Some(value) = value.map(String::from_utf8_lossy) else {
            return Ok(false);
        };
        let twice = match key {
            b"bandwidth" => {
                let size = value.parse().map_err(OptionError::Size)?;
                let limit = BandwidthSpec {
                    size,
                    refill_ms: SECOND,
                    burst: ByteSize::default(),
                };
                self.limit
                    .bandwidth
                    .replace(limit)
                    .is_some()
                    .then_some("bandwidth")
            }
            b"ops" => {
                let limit = OpsSpec {
                    size: number(&value)?,
                    refill_ms: SECOND,
                    burst: 0,
                };
                self.limit.ops.replace(limit).is_some().then_some("ops")
            }
            _ => return Ok(false),
        };
        twice.map_or(Ok(true), |name| Err(OptionError::Twice(name)))
    }

    /// What was named.
    pub(super) fn finish(self) -> Option<RateLimitSpec> {
        Some(self.limit).filter(|limit| *limit != RateLimitSpec::default())
    }
}
