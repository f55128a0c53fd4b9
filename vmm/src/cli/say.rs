//! What the program says: its results on standard output, its troubles on standard error. A stream that nobody reads any
//! more ends nothing but the saying.

use std::fmt::{self, Display, Write as _};
use std::io::{self, ErrorKind, Write};

use crate::exit_code;

/// The signal that a reader's going sends to programs that did not ask otherwise.
const SIGPIPE: u8 = 13;

/// Prints a result. The exit code is 0 if it was printed.
pub(super) fn print(text: &str) -> u8 {
    let mut stdout = io::stdout().lock();
    printed(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
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
    // If nobody can hear it, the exit code must do.
    let _ = writeln!(io::stderr(), "berth: {}", OneLine(sentence));
}

/// A text on one line, with nothing in it that a terminal would obey: names of files may hold anything.
struct OneLine<'a>(&'a dyn Display);

impl Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl fmt::Write for Escape<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.chars().try_for_each(|character| {
                    if character.is_control() {
                        write!(self.0, "{}", character.escape_default())
                    } else {
                        self.0.write_char(character)
                    }
                })
            }
        }
        write!(Escape(f), "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_stays_on_one_line_and_commands_no_terminal() {
        assert_eq!(
            OneLine(&"a\nb\x1b[2Jc\u{9b}é").to_string(),
            "a\\nb\\u{1b}[2Jc\\u{9b}é"
        );
    }

    #[test]
    fn a_reader_that_has_gone_ends_the_program_as_its_signal_would() {
        assert_eq!(printed(Ok(())), 0);
        assert_eq!(printed(Err(ErrorKind::BrokenPipe.into())), 141);
    }
}
