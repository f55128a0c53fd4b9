//! Takes the sequences that command a terminal (ECMA-48) out of what a guest says, so that colours and cursors hide no text.
#![forbid(unsafe_code)]

const ESCAPE: u8 = 0x1b;
const BELL: u8 = 0x07;
/// Longer than any sequence that means something. What goes on is text again, so that a stray escape hides little.
const LENGTH_MAX: usize = 256;

/// Where in a sequence the stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    Escape,
    /// `ESC [`, up to a letter.
    Control,
    /// `ESC ]` and the like, up to a bell or `ESC \`.
    String,
    StringEscape,
    /// `ESC (` and the like: one byte more.
    Last,
}

/// The stream's filter. It holds no text back: a byte passes when it comes or never.
#[derive(Debug)]
pub(crate) struct Escapes {
    state: State,
    length: usize,
}

impl Escapes {
    /// At the beginning of a stream.
    pub(crate) fn new() -> Self {
        Self {
            state: State::Text,
            length: 0,
        }
    }

    /// Whether `byte` is text, and passes.
    pub(crate) fn passes(&mut self, byte: u8) -> bool {
        use State::{Control, Escape, Last, String, StringEscape, Text};
        let was = self.state;
        self.length = if was == Text { 0 } else { self.length + 1 };
        self.state = match (was, byte) {
            (Text, ESCAPE) => Escape,
            (Text, _) => return true,
            _ if self.length > LENGTH_MAX => Text,
            // A line's end is in no sequence but a broken one.
            (Escape | Control | Last, b'\r' | b'\n') => {
                self.state = Text;
                return true;
            }
            (Escape | Control | Last, ESCAPE) => Escape,
            (Escape, b'[') => Control,
            (Escape, b']' | b'P' | b'X' | b'^' | b'_') => String,
            (Escape, b' '..=b'/') => Last,
            (Control, 0x40..=0x7e) | (Escape | Last, _) | (String, BELL) | (StringEscape, b'\\') => Text,
            (Control, _) => Control,
            (String | StringEscape, ESCAPE) => StringEscape,
            (String | StringEscape, _) => String,
        };
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        let mut escapes = Escapes::new();
        let text = bytes.iter().copied().filter(|&byte| escapes.passes(byte));
        String::from_utf8(text.collect()).unwrap()
    }

    #[test]
    fn colours_cursors_and_titles_are_no_text() {
        for (bytes, expected) in [
            (&b"[\x1b[0;32m  OK  \x1b[0m] x"[..], "[  OK  ] x"),
            (b"\x1b]0;title\x07root\x1b]0;t\x1b\\#", "root#"),
            (b"a\x1b[6nb\x1b(Bc\x1b=d", "abcd"),
            (b"\x1b[?2004h$ ", "$ "),
            (b"broken\x1b[12\nline", "broken\nline"),
            (b"\x1b\x1b[31mx", "x"),
        ] {
            assert_eq!(text(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_sequence_without_end_does_not_hide_the_rest() {
        let mut bytes = b"\x1b]".to_vec();
        bytes.extend([b'x'; 1000]);
        bytes.extend(b" login: ");
        assert!(text(&bytes).ends_with(" login: "));
    }
}
