//! The control queue of a card with several pairs (virtio 1.3, section 5.1.6.5): how many of them the driver uses.
//!
//! A request is a class, a command, what belongs to it, and a byte for the answer. Whatever is no command that was agreed on is answered
//! with an error and changes nothing.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};

use crate::virtio::device::{QueueResources, QueueState, StartError};
use crate::virtio::queue::{DeviceQueue, RequestChain};
use crate::warn_guest;

/// Class and command.
const HEAD: u32 = 2;
/// The one command there is: so many pairs are used from now on.
const SET_PAIRS: [u8; HEAD as usize] = [VIRTIO_NET_CTRL_MQ as u8, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8];

/// A started control queue.
pub(super) struct Commands {
    queue: DeviceQueue,
    chain: RequestChain,
    /// Several pairs were agreed on.
    several: bool,
}

impl Commands {
    pub(super) fn new(
        index: u16,
        resources: QueueResources,
        at: Option<QueueState>,
    ) -> Result<Self, StartError> {
        let several = resources.features & 1 << VIRTIO_NET_F_MQ != 0;
        let queue = DeviceQueue::new(index, resources, at)?;
        Ok(Self {
            chain: queue.new_chain(),
            queue,
            several,
        })
    }

    pub(super) fn stop(self) -> QueueState {
        self.queue.stop()
    }

    /// As [`DeviceQueue::set_polled`].
    pub(super) fn set_polled(&mut self, polled: bool) {
        self.queue.set_polled(polled);
    }

    pub(super) fn has_more(&self) -> bool {
        self.queue.has_more()
    }

    /// Answers every command there is; `use_pairs` says whether so many pairs can be used, and has them be.
    pub(super) fn run(&mut self, mut use_pairs: impl FnMut(u16) -> bool) {
        let (chain, several) = (&mut self.chain, self.several);
        self.queue.drain_by(|queue| {
            if !queue.pop(chain) {
                return false;
            }
            if chain.writable_len() == 0 {
                queue.fail("a command has no room for its answer");
                return false;
            }
            let done = pairs(chain).filter(|_| several).is_some_and(&mut use_pairs);
            if !done {
                warn_guest!("virtio-net: a command of the driver's is refused");
            }
            let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            chain.write_at(0, &[answer as u8]);
            queue.complete(chain.head(), 1);
            true
        });
    }
}

/// How many pairs the driver wants to use, if that is what it says.
fn pairs(command: &RequestChain) -> Option<u16> {
    let (mut head, mut number) = ([0; HEAD as usize], [0; 2]);
    if command.readable_len() != HEAD + 2 {
        return None;
    }
    command.read_at(0, &mut head);
    command.read_at(HEAD, &mut number);
    (head == SET_PAIRS).then(|| u16::from_le_bytes(number))
}
