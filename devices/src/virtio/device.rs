//! What a virtio device is to the rest of Berth: data, and two verbs per queue.
//!
//! ```text
//!             start_queue(i, resources, None)            process_queue / process_event
//!   stopped ───────────────────────────────▶ started ◀──────────────────────────────┐
//!      ▲  ◀──────── stop_queue(i) ───────────   │  └─────────────────────────────────┘
//!      │                                        │ pause, snapshot: stop_queue(i) = QueueState
//!      └──── start_queue(i, resources, Some(state)): goes on where it stood
//! ```
//! Reset is `stop_queue` on every queue with the states dropped. The transport owns negotiation, status bits, interrupt
//! status and event fds; an I/O thread owns the device and makes every call below, so a device has no thread, no lock
//! and no pause code of its own.

use std::os::fd::RawFd;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::counters::DeviceCounters;
use crate::Memory;

/// What the driver sees before it negotiates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTraits {
    /// Device type (virtio 1.3, section 5), for example 2 for block.
    pub kind: u32,
    /// Name for logs and state files: `blk`, `net`, `rng`.
    pub name: &'static str,
    /// Feature bits of the device and the ring features its queues support. The transport adds `VIRTIO_F_VERSION_1`.
    pub features: u64,
    /// Largest size of each queue, in entries; a power of two each. Its length is the number of queues.
    pub queue_sizes: Vec<u16>,
    /// Size of the configuration space in bytes.
    pub config_len: u64,
}

/// Reads configuration space from the bytes that it has: what lies behind them reads as zero.
pub fn read_config_from(config: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..));
    data.fill(0);
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}

/// Where a stopped queue stood: all that a queue remembers outside guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct QueueState {
    /// Index of the next available-ring entry the device will take.
    pub next_avail: u16,
    /// Index of the next used-ring entry the device will write.
    pub next_used: u16,
}

/// What a device remembers beyond its queues, for a snapshot: data of the device's own type, under that type's version.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceState {
    /// Version of the type; 0 where there is nothing to remember.
    pub version: u32,
    /// The data.
    pub data: serde_json::Value,
}

/// Why a device cannot become what was saved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceStateError {
    /// Saved by a Berth that knew more, or less.
    #[error("its state has version {found}, but this Berth reads version {expected}")]
    Version {
        /// In the state.
        found: u32,
        /// What the device reads.
        expected: u32,
    },
    /// The data does not fit the type, or its values not the device.
    #[error("its state cannot be used: {0}")]
    Data(String),
}

impl DeviceState {
    /// Nothing to remember.
    pub fn none() -> Self {
        Self {
            version: 0,
            data: serde_json::Value::Null,
        }
    }

    /// `state`, of this version of its type. The type must be one that JSON can hold: maps have strings for keys.
    pub fn new(version: u32, state: &impl Serialize) -> Self {
        let data = serde_json::to_value(state).unwrap_or_else(|error| {
            tracing::error!("a device's state cannot be written: {error}");
            serde_json::Value::Null
        });
        Self { version, data }
    }

    /// The state, if it is of `version`.
    pub fn read<T: DeserializeOwned>(&self, version: u32) -> Result<T, DeviceStateError> {
        if self.version != version {
            return Err(DeviceStateError::Version {
                found: self.version,
                expected: version,
            });
        }
        T::deserialize(&self.data).map_err(|error| DeviceStateError::Data(error.to_string()))
    }
}

/// How a device reaches the driver. Given by the transport, shared by the queues of one device.
pub trait DeviceInterrupt: Send + Sync {
    /// A buffer of queue `index` was used and the driver wants to hear of it.
    fn used_buffer(&self, index: u16);
    /// The configuration space changed.
    fn config_changed(&self);
    /// The driver broke the protocol beyond repair of one request: sets DEVICE_NEEDS_RESET and tells the driver.
    fn needs_reset(&self);
}

/// What a device gets to run one queue. The rings were checked to lie in guest memory when the driver enabled them.
pub struct QueueResources {
    /// Guest RAM.
    pub memory: Arc<Memory>,
    /// The queue as the driver set it up: size, ring addresses, event-index flag.
    pub queue: Queue,
    /// Written by the driver's notification (by ioeventfd where there is one). The I/O thread listens on it.
    pub kick: EventFd,
    /// The way back.
    pub interrupt: Arc<dyn DeviceInterrupt>,
    /// The negotiated feature bits.
    pub features: u64,
    /// Where the device's work is counted.
    pub counters: Arc<DeviceCounters>,
}

/// Why a queue cannot start. The transport answers with DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A ring does not lie in guest memory or is misaligned.
    #[error("the rings of queue {index} do not lie in guest memory")]
    Ring {
        /// The queue.
        index: u16,
    },
    /// The device has no such queue.
    #[error("there is no queue {index}")]
    NoSuchQueue {
        /// The queue.
        index: u16,
    },
}

/// A host file descriptor whose readiness means work for the device. Listened to edge-triggered: the device must drain
/// it, or remember that it did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventSource {
    /// The descriptor; it lives as long as the device.
    pub fd: RawFd,
    /// What the device calls it in [`VirtioDevice::process_event`].
    pub token: u32,
}

/// A device behind a virtio transport.
pub trait VirtioDevice: Send {
    /// What the driver sees before it negotiates. Constant over the device's life.
    fn traits(&self) -> DeviceTraits;
    /// Reads configuration space. `offset + data.len()` may lie past its end: those bytes read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes configuration space. Most devices have nothing writable there.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Starts queue `index`, from its beginning or from where `at` says it stopped.
    fn start_queue(
        &mut self,
        index: u16,
        queue: QueueResources,
        at: Option<QueueState>,
    ) -> Result<(), StartError>;
    /// Stops queue `index` and returns where it stood, with nothing in flight. `None` if it was not started.
    fn stop_queue(&mut self, index: u16) -> Option<QueueState>;
    /// The driver notified queue `index`, or it has just been started: does what is there to do. Spurious calls are harmless.
    fn process_queue(&mut self, index: u16);
    /// Does what is there to do on its queues without having been notified. Returns whether there was anything.
    fn poll(&mut self) -> bool {
        false
    }
    /// From now on the I/O thread calls [`poll`](Self::poll) all the time, so drivers need not notify; or no longer does.
    fn set_polled(&mut self, _polled: bool) {}
    /// Host descriptors to listen on as long as the device lives.
    fn event_sources(&self) -> Vec<EventSource> {
        Vec::new()
    }
    /// The source that the device called `token` is ready. Spurious calls are harmless.
    fn process_event(&mut self, _token: u32) {}
    /// What the device remembers beyond its queues, which are stopped: what a driver could tell it by, nothing of the host.
    fn save(&self) -> DeviceState {
        DeviceState::none()
    }
    /// Becomes what was saved; its queues are stopped. On an error nothing has changed.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        state.read::<()>(0)
    }
}
