//! A disk's work on an io_uring: whatever was begun in one turn of the queue is handed over by one system call.
//!
//! ```text
//!   begin ─▶ submission queue ── commit: io_uring_enter ──▶ kernel ──▶ completion queue ─▶ completed
//!               ▲                                                             │
//!               └──────────── what moved in part, or was interrupted ─────────┘
//! ```
//! The disk's file is not registered with the ring. That would save some 20 ns a request, but a ring closes some time after its process
//! has ended, and the file with it: whoever starts the VM anew would find its disk locked.
//!
//! The event descriptor is silent while the kernel takes what is handed over: what it completes at once is looked at right after.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::engine::Job;
use super::store::{self, Store};

/// Entries of the submission queue: as many as a disk's virtqueue has.
const ENTRIES: u32 = 256;
/// Entries of the completion queue: a disk with several queues has more under way. What finds no place the kernel keeps.
const COMPLETIONS: u32 = 4 * ENTRIES;

const OPERATIONS: [u8; 6] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

pub(super) struct Ring {
    uring: IoUring,
    store: Arc<Store>,
    event: Arc<EventFd>,
    /// By token; none if nothing is under way.
    jobs: Vec<Option<Job>>,
    under_way: usize,
    /// Something is in the submission queue that the kernel has not been told of.
    unsent: bool,
}

/// What follows a completion.
#[derive(Debug)]
enum Next {
    Done(io::Result<()>),
    /// Hand over what is left.
    Again,
    /// Write zeros: the file system has no other way.
    StoreZeroes,
}

impl Ring {
    /// A ring for `store` that signals `event`.
    pub(super) fn new(store: Arc<Store>, event: &Arc<EventFd>) -> io::Result<Self> {
        let uring = IoUring::builder()
            .dontfork()
            .setup_cqsize(COMPLETIONS)
            .setup_coop_taskrun()
            .build(ENTRIES)
            // Before Linux 5.19.
            .or_else(|_| {
                IoUring::builder()
                    .dontfork()
                    .setup_cqsize(COMPLETIONS)
                    .build(ENTRIES)
            })?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        if !OPERATIONS.iter().all(|code| probe.is_supported(*code)) || !uring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        uring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            uring,
            store,
            event: event.clone(),
            jobs: Vec::new(),
            under_way: 0,
            unsent: false,
        })
    }

    /// Puts a job into the submission queue.
    pub(super) fn begin(&mut self, token: u16, job: Job) {
        let index = usize::from(token);
        if self.jobs.len() <= index {
            self.jobs.resize_with(index + 1, || None);
        }
        self.jobs[index] = Some(job);
        self.under_way += 1;
        self.push(token);
    }

    fn push(&mut self, token: u16) {
        let Some(Some(job)) = self.jobs.get(usize::from(token)) else {
            return;
        };
        let entry = entry(&self.store, job).user_data(token.into());
        loop {
            // SAFETY: the entry's memory is that of the job's segments, a list that `jobs` keeps unchanged and where it is until the
            // completion was taken, and of guest memory that the job keeps mapped. `drop` waits for whatever is under way. The file is
            // open as long as `store` lives, which `self` holds.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                self.unsent = true;
                return;
            }
            self.commit();
        }
    }

    /// Hands over what is in the submission queue. What the kernel completes at once gives no signal: look for it. Returns whether there
    /// can be such.
    pub(super) fn commit(&mut self) -> bool {
        if !self.unsent {
            return false;
        }
        self.uring.completion().disable_eventfd();
        let sent = self.enter(0);
        self.uring.completion().enable_eventfd();
        if let Err(cause) = sent {
            // The host is short of something; what was not taken is still there, and is handed over at the next turn.
            tracing::debug!("io_uring_enter: {cause}");
            let _ = self.event.write(1);
            return false;
        }
        true
    }

    fn enter(&mut self, wait: usize) -> io::Result<()> {
        let result = loop {
            match self.uring.submit_and_wait(wait) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.unsent = !self.uring.submission().is_empty();
        result.map(|_| ())
    }

    /// A job that is done. If `wait` is set and any is under way, waits for one.
    pub(super) fn completed(&mut self, wait: bool) -> Option<(u16, io::Result<()>)> {
        loop {
            let next = self.uring.completion().next();
            if let Some(completion) = next {
                if let Some(done) = self.settle(&completion) {
                    return Some(done);
                }
                continue;
            }
            if !wait || self.under_way == 0 {
                if self.commit() {
                    // Jobs that go on may be done.
                    continue;
                }
                return None;
            }
            if self.enter(1).is_err() {
                // The kernel wants completions taken first, or memory.
                std::thread::yield_now();
            }
        }
    }

    fn settle(&mut self, completion: &cqueue::Entry) -> Option<(u16, io::Result<()>)> {
        // What `push` put there.
        let token = completion.user_data() as u16;
        let job = self.jobs.get_mut(usize::from(token))?;
        let result = match next(job.as_mut()?, completion.result()) {
            Next::Again => {
                self.push(token);
                return None;
            }
            Next::StoreZeroes => job.as_mut()?.run(&*self.store),
            Next::Done(result) => result,
        };
        self.jobs[usize::from(token)] = None;
        self.under_way -= 1;
        Some((token, result))
    }
}

/// The kernel writes to guest memory until everything is done.
impl Drop for Ring {
    fn drop(&mut self) {
        while self.completed(true).is_some() {}
    }
}

fn entry(store: &Store, job: &Job) -> squeue::Entry {
    match job {
        Job::Read { offset, to } => {
            let segments = to.segments();
            let file = fd(store.descriptor(segments, *offset));
            match segments {
                [one] => opcode::Read::new(file, one.iov_base.cast(), one.iov_len as u32)
                    .offset(*offset)
                    .build(),
                many => opcode::Readv::new(file, many.as_ptr(), many.len() as u32)
                    .offset(*offset)
                    .build(),
            }
        }
        Job::Write { offset, from } => {
            let segments = from.segments();
            let file = fd(store.descriptor(segments, *offset));
            match segments {
                [one] => opcode::Write::new(file, one.iov_base.cast(), one.iov_len as u32)
                    .offset(*offset)
                    .build(),
                many => opcode::Writev::new(file, many.as_ptr(), many.len() as u32)
                    .offset(*offset)
                    .build(),
            }
        }
        Job::Flush => opcode::Fsync::new(fd(store.file().as_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Job::Discard { offset, len } => fallocate(store, store::PUNCH_HOLE, *offset, *len),
        Job::WriteZeroes { offset, len, unmap } => fallocate(store, store::zeroing(*unmap), *offset, *len),
    }
}

fn fd(file: BorrowedFd<'_>) -> types::Fd {
    types::Fd(file.as_raw_fd())
}

fn fallocate(store: &Store, mode: rustix::fs::FallocateFlags, offset: u64, len: u64) -> squeue::Entry {
    opcode::Fallocate::new(fd(store.file().as_fd()), len)
        .offset(offset)
        .mode(mode.bits() as i32)
        .build()
}

/// What the kernel's `result` means for a job: bytes moved, or a negated error number.
fn next(job: &mut Job, result: i32) -> Next {
    if result < 0 {
        let cause = Errno::from_raw_os_error(-result);
        return match (cause, job) {
            (Errno::INTR | Errno::AGAIN, _) => Next::Again,
            (cause, Job::WriteZeroes { .. }) if store::lacks_fallocate(cause) => Next::StoreZeroes,
            (cause, _) => Next::Done(Err(cause.into())),
        };
    }
    let moved = result as u32;
    let (offset, held, at_end) = match job {
        Job::Read { offset, to } => (offset, to, io::ErrorKind::UnexpectedEof),
        Job::Write { offset, from } => (offset, from, io::ErrorKind::WriteZero),
        _ => return Next::Done(Ok(())),
    };
    if moved == 0 && !held.is_empty() {
        return Next::Done(Err(at_end.into()));
    }
    *offset += u64::from(moved);
    held.skip(moved as usize);
    if held.is_empty() {
        Next::Done(Ok(()))
    } else {
        Next::Again
    }
}

#[cfg(test)]
mod tests;
