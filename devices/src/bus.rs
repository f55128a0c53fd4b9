//! Address ranges and who answers them: one bus for port I/O, one for MMIO.
//!
//! A bus is filled by the builder and then only read, so every vCPU thread looks a device up without a lock.

use std::sync::Arc;

/// A device on a bus. It locks what it must inside; the bus holds no lock around it.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what lies at `offset` bytes into the device's range.
    ///
    /// `data` is 1 to 8 bytes of one access as the guest made it and may straddle registers.
    /// Bytes that no register backs are to read as the hardware would; the caller has filled `data` with 0xff.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes one access of 1 to 8 bytes at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a range cannot be placed on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or ends past the address space.
    #[error("the range {base:#x}+{len:#x} is empty or ends past the address space")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device has part of the range.
    #[error("the range {base:#x}+{len:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// First address of the device that is there already.
        other: u64,
    },
}

struct Slot {
    base: u64,
    /// Last address, inclusive, so that a range may end at the top of the address space.
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by address, sorted, without overlap.
#[derive(Default)]
pub struct Bus {
    slots: Vec<Slot>,
}

impl Bus {
    /// An empty bus: every read gives ones, every write is dropped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Places `device` at `len` bytes from `base`.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let Some(last) = len.checked_sub(1).and_then(|span| base.checked_add(span)) else {
            return Err(BusError::BadRange { base, len });
        };
        let at = self.slots.partition_point(|slot| slot.last < base);
        if let Some(slot) = self.slots.get(at)
            && slot.base <= last
        {
            return Err(BusError::Overlap {
                base,
                len,
                other: slot.base,
            });
        }
        self.slots.insert(at, Slot { base, last, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `address`. Where no device is, the bus floats high: all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, offset)) = self.find(address) {
            slot.device.read(offset, data);
        }
    }

    /// Writes `data` at `address`. Returns whether a device took it.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address) {
            Some((slot, offset)) => {
                slot.device.write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, address: u64) -> Option<(&Slot, u64)> {
        let slot = self
            .slots
            .get(self.slots.partition_point(|slot| slot.last < address))?;
        address.checked_sub(slot.base).map(|offset| (slot, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Probe(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_reach_the_device_at_their_offset_and_nobody_else() {
        let mut bus = Bus::new();
        let (low, high) = (Arc::new(Probe::default()), Arc::new(Probe::default()));
        bus.insert(0x100, 8, high.clone()).unwrap();
        bus.insert(0x10, 8, low.clone()).unwrap();

        assert!(bus.write(0x107, &[1, 2]));
        assert!(!bus.write(0x108, &[3]));
        assert!(!bus.write(0xf, &[3]));
        assert_eq!(*high.0.lock().unwrap(), [(7, vec![1, 2])]);
        assert!(low.0.lock().unwrap().is_empty());

        let mut data = [0; 2];
        bus.read(0x12, &mut data);
        assert_eq!(data, [2, 2]);
        bus.read(0x18, &mut data);
        assert_eq!(data, [0xff, 0xff]);
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::new();
        let device = Arc::new(Probe::default());
        bus.insert(0x10, 0x10, device.clone()).unwrap();
        for (base, len) in [(0x10, 0x10), (0x1f, 1), (0, 0x11), (0x18, 0x100)] {
            assert_eq!(
                bus.insert(base, len, device.clone()),
                Err(BusError::Overlap {
                    base,
                    len,
                    other: 0x10
                })
            );
        }
        for (base, len) in [(0, 0), (u64::MAX, 2)] {
            assert_eq!(
                bus.insert(base, len, device.clone()),
                Err(BusError::BadRange { base, len })
            );
        }
        bus.insert(u64::MAX, 1, device).unwrap();
        assert!(bus.write(u64::MAX, &[0]));
    }
}
