//! The keyboard behind the i8042 (IBM PS/2 technical reference, "Keyboard"): answers every command, and presses one
//! combination of keys.
//!
//! It speaks in scan code set 2, whatever set it was told; the controller makes set 1 of that where its configuration says
//! so.

/// Bytes that wait for the guest at most. A guest that takes none loses key presses, never part of one.
const QUEUE: usize = 32;

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
/// What a keyboard calls itself.
const IDENTITY: [u8; 2] = [0xab, 0x83];
const SET: u8 = 2;
/// From here on a byte is a command, even where one is still owed its operand.
const COMMANDS: u8 = 0xed;

/// Set 2: the key is released.
const RELEASE: u8 = 0xf0;
/// Ctrl, Alt and Delete pressed, then released the other way round, in set 2.
const CTRL_ALT_DEL: [u8; 11] = [
    0x14, 0x11, 0xe0, 0x71, 0xe0, RELEASE, 0x71, RELEASE, 0x11, RELEASE, 0x14,
];

/// All that the keyboard remembers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeyboardState {
    /// Bytes for the guest, as the controller passes them on; 32 at most.
    pub waiting: Vec<u8>,
    /// The command that the next byte belongs to.
    pub command: Option<u8>,
    /// Keys are reported.
    pub scanning: bool,
}

impl Default for KeyboardState {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            command: None,
            scanning: true,
        }
    }
}

impl KeyboardState {
    /// The same without what no keyboard can be in.
    pub(super) fn sane(mut self) -> Self {
        self.waiting.truncate(QUEUE);
        self
    }

    /// The next byte for the guest.
    pub(super) fn next(&mut self) -> Option<u8> {
        (!self.waiting.is_empty()).then(|| self.waiting.remove(0))
    }

    /// Puts bytes in the queue, all or none; `translate` to set 1.
    pub(super) fn send(&mut self, bytes: &[u8], translate: bool) {
        if self.waiting.len() + bytes.len() > QUEUE {
            return;
        }
        if !translate {
            self.waiting.extend_from_slice(bytes);
            return;
        }
        let mut release = 0;
        for &byte in bytes {
            if byte == RELEASE {
                release = 0x80;
            } else {
                self.waiting.push(set_1(byte) | release);
                // The prefix comes before the mark of a release and is not marked itself.
                release = 0;
            }
        }
    }

    /// Presses and releases Ctrl, Alt and Delete, if keys are reported at all.
    pub(super) fn press_ctrl_alt_del(&mut self, translate: bool) {
        if self.scanning {
            self.send(&CTRL_ALT_DEL, translate);
        }
    }

    /// Takes a byte from the guest.
    pub(super) fn take(&mut self, byte: u8, translate: bool) {
        let answer: &[u8] = match (self.command.take(), byte) {
            // A set of scan codes; 0 asks which.
            (Some(0xf0), 0) => &[ACKNOWLEDGE, SET],
            (_, 0xed | 0xf0 | 0xf3 | 0xfb..=0xfd) => {
                self.command = Some(byte);
                &[ACKNOWLEDGE]
            }
            (_, 0xee) => &[0xee],
            (_, 0xf2) => &[ACKNOWLEDGE, IDENTITY[0], IDENTITY[1]],
            (_, 0xf4..=0xf6) => {
                // On, off, and on as after power-on.
                self.scanning = byte != 0xf5;
                &[ACKNOWLEDGE]
            }
            // Operands: the lights, the repeat rate, another set, keys of their own. Nothing comes of them, nor of commands
            // about all keys.
            (Some(_), 0..COMMANDS) | (_, 0xf7..=0xfa) => &[ACKNOWLEDGE],
            (_, 0xff) => {
                *self = Self::default();
                &[ACKNOWLEDGE, SELF_TEST_PASSED]
            }
            // Not a command, or "say that again", which nobody does on a line without noise.
            _ => &[RESEND],
        };
        // Answers come before keys that nobody has taken: those are gone, as on a keyboard that is spoken to.
        if self.waiting.len() + answer.len() > QUEUE {
            self.waiting.clear();
        }
        self.send(answer, translate);
    }
}

/// What the controller makes of a byte of set 2: for the few that this keyboard says.
fn set_1(byte: u8) -> u8 {
    match byte {
        0x14 => 0x1d,
        0x11 => 0x38,
        0x71 => 0x53,
        // Names are translated too: the keyboard's, and that of the set.
        0x83 | SET => 0x41,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(keyboard: &mut KeyboardState) -> Vec<u8> {
        std::iter::from_fn(|| keyboard.next()).collect()
    }

    #[test]
    fn the_keys_are_pressed_and_released_in_either_set() {
        let mut keyboard = KeyboardState::default();
        keyboard.press_ctrl_alt_del(false);
        assert_eq!(said(&mut keyboard), CTRL_ALT_DEL);
        keyboard.press_ctrl_alt_del(true);
        assert_eq!(
            said(&mut keyboard),
            [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]
        );
    }

    #[test]
    fn every_byte_gets_an_answer_and_the_queue_stays_bounded() {
        let mut keyboard = KeyboardState::default();
        for byte in 0..=255 {
            keyboard.take(byte, true);
            assert!(!keyboard.waiting.is_empty(), "{byte:#x}");
            keyboard.take(byte, false);
            said(&mut keyboard);
            keyboard.command = None;
        }
        for _ in 0..1000 {
            keyboard.press_ctrl_alt_del(true);
            keyboard.take(0xf2, true);
            assert!(keyboard.waiting.len() <= QUEUE);
        }
    }

    #[test]
    fn keys_are_pressed_whole_or_not_at_all() {
        let mut keyboard = KeyboardState::default();
        for _ in 0..10 {
            keyboard.press_ctrl_alt_del(true);
        }
        let said = said(&mut keyboard);
        assert_eq!(said.len() % 8, 0);
        assert!(said.chunks(8).all(|keys| keys.last() == Some(&0x9d)));
    }

    #[test]
    fn a_keyboard_that_is_off_reports_no_keys() {
        let mut keyboard = KeyboardState::default();
        keyboard.take(0xf5, true);
        said(&mut keyboard);
        keyboard.press_ctrl_alt_del(true);
        assert!(said(&mut keyboard).is_empty());
        keyboard.take(0xff, true);
        assert_eq!(said(&mut keyboard), [0xfa, 0xaa]);
        keyboard.press_ctrl_alt_del(true);
        assert_eq!(said(&mut keyboard).len(), 8);
    }

    #[test]
    fn a_driver_finds_a_keyboard() {
        let mut keyboard = KeyboardState::default();
        for (sent, answers) in [
            // Who are you, lights, repeat rate, which set, on.
            (vec![0xf2], vec![0xfa, 0xab, 0x83]),
            (vec![0xed, 0x00], vec![0xfa, 0xfa]),
            (vec![0xf3, 0x00], vec![0xfa, 0xfa]),
            (vec![0xf0, 0x00], vec![0xfa, 0xfa, 0x02]),
            (vec![0xf4], vec![0xfa]),
        ] {
            for byte in &sent {
                keyboard.take(*byte, false);
            }
            assert_eq!(said(&mut keyboard), answers, "{sent:x?}");
        }
    }
}
