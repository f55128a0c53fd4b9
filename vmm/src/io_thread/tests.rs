use super::*;
use berth_devices::Memory;
use berth_devices::virtio::device::{DeviceInterrupt, DeviceTraits, EventSource, QueueResources};
use std::sync::mpsc::{Receiver, Sender, channel};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

/// Tells what it is asked to do.
struct Teller {
    told: Sender<String>,
    source: EventFd,
    started: Vec<QueueResources>,
    refuse: Option<u16>,
}

impl VirtioDevice for Teller {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            kind: 0,
            name: "teller",
            features: 0,
            queue_sizes: vec![2; 2],
            config_len: 0,
        }
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn start_queue(
        &mut self,
        index: u16,
        queue: QueueResources,
        _: Option<QueueState>,
    ) -> Result<(), StartError> {
        if self.refuse == Some(index) {
            return Err(StartError::Ring { index });
        }
        self.started.push(queue);
        self.told.send(format!("start {index}")).unwrap();
        Ok(())
    }
    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.told.send(format!("stop {index}")).unwrap();
        self.started.pop().map(|_| QueueState {
            next_avail: index,
            next_used: 7,
        })
    }
    fn process_queue(&mut self, index: u16) {
        self.told.send(format!("process {index}")).unwrap();
    }
    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource {
            fd: std::os::fd::AsRawFd::as_raw_fd(&self.source),
            token: 3,
        }]
    }
    fn process_event(&mut self, token: u32) {
        self.told.send(format!("event {token}")).unwrap();
    }
}

struct Silent;

impl DeviceInterrupt for Silent {
    fn used_buffer(&self, _: u16) {}
    fn config_changed(&self) {}
    fn needs_reset(&self) {}
}

fn queue(index: u16) -> (StartQueue, EventFd) {
    let kick = EventFd::new(0).unwrap();
    let resources = QueueResources {
        memory: Arc::new(Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap()),
        queue: Queue::new(2).unwrap(),
        kick: kick.try_clone().unwrap(),
        interrupt: Arc::new(Silent),
        features: 0,
        counters: Arc::default(),
    };
    (
        StartQueue {
            index,
            resources,
            at: None,
        },
        kick,
    )
}

fn thread(refuse: Option<u16>) -> (IoThread, Arc<IoDevice>, Receiver<String>, EventFd) {
    let (told, tells) = channel();
    let source = EventFd::new(0).unwrap();
    let device = Teller {
        told,
        source: source.try_clone().unwrap(),
        started: Vec::new(),
        refuse,
    };
    let (thread, mut handles) = IoThread::spawn(0, vec![Box::new(device)], Duration::ZERO, None).unwrap();
    (thread, handles.remove(0), tells, source)
}

/// The next thing told that is not the source's first, spurious readiness to be written.
fn next(tells: &Receiver<String>) -> String {
    tells.iter().find(|told| told != "event 3").unwrap()
}

#[test]
fn a_started_queue_is_processed_at_once_and_at_each_kick() {
    let (thread, device, tells, _) = thread(None);
    let (one, kick) = queue(1);
    device.start(vec![one]).unwrap();
    assert_eq!([next(&tells), next(&tells)], ["start 1", "process 1"]);
    for _ in 0..3 {
        kick.write(1).unwrap();
        assert_eq!(next(&tells), "process 1");
    }
    drop(thread);
}

#[test]
fn stop_returns_every_started_queues_state_and_later_kicks_do_nothing() {
    let (thread, device, tells, source) = thread(None);
    let ((zero, kick), (one, _)) = (queue(0), queue(1));
    device.start(vec![one, zero]).unwrap();
    let states = device.stop();
    assert_eq!(states.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1]);
    kick.write(1).unwrap();
    assert!(device.stop().is_empty());
    source.write(1).unwrap();
    drop(thread);
    let told: Vec<_> = tells.iter().filter(|told| told.starts_with("process")).collect();
    assert_eq!(told, ["process 1", "process 0"]);
}

#[test]
fn a_queue_that_cannot_start_stops_those_that_did() {
    let (thread, device, tells, _) = thread(Some(1));
    assert!(device.start(vec![queue(0).0, queue(1).0]).is_err());
    assert_eq!([next(&tells), next(&tells)], ["start 0", "stop 0"]);
    drop(thread);
}

#[test]
fn a_devices_source_and_configuration_reach_it() {
    let (thread, device, tells, source) = thread(None);
    source.write(1).unwrap();
    assert_eq!(tells.recv().unwrap(), "event 3");
    let mut data = [0; 2];
    device.read_config(5, &mut data);
    assert_eq!(data, [5, 5]);
    drop(thread);
    device.read_config(5, &mut data);
    assert_eq!(data, [0, 0], "a device whose thread has ended reads as zero");
}
