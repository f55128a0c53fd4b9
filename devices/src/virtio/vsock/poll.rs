//! The one descriptor that an I/O thread listens to: an epoll instance with everything else in it, each edge-triggered.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// How often the timer fires while it is armed.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Events of one call.
const EVENTS: usize = 128;
/// Calls of one turn.
const TURNS: usize = 8;

/// Names that no connection has.
const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
const AGAIN: u64 = u64::MAX - 2;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happening {
    /// The listener has connections to accept.
    Listener,
    /// A tick passed.
    Tick,
    /// A connection's socket is ready.
    Socket {
        name: u64,
        readable: bool,
        writable: bool,
        hung_up: bool,
    },
}

/// The descriptors.
pub(super) struct Poll {
    epoll: OwnedFd,
    timer: OwnedFd,
    armed: bool,
    /// Written when a turn ends before all was looked at: the I/O thread hears of edges only.
    again: OwnedFd,
}

impl Poll {
    pub(super) fn new(listener: impl AsFd) -> io::Result<Self> {
        let poll = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
            armed: false,
            again: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        for (fd, name) in [
            (listener.as_fd(), LISTENER),
            (poll.timer.as_fd(), TIMER),
            (poll.again.as_fd(), AGAIN),
        ] {
            poll.watch(fd, name, EventFlags::IN)?;
        }
        Ok(poll)
    }

    /// Listens to a connection's socket.
    pub(super) fn add(&self, socket: impl AsFd, name: u64) -> Result<(), Errno> {
        self.watch(
            socket.as_fd(),
            name,
            EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP,
        )
    }

    fn watch(&self, fd: BorrowedFd<'_>, name: u64, events: EventFlags) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(name), events | EventFlags::ET)
    }

    /// What happened since the last call, or some of it.
    pub(super) fn look(&mut self, happenings: &mut Vec<Happening>) {
        let mut events = [MaybeUninit::uninit(); EVENTS];
        for _ in 0..TURNS {
            let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, Some(&Timespec::default())) else {
                break;
            };
            for event in &*events {
                let flags = event.flags;
                match event.data.u64() {
                    LISTENER => happenings.push(Happening::Listener),
                    TIMER => {
                        // However many passed: time during which nobody looked does not count.
                        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                        happenings.push(Happening::Tick);
                    }
                    AGAIN => {}
                    name => happenings.push(Happening::Socket {
                        name,
                        readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                        writable: flags.contains(EventFlags::OUT),
                        hung_up: flags.intersects(EventFlags::HUP | EventFlags::ERR),
                    }),
                }
            }
            if events.len() < EVENTS {
                return;
            }
        }
        self.come_again();
    }

    /// Makes sure that there is another turn.
    pub(super) fn come_again(&self) {
        // It fails only when the counter is full. A reader that found it so would still see an edge.
        let _ = rustix::io::write(&self.again, &1_u64.to_ne_bytes());
    }

    /// Arms the timer or lets it rest.
    pub(super) fn tick(&mut self, wanted: bool) {
        if self.armed == wanted {
            return;
        }
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: if wanted { TICK.as_nanos() as i64 } else { 0 },
        };
        let times = Itimerspec {
            it_interval: tick,
            it_value: tick,
        };
        if timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times).is_ok() {
            self.armed = wanted;
        }
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    /// Whether one who hears of edges only, as an I/O thread does, hears of one.
    fn edge(outer: &OwnedFd) -> bool {
        let mut events = [MaybeUninit::uninit(); 4];
        let (events, _) = epoll::wait(outer, &mut events, Some(&Timespec::default())).unwrap();
        !events.is_empty()
    }

    #[test]
    fn each_happening_is_an_edge_for_who_listens_to_the_one_descriptor() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut poll = Poll::new(&listener).unwrap();
        let outer = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&outer, &poll, EventData::new_u64(0), events).unwrap();
        let mut seen = Vec::new();
        let mut look = |poll: &mut Poll| {
            seen.clear();
            poll.look(&mut seen);
            seen.clone()
        };
        look(&mut poll);
        edge(&outer);
        assert!(!edge(&outer));

        let mut client = UnixStream::connect(&path).unwrap();
        assert!(edge(&outer));
        assert_eq!(look(&mut poll), [Happening::Listener]);
        let (ours, _) = listener.accept().unwrap();
        poll.add(&ours, 7).unwrap();
        assert!(edge(&outer));
        look(&mut poll);
        for _ in 0..3 {
            // Nothing is read in between: data that is left does not hide what comes after it.
            client.write_all(b"x").unwrap();
            assert!(edge(&outer));
            assert!(matches!(
                look(&mut poll)[..],
                [Happening::Socket {
                    name: 7,
                    readable: true,
                    hung_up: false,
                    ..
                }]
            ));
        }
        // Two of them, and only one look: what came while nobody looked is not lost.
        client.write_all(b"x").unwrap();
        assert!(edge(&outer));
        drop(client);
        assert!(edge(&outer));
        assert!(matches!(
            look(&mut poll)[..],
            [Happening::Socket {
                name: 7,
                hung_up: true,
                ..
            }]
        ));
        assert!(!edge(&outer));
        for _ in 0..3 {
            poll.come_again();
            assert!(edge(&outer));
            assert_eq!(look(&mut poll), []);
        }
    }
}
