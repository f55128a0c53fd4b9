//! Saving and restoring a transport.

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK,
};

use super::{MmioTransport, Registers};
use crate::virtio::device::{DeviceState, DeviceStateError, QueueState};

/// A queue as the driver set it up, unchecked until it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Entries.
    pub size: u32,
    /// Guest address of the descriptor table.
    pub desc: u64,
    /// Guest address of the available ring.
    pub driver: u64,
    /// Guest address of the used ring.
    pub device: u64,
    /// The driver said that it is complete, and it was found to be.
    pub ready: bool,
}

impl QueueSetup {
    pub(super) fn new(max: u16) -> Self {
        Self {
            size: max.into(),
            desc: 0,
            driver: 0,
            device: 0,
            ready: false,
        }
    }
}

/// All that a transport remembers, the positions of its queues and the device's own state included. Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    /// Device type, to refuse the state of another device.
    pub kind: u32,
    /// Status bits.
    pub status: u32,
    /// Interrupts that were not acknowledged.
    pub interrupt_status: u32,
    /// Configuration generation.
    pub config_generation: u32,
    /// Window selected for the device's features.
    pub device_features_sel: u32,
    /// Window selected for the driver's features.
    pub driver_features_sel: u32,
    /// Features that the driver wrote.
    pub driver_features: u64,
    /// The driver wrote feature bits that do not exist.
    pub unknown_features: bool,
    /// Selected queue.
    pub queue_sel: u32,
    /// Each queue's set-up and, if it was running, where it stood.
    pub queues: Vec<(QueueSetup, Option<QueueState>)>,
    /// What the device behind it remembers.
    pub device: DeviceState,
}

/// Why a state cannot be saved or restored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RestoreError {
    /// The queues run.
    #[error("the device runs: pause it first")]
    Running,
    /// The state of another kind of device.
    #[error("the state is of a virtio device of type {found}, but this one is of type {expected}")]
    Kind {
        /// Type in the state.
        found: u32,
        /// This device's.
        expected: u32,
    },
    /// More or fewer queues.
    #[error("the state has {found} queues, but the device has {expected}")]
    Queues {
        /// In the state.
        found: usize,
        /// This device's.
        expected: usize,
    },
    /// Features that the guest relies on and the device does not offer.
    #[error("the guest uses features {missing:#x}, which the device does not offer here")]
    Features {
        /// The missing ones.
        missing: u64,
    },
    /// A queue that cannot be.
    #[error(
        "queue {index} is ready in the state, but its size or its rings' addresses do not fit this machine"
    )]
    Ring {
        /// The queue.
        index: u16,
    },
    /// The device's own state.
    #[error(transparent)]
    Device(#[from] DeviceStateError),
}

impl MmioTransport {
    /// What the transport remembers. A device that runs must be paused first.
    pub fn save(&self) -> Result<MmioState, RestoreError> {
        let registers = self.lock();
        if registers.live && !registers.paused {
            return Err(RestoreError::Running);
        }
        let at = |index| {
            let found = registers.stopped_at.iter().find(|(which, _)| *which == index);
            found.map(|(_, state)| *state)
        };
        Ok(MmioState {
            kind: self.traits.kind,
            status: self.shared.status(),
            interrupt_status: self.shared.interrupt_status(),
            config_generation: self.shared.generation(),
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            driver_features: registers.driver_features,
            unknown_features: registers.unknown_features,
            queue_sel: registers.queue_sel,
            queues: (0..)
                .zip(&registers.queues)
                .map(|(index, setup)| (*setup, at(index)))
                .collect(),
            device: self.device.save(),
        })
    }

    /// Becomes what was saved, paused. [`resume`](Self::resume) starts the queues.
    ///
    /// If the state is refused nothing has changed.
    pub fn restore(&self, state: &MmioState) -> Result<(), RestoreError> {
        let mut registers = self.lock();
        if registers.live && !registers.paused {
            return Err(RestoreError::Running);
        }
        self.check(state)?;
        self.device.restore(&state.device)?;
        for index in (0..).take(self.kicks.len()) {
            self.detach(&mut registers, index);
        }
        let at = |(index, (_, at)): (u16, &(_, Option<QueueState>))| at.map(|at| (index, at));
        let stopped_at: Vec<_> = (0..).zip(&state.queues).filter_map(at).collect();
        *registers = Registers {
            device_features_sel: state.device_features_sel,
            driver_features_sel: state.driver_features_sel,
            driver_features: state.driver_features,
            unknown_features: state.unknown_features,
            queue_sel: state.queue_sel,
            queues: state.queues.iter().map(|(setup, _)| *setup).collect(),
            live: state.status & DRIVER_OK != 0 && !stopped_at.is_empty(),
            paused: true,
            stopped_at,
            ..Registers::new(&self.traits)
        };
        self.shared
            .restore(state.status, state.interrupt_status, state.config_generation);
        Ok(())
    }

    fn check(&self, state: &MmioState) -> Result<(), RestoreError> {
        if state.kind != self.traits.kind {
            return Err(RestoreError::Kind {
                found: state.kind,
                expected: self.traits.kind,
            });
        }
        let (found, expected) = (state.queues.len(), self.kicks.len());
        if found != expected {
            return Err(RestoreError::Queues { found, expected });
        }
        let missing = state.driver_features & !self.offered();
        if state.status & FEATURES_OK != 0 && missing != 0 {
            return Err(RestoreError::Features { missing });
        }
        for (index, (setup, _)) in (0..).zip(&state.queues) {
            if setup.ready && self.checked_queue(index, setup, state.driver_features).is_none() {
                return Err(RestoreError::Ring { index });
            }
        }
        Ok(())
    }
}
