//! The port devices, by any accesses: each is four bytes of the input (device and direction, offset, size, value).

use std::io;
use std::sync::Arc;

use berth_devices::bus::BusDevice;
use berth_devices::legacy::{
    AcpiPm, Cmos, DelayPort, ExitPort, I8042, MachineEvents, Pit, Pvpanic, ReadyPort, SerialPort,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(super) fn run(data: &[u8]) {
    let irq = || EventFd::new(EFD_NONBLOCK).expect("the host gives event descriptors");
    let events: MachineEvents = Arc::new(|_| {});
    let serial =
        Arc::new(SerialPort::new(irq(), Box::new(io::sink())).expect("the host gives event descriptors"));
    let devices: [Arc<dyn BusDevice>; 9] = [
        serial.clone(),
        Arc::new(Pit::new()),
        Arc::new(I8042::new(irq(), events.clone())),
        // A clock that stands, so that a crash can be had again.
        Arc::new(Cmos::with_clock(Box::new(|| 1_700_000_000))),
        Arc::new(DelayPort::default()),
        Arc::new(ExitPort::new(events.clone())),
        Arc::new(Pvpanic::new(events.clone())),
        Arc::new(AcpiPm::new(irq(), events.clone())),
        Arc::new(ReadyPort::new(events)),
    ];
    for access in data.chunks_exact(4) {
        let [choice, offset, size, value] = [access[0], access[1], access[2], access[3]];
        let device = &devices[usize::from(choice) % devices.len()];
        let size = usize::from(size) % 8 + 1;
        let mut bytes = [value; 8];
        match choice >> 6 {
            0 => device.read(offset.into(), &mut bytes[..size]),
            1 => {
                serial.enqueue(&bytes[..size]);
            }
            2 => {
                serial.set_carrier(value & 1 != 0);
                let state = serial.save();
                serial.restore(&state);
                assert_eq!(serial.save(), state, "what was restored is what was saved");
            }
            _ => device.write(offset.into(), &bytes[..size]),
        }
    }
}
