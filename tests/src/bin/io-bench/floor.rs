//! The floor: what the guest does to a disk, done to the disk's file by a plain program.
//!
//! One request at a time is pread and pwrite; more are io_uring with the file and the buffers registered. `op=id`, which needs no file,
//! is a byte that one thread gives another by an eventfd, whose answer the first waits for in memory: what a notification and a
//! completion cost that need no monitor. Networks are in `floor_net`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use rustix::event::{EventfdFlags, eventfd};

use crate::floor_net;
use crate::options::{self, Op};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The disk's file.
    #[arg(long)]
    file: PathBuf,
    /// Goes past the page cache.
    #[arg(long)]
    direct: bool,
    /// The guest's command line.
    words: String,
}

/// Times of a run, nanoseconds.
pub(crate) struct Times {
    operations: Vec<u64>,
    elapsed: Duration,
}

/// How long to run; the warming up is over at `from`.
struct Span {
    from: Instant,
    until: Instant,
    most: u64,
}

impl Span {
    fn new(asked: &options::Options) -> Self {
        let from = Instant::now() + Duration::from_millis(asked.warmup_ms);
        let until = match asked.ms {
            0 => from + Duration::from_secs(3600),
            ms => from + Duration::from_millis(ms),
        };
        let most = if asked.count == 0 { u64::MAX } else { asked.count };
        Self { from, until, most }
    }
}

/// Collects what falls into the span.
pub(crate) struct Collector {
    span: Span,
    operations: Vec<u64>,
    last: Instant,
}

impl Collector {
    pub(crate) fn new(asked: &options::Options) -> Self {
        let span = Span::new(asked);
        Self {
            last: span.from,
            span,
            operations: Vec::with_capacity(1 << 20),
        }
    }

    /// An operation begun at `begun` is done; whether to go on.
    pub(crate) fn done(&mut self, begun: Instant) -> bool {
        let now = Instant::now();
        if now >= self.span.from {
            self.operations.push(now.duration_since(begun).as_nanos() as u64);
            self.last = now;
        }
        now < self.span.until && (self.operations.len() as u64) < self.span.most
    }

    pub(crate) fn finish(self) -> Times {
        Times {
            elapsed: self.last.duration_since(self.span.from),
            operations: self.operations,
        }
    }
}

/// Where requests go.
struct Places {
    bs: u64,
    blocks: u64,
    sequential: bool,
    next: u64,
    random: u64,
}

impl Places {
    fn new(asked: &options::Options, len: u64) -> Self {
        let used = if asked.span == 0 { len } else { asked.span.min(len) };
        Self {
            bs: u64::from(asked.bs),
            blocks: used / u64::from(asked.bs),
            sequential: matches!(asked.op, Op::SeqRead | Op::SeqWrite),
            next: 0,
            random: asked.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    fn next(&mut self) -> u64 {
        let block = if self.sequential {
            self.next = (self.next + 1) % self.blocks;
            self.next
        } else {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            ((u128::from(self.random) * u128::from(self.blocks)) >> 64) as u64
        };
        block * self.bs
    }
}

pub(crate) fn main(options: &Options) {
    let asked = options::parse(&options.words).unwrap_or_else(|problem| panic!("{problem}"));
    let mut times = match asked.op {
        Op::Id => wake(&asked),
        Op::Tx | Op::Rx | Op::PingPong => floor_net::run(&asked),
        Op::Flush => flush(&asked, &open(options)),
        _ if asked.depth == 1 => one_by_one(&asked, &open(options)),
        _ => ring(&asked, &open(options)),
    };
    times.operations.sort_unstable();
    let count = times.operations.len();
    let at = |percent: usize| {
        times
            .operations
            .get((count * percent / 100).min(count.max(1) - 1))
            .copied()
            .unwrap_or(0)
    };
    let line = serde_json::json!({
        "operations": count,
        "bytes": if matches!(asked.op, Op::Id | Op::Flush) { 0 } else { count as u64 * u64::from(asked.bs) },
        "ns": times.elapsed.as_nanos() as u64,
        "min_ns": at(0), "p50_ns": at(50), "p99_ns": at(99),
        "kicks": 0, "kick_p50_ns": 0, "interrupts": 0,
    });
    println!("{line}");
}

fn open(options: &Options) -> File {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(if options.direct { libc::O_DIRECT } else { 0 })
        .open(&options.file)
        .unwrap_or_else(|error| panic!("{}: {error}", options.file.display()))
}

/// Memory for requests, aligned for O_DIRECT. Zeros, which the guest takes for blocks that nobody wrote.
fn buffer(len: usize) -> &'static mut [u8] {
    const ALIGN: usize = 4096;
    let whole = vec![1_u8; len + ALIGN].leak();
    whole.fill(0);
    let skip = whole.as_ptr().align_offset(ALIGN);
    &mut whole[skip..skip + len]
}

fn writes(op: Op, turn: u64) -> bool {
    matches!(op, Op::RandWrite | Op::SeqWrite) || (op == Op::RandRw && turn % 2 == 1)
}

fn one_by_one(asked: &options::Options, file: &File) -> Times {
    let mut places = Places::new(asked, file.metadata().expect("it is open").len());
    let buffer = buffer(asked.bs as usize);
    let mut collector = Collector::new(asked);
    for turn in 0.. {
        let (at, begun) = (places.next(), Instant::now());
        let done = if writes(asked.op, turn) {
            file.write_all_at(buffer, at)
        } else {
            file.read_exact_at(buffer, at)
        };
        done.unwrap_or_else(|error| panic!("offset {at}: {error}"));
        if !collector.done(begun) {
            break;
        }
    }
    collector.finish()
}

fn flush(asked: &options::Options, file: &File) -> Times {
    let mut collector = Collector::new(asked);
    loop {
        let begun = Instant::now();
        file.sync_data()
            .unwrap_or_else(|error| panic!("fdatasync: {error}"));
        if !collector.done(begun) {
            return collector.finish();
        }
    }
}

fn ring(asked: &options::Options, file: &File) -> Times {
    let depth = asked.depth as usize;
    let bs = asked.bs as usize;
    let mut places = Places::new(asked, file.metadata().expect("it is open").len());
    let memory = buffer(bs * depth);
    let vectors: Vec<_> = memory
        .chunks_exact_mut(bs)
        .map(|chunk| libc::iovec {
            iov_base: chunk.as_mut_ptr().cast(),
            iov_len: chunk.len(),
        })
        .collect();
    let mut ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(depth.next_power_of_two() as u32)
        .unwrap_or_else(|error| panic!("io_uring: {error}"));
    ring.submitter()
        .register_files(&[file.as_raw_fd()])
        .unwrap_or_else(|error| panic!("io_uring: registering the file: {error}"));
    // SAFETY: the buffers are leaked, so they live as long as the ring, and nobody else reads or writes them.
    let registered = unsafe { ring.submitter().register_buffers(&vectors) };
    registered.unwrap_or_else(|error| panic!("io_uring: registering the buffers: {error}"));

    let mut collector = Collector::new(asked);
    let mut begun = vec![Instant::now(); depth];
    let mut turn = 0;
    let mut push = |ring: &mut IoUring, token: usize| {
        let (at, address) = (places.next(), vectors[token].iov_base.cast::<u8>());
        let (fd, len, index) = (types::Fixed(0), bs as u32, token as u16);
        let entry = if writes(asked.op, turn) {
            opcode::WriteFixed::new(fd, address, len, index)
                .offset(at)
                .build()
        } else {
            opcode::ReadFixed::new(fd, address, len, index).offset(at).build()
        };
        turn += 1;
        // SAFETY: the entry's buffer is registered, lives as long as the ring, and has no other request: its token has come back.
        unsafe { ring.submission().push(&entry.user_data(token as u64)) }
            .expect("there are as many places as tokens");
        Instant::now()
    };
    for (token, begun) in begun.iter_mut().enumerate() {
        *begun = push(&mut ring, token);
    }
    let mut flying = depth;
    let mut done = Vec::with_capacity(depth);
    while flying > 0 {
        ring.submit_and_wait(1)
            .unwrap_or_else(|error| panic!("io_uring: {error}"));
        done.extend(
            ring.completion()
                .map(|entry| (entry.user_data() as usize, entry.result())),
        );
        for (token, result) in done.drain(..) {
            assert!(result == bs as i32, "a request of {bs} bytes ended with {result}");
            flying -= 1;
            if collector.done(begun[token]) {
                begun[token] = push(&mut ring, token);
                flying += 1;
            }
        }
    }
    collector.finish()
}

/// One thread wakes another and waits for a word in memory.
fn wake(asked: &options::Options) -> Times {
    let event = eventfd(0, EventfdFlags::empty()).expect("descriptors are not used up");
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = [0; 8];
            while rustix::io::read(&event, &mut bytes).is_ok() {
                if u64::from_ne_bytes(bytes) > 1 {
                    break;
                }
                answered.fetch_add(1, Ordering::Release);
            }
        });
        let mut collector = Collector::new(asked);
        for turn in 1.. {
            let begun = Instant::now();
            rustix::io::write(&event, &1_u64.to_ne_bytes()).expect("it has room");
            while answered.load(Ordering::Acquire) < turn {
                std::hint::spin_loop();
            }
            if !collector.done(begun) {
                break;
            }
        }
        rustix::io::write(&event, &2_u64.to_ne_bytes()).expect("it has room");
        collector.finish()
    })
}
