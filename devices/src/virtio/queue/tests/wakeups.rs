//! Driver and device as two threads, each asleep whenever the rules let it.

use std::time::Duration;

use vmm_sys_util::poll::PollContext;

use super::*;

/// An interrupt that is an event descriptor.
struct Line(EventFd);

impl DeviceInterrupt for Line {
    fn used_buffer(&self, _: u16) {
        self.0.write(1).unwrap();
    }
    fn config_changed(&self) {}
    fn needs_reset(&self) {
        panic!("a decent driver");
    }
}

/// Waits for `event`; the other side must write it before patience ends.
fn wait_for(event: &EventFd, poll: &PollContext<()>, who: &str) {
    let ready = poll.wait_timeout(Duration::from_secs(30)).unwrap().iter().count();
    assert_eq!(ready, 1, "{who} waits for a notification that never came");
    event.read().unwrap();
}

fn poll(event: &EventFd) -> PollContext<()> {
    PollContext::new()
        .and_then(|poll| poll.add(event, ()).map(|()| poll))
        .unwrap()
}

#[test]
fn a_driver_and_a_device_that_sleep_whenever_they_may_never_miss_each_other() {
    const ROUNDS: u32 = 20_000;
    for features in [0, RING_FEATURES] {
        let memory = memory();
        let mut ring = Ring::new(memory.clone(), RING, SIZE);
        let [kick, line] = [(); 2].map(|()| EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut resources = resources(&ring, &memory, features, Arc::default());
        resources.kick = kick.try_clone().unwrap();
        resources.interrupt = Arc::new(Line(line.try_clone().unwrap()));
        let mut queue = DeviceQueue::new(0, resources, None).unwrap();
        std::thread::scope(|scope| {
            let kick = &kick;
            scope.spawn(move || {
                let (mut left, poll) = (ROUNDS, poll(kick));
                loop {
                    queue.drain(|_| {
                        left -= 1;
                        0
                    });
                    if left == 0 {
                        return;
                    }
                    wait_for(kick, &poll, "the device");
                }
            });
            let (mut used, poll) = (0_u16, poll(&line));
            for round in 0..ROUNDS {
                ring.add(&[Part::Read(DATA, 1)]);
                fence(Ordering::SeqCst);
                let wanted = if features == 0 {
                    ring.used_flags() == 0
                } else {
                    ring.avail_event() == round as u16
                };
                if wanted {
                    kick.write(1).unwrap();
                }
                // Now here, now there, so that the two meet everywhere.
                for _ in 0..round % 512 {
                    std::hint::spin_loop();
                }
                while ring.used_index() == used {
                    ring.set_used_event(used);
                    fence(Ordering::SeqCst);
                    if ring.used_index() == used {
                        wait_for(&line, &poll, "the driver");
                    }
                }
                used = used.wrapping_add(1);
            }
        });
    }
}
