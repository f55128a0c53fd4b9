//! Snapshots that somebody else made. The first byte says what the others are: a description, what a part of a machine is restored
//! from, or what follows the RAM in a memory file.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use berth::snapshot::{Body, Found, decode, encode};
use berth_arch::x86_64::assist::AssistState;
use berth_arch::x86_64::vcpu_state::VcpuState;
use berth_devices::Memory;
use berth_devices::irqchip::{IoApic, IoApicState, MsiMessage, PinRouter};
use berth_devices::legacy::{
    AcpiPm, AcpiPmState, Cmos, CmosState, I8042, I8042State, MachineEvents, Pit, PitState, SerialPort,
    SerialPortState,
};
use berth_devices::storage::FileDisk;
use berth_devices::virtio::balloon::{Balloon, BalloonConfig, PageReturner};
use berth_devices::virtio::blk::{Block, BlockConfig};
use berth_devices::virtio::conformance::{self, Machine};
use berth_devices::virtio::device::VirtioDevice;
use berth_devices::virtio::mmio::MmioState;
use berth_devices::virtio::rng::Rng;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of RAM in the memory files.
const RAM: u64 = 1 << 20;
/// Bytes of what follows it: a page and one sum.
const TRAILER: usize = 4096 + 4;

pub(super) fn run(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else {
        return;
    };
    match choice {
        0 => describe(rest),
        1 => trailer(rest),
        which => part(which, rest),
    }
}

/// A description that can be read can be written and read again.
fn describe(text: &[u8]) {
    if let Ok(body) = decode(text) {
        let again = encode(&body).expect("it was read");
        assert_eq!(decode(&again), Ok(body));
    }
}

/// A memory of zeros with these bytes behind it.
fn trailer(bytes: &[u8]) {
    let mut file = vec![0; RAM as usize];
    file.extend_from_slice(bytes);
    let found = Found {
        path: "vm.json".into(),
        memory: super::scratch(&file),
        body: body(),
    };
    if found.check_memory().is_ok() {
        // Wrong sums are as good as right ones.
        let _ = found.verify();
    }
}

struct NoPins;
impl PinRouter for NoPins {
    fn route(&self, _: usize, _: Option<MsiMessage>) {}
    fn pulse(&self, _: usize) {}
}

struct NoReturner;
impl PageReturner for NoReturner {
    fn give_back(&self, _: &Memory, _: GuestAddress, _: u64) -> io::Result<()> {
        Ok(())
    }
}

fn restore<T: DeserializeOwned>(text: &[u8], with: impl FnOnce(T)) {
    if let Ok(state) = serde_json::from_slice(text) {
        with(state);
    }
}

/// What is restored from any state works on.
fn part(which: u8, text: &[u8]) {
    let irq = || EventFd::new(EFD_NONBLOCK).expect("the host gives event descriptors");
    let events: MachineEvents = Arc::new(|_| {});
    match which % PARTS {
        0 => restore::<IoApicState>(text, |state| IoApic::new(NoPins).restore(state)),
        1 => restore::<SerialPortState>(text, |state| {
            let serial =
                SerialPort::new(irq(), Box::new(io::sink())).expect("the host gives event descriptors");
            serial.restore(&state);
            let state = serial.save();
            serial.restore(&state);
            assert_eq!(serial.save(), state, "what was restored is what was saved");
        }),
        2 => restore::<I8042State>(text, |state| I8042::new(irq(), events).restore(state)),
        3 => restore::<CmosState>(text, |state| {
            Cmos::with_clock(Box::new(|| 1_700_000_000)).restore(state);
        }),
        4 => restore::<PitState>(text, |state| Pit::new().restore(state)),
        5 => restore::<AcpiPmState>(text, |state| AcpiPm::new(irq(), events).restore(state)),
        6 => restore::<VcpuState>(text, drop),
        7 => restore::<AssistState>(text, drop),
        which => restore::<MmioState>(text, |state| conformance::fuzz_restore(device(which), &state)),
    }
}

/// Kinds of parts.
const PARTS: u8 = 11;

fn device(which: u8) -> Box<dyn VirtioDevice> {
    match which {
        8 => Box::new(Rng::new()),
        9 => {
            let disk = FileDisk::open(super::scratch(&[0; 30 * 512]), false).expect("it is a regular file");
            Box::new(Block::new(Box::new(disk), BlockConfig::default()))
        }
        _ => {
            let config = BalloonConfig {
                target_pages: 100,
                deflate_on_oom: true,
                stats_interval: Duration::from_secs(1_000_000),
                free_page_reporting: true,
                free_page_hinting: true,
            };
            Box::new(Balloon::new(config, Box::new(NoReturner)).expect("descriptors").0)
        }
    }
}

/// What a description may say of a machine with the least RAM.
fn body() -> Body {
    let body = json!({
        "id": "00".repeat(16),
        "created": 1,
        "berth": "0",
        "host": {"kind": "native", "cpu": "", "kernel": ""},
        "guest": null,
        "streams": "piped",
        "memory": RAM,
        "base": null,
        "spec": {"memory": RAM, "kernel": "/vmlinux"},
        "components": {"clock": {"version": 1, "state": {"kvm": 1, "realtime": 2}}},
    });
    serde_json::from_value(body).expect("a good description")
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut trailer = b"berth-memory 1\0\0".to_vec();
    trailer.extend([0; 16]);
    trailer.extend(RAM.to_le_bytes());
    trailer.extend([0; 8]);
    // The CRC-32 of the sums, which are four zeros.
    trailer.extend(0x2144_df1c_u32.to_le_bytes());
    trailer.resize(TRAILER, 0);
    let mut seeds = vec![
        [&[0][..], &encode(&body()).expect("plain data")].concat(),
        [&[1][..], &trailer].concat(),
    ];
    let serial = SerialPort::new(
        EventFd::new(EFD_NONBLOCK).expect("descriptors"),
        Box::new(io::sink()),
    );
    let events: MachineEvents = Arc::new(|_| {});
    let irq = || EventFd::new(EFD_NONBLOCK).expect("descriptors");
    let states = [
        json!(IoApicState::default()),
        json!(serial.expect("descriptors").save()),
        json!(I8042::new(irq(), events.clone()).save()),
        json!(Cmos::with_clock(Box::new(|| 1_700_000_000)).save()),
        json!(Pit::new().save()),
        json!(AcpiPm::new(irq(), events).save()),
    ];
    for (which, state) in (0..).zip(&states) {
        seeds.push(seed(which, state));
    }
    for which in 8..PARTS {
        let machine = Machine::new(device(which));
        machine.bring_up(machine.offered());
        machine.transport.pause();
        let state = machine.transport.save().expect("it is paused");
        seeds.push(seed(which, &json!(state)));
    }
    seeds
}

/// Behind the byte that says which part it is of: not one of the two that mean something else.
fn seed(which: u8, state: &Value) -> Vec<u8> {
    let mut seed = vec![which + PARTS];
    seed.extend(state.to_string().bytes());
    seed
}
