//! A device under a lock, called directly by whoever holds the handle: what stands for an I/O thread in tests.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::poll::{PollContext, WatchingEvents};

use crate::virtio::device::{DeviceState, DeviceStateError, QueueState, StartError, VirtioDevice};
use crate::virtio::handle::{DeviceHandle, StartQueue};

/// How long [`LocalHandle::wait`] gives a device's own descriptors to become ready.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Owns a device. Nothing runs by itself: [`pump`](Self::pump) does what an event loop would.
pub struct LocalHandle {
    local: Mutex<Local>,
    /// Others that work whenever this one does.
    beside: Vec<Arc<LocalHandle>>,
}

struct Local {
    device: Box<dyn VirtioDevice>,
    started: Vec<(u16, EventFd)>,
}

impl LocalHandle {
    /// Owns `device`.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::beside(device, Vec::new())
    }

    /// Owns `device`, and does the work of `others` too whenever it does its own: they are parts of one device.
    pub fn beside(device: Box<dyn VirtioDevice>, others: Vec<Arc<Self>>) -> Self {
        Self {
            beside: others,
            local: Mutex::new(Local {
                device,
                started: Vec::new(),
            }),
        }
    }

    /// Processes every queue that was notified, until none is, and every event source that is ready.
    pub fn pump(&self) {
        let mut local = self.lock();
        while local.process_kicked() {}
        local.process_events(std::time::Duration::ZERO);
        for other in &self.beside {
            other.pump();
        }
    }

    /// Waits until `done`, processing meanwhile. Panics if the device has nothing to wait for.
    pub fn wait(&self, mut done: impl FnMut() -> bool) {
        self.pump();
        while !done() {
            assert!(
                self.lock().process_events(PATIENCE),
                "the device waits for nothing and is not done"
            );
            self.pump();
        }
    }

    /// Runs `call` on a thread of its own, as the control side does, while the device works.
    pub fn serve_while<T: Send>(&self, call: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let caller = scope.spawn(call);
            while !caller.is_finished() {
                self.pump();
                std::thread::yield_now();
            }
            caller.join().expect("the call returns")
        })
    }

    /// Calls every entry of the device without a reason, which must be harmless.
    pub fn poke(&self) {
        let mut local = self.lock();
        // One past the last as well.
        for queue in 0..=local.device.traits().queue_sizes.len() as u16 {
            local.device.process_queue(queue);
        }
        for source in local.device.event_sources() {
            local.device.process_event(source.token);
        }
        local.device.process_event(u32::MAX);
        for other in &self.beside {
            other.poke();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Local {
    fn process_kicked(&mut self) -> bool {
        let mut any = false;
        for (index, kick) in &self.started {
            if kick.read().is_ok() {
                any = true;
                self.device.process_queue(*index);
            }
        }
        any
    }

    /// Whether a source became ready.
    fn process_events(&mut self, patience: std::time::Duration) -> bool {
        let sources = self.device.event_sources();
        if sources.is_empty() {
            return false;
        }
        let poll: PollContext<u32> = PollContext::new().expect("an epoll descriptor");
        for source in &sources {
            let events = WatchingEvents::empty().set_read();
            poll.add_fd_with_events(&Fd(source.fd), events, source.token)
                .expect("a source that can be polled");
        }
        let ready: Vec<u32> = poll
            .wait_timeout(patience)
            .expect("epoll")
            .iter_readable()
            .map(|event| event.token())
            .collect();
        for token in &ready {
            self.device.process_event(*token);
        }
        !ready.is_empty()
    }

    fn start(&mut self, queues: Vec<StartQueue>) -> Result<(), StartError> {
        for StartQueue { index, resources, at } in queues {
            let kick = resources.kick.try_clone().expect("a descriptor");
            self.device.start_queue(index, resources, at)?;
            self.started.push((index, kick));
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<(u16, QueueState)> {
        let mut started = std::mem::take(&mut self.started);
        started.sort_by_key(|(index, _)| *index);
        let stopped = started.into_iter().map(|(index, _)| {
            let state = self
                .device
                .stop_queue(index)
                .expect("a started queue has a state");
            assert_eq!(self.device.stop_queue(index), None, "it stopped already");
            (index, state)
        });
        stopped.collect()
    }
}

impl DeviceHandle for LocalHandle {
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.lock().device.read_config(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.lock().device.write_config(offset, data);
    }

    fn start(&self, queues: Vec<StartQueue>) -> Result<(), StartError> {
        let mut local = self.lock();
        let before = local.started.len();
        if let Err(cause) = local.start(queues) {
            local.stop();
            return Err(cause);
        }
        for at in before..local.started.len() {
            let index = local.started[at].0;
            local.device.process_queue(index);
        }
        Ok(())
    }

    fn stop(&self) -> Vec<(u16, QueueState)> {
        self.lock().stop()
    }

    fn save(&self) -> DeviceState {
        let local = self.lock();
        assert!(
            local.started.is_empty(),
            "state is saved while queues stand still"
        );
        local.device.save()
    }

    fn restore(&self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let mut local = self.lock();
        assert!(
            local.started.is_empty(),
            "state is restored while queues stand still"
        );
        local.device.restore(state)
    }
}

struct Fd(std::os::fd::RawFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0
    }
}
