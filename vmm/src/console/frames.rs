//! Input for a command in the shipped guest: a length byte and as many bytes, and a frame of none for the end.
//!
//! A serial line has no end of input, and a byte that meant one could not be sent.

/// Most bytes in a frame.
const FRAME_MAX: usize = 255;

/// Appends `input` in frames to `line`.
pub(crate) fn encode(input: &[u8], line: &mut Vec<u8>) {
    for chunk in input.chunks(FRAME_MAX) {
        line.push(chunk.len() as u8);
        line.extend_from_slice(chunk);
    }
}

/// Appends the end of input to `line`.
pub(crate) fn end(line: &mut Vec<u8>) {
    line.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_every_byte_and_only_the_end_is_empty() {
        let input: Vec<u8> = (0..=255).cycle().take(600).collect();
        let mut line = Vec::new();
        encode(&[], &mut line);
        encode(&input, &mut line);
        end(&mut line);
        let (mut rest, mut decoded) = (line.as_slice(), Vec::new());
        while let Some((&len, tail)) = rest.split_first() {
            let (frame, tail) = tail.split_at(len.into());
            decoded.extend_from_slice(frame);
            assert_eq!(len == 0, tail.is_empty());
            rest = tail;
        }
        assert_eq!(decoded, input);
    }
}
