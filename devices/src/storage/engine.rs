//! Who does what a disk's file cannot do at once.
//!
//! A request that the page cache can serve is done on the spot: that is one system call and less time than any way around it. What would
//! wait for a device goes to an io_uring, or to threads where the host has none to give. Neither is made before it is needed.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::backend::Operation;
use super::pool::Pool;
use super::ring::Ring;
use crate::virtio::queue::HeldIo;

/// How the requests to a file are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// What can be done at once is; the rest goes to an io_uring, or to threads where there is none.
    #[default]
    Auto,
    /// Everything goes to an io_uring.
    Ring,
    /// Everything goes to threads.
    Threads,
    /// One after the other, on the I/O thread.
    Sync,
}

/// An operation that goes on after it was begun. Ranges in bytes.
pub(super) enum Job {
    Read { offset: u64, to: HeldIo },
    Write { offset: u64, from: HeldIo },
    Flush,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}

/// What operations are done to.
pub(super) trait Work: Send + Sync + Sized + 'static {
    /// Does an operation, however long it takes.
    fn run(&self, operation: Operation<'_>) -> io::Result<()>;
    /// Does of an operation what needs no device. What is left of a transfer stays in it, at the offset it is left from.
    fn run_now(&self, _operation: &mut Operation<'_>) -> Now {
        Now::Waits
    }
    /// A ring that does it, where one call to the host is all that an operation needs.
    fn ring(self: &Arc<Self>, _event: &Arc<EventFd>) -> Option<io::Result<Ring>> {
        None
    }
}

/// How far an operation got without waiting.
pub(super) enum Now {
    Done(io::Result<()>),
    /// It would wait from here on.
    Waits,
}

impl Job {
    pub(super) fn hold(operation: &Operation<'_>) -> Self {
        let mut held = HeldIo::default();
        match operation {
            Operation::Read { offset, to } => {
                held.hold(to);
                Self::Read {
                    offset: *offset,
                    to: held,
                }
            }
            Operation::Write { offset, from } => {
                held.hold(from);
                Self::Write {
                    offset: *offset,
                    from: held,
                }
            }
            Operation::Flush => Self::Flush,
            &Operation::Discard { offset, len } => Self::Discard { offset, len },
            &Operation::WriteZeroes { offset, len, unmap } => Self::WriteZeroes { offset, len, unmap },
        }
    }

    /// Does it, however long it takes.
    pub(super) fn run(&mut self, work: &impl Work) -> io::Result<()> {
        let nothing = || io::Error::from(io::ErrorKind::InvalidInput);
        work.run(match self {
            Self::Read { offset, to } => Operation::Read {
                offset: *offset,
                to: to.io().ok_or_else(nothing)?,
            },
            Self::Write { offset, from } => Operation::Write {
                offset: *offset,
                from: from.io().ok_or_else(nothing)?,
            },
            Self::Flush => Operation::Flush,
            &mut Self::Discard { offset, len } => Operation::Discard { offset, len },
            &mut Self::WriteZeroes { offset, len, unmap } => Operation::WriteZeroes { offset, len, unmap },
        })
    }
}

/// What does the jobs.
enum Worker {
    Ring(Box<Ring>),
    Pool(Pool),
}

/// The engine of one disk.
pub(super) struct Jobs<W> {
    engine: Engine,
    work: Arc<W>,
    /// Signalled when a job is done. Without it nobody would hear, so everything is done at once.
    event: Option<Arc<EventFd>>,
    worker: Option<Worker>,
}

impl<W: Work> Jobs<W> {
    pub(super) fn new(engine: Engine, work: Arc<W>) -> Self {
        Self {
            engine,
            work,
            event: None,
            worker: None,
        }
    }

    pub(super) fn notify(&mut self, event: Arc<EventFd>) {
        self.event = Some(event);
    }

    /// Does `operation` or begins it.
    pub(super) fn submit(&mut self, token: u16, mut operation: Operation<'_>) -> Option<io::Result<()>> {
        if self.engine == Engine::Auto
            && let Now::Done(result) = self.work.run_now(&mut operation)
        {
            return Some(result);
        }
        match self.worker() {
            Some(Worker::Ring(ring)) => ring.begin(token, Job::hold(&operation)),
            Some(Worker::Pool(pool)) => pool.begin(token, Job::hold(&operation)),
            None => return Some(self.work.run(operation)),
        }
        None
    }

    fn worker(&mut self) -> Option<&mut Worker> {
        let event = self.event.as_ref()?;
        if self.engine == Engine::Sync {
            return None;
        }
        if self.worker.is_none() {
            self.worker = make(self.engine, &self.work, event);
            if self.worker.is_none() {
                self.engine = Engine::Sync;
            }
        }
        self.worker.as_mut()
    }

    /// Hands over what was begun.
    pub(super) fn commit(&mut self) {
        if let Some(Worker::Ring(ring)) = &mut self.worker {
            ring.commit();
        }
    }

    /// A job that is done. If `wait` is set and any is under way, waits for one.
    pub(super) fn completed(&mut self, wait: bool) -> Option<(u16, io::Result<()>)> {
        match self.worker.as_mut()? {
            Worker::Ring(ring) => ring.completed(wait),
            Worker::Pool(pool) => pool.completed(wait),
        }
    }
}

/// A ring if it is wanted and can be had, else threads, else nothing.
fn make<W: Work>(engine: Engine, work: &Arc<W>, event: &Arc<EventFd>) -> Option<Worker> {
    if engine != Engine::Threads
        && let Some(ring) = work.ring(event)
    {
        match ring {
            Ok(ring) => return Some(Worker::Ring(Box::new(ring))),
            Err(cause) => tracing::info!("the host gives no io_uring, so threads do a disk's work: {cause}"),
        }
    }
    match Pool::new(work, event) {
        Ok(pool) => Some(Worker::Pool(pool)),
        Err(cause) => {
            tracing::warn!("no thread for a disk's work, so the I/O thread waits for it: {cause}");
            None
        }
    }
}
