//! Devices, as Firecracker's API has them.
#![allow(clippy::struct_field_names, reason = "the names are Firecracker's")]

use std::net::Ipv4Addr;
use std::path::PathBuf;

use berth_devices::virtio::net::mmds::DEFAULT_ADDRESS;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::{Described, MmdsVersion, PublishSpec, is_one, one, table};

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drive {
    /// Its name, as in the path.
    pub(crate) drive_id: String,
    /// Whether the guest's root file system is on it. It comes first then, and the kernel is told.
    pub(crate) is_root_device: bool,
    /// The partition with the root file system, by its UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) partuuid: Option<String>,
    /// Without effect: a guest's flush always reaches the disk.
    #[serde(default)]
    pub(crate) cache_type: CacheType,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub(crate) is_read_only: bool,
    /// A raw image file or a block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path_on_host: Option<PathBuf>,
    /// Limits to what the guest may do.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "table::optional"
    )]
    pub(crate) rate_limiter: Option<RateLimiter>,
    /// Without effect: Berth takes the best engine that the host has.
    #[serde(default)]
    pub(crate) io_engine: IoEngine,
    /// A vhost-user backend's socket, which Berth does not take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) socket: Option<PathBuf>,
}

/// Caching strategies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) enum CacheType {
    /// Flushes may be lost with the host.
    #[default]
    Unsafe,
    /// Flushes reach the disk.
    Writeback,
}

/// Engines for a disk's input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) enum IoEngine {
    /// One request after the other.
    #[default]
    Sync,
    /// io_uring.
    Async,
}

/// What is to change about a disk of a running VM.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartialDrive {
    /// Its name, as in the path.
    pub(crate) drive_id: String,
    /// What it is to lead to from now on.
    #[serde(default)]
    pub(crate) path_on_host: Option<PathBuf>,
    /// New limits.
    #[serde(default, deserialize_with = "table::optional")]
    pub(crate) rate_limiter: Option<RateLimiter>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkInterface {
    /// Its name, as in the path.
    pub(crate) iface_id: String,
    /// The host's tap interface; left out where `user` is set.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) host_dev_name: String,
    /// Berth's own: how many pairs of queues the guest may use at once, which the tap must have too.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 16))]
    pub(crate) queues: u16,
    /// Berth's own: the guest shares the host's network through passt instead of a tap.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) user: bool,
    /// Berth's own: ports of the host that lead to the guest's, where `user` is set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) publish: Vec<PublishSpec>,
    /// Berth's own: whether the guest reaches the host's loopback at its gateway, where `user` is set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) loopback: bool,
    /// The guest's hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guest_mac: Option<String>,
    /// The largest packet the guest is told of. Berth tells it that of the tap, so this is not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 68))]
    pub(crate) mtu: Option<u16>,
    /// Limits to what the guest may receive.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "table::optional"
    )]
    pub(crate) rx_rate_limiter: Option<RateLimiter>,
    /// Limits to what the guest may send.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "table::optional"
    )]
    pub(crate) tx_rate_limiter: Option<RateLimiter>,
}

/// What is to change about a network interface of a running VM.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartialNetworkInterface {
    /// Its name, as in the path.
    pub(crate) iface_id: String,
    /// New limits to what the guest may receive.
    #[serde(default, deserialize_with = "table::optional")]
    pub(crate) rx_rate_limiter: Option<RateLimiter>,
    /// New limits to what the guest may send.
    #[serde(default, deserialize_with = "table::optional")]
    pub(crate) tx_rate_limiter: Option<RateLimiter>,
}

/// Limits by two buckets of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RateLimiter {
    /// A token is a byte.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "table::optional")]
    pub(crate) bandwidth: Option<TokenBucket>,
    /// A token is an operation.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "table::optional")]
    pub(crate) ops: Option<TokenBucket>,
}

/// A bucket of tokens that refills by the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenBucket {
    /// How many tokens it holds.
    pub(crate) size: u64,
    /// Tokens at the beginning beyond its size, to be used once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) one_time_burst: Option<u64>,
    /// Milliseconds in which it refills.
    pub(crate) refill_time: u64,
}

impl Described for RateLimiter {
    const WHAT: &str = "a rate limiter; give an object with bandwidth or ops";
}

impl Described for TokenBucket {
    const WHAT: &str = "a bucket of tokens; give an object with size and refill_time";
}

/// A virtio-vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vsock {
    /// The guest's address.
    #[schemars(range(min = 3))]
    pub(crate) guest_cid: u32,
    /// The Unix socket that leads to the guest.
    pub(crate) uds_path: PathBuf,
    /// Without effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vsock_id: Option<String>,
}

/// A balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Balloon {
    /// How much of its memory the guest is asked to give back, in MiB.
    pub(crate) amount_mib: u32,
    /// Whether a guest that runs out of memory may take it back.
    pub(crate) deflate_on_oom: bool,
    /// How often the guest is asked for statistics, in seconds; 0 for never.
    #[serde(default)]
    pub(crate) stats_polling_interval_s: u16,
    /// Whether the guest may be asked which pages it does not use.
    #[serde(default)]
    pub(crate) free_page_hinting: bool,
    /// Whether the guest gives back pages as it frees them.
    #[serde(default)]
    pub(crate) free_page_reporting: bool,
}

/// A new size for the balloon.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonUpdate {
    /// How much of its memory the guest is asked to give back, in MiB.
    pub(crate) amount_mib: u32,
}

/// A new interval for the balloon's statistics.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonStatsUpdate {
    /// In seconds; it cannot become 0, nor be changed from 0.
    pub(crate) stats_polling_interval_s: u16,
}

/// How a run of free page hinting is to begin.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BalloonStartCmd {
    /// Whether the guest is told at once that it may use the pages again when it is done.
    pub(crate) acknowledge_on_stop: bool,
}

impl Default for BalloonStartCmd {
    fn default() -> Self {
        Self {
            acknowledge_on_stop: true,
        }
    }
}

/// How free page hinting stands.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct BalloonHintingStatus {
    /// The last command of the host.
    pub(crate) host_cmd: u32,
    /// The last command of the guest.
    pub(crate) guest_cmd: Option<u32>,
}

/// What the balloon knows about the guest's memory; amounts are bytes unless their name says otherwise.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct BalloonStats {
    pub(crate) target_pages: u32,
    pub(crate) actual_pages: u32,
    pub(crate) target_mib: u32,
    pub(crate) actual_mib: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) swap_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) swap_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) major_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) minor_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) free_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) available_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk_caches: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hugetlb_allocations: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hugetlb_failures: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oom_kill: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) alloc_stall: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) async_scan: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) direct_scan: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) async_reclaim: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) direct_reclaim: Option<u64>,
}

/// A source of entropy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EntropyDevice {
    /// Limits to what the guest may take.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "table::optional")]
    pub(crate) rate_limiter: Option<RateLimiter>,
}

/// The serial port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SerialDevice {
    /// A file for what the guest writes to it. Without it, standard output.
    pub(crate) serial_out_path: Option<PathBuf>,
    /// A limit in bytes to what the guest may write; what is more is dropped.
    #[serde(deserialize_with = "table::optional")]
    pub(crate) rate_limiter: Option<TokenBucket>,
}

/// A file that the guest has in its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pmem {
    /// Its name, as in the path.
    pub(crate) id: String,
    /// The file. One that can be written is a multiple of 2 MiB long.
    pub(crate) path_on_host: PathBuf,
    /// Whether the guest's root file system is on it; the kernel is told.
    #[serde(default)]
    pub(crate) root_device: bool,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub(crate) read_only: bool,
    /// Limits to flushes.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "table::optional"
    )]
    pub(crate) rate_limiter: Option<RateLimiter>,
}

/// What is to change about a file in the memory of a running VM.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartialPmem {
    /// Its name, as in the path.
    pub(crate) id: String,
    /// New limits.
    #[serde(default, deserialize_with = "table::optional")]
    pub(crate) rate_limiter: Option<RateLimiter>,
}

impl Described for Pmem {
    const WHAT: &str = "persistent memory; give an object with id and path_on_host";
}

/// Memory to plug in later, which Berth does not have.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
#[allow(dead_code, reason = "read to be refused as a whole")]
pub(crate) struct MemoryHotplug {
    /// How much there can be.
    pub(crate) total_size_mib: Option<u64>,
    /// In which steps the host gives it.
    pub(crate) slot_size_mib: Option<u64>,
    /// In which steps the guest takes it.
    pub(crate) block_size_mib: Option<u64>,
    /// How much there is to be.
    pub(crate) requested_size_mib: Option<u64>,
}

/// The metadata service for the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MmdsConfig {
    /// Whether the guest must fetch a token first.
    #[serde(default)]
    pub(crate) version: MmdsVersion,
    /// The names of the interfaces on which it answers.
    pub(crate) network_interfaces: Vec<String>,
    /// Where it answers: a link-local address.
    #[serde(default = "mmds_address")]
    pub(crate) ipv4_address: Ipv4Addr,
    /// Whether it answers in plain text whatever the guest asks for, as EC2 does.
    #[serde(default)]
    pub(crate) imds_compat: bool,
}

fn mmds_address() -> Ipv4Addr {
    DEFAULT_ADDRESS
}

/// What the guest can ask for: any JSON object.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct MmdsContents(pub(crate) serde_json::Map<String, serde_json::Value>);
