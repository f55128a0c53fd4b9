//! How other threads reach a vCPU thread: a wanted state, a signal that makes KVM_RUN return, an answer.
//!
//! ```text
//!            pause()               resume()
//!  Running ──────────▶ Paused ──────────────▶ Running
//!     └──────── stop() ──────┴──▶ Stopped
//! ```
//! The signal's handler sets `immediate_exit` in the vCPU's own `kvm_run`, so a kick that arrives just before KVM_RUN
//! makes it return at once and none is lost.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// What a vCPU thread is to do, and what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// Asked to pause; `true` once the thread has left the guest.
    Pausing(bool),
    Stopped,
}

/// The state that a vCPU thread and its controller share. `T` is work for the thread to do while it is paused.
pub(crate) struct VcpuControl<T> {
    shared: Mutex<Shared<T>>,
    changed: Condvar,
}

struct Shared<T> {
    state: State,
    work: Option<T>,
}

/// What the run loop does after a kick.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Enter the guest.
    Run,
    /// Leave the loop.
    Stop,
}

impl<T> VcpuControl<T> {
    /// For a thread that runs the guest at once, or is paused before its first instruction.
    pub(crate) fn new(paused: bool) -> Self {
        let state = if paused {
            State::Pausing(false)
        } else {
            State::Running
        };
        Self {
            shared: Mutex::new(Shared { state, work: None }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared<T>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the thread to leave the guest and wait. The caller kicks it, then calls [`Self::wait_paused`].
    pub(crate) fn pause(&self) {
        let mut shared = self.lock();
        if shared.state == State::Running {
            shared.state = State::Pausing(false);
        }
    }

    /// Has a paused thread do `work`. Returns it if the thread has ended.
    pub(crate) fn give(&self, work: T) -> Result<(), T> {
        let mut shared = self.lock();
        if shared.state == State::Stopped {
            return Err(work);
        }
        shared.work = Some(work);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until the thread has left the guest, or has ended.
    pub(crate) fn wait_paused(&self) {
        let shared = self.lock();
        drop(
            self.changed
                .wait_while(shared, |shared| shared.state == State::Pausing(false)),
        );
    }

    /// Lets a paused thread go on.
    pub(crate) fn resume(&self) {
        let mut shared = self.lock();
        if shared.state != State::Stopped {
            shared.state = State::Running;
        }
        self.changed.notify_all();
    }

    /// Ends the thread at its next look. The caller kicks it.
    pub(crate) fn stop(&self) {
        let mut shared = self.lock();
        shared.state = State::Stopped;
        // Whoever waits for it learns that it will not be done.
        shared.work = None;
        self.changed.notify_all();
    }

    /// On the vCPU thread, out of the guest: answers what was asked, waits while paused and does the work it is given.
    pub(crate) fn next(&self, mut work: impl FnMut(T)) -> Next {
        let mut shared = self.lock();
        loop {
            match (shared.state, shared.work.take()) {
                (State::Stopped, _) => return Next::Stop,
                (_, Some(given)) => {
                    drop(shared);
                    work(given);
                    shared = self.lock();
                }
                (State::Running, None) => return Next::Run,
                (State::Pausing(_), None) => {
                    shared.state = State::Pausing(true);
                    self.changed.notify_all();
                    shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// On the vCPU thread: it has ended, and nobody need wait for it.
    pub(crate) fn ended(&self) {
        self.stop();
    }
}

thread_local! {
    /// `kvm_run.immediate_exit` of this thread's vCPU; null in threads that run none.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(std::ptr::null()) };
}

/// The signal that kicks vCPU threads.
pub(crate) fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// Installs the kick's handler for the process.
pub(crate) fn install_kick_handler() -> Result<(), vmm_sys_util::errno::Error> {
    register_signal_handler(kick_signal(), on_kick)
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    IMMEDIATE_EXIT.with(|cell| {
        let flag = cell.get();
        if !flag.is_null() {
            // SAFETY: `ImmediateExit` set the pointer on this thread and clears it before the mapping can go; the
            // handler runs on the same thread, so it sees one or the other. A relaxed store is async-signal-safe.
            unsafe { &*flag }.store(1, Ordering::Relaxed);
        }
    });
}

/// The current thread's way to make its vCPU's KVM_RUN return; tied to the life of the vCPU's mapping.
pub(crate) struct ImmediateExit {
    flag: *const AtomicU8,
}

impl ImmediateExit {
    /// Takes kicks for `vcpu` on this thread until it is dropped, which must be before the vCPU is.
    pub(crate) fn new(vcpu: &mut kvm_ioctls::VcpuFd) -> Self {
        let flag = (&raw mut vcpu.get_kvm_run().immediate_exit)
            .cast::<AtomicU8>()
            .cast_const();
        IMMEDIATE_EXIT.with(|cell| cell.set(flag));
        Self { flag }
    }

    /// Forgets kicks so far. What they were about is to be looked at after this.
    pub(crate) fn clear(&self) {
        // SAFETY: the pointer is into the live `kvm_run` mapping (see `new`); AtomicU8 has the layout of the field.
        unsafe { &*self.flag }.store(0, Ordering::Relaxed);
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|cell| cell.set(std::ptr::null()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_paused_thread_answers_waits_and_goes_on() {
        let control = Arc::new(VcpuControl::<u8>::new(false));
        control.pause();
        let thread = std::thread::spawn({
            let control = control.clone();
            move || (control.next(drop), control.next(drop))
        });
        control.wait_paused();
        control.resume();
        let (first, _) = {
            control.wait_paused();
            thread.join().unwrap()
        };
        assert_eq!(first, Next::Run);
    }

    #[test]
    fn a_paused_thread_works_and_an_ended_one_does_not() {
        let control = Arc::new(VcpuControl::new(true));
        let thread = std::thread::spawn({
            let control = control.clone();
            move || {
                let mut done = Vec::new();
                let next = control.next(|work: u8| done.push(work));
                (next, done)
            }
        });
        control.wait_paused();
        assert_eq!(control.give(7), Ok(()));
        control.resume();
        assert_eq!(thread.join().unwrap(), (Next::Run, vec![7]));
        control.ended();
        assert_eq!(control.give(8), Err(8));
    }

    #[test]
    fn stop_ends_a_paused_thread_and_stands() {
        let control = Arc::new(VcpuControl::<u8>::new(false));
        control.pause();
        let thread = std::thread::spawn({
            let control = control.clone();
            move || control.next(drop)
        });
        control.wait_paused();
        control.stop();
        control.resume();
        assert_eq!(thread.join().unwrap(), Next::Stop);
        assert_eq!(control.next(drop), Next::Stop);
        control.wait_paused();
    }
}
