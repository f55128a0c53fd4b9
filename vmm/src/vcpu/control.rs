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

/// The state that a vCPU thread and its controller share.
#[derive(Debug)]
pub(crate) struct VcpuControl {
    state: Mutex<State>,
    changed: Condvar,
}

/// What the run loop does after a kick.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Enter the guest.
    Run,
    /// Leave the loop.
    Stop,
}

impl VcpuControl {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State::Running),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the thread to leave the guest and wait. The caller kicks it, then calls [`Self::wait_paused`].
    pub(crate) fn pause(&self) {
        let mut state = self.lock();
        if *state == State::Running {
            *state = State::Pausing(false);
        }
    }

    /// Waits until the thread has left the guest, or has ended.
    pub(crate) fn wait_paused(&self) {
        let state = self.lock();
        drop(
            self.changed
                .wait_while(state, |state| *state == State::Pausing(false)),
        );
    }

    /// Lets a paused thread go on.
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        if *state != State::Stopped {
            *state = State::Running;
        }
        self.changed.notify_all();
    }

    /// Ends the thread at its next look. The caller kicks it.
    pub(crate) fn stop(&self) {
        *self.lock() = State::Stopped;
        self.changed.notify_all();
    }

    /// On the vCPU thread, out of the guest: answers what was asked, waits while paused.
    pub(crate) fn next(&self) -> Next {
        let mut state = self.lock();
        loop {
            match *state {
                State::Running => return Next::Run,
                State::Stopped => return Next::Stop,
                State::Pausing(_) => {
                    *state = State::Pausing(true);
                    self.changed.notify_all();
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
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
        let control = Arc::new(VcpuControl::new());
        control.pause();
        let thread = std::thread::spawn({
            let control = control.clone();
            move || (control.next(), control.next())
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
    fn stop_ends_a_paused_thread_and_stands() {
        let control = Arc::new(VcpuControl::new());
        control.pause();
        let thread = std::thread::spawn({
            let control = control.clone();
            move || control.next()
        });
        control.wait_paused();
        control.stop();
        control.resume();
        assert_eq!(thread.join().unwrap(), Next::Stop);
        assert_eq!(control.next(), Next::Stop);
        control.wait_paused();
    }
}
