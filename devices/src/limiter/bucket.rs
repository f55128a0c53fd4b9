//! A token bucket in whole numbers: what accrues between two looks is counted to the last fraction.

#![forbid(unsafe_code)]

/// How much may pass: `size` at once and again every `refill_ms`, and `burst` once on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BucketConfig {
    /// What a full bucket holds. 0 is no limit.
    pub size: u64,
    /// Milliseconds in which an empty bucket fills. 0 is no limit.
    pub refill_ms: u64,
    /// What may pass once, before the bucket is used.
    pub burst: u64,
}

impl BucketConfig {
    /// Whether it limits anything.
    pub fn limits(&self) -> bool {
        self.size != 0 && self.refill_ms != 0
    }
}

/// A bucket. Time is nanoseconds since any moment.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    size: u64,
    /// Nanoseconds in which an empty bucket fills.
    refill: u128,
    burst: u64,
    /// What it holds.
    level: u64,
    /// What was taken beyond it and has to be paid first.
    debt: u64,
    /// Of the next token, in parts of `refill`.
    part: u128,
    last: u64,
}

impl Bucket {
    /// A full bucket; nothing if `config` limits nothing.
    pub(super) fn new(config: BucketConfig, now: u64) -> Option<Self> {
        config.limits().then_some(Self {
            size: config.size,
            refill: u128::from(config.refill_ms) * 1_000_000,
            burst: config.burst,
            level: config.size,
            debt: 0,
            part: 0,
            last: now,
        })
    }

    /// Whether `amount` may pass at `now`. What is more than a full bucket may pass when it is full, and is paid afterwards:
    /// it would never pass otherwise.
    pub(super) fn allows(&mut self, amount: u64, now: u64) -> bool {
        self.fill(now);
        self.wanted(amount) == 0
    }

    /// Takes `amount`, which [`allows`](Self::allows) was asked about at the same time.
    pub(super) fn take(&mut self, amount: u64) {
        let from_burst = amount.min(self.burst);
        self.burst -= from_burst;
        let amount = amount - from_burst;
        let from_level = amount.min(self.level);
        self.level -= from_level;
        self.debt = self.debt.saturating_add(amount - from_level);
    }

    /// Nanoseconds from the last look until `amount` may pass.
    pub(super) fn wait(&self, amount: u64) -> u64 {
        let parts = u128::from(self.wanted(amount)).saturating_mul(self.refill);
        let nanoseconds = parts.saturating_sub(self.part).div_ceil(u128::from(self.size));
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }

    /// Tokens that are missing for `amount`.
    fn wanted(&self, amount: u64) -> u64 {
        if amount <= self.burst {
            return 0;
        }
        let level = (amount - self.burst).min(self.size);
        level.saturating_sub(self.level).saturating_add(self.debt)
    }

    fn fill(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        let parts = (u128::from(elapsed) * u128::from(self.size)).saturating_add(self.part);
        let tokens = u64::try_from(parts / self.refill).unwrap_or(u64::MAX);
        self.part = parts % self.refill;
        let paid = tokens.min(self.debt);
        self.debt -= paid;
        self.level = self.level.saturating_add(tokens - paid);
        if self.level >= self.size {
            // What flows over is lost, the begun token as well.
            self.level = self.size;
            self.part = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn bucket(size: u64, refill_ms: u64, burst: u64) -> Bucket {
        let config = BucketConfig {
            size,
            refill_ms,
            burst,
        };
        Bucket::new(config, 0).unwrap()
    }

    fn try_take(bucket: &mut Bucket, amount: u64, now: u64) -> bool {
        let allowed = bucket.allows(amount, now);
        if allowed {
            bucket.take(amount);
        }
        allowed
    }

    #[test]
    fn no_size_or_no_time_is_no_limit() {
        for (size, refill_ms) in [(0, 10), (10, 0)] {
            let config = BucketConfig {
                size,
                refill_ms,
                burst: 5,
            };
            assert!(Bucket::new(config, 0).is_none());
        }
    }

    #[test]
    fn the_burst_goes_first_and_once() {
        let mut bucket = bucket(10, 1000, 5);
        assert!(try_take(&mut bucket, 15, 0));
        assert!(!try_take(&mut bucket, 1, 0));
        assert_eq!(bucket.wait(1), 100 * MS);
        assert!(try_take(&mut bucket, 10, 60_000 * MS));
        assert!(!try_take(&mut bucket, 1, 60_000 * MS));
    }

    #[test]
    fn fractions_of_a_token_are_not_lost_between_two_looks() {
        // 3 tokens in 1000 ms, looked at every millisecond.
        let mut bucket = bucket(3, 1000, 0);
        assert!(try_take(&mut bucket, 3, 0));
        let mut taken = 0;
        for ms in 1..=10_000 {
            taken += u64::from(try_take(&mut bucket, 1, ms * MS));
        }
        assert_eq!(taken, 30);
    }

    #[test]
    fn more_than_a_bucket_passes_when_it_is_full_and_is_paid_afterwards() {
        let mut bucket = bucket(10, 1000, 0);
        assert!(try_take(&mut bucket, 1, 0));
        assert!(!try_take(&mut bucket, 25, 0));
        assert_eq!(bucket.wait(25), 100 * MS);
        assert!(try_take(&mut bucket, 25, 100 * MS));
        assert!(!try_take(&mut bucket, 1, 1600 * MS));
        assert!(try_take(&mut bucket, 1, 1700 * MS));
    }

    #[test]
    fn numbers_at_the_edge_do_not_wrap() {
        let mut bucket = bucket(u64::MAX, u64::MAX, u64::MAX);
        for now in [0, 1, u64::MAX, 0] {
            try_take(&mut bucket, u64::MAX, now);
            bucket.wait(u64::MAX);
        }
    }

    proptest! {
        #[test]
        fn never_more_passes_than_was_there_and_came(
            size in 1..100_000_u64, refill_ms in 1..5_000_u64, burst in 0..100_000_u64,
            steps in proptest::collection::vec((0..3_000_000_000_u64, 0..300_000_u64), 1..80),
        ) {
            let mut bucket = bucket(size, refill_ms, burst);
            let (mut now, mut passed) = (0, 0);
            for (step, amount) in steps {
                now += step;
                if try_take(&mut bucket, amount, now) {
                    let came = u128::from(now) * u128::from(size) / (u128::from(refill_ms) * 1_000_000);
                    // Of the last one, what is more than a bucket is paid afterwards.
                    let beyond = u128::from(amount.saturating_sub(size));
                    passed += u128::from(amount);
                    prop_assert!(passed <= u128::from(size) + u128::from(burst) + came + beyond);
                } else {
                    // The time it names is exact: not a nanosecond before, but then.
                    let wait = bucket.wait(amount);
                    prop_assert!(wait > 0);
                    prop_assert!(!bucket.clone().allows(amount, now + wait - 1));
                    prop_assert!(bucket.clone().allows(amount, now + wait));
                }
            }
        }
    }
}
