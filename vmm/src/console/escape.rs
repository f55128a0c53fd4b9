//! The keys that are for Berth and not for the guest: Ctrl-A, then one more.

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// What the help key prints. Lines end as a raw terminal wants them.
pub(crate) const HELP: &str = "\r\nBerth: Ctrl-A, then\r\n  x  ends the VM\r\n  p  pauses it, or lets it go on\r\n  \
b  presses its power button (guests with ACPI)\r\n  c  sends it Ctrl-Alt-Del (the shipped guest ends)\r\n  h  shows this help\r\n  Ctrl-A  sends Ctrl-A\r\n";

/// The same for whoever is attached.
pub(crate) const ATTACHED_HELP: &str = "\r\nBerth: Ctrl-A, then\r\n  d  leaves the console, and the VM running\r\n  \
h  shows this help\r\n  Ctrl-A  sends Ctrl-A\r\n";

/// What a key sequence asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// End the VM.
    Quit,
    /// Show the help.
    Help,
    /// Pause the VM, or let it go on.
    Pause,
    /// Press the power button.
    PowerButton,
    /// Send Ctrl-Alt-Del.
    CtrlAltDel,
    /// Leave the console, and the VM as it is.
    Detach,
}

/// Remembers whether the prefix was the last key.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    armed: bool,
    /// Whether the keys are those of somebody who is attached to a console, and can only leave it.
    attached: bool,
}

impl Escape {
    /// For whoever is attached to the console of a VM in the background.
    pub(crate) fn attached() -> Self {
        Self {
            armed: false,
            attached: true,
        }
    }

    /// Splits `typed` into what goes to the guest, appended to `guest`, and what was asked of Berth.
    ///
    /// Stops at a request to quit: nothing typed after it is for anyone.
    pub(crate) fn filter(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Option<Request> {
        let mut request = None;
        for &key in typed {
            if !self.armed {
                match key {
                    PREFIX => self.armed = true,
                    key => guest.push(key),
                }
                continue;
            }
            self.armed = false;
            match key {
                b'h' | b'H' | b'?' => request = Some(Request::Help),
                PREFIX => guest.push(PREFIX),
                b'd' | b'D' if self.attached => return Some(Request::Detach),
                key if self.attached => guest.extend([PREFIX, key]),
                b'x' | b'X' => return Some(Request::Quit),
                b'p' | b'P' => request = Some(Request::Pause),
                b'b' | b'B' => request = Some(Request::PowerButton),
                b'c' | b'C' => request = Some(Request::CtrlAltDel),
                // Not ours: the guest gets both keys, as typed.
                key => guest.extend([PREFIX, key]),
            }
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(chunks: &[&[u8]]) -> (Vec<u8>, Vec<Request>) {
        let (mut escape, mut guest, mut requests) = (Escape::default(), Vec::new(), Vec::new());
        for chunk in chunks {
            requests.extend(escape.filter(chunk, &mut guest));
        }
        (guest, requests)
    }

    #[test]
    fn plain_keys_go_to_the_guest() {
        assert_eq!(filter(&[b"ls\r\x03"]), (b"ls\r\x03".to_vec(), vec![]));
    }

    #[test]
    fn the_prefix_works_across_reads_and_can_be_sent_itself() {
        assert_eq!(
            filter(&[b"a\x01", b"x", b""]),
            (b"a".to_vec(), vec![Request::Quit])
        );
        assert_eq!(
            filter(&[b"\x01h\x01\x01b"]),
            (b"\x01b".to_vec(), vec![Request::Help])
        );
        assert_eq!(filter(&[b"\x01z"]), (b"\x01z".to_vec(), vec![]));
    }

    #[test]
    fn whoever_is_attached_can_leave_and_end_nothing() {
        let (mut escape, mut guest) = (Escape::attached(), Vec::new());
        assert_eq!(
            escape.filter(b"a\x01x\x01p\x01\x01\x01d-", &mut guest),
            Some(Request::Detach)
        );
        assert_eq!(guest, b"a\x01x\x01p\x01");
    }

    #[test]
    fn nothing_typed_after_quit_reaches_the_guest() {
        assert_eq!(filter(&[b"\x01xrm -rf /\r"]), (vec![], vec![Request::Quit]));
    }
}
