//! I/O threads: an event loop that owns its devices outright.
//!
//! A device is moved in when it is added and never leaves. Its queues' kicks and its host descriptors are listened to
//! edge-triggered, so a notification costs one wakeup and no read. Everything else the rest of Berth wants of a device
//! is a closure run on its thread ([`IoDevice`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use berth_devices::virtio::device::{DeviceState, DeviceStateError, QueueState, StartError, VirtioDevice};
use berth_devices::virtio::handle::{DeviceHandle, StartQueue};
use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use vmm_sys_util::eventfd::EventFd;

mod poller;

use poller::Poller;

/// Tokens below this are queues, from here on a device's own event sources.
const SOURCES: u32 = 1 << 16;

/// A device and what is listened to for it.
struct Slot {
    device: Box<dyn VirtioDevice>,
    /// Index and kick of every started queue. The descriptors are the slot's own duplicates.
    kicks: Vec<(u16, EventFd)>,
    /// A queue was notified since this was last looked at.
    notified: bool,
}

impl Slot {
    /// The token was an index below 2^16.
    fn kicked(&mut self, index: u32) {
        self.notified = true;
        self.device.process_queue(index as u16);
    }
}

impl MutEventSubscriber for Slot {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        match events.data().checked_sub(SOURCES) {
            Some(token) => self.device.process_event(token),
            None => self.kicked(events.data()),
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
    /// Starts thread `number` with these devices, on the host CPUs `cpus` if they are said. It ends when this is dropped. For as long as
    /// `look` it looks for more work by itself where that comes quickly. Returns a handle for each device, in order.
    pub(crate) fn spawn(
        number: u32,
        devices: Vec<Box<dyn VirtioDevice>>,
        look: Duration,
        cpus: Option<CpuSet>,
    ) -> Result<(Self, Vec<Arc<IoDevice>>), std::io::Error> {
        let mut events = EventManager::<Slot>::new().map_err(std::io::Error::other)?;
        let endpoint = events.remote_endpoint();
        let mut ids = Vec::new();
        let handles = devices
            .into_iter()
            .map(|device| {
                let id = events.add_subscriber(Slot {
                    device,
                    kicks: Vec::new(),
                    notified: false,
                });
                ids.push(id);
                Arc::new(IoDevice {
                    id,
                    endpoint: endpoint.clone(),
                })
            })
            .collect();
        let quit = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name(format!("io{number}")).spawn({
            let quit = quit.clone();
            move || {
                if let Some(cpus) = &cpus
                    && let Err(cause) = sched_setaffinity(None, cpus)
                {
                    tracing::warn!("I/O thread {number} runs on any host CPU: {cause}");
                }
                let result = run(&mut events, &ids, &quit, Poller::new(look));
                if let Err(error) = result {
                    tracing::error!("an I/O thread's event loop failed: {error}");
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

/// The thread: sleeps until something happens, does it, and looks for more if more has come quickly of late.
fn run(
    events: &mut EventManager<Slot>,
    devices: &[SubscriberId],
    quit: &AtomicBool,
    mut poller: Poller,
) -> Result<(), event_manager::Error> {
    while !quit.load(Ordering::Acquire) {
        let asleep = Instant::now();
        events.run()?;
        if let Some(window) = poller.woke(asleep.elapsed()) {
            let notified = |id: &SubscriberId| {
                let slot = events.subscriber_mut(*id);
                slot.is_ok_and(|slot| std::mem::take(&mut slot.notified))
            };
            let busy: Vec<_> = devices.iter().copied().filter(notified).collect();
            if !busy.is_empty() {
                poller.looked(look(events, &busy, quit, window)?);
            }
        }
    }
    Ok(())
}

/// Looks for work of these devices until there was none for `window`. Returns whether there was any.
fn look(
    events: &mut EventManager<Slot>,
    devices: &[SubscriberId],
    quit: &AtomicBool,
    window: Duration,
) -> Result<bool, event_manager::Error> {
    /// Looks at the rings between two at all else that the thread listens to, which is a system call: few where that finds something, many
    /// where it does not.
    const FEW: u32 = 4;
    const MANY: u32 = 64;
    /// A look that found work takes as long as so many others, or longer.
    const WORK: u32 = 8;
    let each = |events: &mut EventManager<Slot>, work: fn(&mut dyn VirtioDevice) -> bool| {
        devices.iter().fold(false, |any, id| {
            let slot = events.subscriber_mut(*id);
            slot.is_ok_and(|slot| work(&mut *slot.device)) | any
        })
    };
    each(events, |device| {
        device.set_polled(true);
        false
    });
    let (mut last, mut found, mut rounds) = (Instant::now(), false, FEW);
    while !quit.load(Ordering::Relaxed) {
        let (mut busy, mut left) = (false, rounds);
        while left > 0 {
            if each(events, |device| device.poll()) {
                busy = true;
                left = left.saturating_sub(WORK);
            } else {
                std::hint::spin_loop();
                left -= 1;
            }
        }
        found |= busy;
        let listened = events.run_with_timeout(0)? > 0;
        rounds = if listened { FEW } else { (2 * rounds).min(MANY) };
        // The clock is not looked at more often either.
        let now = Instant::now();
        if busy || listened {
            last = now;
        } else if now.duration_since(last) >= window {
            break;
        }
    }
    each(events, |device| {
        device.set_polled(false);
        false
    });
    Ok(found)
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
