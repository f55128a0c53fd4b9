//! virtio-rng: entropy from the host for the guest (virtio 1.3, section 5.4).
//!
//! One queue; the driver posts writable buffers, the device fills them. No configuration space, no features of its own.

#![forbid(unsafe_code)]

use std::io;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::device::{DeviceTraits, EventSource, QueueResources, QueueState, StartError, VirtioDevice};
use super::queue::{DeviceQueue, RING_FEATURES, RequestChain};
use crate::limiter::{Limiter, LimiterConfig};
use crate::warn_guest;

/// Device type of virtio-rng.
const KIND: u32 = 4;
const QUEUE_SIZE: u16 = 64;
/// Bytes at most for one request: a driver takes what it gets and asks again, and others want the thread as well.
const MOST: usize = 4096;

/// The entropy device.
pub struct Rng {
    queue: Option<DeviceQueue>,
    bytes: Box<[u8; MOST]>,
    limiter: Option<Limiter>,
}

impl Rng {
    /// A device that draws on the host's `getrandom`.
    pub fn new() -> Self {
        Self {
            queue: None,
            bytes: Box::new([0; MOST]),
            limiter: None,
        }
    }

    /// The device with limits to what it gives. It fails only if the host has no descriptor to give.
    pub fn limited(self, limits: LimiterConfig) -> io::Result<Self> {
        Ok(Self {
            limiter: Some(Limiter::new(limits)?),
            ..self
        })
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtioDevice for Rng {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            kind: KIND,
            name: "rng",
            features: RING_FEATURES,
            queue_sizes: vec![QUEUE_SIZE],
            config_len: 0,
        }
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn start_queue(
        &mut self,
        index: u16,
        queue: QueueResources,
        at: Option<QueueState>,
    ) -> Result<(), StartError> {
        if index != 0 {
            return Err(StartError::NoSuchQueue { index });
        }
        self.queue = Some(DeviceQueue::new(index, queue, at)?);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        if index == 0 {
            if let Some(limiter) = &mut self.limiter {
                limiter.forget();
            }
            self.queue.take().map(DeviceQueue::stop)
        } else {
            None
        }
    }

    fn process_queue(&mut self, index: u16) {
        let Self {
            queue,
            bytes,
            limiter,
        } = self;
        let (0, Some(queue)) = (index, queue) else {
            return;
        };
        let Some(limiter) = limiter else {
            queue.drain(|request| fill(request, bytes));
            return;
        };
        if limiter.waits() {
            return;
        }
        let mut request = queue.new_chain();
        queue.drain_by(|queue| {
            if !queue.pop(&mut request) {
                return false;
            }
            if !limiter.admit(u64::from(request.writable_len()).min(MOST as u64)) {
                queue.put_off();
                return false;
            }
            let written = fill(&request, bytes);
            queue.complete(request.head(), written);
            true
        });
    }

    fn event_sources(&self) -> Vec<EventSource> {
        self.limiter.iter().map(|limiter| limiter.source(0)).collect()
    }

    fn process_event(&mut self, token: u32) {
        if token == 0 && self.limiter.as_mut().is_some_and(Limiter::rang) {
            self.process_queue(0);
        }
    }
}

/// Fills the request's buffers, up to the limit. Returns the bytes written.
fn fill(request: &RequestChain, bytes: &mut [u8; MOST]) -> u32 {
    let bytes = &mut bytes[..MOST.min(request.writable_len() as usize)];
    if bytes.is_empty() {
        warn_guest!("virtio-rng: a request with no room for entropy");
        return 0;
    }
    loop {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(drawn) => return request.write_at(0, &bytes[..drawn]) as u32,
            Err(Errno::INTR) => {}
            Err(cause) => {
                // The driver sees an empty answer and asks again.
                warn_guest!("virtio-rng: the host gives no entropy: {cause}");
                return 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::arbitrary::any;
    use proptest::proptest;
    use proptest::test_runner::Config;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::limiter::BucketConfig;
    use crate::virtio::conformance::ring::Part;
    use crate::virtio::conformance::{self, BUFFERS, Machine, Request, Subject, VERSION_1};

    fn subject() -> Subject {
        Subject {
            make: Box::new(|| Box::new(Rng::new())),
            request: Request {
                queue: 0,
                prepare: Box::new(|memory, base, _| {
                    memory.write_slice(&[0; 256], GuestAddress(base)).unwrap();
                    vec![Part::Write(base, 100), Part::Write(base + 128, 28)]
                }),
                verify: Box::new(|memory, base, _, written| {
                    let mut bytes = [0; 256];
                    memory.read_slice(&mut bytes, GuestAddress(base)).unwrap();
                    assert_eq!(written, 128);
                    // 100 zeros by chance: once in 2^800.
                    assert_ne!(bytes[..100], [0; 100]);
                    assert_ne!(bytes[128..156], [0; 28]);
                    assert_eq!((&bytes[100..128], &bytes[156..]), (&[0; 28][..], &[0; 100][..]));
                }),
            },
        }
    }

    #[test]
    fn conforms() {
        conformance::run(&subject());
    }

    #[test]
    fn conforms_with_limits() {
        let bucket = BucketConfig {
            size: 2000,
            refill_ms: 2,
            burst: 0,
        };
        let limits = LimiterConfig {
            bandwidth: Some(bucket),
            ops: Some(bucket),
        };
        conformance::run(&Subject {
            make: Box::new(move || Box::new(Rng::new().limited(limits).unwrap())),
            ..subject()
        });
    }

    #[test]
    fn what_the_limits_do_not_allow_comes_later() {
        let ops = BucketConfig {
            size: 2,
            refill_ms: 40,
            burst: 1,
        };
        let limits = LimiterConfig {
            bandwidth: None,
            ops: Some(ops),
        };
        let machine = Machine::new(Box::new(Rng::new().limited(limits).unwrap()));
        let ring = &mut machine.bring_up(VERSION_1)[0];
        let start = std::time::Instant::now();
        for _ in 0..6 {
            ring.add(&[Part::Write(BUFFERS, 8)]);
        }
        machine.notify(0);
        // A notification meanwhile changes nothing.
        machine.notify(0);
        assert_eq!(ring.used_index(), 3);
        machine.device.wait(|| ring.used_index() == 6);
        assert!(start.elapsed().as_millis() >= 60, "three more at 20 ms each");
    }

    #[test]
    fn a_request_gets_no_more_than_the_limit_and_never_the_same_twice() {
        let machine = Machine::new(Box::new(Rng::new()));
        let ring = &mut machine.bring_up(VERSION_1)[0];
        ring.add(&[Part::Write(BUFFERS, 0x10_0000)]);
        ring.add(&[Part::Write(BUFFERS + 0x10_0000, 0x1000)]);
        ring.add(&[Part::Read(BUFFERS, 8)]);
        machine.notify(0);
        let written: Vec<u32> = std::iter::from_fn(|| ring.take_used())
            .map(|(_, written)| written)
            .collect();
        assert_eq!(written, [4096, 4096, 0]);
        let mut bytes = [[0; 4096]; 2];
        machine
            .memory
            .read_slice(&mut bytes[0], GuestAddress(BUFFERS))
            .unwrap();
        machine
            .memory
            .read_slice(&mut bytes[1], GuestAddress(BUFFERS + 0x10_0000))
            .unwrap();
        assert_ne!(bytes[0], bytes[1]);
    }

    proptest! {
        #![proptest_config(Config::with_cases(64))]

        #[test]
        fn survives_any_driver(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            conformance::fuzz_mmio(Box::new(Rng::new()), &data);
            conformance::fuzz_queue(Box::new(Rng::new()), &data);
            conformance::fuzz_chain(&data);
        }
    }
}
