//! What a running program's memory is made of, by `/proc/PID/smaps` and `/proc/PID/status`.

use std::fs;

/// A process's resident memory, in KiB, parted into the guest's RAM and the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Resident {
    /// Resident pages of the guest's RAM.
    pub guest: u64,
    /// All other resident pages.
    pub rss: u64,
    /// The same, with each page that several processes share counted in parts.
    pub pss: u64,
    /// Of `rss`: pages that no other process has and no file backs. What one more VM costs.
    pub private: u64,
}

/// Reads the resident memory of process `pid`, whose guest has `guest_mib` MiB of RAM.
///
/// Guest RAM is told by its mapping: anonymous and of exactly that size.
pub fn resident(pid: u32, guest_mib: u64) -> Resident {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (resident, found) = sum(&text, guest_mib * 1024);
    assert!(
        found,
        "{path}: no anonymous mapping of {guest_mib} MiB is guest RAM:\n{text}"
    );
    resident
}

/// Sums up the mappings of an smaps file; also whether one is guest RAM of `guest` KiB.
fn sum(smaps: &str, guest: u64) -> (Resident, bool) {
    let mut total = Resident::default();
    let (mut in_guest, mut found) = (false, false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        let Some(name) = first.strip_suffix(':') else {
            // A mapping's head: range, permissions, offset, device, inode and, but for anonymous ones, a name.
            in_guest = words.nth(3) == Some("0") && words.next().is_none();
            continue;
        };
        let Some(kib) = words.next().and_then(|word| word.parse::<u64>().ok()) else {
            continue;
        };
        match (name, in_guest) {
            ("Size", true) => {
                in_guest = kib == guest;
                found |= in_guest;
            }
            ("Rss", true) => total.guest += kib,
            ("Rss", false) => total.rss += kib,
            ("Pss", false) => total.pss += kib,
            ("Anonymous", false) => total.private += kib,
            _ => (),
        }
    }
    (total, found)
}

/// The most memory process `pid` has ever had resident, in KiB, guest RAM included.
pub fn peak(pid: u32) -> u64 {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .split_ascii_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or_else(|| panic!("{path} has no VmHWM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_from_the_rest_by_size_and_namelessness() {
        let smaps = "\
55d0c0000000-55d0c0100000 r-xp 00001000 fe:00 42                         /usr/bin/berth
Size:               1024 kB
Rss:                 300 kB
Pss:                 150 kB
Anonymous:             0 kB
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Size:             131072 kB
Rss:                  40 kB
Pss:                  40 kB
Anonymous:            40 kB
7f0010000000-7f0010021000 rw-p 00000000 00:00 0
Size:                132 kB
Rss:                  12 kB
Pss:                  12 kB
Anonymous:            12 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Size:                132 kB
Rss:                   8 kB
Pss:                   8 kB
Anonymous:             8 kB
";
        let expected = Resident {
            guest: 40,
            rss: 320,
            pss: 170,
            private: 20,
        };
        assert_eq!(sum(smaps, 128 << 10), (expected, true));
        assert!(!sum(smaps, 64 << 10).1);
    }
}
