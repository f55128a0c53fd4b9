//! The handshake between driver and device: status bits, features, queues made ready, reset (virtio 1.3, sections 2.1, 3.1).

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};

use super::{MmioTransport, QueueSetup, Registers, VERSION_1};
use crate::virtio::device::DeviceInterrupt;
use crate::warn_guest;

/// The steps of the handshake in their order. Each needs those before it.
const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

impl MmioTransport {
    pub(super) fn write_status(&self, value: u32) {
        let mut registers = self.lock();
        if value == 0 {
            self.reset(&mut registers);
            return;
        }
        // NEEDS_RESET is the device's to set; a driver may or may not write back what it read.
        let have = self.shared.status() & !NEEDS_RESET;
        if have & FAILED != 0 || have & !value != 0 {
            warn_guest!(
                "virtio-{}: status {value:#x} after {have:#x}: only a reset takes bits back",
                self.traits.name
            );
            return;
        }
        let new = value & !have;
        let mut done = have;
        for (at, step) in STEPS.into_iter().enumerate() {
            if new & step == 0 {
                continue;
            }
            let in_order = STEPS[..at].iter().all(|earlier| done & earlier != 0);
            if !in_order || !self.take_step(&mut registers, step) {
                warn_guest!(
                    "virtio-{}: status {value:#x} after {have:#x} is refused from bit {step:#x} on",
                    self.traits.name
                );
                break;
            }
            done |= step;
        }
        self.shared.add_status(value & FAILED);
    }

    /// Takes one step of the handshake; false if the driver may not.
    fn take_step(&self, registers: &mut Registers, step: u32) -> bool {
        if step == FEATURES_OK {
            let chosen = registers.driver_features;
            let acceptable =
                chosen & VERSION_1 != 0 && chosen & !self.offered() == 0 && !registers.unknown_features;
            if !acceptable {
                return false;
            }
        }
        // Before the queues start: they may interrupt at once.
        self.shared.add_status(step);
        if step == DRIVER_OK {
            self.go_live(registers);
        }
        true
    }

    fn go_live(&self, registers: &mut Registers) {
        if self.shared.status() & NEEDS_RESET != 0 {
            // It was not there to hear of it before.
            self.shared.needs_reset();
            return;
        }
        registers.live = true;
        if !registers.paused {
            self.start_queues(registers, &[]);
        }
    }

    pub(super) fn reset(&self, registers: &mut Registers) {
        if registers.live && !registers.paused {
            // Their states are forgotten with everything else.
            self.device.stop();
        }
        for index in (0..).take(self.kicks.len()) {
            self.detach(registers, index);
        }
        let paused = registers.paused;
        *registers = Registers::new(&self.traits);
        registers.paused = paused;
        self.shared.reset();
    }

    pub(super) fn write_driver_features(&self, value: u32) {
        let mut registers = self.lock();
        if self.shared.status() & FEATURES_OK != 0 {
            warn_guest!(
                "virtio-{}: features are settled, a change is ignored",
                self.traits.name
            );
            return;
        }
        match registers.driver_features_sel {
            0 => registers.driver_features = registers.driver_features & !0xffff_ffff | u64::from(value),
            1 => registers.driver_features = registers.driver_features & 0xffff_ffff | u64::from(value) << 32,
            _ => registers.unknown_features |= value != 0,
        }
    }

    pub(super) fn write_queue_ready(&self, value: u32) {
        let mut registers = self.lock();
        let status = self.shared.status();
        let features = registers.driver_features;
        let Some((index, setup)) = registers.selected() else {
            warn_guest!(
                "virtio-{}: there is no queue {}",
                self.traits.name,
                registers.queue_sel
            );
            return;
        };
        if value == 0 {
            if setup.ready {
                self.stop_one(&mut registers, index);
            }
        } else if setup.ready {
            // Nothing new.
        } else if status & FEATURES_OK == 0 || status & DRIVER_OK != 0 {
            warn_guest!(
                "virtio-{}: queue {index} cannot become ready now",
                self.traits.name
            );
        } else if value == 1 && self.checked_queue(index, setup, features).is_some() {
            setup.ready = true;
        } else {
            warn_guest!("virtio-{}: queue {index} cannot be: {setup:x?}", self.traits.name);
            self.shared.needs_reset();
        }
    }

    /// The driver takes one queue back while others may go on. A device knows only all or none, so the others pause.
    fn stop_one(&self, registers: &mut Registers, index: u16) {
        registers.queues[usize::from(index)] = QueueSetup {
            ready: false,
            ..registers.queues[usize::from(index)]
        };
        self.detach(registers, index);
        if !registers.live {
            return;
        }
        if registers.paused {
            registers.stopped_at.retain(|(which, _)| *which != index);
        } else {
            let at = self.device.stop();
            self.start_queues(registers, &at);
        }
    }
}
