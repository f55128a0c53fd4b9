//! How other threads reach a device that an I/O thread owns: calls that run on that thread, between two of its events.
//!
//! The device lists [`Mailbox::source`] among its event sources and calls [`Mailbox::calls`] when it is ready. Who controls
//! the VM holds a [`Caller`].

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::EventSource;

/// Something to be done to a device.
pub type Call<D> = Box<dyn FnOnce(&mut D) + Send>;

/// The device is gone, and the VM with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the VM has ended")]
pub struct DeviceGone;

/// The callers' end.
pub struct Caller<D> {
    calls: Sender<Call<D>>,
    wake: Arc<EventFd>,
}

impl<D> Clone for Caller<D> {
    fn clone(&self) -> Self {
        Self {
            calls: self.calls.clone(),
            wake: self.wake.clone(),
        }
    }
}

/// The device's end.
pub struct Mailbox<D> {
    calls: Receiver<Call<D>>,
    wake: Arc<EventFd>,
}

/// Both ends. It fails only if the host has no event descriptor to give.
pub fn channel<D>() -> io::Result<(Caller<D>, Mailbox<D>)> {
    let (sender, receiver) = mpsc::channel();
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let caller = Caller {
        calls: sender,
        wake: wake.clone(),
    };
    let mailbox = Mailbox {
        calls: receiver,
        wake,
    };
    Ok((caller, mailbox))
}

impl<D> Caller<D> {
    /// Has the device's thread run `call` soon.
    pub fn post(&self, call: impl FnOnce(&mut D) + Send + 'static) -> Result<(), DeviceGone> {
        self.calls.send(Box::new(call)).map_err(|_| DeviceGone)?;
        // Fails only when the counter is full, and then the thread is awake anyway.
        let _ = self.wake.write(1);
        Ok(())
    }

    /// Has the device's thread run `call` and waits for what it returns. Never call it on that thread.
    pub fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut D) -> T + Send + 'static,
    ) -> Result<T, DeviceGone> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.post(move |device| {
            // Nobody waits any more: then nobody wants to know.
            let _ = sender.send(call(device));
        })?;
        receiver.recv().map_err(|_| DeviceGone)
    }
}

impl<D> Mailbox<D> {
    /// Ready when there are calls.
    pub fn source(&self, token: u32) -> EventSource {
        EventSource {
            fd: self.wake.as_raw_fd(),
            token,
        }
    }

    /// The calls that have come. The device runs each on itself.
    pub fn calls(&self) -> Vec<Call<D>> {
        // Only its readiness matters. It is taken before the calls, so that none is left without a wake.
        let _ = self.wake.read();
        self.calls.try_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_run_in_order_and_answer() {
        let (caller, mailbox) = channel::<Vec<u32>>().unwrap();
        caller.post(|list| list.push(1)).unwrap();
        let other = caller.clone();
        let asked = std::thread::spawn(move || other.call(|list| list.len()));
        let mut list = Vec::new();
        while !asked.is_finished() {
            for call in mailbox.calls() {
                call(&mut list);
            }
            std::thread::yield_now();
        }
        assert_eq!((asked.join().unwrap(), list), (Ok(1), vec![1]));
    }

    #[test]
    fn whoever_calls_a_device_that_is_gone_is_told() {
        let (caller, mailbox) = channel::<()>().unwrap();
        let waiting = {
            let caller = caller.clone();
            std::thread::spawn(move || caller.call(|()| 7))
        };
        drop(mailbox);
        assert_eq!(waiting.join().unwrap(), Err(DeviceGone));
        assert_eq!(caller.post(|()| ()), Err(DeviceGone));
    }
}
