//! Network cards (virtio 1.3, section 5.1): frames of an EtherType for experiments, against a partner on the host's side.
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 14 | to everybody, from the guest, 0x88b5 |
//! | 16 | 4 | what it is: a [`START`], an [`END`], a frame that counts ([`DATA`]), the answer to one ([`ANSWER`]) |
//! | 20 | 4 | its number |
//! | 24 | | byte by byte, number plus place |
//!
//! The partner sends numbered frames from a [`START`] to an [`END`], and gives back each [`DATA`] as an [`ANSWER`].

use crate::failure::Failure;
use crate::mem::{Arena, bytes, read16, read32, write32};
use crate::options::{Op, Options, Wait};
use crate::queue::Part;
use crate::report::{self, Measured, Times};
use crate::timing::now;
use crate::transport::{Device, RunningQueue, Transport};

/// The device's type.
pub const KIND: u32 = 1;

const FEATURE_MRG_RXBUF: u64 = 1 << 15;
const FEATURE_CTRL_VQ: u64 = 1 << 17;
const FEATURE_MQ: u64 = 1 << 22;
const CONFIG_PAIRS: u64 = 8;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

const HEADER: u64 = 12;
const BUFFER: u64 = 2048;
const ETHERTYPE: u16 = 0x88b5;
const START: u32 = 1;
const END: u32 = 2;
const DATA: u32 = 3;
const ANSWER: u32 = 4;

/// Frames on their way to the device while another operation than sending is measured.
const CONTROL_TOKEN: u16 = 0;
/// How often a frame that may have been lost is sent again, and how often at most.
const RETRY_MS: u64 = 100;
const RETRIES: u32 = 50;

struct Run<'a> {
    options: &'a Options,
    device: &'a Device,
    times: &'a mut Times,
    receive: RunningQueue,
    transmit: RunningQueue,
    /// The transmit queues of the pairs after the first.
    others: [Option<RunningQueue>; crate::options::MAX_QUEUES as usize - 1],
    /// Buffers of each queue, by token.
    receive_buffers: u64,
    transmit_buffers: u64,
    number: u32,
    /// Whether an answer has come: only then is it certain that the partner is there.
    answered: bool,
    kicks: u64,
    verified: u64,
    lost: u64,
}

/// Drives a device as the options say, and reports.
pub fn run(
    transport: Transport,
    options: &Options,
    arena: &mut Arena,
    times: &mut Times,
) -> Result<(), Failure<'static>> {
    if !(60..=1514).contains(&options.bs) {
        return Err(Failure::Refused("bs= must be from 60 to 1514 for frames"));
    }
    let pairs = options.queues;
    if pairs > 1 && options.op != Op::Tx {
        return Err(Failure::Refused("several pairs of queues are for op=tx"));
    }
    let several = (FEATURE_CTRL_VQ | FEATURE_MQ) * (pairs > 1) as u64;
    let device = Device::new(transport, FEATURE_MRG_RXBUF | several, options)?;
    let offered = if device.has(FEATURE_MQ) {
        device.config16(CONFIG_PAIRS)
    } else {
        1
    };
    if pairs > offered {
        return Err(Failure::Refused("the device has not so many pairs of queues"));
    }
    let depth = options.depth;
    let receive = device.start_queue(RECEIVE, 1, depth, arena)?;
    let transmit = device.start_queue(TRANSMIT, 1, depth.div_ceil(pairs), arena)?;
    let mut others = [const { None }; _];
    for pair in 1..pairs {
        // Nothing comes by the others' receive queues before there are buffers, so these stay empty.
        device.start_queue(2 * pair + RECEIVE, 1, 1, arena)?;
        let queue = device.start_queue(2 * pair + TRANSMIT, 1, depth.div_ceil(pairs), arena)?;
        others[pair as usize - 1] = Some(queue);
    }
    let commands = match pairs {
        1 => None,
        _ => Some(device.start_queue(2 * offered, 2, 1, arena)?),
    };
    let buffers = BUFFER * depth as u64;
    let receive_buffers = arena.take(buffers, 4096).map_err(Failure::Memory)?;
    let transmit_buffers = arena.take(buffers, 4096).map_err(Failure::Memory)?;
    let mut run = Run {
        options,
        device: &device,
        times,
        receive,
        transmit,
        others,
        receive_buffers,
        transmit_buffers,
        number: 0,
        answered: false,
        kicks: 0,
        verified: 0,
        lost: 0,
    };
    device.set_driver_ok();
    if let Some(mut commands) = commands {
        use_pairs(&mut commands, pairs, arena)?;
    }
    for token in 0..depth {
        run.offer(token);
    }
    publish(&mut run.receive, run.times, &mut run.kicks);
    if options.warmup_ms > 0 {
        run.measure(options.warmup_ms, u64::MAX)?;
        run.times.clear();
        (run.kicks, run.verified, run.lost) = (0, 0, 0);
    }
    let most = if options.count > 0 {
        options.count
    } else {
        u64::MAX
    };
    let measured = run.measure(options.ms, most)?;
    let measured = Measured {
        kicks: run.kicks,
        verified: run.verified,
        lost: run.lost,
        ..measured
    };
    device.reset();
    report::results(options, &device, &measured, run.times);
    Ok(())
}

/// Tells the device how many pairs are used from now on (virtio 1.3, section 5.1.6.5.5).
fn use_pairs(commands: &mut RunningQueue, pairs: u16, arena: &mut Arena) -> Result<(), Failure<'static>> {
    let at = arena.take(64, 64).map_err(Failure::Memory)?;
    // Class and command, then the number.
    write32(at, 4 | (pairs as u32) << 16);
    write32(at + 16, 0xff);
    let part = |at, len, writable| Part { at, len, writable };
    commands
        .queue
        .add(0, &[part(at, 4, false), part(at + 16, 1, true)]);
    if commands.queue.publish() {
        commands.kick();
    }
    while commands.queue.pop().is_none() {}
    match read32(at + 16) & 0xff {
        0 => Ok(()),
        _ => Err(Failure::Refused(
            "the device does not use so many pairs of queues",
        )),
    }
}

fn publish(queue: &mut RunningQueue, times: &mut Times, kicks: &mut u64) {
    if queue.queue.publish() {
        let begun = now();
        queue.kick();
        times.kick.add(now() - begun);
        *kicks += 1;
    }
}

impl Run<'_> {
    /// Does the operation for so long, or forever if that is 0, and so often.
    fn measure(&mut self, ms: u64, most: u64) -> Result<Measured, Failure<'static>> {
        let interrupts = report::interrupts();
        let limit = if ms > 0 {
            ms * self.options.tsc_khz
        } else {
            u64::MAX
        };
        let (operations, cycles) = match self.options.op {
            Op::Tx => self.send_all(limit, most)?,
            Op::Rx => self.receive_all(limit, most)?,
            _ => self.ping(limit, most)?,
        };
        Ok(Measured {
            operations,
            bytes: operations * self.options.bs as u64,
            cycles,
            kicks: 0,
            verified: 0,
            content: 0,
            lost: 0,
            interrupts: report::interrupts() - interrupts,
        })
    }

    /// The transmit queue that `token` goes by: each in turn.
    fn transmitter(&mut self, token: u16) -> &mut RunningQueue {
        match token % self.options.queues {
            0 => &mut self.transmit,
            pair => self.others[pair as usize - 1].as_mut().expect("all were started"),
        }
    }

    fn publish_all(&mut self) {
        publish(&mut self.transmit, self.times, &mut self.kicks);
        for queue in self.others.iter_mut().flatten() {
            publish(queue, self.times, &mut self.kicks);
        }
    }

    /// Keeps the transmit queues full.
    fn send_all(&mut self, limit: u64, most: u64) -> Result<(u64, u64), Failure<'static>> {
        let mut begun = [0; crate::options::MAX_DEPTH as usize];
        let (mut started, mut done) = (0, 0);
        let start = now();
        for token in 0..self.options.depth {
            if started < most {
                begun[token as usize] = self.send(token, DATA);
                started += 1;
            }
        }
        self.publish_all();
        let pairs = self.options.queues;
        loop {
            let before = (started, done);
            for pair in 0..pairs {
                while let Some((own, _)) = self.transmitter(pair).queue.pop() {
                    let time = now();
                    let token = own * pairs + pair;
                    self.times.operation.add(time - begun[token as usize]);
                    done += 1;
                    if time - start < limit && started < most {
                        begun[token as usize] = self.send(token, DATA);
                        started += 1;
                    }
                }
            }
            if started == done {
                return Ok((done, now() - start));
            }
            if (started, done) != before {
                self.publish_all();
            } else if self.options.wait == Wait::Irq {
                let ready = (0..pairs).any(|pair| self.transmitter(pair).queue.arm());
                if !ready {
                    self.device.sleep();
                }
            }
        }
    }

    /// Has the partner send until it is enough. The clock starts with the first frame.
    fn receive_all(&mut self, limit: u64, most: u64) -> Result<(u64, u64), Failure<'static>> {
        let mut first = self.wait_for(START, DATA)?;
        let (start, mut last) = (now(), now());
        let mut done = 0;
        let mut newest = first;
        while done < most && last - start < limit {
            let mut came = 0;
            while let Some((token, _)) = self.receive.queue.pop() {
                if let Some((DATA, number)) = self.look(token)? {
                    let time = now();
                    self.times.operation.add(time - last);
                    (last, newest) = (time, number);
                    done += 1;
                }
                self.offer(token);
                came += 1;
            }
            if came > 0 {
                publish(&mut self.receive, self.times, &mut self.kicks);
            } else if self.options.wait == Wait::Irq {
                if !self.receive.queue.arm() {
                    self.device.sleep();
                }
            } else if now() - last > limit {
                // The partner has fallen silent: what came is the result.
                break;
            }
        }
        first = first.wrapping_add(1);
        self.lost += (newest.wrapping_sub(first) as u64 + 1).saturating_sub(done);
        self.control(END);
        Ok((done, last - start))
    }

    /// Sends a frame and waits for its answer, again and again.
    fn ping(&mut self, limit: u64, most: u64) -> Result<(u64, u64), Failure<'static>> {
        self.wait_for(DATA, ANSWER)?;
        let start = now();
        let mut done = 0;
        while done < most && now() - start < limit {
            let begun = now();
            self.wait_for(DATA, ANSWER)?;
            self.times.operation.add(now() - begun);
            done += 1;
        }
        Ok((done, now() - start))
    }

    /// Sends a frame until one of a kind comes, whose number it gives. An answer must have the number of what was sent last.
    fn wait_for(&mut self, sent: u32, wanted: u32) -> Result<u32, Failure<'static>> {
        // Without a known frequency a frame is sent again after a time that is at least not short.
        let patience = RETRY_MS * self.options.tsc_khz.max(1_000_000);
        for _ in 0..RETRIES {
            self.control(sent);
            let begun = now();
            while now() - begun < patience {
                let mut found = None;
                let mut came = false;
                while let Some((token, _)) = self.receive.queue.pop() {
                    came = true;
                    let frame = self.look(token)?;
                    self.offer(token);
                    found = frame
                        .filter(|(kind, number)| {
                            *kind == wanted && (wanted == DATA || *number == self.number)
                        })
                        .or(found);
                    if found.is_some() {
                        break;
                    }
                }
                if came {
                    publish(&mut self.receive, self.times, &mut self.kicks);
                }
                if let Some((_, number)) = found {
                    self.answered = true;
                    return Ok(number);
                }
                // Without a partner there is no interrupt, and the wait would not end.
                if !came && self.options.wait == Wait::Irq && self.answered && !self.receive.queue.arm() {
                    self.device.sleep();
                }
            }
            self.lost += 1;
        }
        Err(Failure::Refused("no frame comes from the partner"))
    }

    /// Sends a frame by itself, once the one before has gone.
    fn control(&mut self, kind: u32) {
        self.send(CONTROL_TOKEN, kind);
        publish(&mut self.transmit, self.times, &mut self.kicks);
        while self.transmit.queue.pop().is_none() {}
    }

    /// Writes a frame and puts it into the transmit queue; when.
    fn send(&mut self, token: u16, kind: u32) -> u64 {
        self.number = self.number.wrapping_add(1);
        let at = self.transmit_buffers + BUFFER * token as u64;
        let frame = bytes(at + HEADER, self.options.bs as usize);
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&[2, 0x62, 0x65, 0x72, 0x74, 0x68]);
        frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        if self.options.verify {
            fill(frame, self.number);
        }
        write32(at + HEADER + 16, kind);
        write32(at + HEADER + 20, self.number);
        let part = Part {
            at,
            len: HEADER as u32 + self.options.bs,
            writable: false,
        };
        let own = token / self.options.queues;
        self.transmitter(token).queue.add(own, &[part]);
        now()
    }

    /// Gives the device a buffer to receive into.
    fn offer(&mut self, token: u16) {
        let part = Part {
            at: self.receive_buffers + BUFFER * token as u64,
            len: BUFFER as u32,
            writable: true,
        };
        self.receive.queue.add(token, &[part]);
    }

    /// What a received frame is and its number, if it is the partner's.
    fn look(&mut self, token: u16) -> Result<Option<(u32, u32)>, Failure<'static>> {
        let at = self.receive_buffers + BUFFER * token as u64 + HEADER;
        if read16(at + 12) != ETHERTYPE.to_be() {
            return Ok(None);
        }
        let (kind, number) = (read32(at + 16), read32(at + 20));
        if self.options.verify {
            if !is_filled(bytes(at, self.options.bs as usize), number) {
                return Err(Failure::Refused("a frame came that holds what it should not"));
            }
            self.verified += 1;
        }
        Ok(Some((kind, number)))
    }
}

fn fill(frame: &mut [u8], number: u32) {
    for (place, byte) in frame.iter_mut().enumerate().skip(24) {
        *byte = (number as usize + place) as u8;
    }
}

fn is_filled(frame: &[u8], number: u32) -> bool {
    let mut rest = frame.iter().enumerate().skip(24);
    rest.all(|(place, byte)| *byte == (number as usize + place) as u8)
}
