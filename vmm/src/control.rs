//! How other threads reach the control thread, which owns the machine: a call that runs there, and its answer.
//!
//! The API server and whoever else drives a VM from within the process holds a [`ControlHandle`]. Calls run one after the
//! other, between two polls of the control thread, so none of them sees a machine that another is changing.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::events::EventHub;
use crate::machine::Machine;

type Call = Box<dyn FnOnce(&mut Machine) + Send>;

/// The control thread has ended, and the VM with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the VM has ended")]
pub struct Gone;

/// The way to the control thread; to be cloned freely.
#[derive(Clone)]
pub struct ControlHandle {
    calls: Sender<Call>,
    wake: Arc<EventFd>,
    events: EventHub,
}

/// The control thread's end.
pub(crate) struct Inbox {
    calls: Receiver<Call>,
    wake: Arc<EventFd>,
}

/// Both ends. It fails only if the host has no event descriptor to give.
pub(crate) fn channel(events: EventHub) -> io::Result<(ControlHandle, Inbox)> {
    let (sender, receiver) = mpsc::channel();
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let handle = ControlHandle {
        calls: sender,
        wake: wake.clone(),
        events,
    };
    let inbox = Inbox {
        calls: receiver,
        wake,
    };
    Ok((handle, inbox))
}

impl ControlHandle {
    /// What happens to the machine, and which it is.
    pub fn events(&self) -> &EventHub {
        &self.events
    }

    /// Has the control thread run `call` soon. What it finds out it must send itself; if the thread ends first, `call` is
    /// dropped.
    pub fn post(&self, call: impl FnOnce(&mut Machine) + Send + 'static) -> Result<(), Gone> {
        self.calls.send(Box::new(call)).map_err(|_| Gone)?;
        // Fails only when the counter is full, and then the thread is awake anyway.
        let _ = self.wake.write(1);
        Ok(())
    }

    /// Has the control thread run `call` and waits for what it returns. Never call it on that thread.
    pub fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Machine) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.post(move |machine| {
            // Nobody waits any more: then nobody wants to know.
            let _ = sender.send(call(machine));
        })?;
        receiver.recv().map_err(|_| Gone)
    }
}

impl Inbox {
    /// Readable when there are calls.
    pub(crate) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Runs every call that has come.
    pub(crate) fn serve(&self, machine: &mut Machine) {
        // Only its readiness matters. It is taken before the calls, so that none is left without a wake.
        let _ = self.wake.read();
        while let Ok(call) = self.calls.try_recv() {
            call(machine);
        }
    }
}
