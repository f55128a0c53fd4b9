//! I/O threads: an event loop that owns its devices outright.
//!
//! A device is moved in when it is added and never leaves. Its queues' kicks and its host descriptors are listened to
//! edge-triggered, so a notification costs one wakeup and no read. Everything else the rest of Berth wants of a device
//! is a closure run on its thread ([`IoDevice`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use berth_devices::virtio::device::{DeviceState, DeviceStateError, QueueState, StartError, VirtioDevice};
use berth_devices::virtio::handle::{DeviceHandle, StartQueue};
use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};
use vmm_sys_util::eventfd::EventFd;

/// Tokens below this are queues, from here on a device's own event sources.
const SOURCES: u32 = 1 << 16;

/// A device and what is listened to for it.
struct Slot {
    device: Box<dyn VirtioDevice>,
    /// Index and kick of every started queue. The descriptors are the slot's own duplicates.
    kicks: Vec<(u16, EventFd)>,
}

impl MutEventSubscriber for Slot {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        match events.data().checked_sub(SOURCES) {
            Some(token) => self.device.process_event(token),
            // The token was an index below 2^16.
            None => self.device.process_queue(events.data() as u16),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for source in self.device.event_sources() {
            let events = Events::with_data_raw(
                source.fd,
                SOURCES + source.token,
                EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED,
            );
            if let Err(error) = ops.add(events) {
                tracing::error!("an I/O thread cannot listen to a device: {error}");
            }
        }
    }
}

/// A running I/O thread.
pub(crate) struct IoThread {
    endpoint: RemoteEndpoint<Slot>,
    quit: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread with these devices. It ends when this is dropped. Returns a handle for each device, in order.
    pub(crate) fn spawn(
        name: &str,
        devices: Vec<Box<dyn VirtioDevice>>,
    ) -> Result<(Self, Vec<Arc<IoDevice>>), std::io::Error> {
        let mut events = EventManager::<Slot>::new().map_err(std::io::Error::other)?;
        let endpoint = events.remote_endpoint();
        let handles = devices
            .into_iter()
            .map(|device| {
                let id = events.add_subscriber(Slot {
                    device,
                    kicks: Vec::new(),
                });
                Arc::new(IoDevice {
                    id,
                    endpoint: endpoint.clone(),
                })
            })
            .collect();
        let quit = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn({
            let quit = quit.clone();
            move || {
                while !quit.load(Ordering::Acquire) {
                    if let Err(error) = events.run() {
                        tracing::error!("an I/O thread's event loop failed: {error}");
                        return;
                    }
                }
            }
        })?;
        Ok((
            Self {
                endpoint,
                quit,
                thread: Some(thread),
            },
            handles,
        ))
    }
}

/// Ends the thread; its devices are dropped. Calls on their handles fail from then on.
impl Drop for IoThread {
    fn drop(&mut self) {
        self.quit.store(true, Ordering::Release);
        // Wakes the loop; a loop that has ended needs no waking.
        let _ = self.endpoint.kick();
        if let Some(thread) = self.thread.take() {
            // A panic on the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// A device on an I/O thread, for its transport.
pub(crate) struct IoDevice {
    id: SubscriberId,
    endpoint: RemoteEndpoint<Slot>,
}

impl IoDevice {
    /// Runs `call` on the device's thread; `None` if the thread has ended.
    fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut OnThread<'_>) -> T + Send + 'static,
    ) -> Option<T> {
        let id = self.id;
        let result = self
            .endpoint
            .call_blocking(move |ops| Ok::<_, event_manager::Error>(call(&mut OnThread { id, ops })));
        result
            .inspect_err(|error| tracing::error!("a device's thread does not answer: {error}"))
            .ok()
    }
}

impl DeviceHandle for IoDevice {
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let len = data.len();
        let bytes = self.call(move |thread| {
            let mut bytes = vec![0; len];
            if let Some(slot) = thread.slot() {
                slot.device.read_config(offset, &mut bytes);
            }
            bytes
        });
        match bytes {
            Some(bytes) => data.copy_from_slice(&bytes),
            None => data.fill(0),
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let data = data.to_vec();
        self.call(move |thread| {
            if let Some(slot) = thread.slot() {
                slot.device.write_config(offset, &data);
            }
        });
    }

    fn start(&self, queues: Vec<StartQueue>) -> Result<(), StartError> {
        // A thread that is gone belongs to a VM that is ending.
        self.call(move |thread| thread.start(queues)).unwrap_or(Ok(()))
    }

    fn stop(&self) -> Vec<(u16, QueueState)> {
        self.call(|thread: &mut OnThread<'_>| thread.stop())
            .unwrap_or_default()
    }

    fn save(&self) -> DeviceState {
        self.call(|thread| thread.slot().map(|slot| slot.device.save()))
            .flatten()
            .unwrap_or_else(DeviceState::none)
    }

    fn restore(&self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let state = state.clone();
        self.call(move |thread| thread.slot().map(|slot| slot.device.restore(&state)))
            .flatten()
            .unwrap_or(Ok(()))
    }
}

/// The event loop while it runs a call for the device `id`.
struct OnThread<'a> {
    id: SubscriberId,
    ops: &'a mut dyn SubscriberOps<Subscriber = Slot>,
}

impl OnThread<'_> {
    fn slot(&mut self) -> Option<&mut Slot> {
        self.ops.subscriber_mut(self.id).ok()
    }

    fn start(&mut self, queues: Vec<StartQueue>) -> Result<(), StartError> {
        let mut started = Vec::with_capacity(queues.len());
        for queue in queues {
            let index = queue.index;
            if let Err(error) = self.start_one(queue) {
                self.stop();
                return Err(error);
            }
            started.push(index);
        }
        // What was made available before the queue ran has no kick of its own.
        if let Some(slot) = self.slot() {
            for index in started {
                slot.device.process_queue(index);
            }
        }
        Ok(())
    }

    fn start_one(&mut self, queue: StartQueue) -> Result<(), StartError> {
        let StartQueue { index, resources, at } = queue;
        let listened = self.listen(&resources.kick, index);
        let kick = listened.map_err(|error| {
            tracing::error!("an I/O thread cannot listen to queue {index}: {error}");
            StartError::NoSuchQueue { index }
        })?;
        let slot = self.slot().ok_or(StartError::NoSuchQueue { index })?;
        slot.kicks.push((index, kick));
        slot.device.start_queue(index, resources, at)
    }

    /// Listens to a duplicate of `kick`: the device drops its own whenever it likes.
    fn listen(&mut self, kick: &EventFd, index: u16) -> Result<EventFd, event_manager::Error> {
        let kick = kick
            .try_clone()
            .map_err(|error| event_manager::Error::EventFd(error.into()))?;
        let events = Events::with_data(&kick, index.into(), EventSet::IN | EventSet::EDGE_TRIGGERED);
        self.ops.event_ops(self.id)?.add(events)?;
        Ok(kick)
    }

    fn stop(&mut self) -> Vec<(u16, QueueState)> {
        let Some(slot) = self.slot() else {
            return Vec::new();
        };
        let kicks = std::mem::take(&mut slot.kicks);
        let mut states: Vec<_> = kicks
            .iter()
            .filter_map(|(index, _)| slot.device.stop_queue(*index).map(|state| (*index, state)))
            .collect();
        states.sort_by_key(|&(index, _)| index);
        // A descriptor leaves the event loop before it is closed.
        if let Ok(mut events) = self.ops.event_ops(self.id) {
            for (index, kick) in &kicks {
                if let Err(error) = events.remove(Events::empty(kick)) {
                    tracing::error!("an I/O thread cannot stop listening to queue {index}: {error}");
                }
            }
        }
        states
    }
}

#[cfg(test)]
mod tests;
