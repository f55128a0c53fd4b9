//! A card whose pairs of queues are served by different threads, as its transport sees it: one device.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::pairs::part_of;
use crate::virtio::device::{DeviceState, DeviceStateError, QueueState, StartError};
use crate::virtio::handle::{DeviceHandle, StartQueue};

/// The parts of a card that was [split](super::Net::split_off), each wherever it is.
pub struct NetParts {
    /// The one that answers for the card.
    first: Arc<dyn DeviceHandle>,
    others: Vec<Arc<dyn DeviceHandle>>,
}

impl NetParts {
    /// The card whose parts are `first` and `others`, in their order.
    pub fn new(first: Arc<dyn DeviceHandle>, others: Vec<Arc<dyn DeviceHandle>>) -> Self {
        Self { first, others }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<dyn DeviceHandle>> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl DeviceHandle for NetParts {
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.first.read_config(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.first.write_config(offset, data);
    }

    fn start(&self, queues: Vec<StartQueue>) -> Result<(), StartError> {
        let pairs = 1 + self.others.len() as u16;
        let mut groups: Vec<Vec<StartQueue>> = self.all().map(|_| Vec::new()).collect();
        for queue in queues {
            groups[part_of(queue.index, queue.resources.features, pairs)].push(queue);
        }
        for (part, group) in self.all().zip(groups) {
            if !group.is_empty()
                && let Err(cause) = part.start(group)
            {
                self.stop();
                return Err(cause);
            }
        }
        Ok(())
    }

    fn stop(&self) -> Vec<(u16, QueueState)> {
        let mut states: Vec<_> = self.all().flat_map(|part| part.stop()).collect();
        states.sort_by_key(|(index, _)| *index);
        states
    }

    fn save(&self) -> DeviceState {
        self.first.save()
    }

    fn restore(&self, state: &DeviceState) -> Result<(), DeviceStateError> {
        self.first.restore(state)
    }
}
