//! Session tokens: when one ends, signed, so that nothing is remembered of those given out and a guest can ask for any number.

use std::fmt::Write;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::Sha256;

/// How long a token may be good for, in seconds.
pub(super) const SECONDS: std::ops::RangeInclusive<u32> = 1..=21600;

/// When it ends, in milliseconds of the authority's life.
const END: usize = 8;
/// End and signature.
const LEN: usize = END + 32;

/// Gives tokens and knows its own again.
pub(super) struct Authority {
    key: Hmac<Sha256>,
    born: Instant,
}

impl Authority {
    /// One with a key of its own; tokens of others mean nothing to it.
    pub(super) fn new() -> std::io::Result<Self> {
        let mut key = [0; 64];
        // So few bytes come all at once.
        getrandom(&mut key, GetRandomFlags::empty())?;
        Ok(Self {
            key: Hmac::new(&key.into()),
            born: Instant::now(),
        })
    }

    /// A token that is good for `seconds` from now.
    pub(super) fn give(&self, seconds: u32) -> String {
        self.give_at(self.now(), seconds)
    }

    /// Whether `token` is one of this authority's and still good.
    pub(super) fn accepts(&self, token: &[u8]) -> bool {
        self.accepts_at(self.now(), token)
    }

    fn now(&self) -> Duration {
        self.born.elapsed()
    }

    fn give_at(&self, now: Duration, seconds: u32) -> String {
        let end = (now + Duration::from_secs(seconds.into())).as_millis() as u64;
        let end = end.to_be_bytes();
        let signature = self.key.clone().chain_update(end).finalize().into_bytes();
        let mut token = String::with_capacity(2 * LEN);
        for byte in end.iter().chain(&signature) {
            // Writing to a string does not fail.
            let _ = write!(token, "{byte:02x}");
        }
        token
    }

    fn accepts_at(&self, now: Duration, token: &[u8]) -> bool {
        let Some(bytes) = unhex(token) else {
            return false;
        };
        let (end, signature) = bytes.split_at(END);
        let signed = self.key.clone().chain_update(end).verify_slice(signature).is_ok();
        let end = end.try_into().map_or(0, u64::from_be_bytes);
        signed && now < Duration::from_millis(end)
    }
}

fn unhex(text: &[u8]) -> Option<[u8; LEN]> {
    let mut bytes = [0; LEN];
    if text.len() != 2 * LEN {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.chunks(2)) {
        for digit in digits {
            *byte = *byte << 4 | char::from(*digit).to_digit(16)? as u8;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_time_and_for_who_gave_it() {
        let (ours, other) = (Authority::new().unwrap(), Authority::new().unwrap());
        let at = Duration::from_secs;
        let token = ours.give_at(at(5), 2);
        assert!(ours.accepts_at(at(6), token.as_bytes()));
        assert!(!ours.accepts_at(at(7), token.as_bytes()), "its time is over");
        assert!(!other.accepts_at(at(6), token.as_bytes()));
        assert!(ours.accepts(ours.give(1).as_bytes()));
    }

    #[test]
    fn a_token_with_any_digit_changed_or_missing_is_none() {
        let authority = Authority::new().unwrap();
        let now = Duration::ZERO;
        let token = authority.give_at(now, 60);
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            assert!(!authority.accepts_at(now, &changed), "digit {at}");
            assert!(!authority.accepts_at(now, &token.as_bytes()[..at]));
        }
        for text in ["", "x", &"x".repeat(token.len()), &(token + "0")] {
            assert!(!authority.accepts_at(now, text.as_bytes()), "{text:?}");
        }
    }
}
