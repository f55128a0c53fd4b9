//! The floor of the network: frames written to the tap and read from it by a plain program. One at a time is a system call each, more are
//! io_uring with the tap registered.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::time::Instant;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::floor::{Collector, Times};
use crate::options::{self, Op};
use crate::partner::{ANSWER, DATA, END, ETHERTYPE, KIND, NUMBER, START, TAP};

/// Bytes of the header before each frame, as the kernel has it unless told otherwise.
const HEADER: usize = 10;

/// Most frames of one system call.
const BURST: u16 = 32;

/// `_IOW('T', 202, int)`
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

pub(crate) fn run(asked: &options::Options) -> Times {
    let mut tap = open();
    let mut frame = vec![0; HEADER + asked.bs as usize];
    frame[HEADER..HEADER + 6].fill(0xff);
    frame[HEADER + 6..HEADER + 12].copy_from_slice(&[2, 0x62, 0x65, 0x72, 0x74, 0x68]);
    frame[HEADER + 12..HEADER + 14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    frame[HEADER + KIND] = DATA;
    let data = frame.clone();
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
    let together = asked.depth.min(BURST) as usize;
    if together > 1 && asked.op == Op::Tx {
        let mut ring = Together::new(&tap, vec![data; together]);
        loop {
            let begun = Instant::now();
            let results = ring.run(together, |tap, frame| {
                opcode::Write::new(tap, frame.as_ptr(), frame.len() as u32).build()
            });
            let sent = results.into_iter().filter(|result| *result > 0).count();
            assert!(sent == together, "{TAP} took {sent} of {together} frames");
            if !(0..sent).all(|_| collector.done(begun)) {
                return collector.finish();
            }
        }
    }
    if together > 1 && asked.op == Op::Rx {
        // As many buffers as the guest posts, in turn.
        let mut ring = Together::new(&tap, vec![vec![0; 2048]; usize::from(asked.depth)]);
        loop {
            let begun = Instant::now();
            hear(&mut tap, DATA);
            let results = ring.run(together, |tap, frame| {
                opcode::Read::new(tap, frame.as_mut_ptr(), frame.len() as u32)
                    .rw_flags(libc::RWF_NOWAIT)
                    .build()
            });
            let came = 1 + results.into_iter().filter(|result| *result > 0).count();
            if !(0..came).all(|_| collector.done(begun)) {
                send(&mut tap, END);
                return collector.finish();
            }
        }
    }
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

/// Frames that are read or written by one system call.
struct Together {
    ring: IoUring,
    frames: Vec<Vec<u8>>,
    next: usize,
}

impl Together {
    fn new(tap: &File, frames: Vec<Vec<u8>>) -> Self {
        let ring = IoUring::new(u32::from(BURST)).unwrap_or_else(|error| panic!("io_uring: {error}"));
        ring.submitter()
            .register_files(&[tap.as_raw_fd()])
            .unwrap_or_else(|error| panic!("io_uring: registering {TAP}: {error}"));
        Self {
            ring,
            frames,
            next: 0,
        }
    }

    /// Does what `entry` makes of each of the next `count` frames; what the kernel said, in any order.
    fn run(&mut self, count: usize, entry: impl Fn(types::Fixed, &mut [u8]) -> squeue::Entry) -> Vec<i32> {
        for _ in 0..count {
            let place = self.next % self.frames.len();
            self.next += 1;
            let entry = entry(types::Fixed(0), &mut self.frames[place]);
            // SAFETY: the frame belongs to `self`, which has no fewer than `count`, and all entries are done before this function ends.
            unsafe { self.ring.submission().push(&entry) }.expect("there are as many places as frames");
        }
        self.ring
            .submit_and_wait(count)
            .unwrap_or_else(|error| panic!("io_uring: {error}"));
        self.ring.completion().map(|done| done.result()).collect()
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
