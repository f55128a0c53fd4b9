//! What the program says: its results on standard output, its troubles on standard error. A stream that nobody reads any
//! more ends nothing but the saying.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::exit_code;

/// The signal that a reader's going sends to programs that did not ask otherwise.
const SIGPIPE: u8 = 13;
/// How many characters of a sentence are shown. The longest names of files have 4096.
const LINE_MAX: usize = 8192;

/// Prints a result. The exit code is 0 if it was printed.
pub(super) fn print(text: &str) -> u8 {
    let mut stdout = io::stdout().lock();
    printed(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// Prints a result as JSON.
pub(super) fn print_json(value: &impl Serialize) -> u8 {
    // Plain data: writing it cannot fail.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    print(&(text + "\n"))
}

/// The exit code for a result that was printed or not.
pub(super) fn printed(result: io::Result<()>) -> u8 {
    match result {
        Ok(()) => exit_code::OK,
        // As for any other program in a pipe.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit_code::SIGNAL + SIGPIPE,
        Err(error) => {
            complain(&format_args!("standard output cannot be written: {error}"));
            exit_code::FAULT
        }
    }
}

/// Says one sentence on standard error.
pub(super) fn complain(sentence: &dyn Display) {
    // One write, so that lines of several programs do not mix. If nobody can hear it, the exit code must do.
    let _ = io::stderr().write_all(format!("berth: {}\n", one_line(sentence)).as_bytes());
}

/// A text on one line of sensible length, with nothing in it that a terminal would obey: names of files may hold anything.
fn one_line(text: &dyn Display) -> String {
    let text = text.to_string();
    let mut line = String::with_capacity(text.len().min(LINE_MAX));
    for (count, character) in text.chars().enumerate() {
        if count == LINE_MAX {
            line.push('…');
            break;
        }
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_stays_on_one_line_and_commands_no_terminal() {
        assert_eq!(one_line(&"a\nb\x1b[2Jc\u{9b}é"), "a\\nb\\u{1b}[2Jc\\u{9b}é");
    }

    #[test]
    fn a_sentence_without_end_is_cut() {
        let line = one_line(&"é".repeat(LINE_MAX + 1));
        assert_eq!(line, format!("{}…", "é".repeat(LINE_MAX)));
    }

    #[test]
    fn a_reader_that_has_gone_ends_the_program_as_its_signal_would() {
        assert_eq!(printed(Ok(())), 0);
        assert_eq!(printed(Err(ErrorKind::BrokenPipe.into())), 141);
    }
}
