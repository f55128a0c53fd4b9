//! A disk's work on threads, for hosts that refuse io_uring and for formats that need more than one call.

#![forbid(unsafe_code)]

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::engine::{Job, Work};

/// Threads of one disk: how many requests wait for the medium at once.
const THREADS: usize = 4;

pub(super) struct Pool {
    /// None once the pool is to end.
    jobs: Option<Sender<(u16, Job)>>,
    done: Receiver<(u16, io::Result<()>)>,
    threads: Vec<JoinHandle<()>>,
    under_way: usize,
}

impl Pool {
    /// Threads that do `work` and signal `event` after each job.
    pub(super) fn new(work: &Arc<impl Work>, event: &Arc<EventFd>) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let (sender, done) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut pool = Self {
            jobs: Some(jobs),
            done,
            threads: Vec::new(),
            under_way: 0,
        };
        for number in 0..THREADS {
            let (queue, sender) = (queue.clone(), sender.clone());
            let (work, event) = (work.clone(), event.clone());
            let thread = std::thread::Builder::new()
                .name(format!("disk{number}"))
                .spawn(move || serve(&queue, &*work, &sender, &event))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    pub(super) fn begin(&mut self, token: u16, job: Job) {
        self.under_way += 1;
        if let Some(jobs) = &self.jobs {
            // The threads hold the other end as long as `self` lives.
            let _ = jobs.send((token, job));
        }
    }

    pub(super) fn completed(&mut self, wait: bool) -> Option<(u16, io::Result<()>)> {
        let done = if wait && self.under_way > 0 {
            self.done.recv().ok()
        } else {
            self.done.try_recv().ok()
        }?;
        self.under_way -= 1;
        Some(done)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic on the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn serve(
    queue: &Mutex<Receiver<(u16, Job)>>,
    work: &impl Work,
    done: &Sender<(u16, io::Result<()>)>,
    event: &EventFd,
) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((token, mut job)) = next else {
            return;
        };
        let result = job.run(work);
        // Guest memory is let go before anybody hears of the end.
        drop(job);
        if done.send((token, result)).is_err() {
            return;
        }
        // It fails only when the counter is full, and then a signal is pending anyway.
        let _ = event.write(1);
    }
}
