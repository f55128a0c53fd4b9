//! Bytes that the guest has sent and the host's socket has not taken yet.

use crate::virtio::queue::RequestChain;

/// An allocation larger than this is given back when it is empty.
const KEEP: usize = 4096;

/// A queue of bytes. Its length is bounded by the credit that the guest has.
#[derive(Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    /// Bytes at the front that are gone.
    gone: usize,
}

impl Backlog {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.gone
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    /// Appends `len` readable bytes of `chain` from `offset` on.
    pub(super) fn append(&mut self, chain: &RequestChain, offset: u32, len: u32) {
        // Each byte is moved once per doubling at most.
        if self.gone > self.bytes.len() / 2 {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
        let end = self.bytes.len();
        self.bytes.resize(end + len as usize, 0);
        let read = chain.read_at(offset, &mut self.bytes[end..]);
        self.bytes.truncate(end + read);
    }

    /// Removes `count` bytes from the front.
    pub(super) fn consume(&mut self, count: usize) {
        self.gone += count.min(self.len());
        if self.is_empty() {
            self.clear();
        }
    }

    /// Removes all.
    pub(super) fn clear(&mut self) {
        self.gone = 0;
        if self.bytes.capacity() > KEEP {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
        }
    }
}
