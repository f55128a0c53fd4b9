//! The kernel command line, built from parts.

use crate::BootError;

/// A command line: parameters for the kernel, then, after ` -- `, words for its init.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    parameters: Vec<String>,
    init: Option<String>,
}

impl CommandLine {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends parameters; empty text adds nothing.
    pub fn push(&mut self, parameters: impl Into<String>) {
        let parameters = parameters.into();
        let trimmed = parameters.trim();
        if !trimmed.is_empty() {
            self.parameters.push(trimmed.to_owned());
        }
    }

    /// Sets what init gets.
    pub fn set_init_arguments(&mut self, arguments: impl Into<String>) {
        self.init = Some(arguments.into());
    }

    /// The text as the kernel will see it. What the user wrote may itself hold ` -- `; parameters pushed after it would be
    /// lost on the kernel, so those words go to the end.
    pub fn text(&self) -> String {
        let (mut kernel, mut init) = (Vec::new(), Vec::new());
        for part in &self.parameters {
            match split_init(part) {
                Some((before, after)) => {
                    kernel.push(before);
                    init.push(after);
                }
                None => kernel.push(part.as_str()),
            }
        }
        init.extend(self.init.as_deref());
        let mut text = kernel
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        if !init.is_empty() {
            text.push_str(" -- ");
            text.push_str(&init.join(" "));
        }
        text
    }

    /// The bytes for guest memory, with their NUL, at most `room` of them.
    pub fn bytes(&self, room: usize) -> Result<Vec<u8>, BootError> {
        let text = self.text();
        if let Some(character) = text.chars().find(|character| !matches!(character, ' '..='~')) {
            return Err(BootError::CommandLineCharacter { character });
        }
        if text.len() >= room {
            return Err(BootError::CommandLineTooLong {
                len: text.len(),
                max: room - 1,
            });
        }
        let mut bytes = text.into_bytes();
        bytes.push(0);
        Ok(bytes)
    }
}

/// Splits at a `--` that stands alone.
fn split_init(text: &str) -> Option<(&str, &str)> {
    if let Some(after) = text.strip_prefix("-- ") {
        return Some(("", after));
    }
    text.split_once(" -- ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_init_go_behind_everything_for_the_kernel() {
        let mut line = CommandLine::new();
        line.push("console=ttyS0 ");
        line.push("quiet -- one");
        line.push("");
        line.push("virtio_mmio.device=4K@0xd0000000:5");
        line.set_init_arguments("two");
        assert_eq!(
            line.text(),
            "console=ttyS0 quiet virtio_mmio.device=4K@0xd0000000:5 -- one two"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_lengths() {
        let mut line = CommandLine::new();
        line.push("x".repeat(10));
        assert_eq!(line.bytes(11).unwrap().len(), 11);
        let error = line.bytes(10).unwrap_err().to_string();
        assert_eq!(
            error,
            "the kernel command line has 10 bytes and the kernel takes at most 9; shorten cmdline or command"
        );
    }

    #[test]
    fn control_characters_and_other_alphabets_are_refused() {
        for text in ["a\nb", "a\0b", "ä"] {
            let mut line = CommandLine::new();
            line.push(text);
            assert!(
                matches!(line.bytes(2048), Err(BootError::CommandLineCharacter { .. })),
                "{text:?}"
            );
        }
    }
}
