//! What is left of the two 8259 interrupt controllers: mask registers that remember what was written.
//!
//! No interrupt ever comes from them. Linux decides by reading the mask back whether legacy interrupt lines exist at
//! all (`probe_8259A`), and with them the fixed lines of the serial ports.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BusDevice;

/// One 8259: a command port at offset 0 and a mask port at offset 1.
#[derive(Default)]
pub struct PicStub {
    mask: AtomicU8,
}

impl PicStub {
    /// All that it remembers.
    pub fn mask(&self) -> u8 {
        self.mask.load(Ordering::Relaxed)
    }

    /// Becomes what was saved.
    pub fn set_mask(&self, mask: u8) {
        self.mask.store(mask, Ordering::Relaxed);
    }
}

impl BusDevice for PicStub {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == 1
            && let Some(first) = data.first_mut()
        {
            *first = self.mask();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 1
            && let Some(first) = data.first()
        {
            self.set_mask(*first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_reads_back_and_the_command_port_says_nothing_pends() {
        let pic = PicStub::default();
        pic.write(0, &[0x11]);
        pic.write(1, &[0xfb]);
        let mut data = [0xff];
        pic.read(1, &mut data);
        assert_eq!(data, [0xfb]);
        pic.read(0, &mut data);
        assert_eq!(data, [0]);
    }
}
