//! The floor of the network: frames written to the tap and read from it by a plain program, one system call each.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::floor::{Collector, Times};
use crate::options::{self, Op};
use crate::partner::{ANSWER, DATA, END, ETHERTYPE, KIND, NUMBER, START, TAP};

/// Bytes of the header before each frame, as the kernel has it unless told otherwise.
const HEADER: usize = 10;

/// `_IOW('T', 202, int)`
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

pub(crate) fn run(asked: &options::Options) -> Times {
    let mut tap = open();
    let mut frame = vec![0; HEADER + asked.bs as usize];
    frame[HEADER..HEADER + 6].fill(0xff);
    frame[HEADER + 6..HEADER + 12].copy_from_slice(&[2, 0x62, 0x65, 0x72, 0x74, 0x68]);
    frame[HEADER + 12..HEADER + 14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    let mut heard = vec![0; 2048];
    let mut number = 0_u32;
    let mut send = |tap: &mut File, kind: u8| {
        number += 1;
        frame[HEADER + KIND] = kind;
        frame[HEADER + NUMBER..HEADER + NUMBER + 4].copy_from_slice(&number.to_le_bytes());
        tap.write_all(&frame)
            .unwrap_or_else(|error| panic!("{TAP}: {error}"));
    };
    // What the next frame says it is, if it is one of ours.
    let mut next = |tap: &mut File| {
        let len = tap
            .read(&mut heard)
            .unwrap_or_else(|error| panic!("{TAP}: {error}"));
        let ours = len > HEADER + KIND && heard[HEADER + 12..HEADER + 14] == ETHERTYPE.to_be_bytes();
        ours.then(|| heard[HEADER + KIND])
    };
    if asked.op == Op::Rx {
        send(&mut tap, START);
    } else if asked.op != Op::Tx {
        // Until the kernel has seen that somebody holds the tap, answers are lost.
        let mut answered = false;
        while !answered {
            send(&mut tap, DATA);
            while !answered && has_frame(&tap) {
                answered = next(&mut tap) == Some(ANSWER);
            }
        }
    }
    let mut hear = |tap: &mut File, wanted: u8| while next(tap) != Some(wanted) {};
    if asked.op == Op::Rx {
        hear(&mut tap, DATA);
    }
    let mut collector = Collector::new(asked);
    loop {
        let begun = Instant::now();
        match asked.op {
            Op::Tx => send(&mut tap, DATA),
            Op::Rx => hear(&mut tap, DATA),
            _ => {
                send(&mut tap, DATA);
                hear(&mut tap, ANSWER);
            }
        }
        if !collector.done(begun) {
            send(&mut tap, END);
            return collector.finish();
        }
    }
}

/// Whether a frame comes soon.
fn has_frame(tap: &File) -> bool {
    let soon = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    poll(&mut [PollFd::new(tap, PollFlags::IN)], Some(&soon)).is_ok_and(|ready| ready > 0)
}

fn open() -> File {
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap_or_else(|error| panic!("/dev/net/tun: {error}"));
    // SAFETY: zeros are a value of this plain structure.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: the pointer is to a live structure of the type that this request reads and writes.
    let set = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request) };
    assert!(set == 0, "{TAP}: {}", std::io::Error::last_os_error());
    tap
}
