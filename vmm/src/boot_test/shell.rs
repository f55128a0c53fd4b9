//! Commands in a shell at the other end of a console: what is typed, and how their output and status come back.
//!
//! The shell is told to print a line, to do the command by `eval` with nothing on its standard input, and to print a second line
//! with the status. Both begin with a word of their own for each command, which is typed in two halves, so that the echo of
//! what is typed is not taken for what is printed.
#![forbid(unsafe_code)]

use super::pattern::{Pattern, PatternError};

/// A terminal's line takes 4095 bytes, and shells some less.
const LINE_MAX: usize = 3500;
/// How much of a command's output is looked at.
pub(super) const OUTPUT_MAX: usize = 1 << 20;

/// Why a text cannot be typed as a command; nothing if it can.
pub(super) fn check(command: &str) -> Result<(), String> {
    if let Some(character) = command.chars().find(|c| c.is_control() && !"\n\t".contains(*c)) {
        return Err(format!(
            "{character:?} would command the terminal instead of the shell; leave it out, or use send"
        ));
    }
    if Exchange::new(command, 0).typed().len() > LINE_MAX {
        return Err(format!(
            "it is longer than {LINE_MAX} characters, more than a terminal's line takes; put it in a script on a disk"
        ));
    }
    Ok(())
}

/// A command and its marks.
pub(super) struct Exchange {
    command: String,
    word: String,
}

impl Exchange {
    /// `number` is another for each command of a console.
    pub(super) fn new(command: &str, number: u64) -> Self {
        Self {
            // Where a line is typed a tab would complete a name.
            command: command.replace('\t', " "),
            word: format!("berth-{number:08x}"),
        }
    }

    /// What is to be typed.
    pub(super) fn typed(&self) -> String {
        let quoted = self.command.replace('\'', r"'\''");
        let word = &self.word;
        format!(
            "printf '\\n%s:%s\\n' {word} begin; eval '{quoted}' </dev/null; printf '\\n%s:%s:%s\\n' {word} end $?\n"
        )
    }

    /// What comes before the output.
    pub(super) fn begin(&self) -> Result<Pattern, PatternError> {
        Pattern::plain(&format!("{}:begin\n", self.word))
    }

    /// What comes behind it.
    pub(super) fn end(&self) -> Result<Pattern, PatternError> {
        Pattern::regex(&format!("{}:end:[0-9]{{1,9}}\r*\n", self.word))
    }

    /// Output and status, of what was said between `begin` and the last byte of `end`.
    pub(super) fn result(&self, said: &[u8]) -> (String, Option<i64>) {
        let text = String::from_utf8_lossy(said).replace('\r', "");
        let mark = format!("{}:end:", self.word);
        let Some((output, status)) = text.rsplit_once(&mark) else {
            return (text, None);
        };
        // The line feed before the mark is not the command's.
        let output = output.strip_suffix('\n').unwrap_or(output);
        (output.to_owned(), status.trim().parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// Has a shell of the host do what would be typed, and gives what comes of it.
    fn exchange(command: &str) -> (String, Option<i64>) {
        let exchange = Exchange::new(command, 7);
        let shell = Command::new("sh")
            .arg("-c")
            .arg(exchange.typed())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(shell.stdout).unwrap();
        let (_, behind) = said.split_once("berth-00000007:begin\n").unwrap();
        assert!(exchange.begin().unwrap().is_in(said.as_bytes()));
        assert!(exchange.end().unwrap().is_in(said.as_bytes()));
        exchange.result(behind.as_bytes())
    }

    #[test]
    fn output_and_status_of_any_command_come_back() {
        for (command, output, status) in [
            ("echo hello", "hello\n", 0),
            (
                "printf 'no line end'; exit_with() { return 3; }; exit_with",
                "no line end",
                3,
            ),
            ("false", "", 1),
            (
                "echo \"it's\" 'quoted  twice'; (exit 42)",
                "it's quoted  twice\n",
                42,
            ),
            ("cat; echo read nothing", "read nothing\n", 0),
            ("echo one\necho two", "one\ntwo\n", 0),
        ] {
            assert_eq!(exchange(command), (output.to_owned(), Some(status)), "{command}");
        }
    }

    #[test]
    fn the_echo_of_what_is_typed_is_not_taken_for_what_is_printed() {
        let exchange = Exchange::new("echo x", 1);
        let echo = exchange.typed().replace('\n', "\r\n");
        assert!(!exchange.begin().unwrap().is_in(echo.as_bytes()));
        assert!(!exchange.end().unwrap().is_in(echo.as_bytes()));
    }

    #[test]
    fn what_no_terminal_would_take_is_refused() {
        assert!(check("echo \u{3}").unwrap_err().contains("'\\u{3}'"));
        assert!(check(&"x".repeat(LINE_MAX)).unwrap_err().contains("3500"));
        assert_eq!(check("printf 'a\\tb'\n"), Ok(()));
    }
}
