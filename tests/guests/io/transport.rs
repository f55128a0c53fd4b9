//! A device, whichever way it is reached, and the driver's side of starting it (virtio 1.3, section 3.1.1).

use crate::failure::Failure;
use crate::interrupts::{self, Line};
use crate::mem::{Arena, write16, write32};
use crate::mmio::Mmio;
use crate::options::{Options, Wait};
use crate::pci::Pci;
use crate::queue::{Areas, Layout, Queue};

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// Feature bits of all devices.
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;
pub const RING_PACKED: u64 = 1 << 34;

/// What carries a device.
pub enum Transport {
    Mmio(Mmio),
    Pci(Pci),
}

macro_rules! either {
    ($transport:expr, $it:ident => $body:expr) => {
        match $transport {
            Transport::Mmio($it) => $body,
            Transport::Pci($it) => $body,
        }
    };
}

/// A queue that runs and where it is notified.
pub struct RunningQueue {
    pub queue: Queue,
    notify: u64,
    value: u32,
    wide: bool,
}

impl RunningQueue {
    /// Notifies the device. It may look into the queue before this returns.
    pub fn kick(&self) {
        if self.wide {
            write32(self.notify, self.value);
        } else {
            write16(self.notify, self.value as u16);
        }
    }
}

/// A device on its way to DRIVER_OK, and after.
pub struct Device {
    transport: Transport,
    pub features: u64,
    wait: Wait,
}

impl Device {
    /// Resets the device and agrees on features: `wanted` and those of the ring, as far as they are asked for and offered.
    pub fn new(transport: Transport, wanted: u64, options: &Options) -> Result<Self, Failure<'static>> {
        either!(&transport, it => {
            it.set_status(0);
            while it.status() != 0 {}
            it.set_status(ACKNOWLEDGE);
            it.set_status(ACKNOWLEDGE | DRIVER);
        });
        let mut wanted = wanted | VERSION_1;
        for (flag, bit) in [
            (options.event_idx, EVENT_IDX),
            (options.indirect, INDIRECT_DESC),
            (options.packed, RING_PACKED),
        ] {
            wanted |= bit * flag as u64;
        }
        let features = either!(&transport, it => it.features()) & wanted;
        if features & VERSION_1 == 0 {
            return Err(Failure::Refused("the device is of before version 1"));
        }
        let agreed = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        let status = either!(&transport, it => {
            it.set_features(features);
            it.set_status(agreed);
            it.status()
        });
        if status & FEATURES_OK == 0 {
            return Err(Failure::Refused("the device refuses features that it offers"));
        }
        if options.wait == Wait::Irq {
            let line = match &transport {
                Transport::Mmio(mmio) => Line::Pin(mmio.irq),
                Transport::Pci(_) => Line::Message,
            };
            interrupts::start(line);
            if let Transport::Pci(pci) = &transport {
                pci.enable_messages();
            }
        }
        Ok(Self {
            transport,
            features,
            wait: options.wait,
        })
    }

    pub fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }

    /// The word for what carries it.
    pub fn carrier(&self) -> &'static str {
        match self.transport {
            Transport::Mmio(_) => "mmio",
            Transport::Pci(_) => "pci",
        }
    }

    /// Starts a queue whose requests have up to `parts` descriptors and of which `depth` are to be in flight.
    pub fn start_queue(
        &self,
        index: u16,
        parts: u16,
        depth: u16,
        arena: &mut Arena,
    ) -> Result<RunningQueue, Failure<'static>> {
        let most = either!(&self.transport, it => it.queue_size(index));
        if most == 0 {
            return Err(Failure::Refused("the device has not so many queues"));
        }
        let layout = Layout {
            size: most.min(1024),
            parts,
            indirect: self.has(INDIRECT_DESC) && parts > 1,
            event_idx: self.has(EVENT_IDX),
            packed: self.has(RING_PACKED),
        };
        if layout.capacity() < depth {
            return Err(Failure::Depth {
                depth,
                capacity: layout.capacity(),
            });
        }
        let queue = Queue::new(layout, arena).map_err(Failure::Memory)?;
        let areas: Areas = queue.areas();
        let vector = self.wait == Wait::Irq;
        let (notify, value) = match &self.transport {
            Transport::Mmio(mmio) => mmio.start_queue(index, layout.size, areas),
            Transport::Pci(pci) => pci.start_queue(index, layout.size, areas, vector),
        };
        let wide = matches!(self.transport, Transport::Mmio(_));
        Ok(RunningQueue {
            queue,
            notify,
            value,
            wide,
        })
    }

    pub fn set_driver_ok(&self) {
        either!(&self.transport, it => it.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK));
    }

    /// Halts until an interrupt and acknowledges it.
    pub fn sleep(&self) {
        interrupts::wait();
        if let Transport::Mmio(mmio) = &self.transport {
            mmio.acknowledge();
        }
        interrupts::end_of_interrupt();
    }

    pub fn config64(&self, offset: u64) -> u64 {
        let byte = |at| either!(&self.transport, it => it.config8(offset + at)) as u64;
        (0..8).map(|at| byte(at) << (8 * at)).sum()
    }

    pub fn config16(&self, offset: u64) -> u16 {
        let byte = |at| either!(&self.transport, it => it.config8(offset + at)) as u16;
        byte(0) | byte(1) << 8
    }

    /// Stops the device, so that it touches no memory any more.
    pub fn reset(&self) {
        either!(&self.transport, it => it.set_status(0));
    }
}
