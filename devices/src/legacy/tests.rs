use proptest::prelude::any;
use proptest::proptest;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

/// Keeps what devices report.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<MachineEvent>>>);

impl Log {
    pub(super) fn events(&self) -> MachineEvents {
        let log = self.0.clone();
        Arc::new(move |event| log.lock().unwrap().push(event))
    }

    pub(super) fn take(&self) -> Vec<MachineEvent> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Reads one byte of a device.
pub(super) fn byte(device: &dyn BusDevice, offset: u64) -> u8 {
    let mut data = [0xff];
    device.read(offset, &mut data);
    data[0]
}

fn devices() -> Vec<Arc<dyn BusDevice>> {
    let irq = || EventFd::new(EFD_NONBLOCK).unwrap();
    let events = || Log::default().events();
    vec![
        Arc::new(SerialPort::new(irq(), Box::new(std::io::sink())).unwrap()),
        Arc::new(Pit::new()),
        Arc::new(I8042::new(irq(), events())),
        Arc::new(Cmos::new()),
        Arc::new(DelayPort::default()),
        Arc::new(ExitPort::new(events())),
        Arc::new(ReadyPort::new(events())),
        Arc::new(Pvpanic::new(events())),
        Arc::new(AcpiPm::new(irq(), events())),
    ]
}

#[test]
fn bytes_past_a_devices_range_stay_as_the_bus_gave_them() {
    for device in devices() {
        let mut data = [0xff; 8];
        device.read(0x100, &mut data);
        device.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff; 8]);
    }
}

#[test]
fn a_device_in_pieces_is_one_device() {
    let log = Log::default();
    let device = Arc::new(I8042::new(EventFd::new(EFD_NONBLOCK).unwrap(), log.events()));
    let command = At::new(device.clone(), 4);
    command.write(0, &[0xaa]);
    assert_eq!(byte(&*device, 0), 0x55);
    command.write(0, &[0xfe]);
    assert_eq!(log.take(), [MachineEvent::Reset]);
}

proptest! {
    #[test]
    fn any_access_is_survived(
        accesses in proptest::collection::vec((any::<bool>(), 0..0x24_u64, any::<[u8; 8]>(), 1..=8_usize), 1..200),
        wild: u64,
    ) {
        for device in devices() {
            for (write, offset, mut data, len) in accesses.clone() {
                for offset in [offset, offset.wrapping_add(wild)] {
                    if write {
                        device.write(offset, &data[..len]);
                    } else {
                        device.read(offset, &mut data[..len]);
                    }
                }
            }
        }
    }
}
