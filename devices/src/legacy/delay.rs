//! Port 0x80, the diagnostic port of the PC's firmware.
//!
//! Nothing is behind it. Kernels write to it because the access takes about a microsecond (Linux's `io_delay`), and
//! some read back what they wrote.

use std::sync::atomic::{AtomicU8, Ordering};

use super::{read_bytes, write_bytes};
use crate::bus::BusDevice;

/// One port that remembers the last byte.
#[derive(Debug, Default)]
pub struct DelayPort {
    last: AtomicU8,
}

impl BusDevice for DelayPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| {
            (at == 0).then(|| self.last.load(Ordering::Relaxed))
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        write_bytes(offset, data, |at, value| {
            if at == 0 {
                self.last.store(value, Ordering::Relaxed);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_reads_back() {
        let port = DelayPort::default();
        port.write(0, &[0x55, 0xaa]);
        let mut data = [0xff; 2];
        port.read(0, &mut data);
        assert_eq!(data, [0x55, 0xff]);
    }
}
