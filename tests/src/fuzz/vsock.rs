//! The socket device between a guest that sends any packets and host programs that come, write, end and go.

use std::cell::OnceCell;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use berth_devices::virtio::conformance::ring::{Part, Ring};
use berth_devices::virtio::conformance::{BUFFERS, Machine, VERSION_1};
use berth_devices::virtio::vsock::Vsock;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

const CID: u8 = 3;
/// A host program listens here.
const SERVICE: u8 = 52;
/// Bytes of a header; where the ports, length and the rest stand in it.
const HEADER: usize = 44;
const SENT: u64 = BUFFERS + 0x10_0000;
/// Programs at most: descriptors are the fuzzer's own too.
const PROGRAMS: usize = 40;

/// One step: what happens, and the bytes that say more.
const STEP: usize = 8;

thread_local! {
    static PLACE: OnceCell<TempDir> = const { OnceCell::new() };
}

/// Plays the bytes, eight a step.
pub(super) fn run(data: &[u8]) {
    PLACE.with(|place| {
        let place = place.get_or_init(|| tempfile::tempdir().expect("a temporary folder"));
        play(place, data);
    });
}

fn play(place: &TempDir, data: &[u8]) {
    let path = place.path().join("v");
    let service = place.path().join(format!("v_{SERVICE}"));
    // Left by the run before.
    let _ = std::fs::remove_file(&service);
    let listener = UnixListener::bind(&service).expect("a socket can be made");
    listener
        .set_nonblocking(true)
        .expect("a socket can be nonblocking");
    let device = Vsock::new(CID.into(), &path).expect("a socket can be made");
    let machine = Machine::new(Box::new(device));
    let mut rings = machine.bring_up(VERSION_1).into_iter();
    let (Some(mut receive), Some(mut transmit)) = (rings.next(), rings.next()) else {
        return;
    };
    let mut programs: Vec<UnixStream> = Vec::new();
    for step in data.chunks(STEP) {
        let mut bytes = [0; STEP];
        bytes[..step.len()].copy_from_slice(step);
        let [verb, first, second, ..] = bytes;
        match verb % 8 {
            0 if programs.len() < PROGRAMS => programs.push(program(&path, first)),
            1 => drop(programs.pop()),
            2 => {
                let length = usize::from(first) << (second % 12);
                for program in &mut programs {
                    // What finds no room is not written.
                    let _ = program.write(&vec![verb; length]);
                }
            }
            3 => {
                for program in &programs {
                    let _ = program
                        .shutdown([Shutdown::Read, Shutdown::Write, Shutdown::Both][usize::from(first % 3)]);
                }
            }
            4 => {
                machine.transport.pause();
                let state = machine.transport.save().expect("a paused transport saves");
                if first.is_multiple_of(2) {
                    machine.transport.restore(&state).expect("its own state");
                }
                machine.transport.resume();
            }
            5 => post(&mut receive, &machine, first),
            _ => packet(&machine, &mut transmit, bytes),
        }
        while let Ok((program, _)) = listener.accept() {
            if programs.len() < PROGRAMS {
                program
                    .set_nonblocking(true)
                    .expect("a socket can be nonblocking");
                programs.push(program);
            }
        }
        machine.device.pump();
    }
}

fn program(path: &std::path::Path, port: u8) -> UnixStream {
    let mut program = UnixStream::connect(path).expect("the device listens");
    program
        .set_nonblocking(true)
        .expect("a socket can be nonblocking");
    let line = format!("CONNECT {}{}", port % 4, if port < 200 { "\n" } else { "" });
    program
        .write_all(line.as_bytes())
        .expect("a fresh socket has room");
    program
}

fn post(receive: &mut Ring, machine: &Machine, count: u8) {
    while receive.take_used().is_some() {}
    for number in 0..u64::from(count % 8) {
        receive.add(&[Part::Write(BUFFERS + number * 0x1000, 0x1000)]);
    }
    machine.notify(0);
}

/// A packet that is nearly right: only its operation, ports, lengths and credit are the fuzzer's.
fn packet(
    machine: &Machine,
    transmit: &mut Ring,
    [_, op, ports, flags, length, claim, room, forwarded]: [u8; STEP],
) {
    let mut header = [0; HEADER];
    header[0] = if op == 0xff { claim } else { CID };
    header[8] = 2;
    // The guest's port is one of few; the host's is the service, or one that Berth gave out.
    header[16] = ports % 4;
    if ports & 0x80 == 0 {
        header[20] = SERVICE;
    } else {
        header[20] = ports >> 2 & 0x1f;
        header[23] = 0x40;
    }
    let length = u32::from(length) << (flags >> 4);
    let claimed = if claim < 240 {
        length
    } else {
        u32::from(claim) << 24
    };
    header[24..28].copy_from_slice(&claimed.to_le_bytes());
    header[28] = 1 + (claim == 239) as u8;
    header[30] = op % 9;
    header[32] = flags & 3;
    header[36..40].copy_from_slice(&(u32::from(room) << (room % 24)).to_le_bytes());
    header[40..44].copy_from_slice(&(u32::from(forwarded) << (forwarded % 24)).to_le_bytes());
    machine
        .memory
        .write_slice(&header, GuestAddress(SENT))
        .expect("a buffer in memory");
    while transmit.take_used().is_some() {}
    if length == 0 {
        transmit.add(&[Part::Read(SENT, HEADER as u32)]);
    } else {
        transmit.add(&[Part::Read(SENT, HEADER as u32), Part::Read(SENT, length)]);
    }
    machine.notify(1);
}

/// Both ways to a connection, data, and its ends.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let request = [6, 1, 2, 0, 0, 0, 200, 0];
    let data = [6, 5, 2, 0x40, 100, 0, 200, 0];
    let end = [6, 4, 2, 3, 0, 0, 200, 0];
    let buffers = [5, 7, 0, 0, 0, 0, 0, 0];
    let connect = [0, 1, 0, 0, 0, 0, 0, 0];
    let response = [6, 2, 0x81, 0, 0, 0, 200, 0];
    let write = [2, 200, 8, 0, 0, 0, 0, 0];
    vec![
        [buffers, request, data, write, end].concat(),
        [buffers, connect, response, write, buffers, buffers].concat(),
        [
            request,
            data,
            [3, 0, 0, 0, 0, 0, 0, 0],
            data,
            [4, 0, 0, 0, 0, 0, 0, 0],
            data,
        ]
        .concat(),
    ]
}
