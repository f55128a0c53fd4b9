//! Names of VMs: as their users give them, or made up.

use super::FleetError;

/// A name is part of paths and host names.
const LENGTH_MAX: usize = 63;

const FIRST: [&str; 32] = [
    "amber", "brave", "bright", "brisk", "calm", "clear", "coral", "deep", "early", "fair", "fleet", "fresh",
    "gentle", "golden", "grand", "keen", "late", "light", "lucky", "mild", "misty", "noble", "quick",
    "quiet", "rapid", "salty", "silver", "steady", "still", "swift", "tidal", "warm",
];
const SECOND: [&str; 32] = [
    "anchor", "barge", "bay", "beacon", "brig", "buoy", "canal", "clipper", "cove", "current", "cutter",
    "delta", "dock", "dory", "ferry", "gull", "harbor", "heron", "inlet", "ketch", "lagoon", "mast", "pier",
    "quay", "reef", "sail", "schooner", "seal", "shoal", "sloop", "tern", "wharf",
];

/// Whether `name` can name a VM.
pub fn valid(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= LENGTH_MAX
        && name.bytes().next().is_some_and(letter)
        && name.bytes().all(|byte| letter(byte) || b"_.-".contains(&byte))
}

/// Refuses what cannot name a VM.
pub(super) fn check(name: &str) -> Result<(), FleetError> {
    if valid(name) {
        Ok(())
    } else {
        Err(FleetError::Name {
            name: name.to_owned(),
        })
    }
}

/// A name for the VM with this id; another one for each attempt.
pub(super) fn made_up(id: &str, attempt: u32) -> String {
    let number = u64::from_str_radix(id, 16).unwrap_or_default();
    let word = |words: &[&'static str; 32], bits: u64| words[(bits % 32) as usize];
    let name = format!("{}-{}", word(&FIRST, number), word(&SECOND, number >> 5));
    if attempt == 0 {
        name
    } else {
        format!("{name}-{:02x}", (number >> 10).wrapping_add(attempt.into()) % 256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_words_and_never_hidden_or_elsewhere() {
        for name in ["a", "0", "web-1", "a.b_c", &"x".repeat(63)] {
            assert!(valid(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            ".new-1",
            "-d",
            "Web",
            "a/b",
            "a b",
            "é",
            "a\n",
            &"x".repeat(64),
        ] {
            assert!(!valid(name), "{name:?}");
        }
    }

    #[test]
    fn names_that_are_made_up_are_valid_and_differ_by_attempt() {
        let names: Vec<_> = (0..100).map(|attempt| made_up("0123456789ab", attempt)).collect();
        assert!(names.iter().all(|name| valid(name)), "{names:?}");
        let different: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
        assert!(valid(&made_up("no hex", 0)));
    }
}
