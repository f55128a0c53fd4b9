//! What the command line asks for. Plain code without hardware, so that the host's tests compile it too.
//!
//! ```text
//! bench=blk op=randread bs=4096 depth=32 ms=1000 virtio_mmio.device=4K@0xd0000000:5
//! ```
//! Words that are not this guest's are the monitor's and left alone.

use core::fmt;

/// What to drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bench {
    /// A virtio-blk device.
    Blk,
    /// A virtio-net device.
    Net,
}

/// What to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads at random places.
    RandRead,
    /// Writes at random places.
    RandWrite,
    /// Reads and writes in turn, at random places.
    RandRw,
    /// Reads one after the other, from the start again at the end.
    SeqRead,
    /// Writes, likewise.
    SeqWrite,
    /// Flushes.
    Flush,
    /// Asks for the serial number: a request that no file has a part in, so the time is that of notification and completion.
    Id,
    /// Sends frames.
    Tx,
    /// Receives frames.
    Rx,
    /// Sends a frame, waits for one, and so on.
    PingPong,
}

/// How completions are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// By looking at the used ring without end.
    Poll,
    /// By halting until an interrupt.
    Irq,
}

/// All that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // They are switches of the command line.
pub struct Options {
    /// `bench=`: what to drive.
    pub bench: Bench,
    /// `op=`: what to do.
    pub op: Op,
    /// `bs=`: bytes of a request or frame.
    pub bs: u32,
    /// `depth=`: requests or frames in flight, over all queues.
    pub depth: u16,
    /// `ms=`: how long to measure; 0 if `count` says when to end.
    pub ms: u64,
    /// `count=`: after how many operations to end.
    pub count: u64,
    /// `warmup_ms=`: how long to run before measuring.
    pub warmup_ms: u64,
    /// `wait=`: how completions are noticed.
    pub wait: Wait,
    /// `queues=`: request queues or queue pairs to use.
    pub queues: u16,
    /// `dev=`: which device of its kind, from 0.
    pub dev: usize,
    /// `event_idx=`: whether to take VIRTIO_F_EVENT_IDX where it is offered.
    pub event_idx: bool,
    /// `indirect=`: whether to take VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// `packed=`: whether to take VIRTIO_F_RING_PACKED.
    pub packed: bool,
    /// `verify=`: whether what is written carries a pattern that reading checks.
    pub verify: bool,
    /// `span=`: bytes of the disk, from its start, to use; 0 for all.
    pub span: u64,
    /// `seed=`: where random numbers begin.
    pub seed: u64,
    /// `tsc_khz=`: the time stamp counter's frequency, 0 to ask the CPU.
    pub tsc_khz: u64,
}

impl Options {
    const DEFAULT: Self = Self {
        bench: Bench::Blk,
        op: Op::RandRead,
        bs: 4096,
        depth: 1,
        ms: 0,
        count: 0,
        warmup_ms: 0,
        wait: Wait::Poll,
        queues: 1,
        dev: 0,
        event_idx: true,
        indirect: true,
        packed: false,
        verify: false,
        span: 0,
        seed: 1,
        tsc_khz: 0,
    };
}

/// Requests in flight at most.
pub const MAX_DEPTH: u16 = 256;
/// Request queues at most.
pub const MAX_QUEUES: u16 = 16;

/// A word that says nothing that can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem<'a> {
    /// The word's name.
    pub key: &'a str,
    /// What stands after `=`.
    pub value: &'a str,
    /// What may stand there.
    pub expected: &'static str,
}

impl fmt::Display for Problem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}: it must be {}", self.key, self.value, self.expected)
    }
}

/// A virtio-mmio device that the command line tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Where its registers are.
    pub base: u64,
    /// Its interrupt line.
    pub irq: u32,
}

/// Reads the whole line.
pub fn parse(line: &str) -> Result<Options, Problem<'_>> {
    let mut options = Options::DEFAULT;
    let (mut asked, mut bs) = (None, None);
    for word in line.split_ascii_whitespace() {
        let Some((key, value)) = word.split_once('=') else {
            continue;
        };
        let wrong = |expected| Problem { key, value, expected };
        let within = |least: u64, most: u64, expected| {
            size(value)
                .filter(|number| (least..=most).contains(number))
                .ok_or(wrong(expected))
        };
        let flag = || match value {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(wrong("0 or 1")),
        };
        match key {
            "bench" => {
                options.bench = match value {
                    "blk" => Bench::Blk,
                    "net" => Bench::Net,
                    _ => return Err(wrong("blk or net")),
                };
            }
            "op" => {
                let expected =
                    "randread, randwrite, randrw, seqread, seqwrite, flush, id, tx, rx or pingpong";
                asked = Some((
                    op(value).ok_or(wrong(expected))?,
                    wrong("an operation of what bench= says"),
                ));
            }
            "bs" => bs = Some(within(1, 1 << 20, "a size up to 1M")? as u32),
            "depth" => options.depth = within(1, MAX_DEPTH as u64, "a number from 1 to 256")? as u16,
            "ms" => options.ms = within(1, 3_600_000, "a number of milliseconds from 1 to an hour")?,
            "count" => options.count = within(1, u64::MAX, "a number of operations")?,
            "warmup_ms" => options.warmup_ms = within(0, 60_000, "a number of milliseconds up to a minute")?,
            "wait" => {
                options.wait = match value {
                    "poll" => Wait::Poll,
                    "irq" => Wait::Irq,
                    _ => return Err(wrong("poll or irq")),
                };
            }
            "queues" => options.queues = within(1, MAX_QUEUES as u64, "a number from 1 to 16")? as u16,
            "dev" => options.dev = within(0, 255, "a number")? as usize,
            "event_idx" => options.event_idx = flag()?,
            "indirect" => options.indirect = flag()?,
            "packed" => options.packed = flag()?,
            "verify" => options.verify = flag()?,
            "span" => options.span = within(0, u64::MAX, "a size")?,
            "seed" => options.seed = within(0, u64::MAX, "a number")?,
            "tsc_khz" => options.tsc_khz = within(1, u64::MAX, "a number of kHz")?,
            _ => (),
        }
    }
    let (op, misplaced) = match asked {
        Some((op, misplaced)) => (op, Some(misplaced)),
        None if options.bench == Bench::Net => (Op::PingPong, None),
        None => (Op::RandRead, None),
    };
    let of_net = matches!(op, Op::Tx | Op::Rx | Op::PingPong);
    if let Some(misplaced) = misplaced.filter(|_| of_net != (options.bench == Bench::Net)) {
        return Err(misplaced);
    }
    options.op = op;
    // A page, or the longest frame that Ethernet has.
    let usual = if options.bench == Bench::Net { 1514 } else { 4096 };
    options.bs = bs.unwrap_or(usual);
    if options.ms == 0 && options.count == 0 {
        options.count = 1000;
    }
    Ok(options)
}

fn op(word: &str) -> Option<Op> {
    Some(match word {
        "randread" => Op::RandRead,
        "randwrite" => Op::RandWrite,
        "randrw" => Op::RandRw,
        "seqread" => Op::SeqRead,
        "seqwrite" => Op::SeqWrite,
        "flush" => Op::Flush,
        "id" => Op::Id,
        "tx" => Op::Tx,
        "rx" => Op::Rx,
        "pingpong" => Op::PingPong,
        _ => return None,
    })
}

impl Op {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Op::RandRead => "randread",
            Op::RandWrite => "randwrite",
            Op::RandRw => "randrw",
            Op::SeqRead => "seqread",
            Op::SeqWrite => "seqwrite",
            Op::Flush => "flush",
            Op::Id => "id",
            Op::Tx => "tx",
            Op::Rx => "rx",
            Op::PingPong => "pingpong",
        }
    }
}

/// The virtio-mmio devices in the line, in its order. What is no `SIZE@ADDRESS:IRQ` is left out.
pub fn windows(line: &str) -> impl Iterator<Item = Window> + '_ {
    line.split_ascii_whitespace().filter_map(|word| {
        let (_, place) = word.strip_prefix("virtio_mmio.device=")?.split_once('@')?;
        let mut parts = place.split(':');
        let base = size(parts.next()?)?;
        let irq = u32::try_from(size(parts.next()?)?).ok()?;
        Some(Window { base, irq })
    })
}

/// A number, decimal or hexadecimal after 0x, with K, M or G behind it.
fn size(text: &str) -> Option<u64> {
    let (digits, scale) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 1 << 10),
        b'M' | b'm' => (&text[..text.len() - 1], 1 << 20),
        b'G' | b'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let number = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    number.ok()?.checked_mul(scale)
}
