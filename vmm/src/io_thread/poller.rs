//! Whether an I/O thread looks for work by itself for a while before it sleeps, and for how long.
//!
//! A notification costs the guest an exit and the thread a wakeup, together longer than a request takes. Where requests follow each other
//! quickly it is cheaper to look at the rings. Where they do not, or where the thread takes the processor that the guest needs to make
//! them, looking is for nothing; each such time makes it rarer.

use std::time::Duration;

/// The first time that is spent looking.
const FIRST: Duration = Duration::from_micros(10);
/// Quick wakeups in a row that make looking worth a try.
const QUICK: u32 = 4;
/// After so many vain tries in a row it does not get rarer.
const MOST_VAIN: u32 = 10;

#[derive(Debug)]
pub(super) struct Poller {
    /// Longest time to look; nothing to never look.
    most: Duration,
    window: Duration,
    quick: u32,
    vain: u32,
}

impl Poller {
    pub(super) fn new(most: Duration) -> Self {
        Self {
            most,
            window: Duration::ZERO,
            quick: 0,
            vain: 0,
        }
    }

    /// The thread was woken after it slept so long. Returns how long to look for more once that is done, if at all.
    pub(super) fn woke(&mut self, slept: Duration) -> Option<Duration> {
        if slept >= self.most {
            self.quick = 0;
        } else {
            self.quick += 1;
            if self.quick >= QUICK << self.vain {
                self.quick = 0;
                self.window = (self.window * 2).max(FIRST).min(self.most);
            }
        }
        (!self.window.is_zero()).then_some(self.window)
    }

    /// Looking has ended, and something was found or not.
    pub(super) fn looked(&mut self, found: bool) {
        if found {
            self.vain = 0;
        } else {
            self.vain = (self.vain + 1).min(MOST_VAIN);
            self.window = Duration::ZERO;
            self.quick = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);
    const SOON: Duration = Duration::from_micros(20);

    /// Wakeups in a row until it looks.
    fn patience(poller: &mut Poller) -> u32 {
        (1..100_000).find(|_| poller.woke(SOON).is_some()).unwrap()
    }

    #[test]
    fn looks_after_some_quick_wakeups_and_longer_while_that_pays() {
        let mut poller = Poller::new(MOST);
        assert_eq!(patience(&mut poller), QUICK);
        let mut last = FIRST;
        for _ in 0..10 * QUICK {
            poller.looked(true);
            let window = poller.woke(SOON).unwrap();
            assert!((last..=MOST).contains(&window));
            last = window;
        }
        assert_eq!(last, MOST);
    }

    #[test]
    fn a_vain_look_makes_the_next_rarer_and_a_good_one_does_not() {
        let mut poller = Poller::new(MOST);
        let mut last = patience(&mut poller);
        for _ in 0..5 {
            poller.looked(false);
            let next = patience(&mut poller);
            assert_eq!(next, 2 * last);
            last = next;
        }
        poller.looked(true);
        poller.looked(false);
        assert_eq!(patience(&mut poller), 2 * QUICK);
    }

    #[test]
    fn slow_wakeups_and_a_window_of_nothing_never_look() {
        let mut poller = Poller::new(MOST);
        assert!((0..1000).all(|_| poller.woke(MOST).is_none()));
        let mut poller = Poller::new(Duration::ZERO);
        assert!((0..1000).all(|_| poller.woke(Duration::ZERO).is_none()));
    }
}
