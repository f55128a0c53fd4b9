//! Block devices (virtio 1.3, section 5.2): as many requests in flight as asked for, each followed by the next.

use crate::failure::Failure;
use crate::mem::{Arena, read8, read32, words, write8, write32, write64};
use crate::options::{Op, Options, Wait};
use crate::pattern;
use crate::queue::Part;
use crate::report::{self, Measured, Times};
use crate::timing::now;
use crate::transport::{Device, RunningQueue, Transport};

/// The device's type.
pub const KIND: u32 = 2;

const SECTOR: u64 = 512;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_MQ: u64 = 1 << 12;
const CONFIG_CAPACITY: u64 = 0;
const CONFIG_NUM_QUEUES: u64 = 34;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const ID_LEN: u32 = 20;

/// A request's memory: header, status, and how it stands. The data lies elsewhere, aligned.
#[derive(Clone, Copy)]
struct Slot {
    header: u64,
    status: u64,
    data: u64,
    begun: u64,
    block: u64,
    kind: u32,
}

const EMPTY: Slot = Slot {
    header: 0,
    status: 0,
    data: 0,
    begun: 0,
    block: 0,
    kind: 0,
};

struct Run<'a> {
    options: &'a Options,
    device: &'a Device,
    times: &'a mut Times,
    slots: [Slot; crate::options::MAX_DEPTH as usize],
    /// Blocks of the size that is asked for, in the part of the disk that is used.
    blocks: u64,
    /// How often each block was written, where it is to be verified; the address of 32-bit numbers.
    generations: u64,
    random: u64,
    next: u64,
    /// Operations to begin at most, and how many were.
    most: u64,
    started: u64,
    done: u64,
    kicks: u64,
    verified: u64,
    /// The sum of what was written ([`pattern::mark`]).
    content: u64,
    /// When it ends, in cycles.
    end: u64,
}

/// Drives a device as the options say, and reports.
pub fn run(
    transport: Transport,
    options: &Options,
    arena: &mut Arena,
    times: &mut Times,
) -> Result<(), Failure<'static>> {
    let wanted = FEATURE_FLUSH | FEATURE_MQ * (options.queues > 1) as u64;
    let device = Device::new(transport, wanted, options)?;
    if options.bs % SECTOR as u32 != 0 {
        return Err(Failure::Refused("bs= must be a multiple of 512"));
    }
    if options.queues > 1 && (!device.has(FEATURE_MQ) || device.config16(CONFIG_NUM_QUEUES) < options.queues)
    {
        return Err(Failure::Refused("the device has not so many queues"));
    }
    if options.op == Op::Flush && !device.has(FEATURE_FLUSH) {
        return Err(Failure::Refused("the device takes no flushes"));
    }
    let bs = options.bs as u64;
    let disk = device.config64(CONFIG_CAPACITY) * SECTOR;
    let used = if options.span == 0 {
        disk
    } else {
        options.span.min(disk)
    };
    let mut run = Run {
        options,
        device: &device,
        times,
        slots: [EMPTY; crate::options::MAX_DEPTH as usize],
        blocks: used / bs,
        generations: 0,
        random: options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        next: 0,
        most: u64::MAX,
        started: 0,
        done: 0,
        kicks: 0,
        verified: 0,
        content: 0,
        end: 0,
    };
    if run.blocks == 0 || (options.verify && run.blocks < options.depth as u64) {
        return Err(Failure::Refused("the disk has too few blocks of this size"));
    }
    run.allocate(arena)?;
    let mut queues: [Option<RunningQueue>; crate::options::MAX_QUEUES as usize] = [const { None }; _];
    let queues = &mut queues[..options.queues as usize];
    let each = options.depth.div_ceil(options.queues);
    for (index, queue) in queues.iter_mut().enumerate() {
        *queue = Some(device.start_queue(index as u16, 3, each, arena)?);
    }
    device.set_driver_ok();
    let measured = run.measure(queues)?;
    if options.verify && run.generations != 0 {
        run.read_back(queues)?;
    }
    let measured = Measured {
        verified: run.verified,
        content: run.content,
        ..measured
    };
    device.reset();
    report::results(options, &device, &measured, run.times);
    Ok(())
}

impl Run<'_> {
    fn allocate(&mut self, arena: &mut Arena) -> Result<(), Failure<'static>> {
        let depth = self.options.depth as u64;
        let headers = arena.take(64 * depth, 64).map_err(Failure::Memory)?;
        let data = arena
            .take(self.options.bs as u64 * depth, 4096)
            .map_err(Failure::Memory)?;
        for (index, slot) in self.slots[..depth as usize].iter_mut().enumerate() {
            slot.header = headers + 64 * index as u64;
            slot.status = slot.header + 16;
            slot.data = data + self.options.bs as u64 * index as u64;
        }
        if self.options.verify && matches!(self.options.op, Op::RandWrite | Op::RandRw | Op::SeqWrite) {
            self.generations = arena.take(4 * self.blocks, 64).map_err(Failure::Memory)?;
        }
        Ok(())
    }

    /// Runs until the time is over or all is done, from the end of the warming up on with a clock.
    fn measure(&mut self, queues: &mut [Option<RunningQueue>]) -> Result<Measured, Failure<'static>> {
        let options = self.options;
        let cycles = |ms: u64| ms * options.tsc_khz;
        if options.warmup_ms > 0 {
            self.end = now() + cycles(options.warmup_ms);
            self.drive(queues)?;
            self.times.clear();
        }
        (self.started, self.done, self.kicks) = (0, 0, 0);
        let interrupts = report::interrupts();
        let begun = now();
        self.end = if options.ms > 0 {
            begun + cycles(options.ms)
        } else {
            u64::MAX
        };
        self.most = if options.count > 0 {
            options.count
        } else {
            u64::MAX
        };
        self.drive(queues)?;
        let cycles = now() - begun;
        let moved = match options.op {
            Op::Flush => 0,
            Op::Id => ID_LEN as u64,
            _ => options.bs as u64,
        };
        Ok(Measured {
            operations: self.done,
            bytes: self.done * moved,
            cycles,
            kicks: self.kicks,
            verified: 0,
            content: 0,
            lost: 0,
            interrupts: report::interrupts() - interrupts,
        })
    }

    fn drive(&mut self, queues: &mut [Option<RunningQueue>]) -> Result<(), Failure<'static>> {
        let count = queues.len() as u16;
        let mut flying = 0_u64;
        for token in 0..self.options.depth {
            if self.started < self.most {
                let queue = queues[(token % count) as usize]
                    .as_mut()
                    .expect("all were started");
                self.begin(queue, token, token / count);
                flying += 1;
            }
        }
        for queue in queues.iter_mut().flatten() {
            self.publish(queue);
        }
        while flying > 0 {
            let mut idle = true;
            for (index, queue) in queues.iter_mut().flatten().enumerate() {
                let mut begun = false;
                while let Some((own, _)) = queue.queue.pop() {
                    idle = false;
                    let token = own * count + index as u16;
                    let time = self.finish(token)?;
                    flying -= 1;
                    if time < self.end && self.started < self.most {
                        self.begin(queue, token, own);
                        flying += 1;
                        begun = true;
                    }
                }
                if begun {
                    self.publish(queue);
                }
            }
            if idle && self.options.wait == Wait::Irq {
                let ready = queues.iter_mut().flatten().any(|queue| queue.queue.arm());
                if !ready {
                    self.device.sleep();
                }
            }
        }
        Ok(())
    }

    fn publish(&mut self, queue: &mut RunningQueue) {
        if queue.queue.publish() {
            let begun = now();
            queue.kick();
            self.times.kick.add(now() - begun);
            self.kicks += 1;
        }
    }

    /// Begins the next operation with the memory of `token`, which the queue knows as `own`.
    fn begin(&mut self, queue: &mut RunningQueue, token: u16, own: u16) {
        let (bs, sectors) = (self.options.bs, self.options.bs as u64 / SECTOR);
        let kind = match self.options.op {
            Op::RandWrite | Op::SeqWrite => OUT,
            Op::RandRw if self.started % 2 == 1 => OUT,
            Op::Flush => FLUSH,
            Op::Id => GET_ID,
            _ => IN,
        };
        let block = self.choose(token);
        let slot = &mut self.slots[token as usize];
        (slot.block, slot.kind) = (block, kind);
        let sector = if matches!(kind, IN | OUT) {
            block * sectors
        } else {
            0
        };
        write32(slot.header, kind);
        write64(slot.header + 8, sector);
        write8(slot.status, 0xff);
        if self.options.verify && kind == OUT {
            let at = self.generations + 4 * block;
            write32(at, read32(at) + 1);
            pattern::fill(words(slot.data, bs as usize), sector, read32(at));
        }
        if self.options.verify && kind == IN {
            // Nothing that was read before is taken for what is read now.
            words(slot.data, bs as usize)[0] = !0;
        }
        let part = |at, len, writable| Part { at, len, writable };
        let header = part(slot.header, 16, false);
        let status = part(slot.status, 1, true);
        match kind {
            FLUSH => queue.queue.add(own, &[header, status]),
            GET_ID => queue
                .queue
                .add(own, &[header, part(slot.data, ID_LEN, true), status]),
            _ => queue
                .queue
                .add(own, &[header, part(slot.data, bs, kind == IN), status]),
        }
        slot.begun = now();
        self.started += 1;
    }

    /// The block of the next operation. Where contents are compared, no two tokens have a block in common.
    fn choose(&mut self, token: u16) -> u64 {
        let depth = self.options.depth as u64;
        match self.options.op {
            Op::SeqRead | Op::SeqWrite if self.options.verify => {
                let row = self.slots[token as usize].block / depth + (self.started >= depth) as u64;
                row % (self.blocks / depth) * depth + token as u64
            }
            Op::SeqRead | Op::SeqWrite => {
                let block = self.next;
                self.next = if block + 1 == self.blocks { 0 } else { block + 1 };
                block
            }
            _ => {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                let below = |limit: u64| (self.random as u128 * limit as u128 >> 64) as u64;
                match self.options.verify {
                    true => below(self.blocks / depth) * depth + token as u64,
                    false => below(self.blocks),
                }
            }
        }
    }

    /// Takes the time and looks at what came; when it came.
    fn finish(&mut self, token: u16) -> Result<u64, Failure<'static>> {
        let time = now();
        let slot = &self.slots[token as usize];
        self.times.operation.add(time - slot.begun);
        self.done += 1;
        let sector = slot.block * (self.options.bs as u64 / SECTOR);
        let status = read8(slot.status);
        if status != 0 {
            return Err(Failure::Request { status, sector });
        }
        if self.options.verify && slot.kind == IN {
            self.compare(slot.data, slot.block)?;
        }
        Ok(time)
    }

    fn compare(&mut self, data: u64, block: u64) -> Result<(), Failure<'static>> {
        let generation = match self.generations {
            0 => 0,
            table => read32(table + 4 * block),
        };
        let sector = block * (self.options.bs as u64 / SECTOR);
        pattern::check(words(data, self.options.bs as usize), sector, generation)
            .map_err(|(sector, found)| Failure::Content { sector, found })?;
        self.verified += 1;
        Ok(())
    }

    /// Reads every block that was written, one by one, and compares.
    fn read_back(&mut self, queues: &mut [Option<RunningQueue>]) -> Result<(), Failure<'static>> {
        let sectors = self.options.bs as u64 / SECTOR;
        let queue = queues[0].as_mut().expect("all were started");
        let Slot {
            header, status, data, ..
        } = self.slots[0];
        for block in (0..self.blocks).filter(|block| read32(self.generations + 4 * block) != 0) {
            write32(header, IN);
            write64(header + 8, block * sectors);
            write8(status, 0xff);
            let part = |at, len, writable| Part { at, len, writable };
            let parts = [
                part(header, 16, false),
                part(data, self.options.bs, true),
                part(status, 1, true),
            ];
            queue.queue.add(0, &parts);
            if queue.queue.publish() {
                queue.kick();
            }
            while queue.queue.pop().is_none() {}
            if read8(status) != 0 {
                return Err(Failure::Request {
                    status: read8(status),
                    sector: block * sectors,
                });
            }
            let generation = read32(self.generations + 4 * block);
            pattern::check(words(data, self.options.bs as usize), block * sectors, generation)
                .map_err(|(sector, found)| Failure::Content { sector, found })?;
            self.verified += 1;
            self.content = self
                .content
                .wrapping_add(pattern::mark(block * sectors, generation));
        }
        Ok(())
    }
}
