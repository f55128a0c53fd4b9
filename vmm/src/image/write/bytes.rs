//! Little-endian fields in fixed places.

/// Numbers as they stand in file systems' structures.
pub(super) trait Fields {
    fn u16(&mut self, at: usize, value: u16);
    fn u32(&mut self, at: usize, value: u32);
    fn u64(&mut self, at: usize, value: u64);
    fn bytes(&mut self, at: usize, value: &[u8]);
}

impl Fields for [u8] {
    fn u16(&mut self, at: usize, value: u16) {
        self.bytes(at, &value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.bytes(at, &value.to_le_bytes());
    }

    fn u64(&mut self, at: usize, value: u64) {
        self.bytes(at, &value.to_le_bytes());
    }

    fn bytes(&mut self, at: usize, value: &[u8]) {
        self[at..at + value.len()].copy_from_slice(value);
    }
}
