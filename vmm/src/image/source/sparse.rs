//! Sparse files in tar: GNU tar's own header, and its three ways in extended headers (GNU tar manual, "Storing Sparse Files").

use super::super::contents::Piece;
use super::pax::number;

/// More pieces than any sensible file has.
const MAX_PIECES: usize = 1 << 20;

/// Where a sparse file's data belongs: offsets and lengths.
#[derive(Debug, Default)]
pub(super) struct Map(Vec<(u64, u64)>);

const TOO_MANY: &str = "its sparse map lists more than a million pieces";
const BROKEN: &str = "its sparse map is broken";

impl Map {
    pub(super) fn push(&mut self, offset: u64, len: u64) -> Result<(), String> {
        if self.0.len() >= MAX_PIECES {
            return Err(TOO_MANY.to_owned());
        }
        self.0.push((offset, len));
        Ok(())
    }

    pub(super) fn of_numbers(numbers: &[u64]) -> Result<Self, String> {
        let mut map = Self::default();
        for pair in numbers.chunks(2) {
            let [offset, len] = pair else {
                return Err(BROKEN.to_owned());
            };
            map.push(*offset, *len)?;
        }
        Ok(map)
    }

    /// Reads the map of version 1.0 by blocks that `next` gives. Returns how many bytes it took, too.
    pub(super) fn of_data<E: From<String>>(
        mut next: impl FnMut() -> Result<[u8; 512], E>,
    ) -> Result<(Self, u64), E> {
        let mut map = Self::default();
        let (mut taken, mut digits) = (0, Vec::new());
        let (mut left, mut offset) = (None, None);
        loop {
            let block = next()?;
            taken += block.len() as u64;
            for byte in block {
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(BROKEN.to_owned().into());
                    }
                    continue;
                }
                let value = number(&digits).ok_or_else(|| BROKEN.to_owned())?;
                digits.clear();
                match (left, offset) {
                    (None, _) if value > MAX_PIECES as u64 => return Err(TOO_MANY.to_owned().into()),
                    (None, _) => left = Some(value),
                    (Some(_), None) => offset = Some(value),
                    (Some(count), Some(at)) => {
                        map.push(at, value)?;
                        (left, offset) = (Some(count - 1), None);
                    }
                }
                if left == Some(0) {
                    return Ok((map, taken));
                }
            }
        }
    }

    /// The pieces of a file of `size` bytes whose data is `stored` bytes long and begins at `from`.
    pub(super) fn pieces(&self, size: u64, stored: u64, from: u64) -> Result<Vec<Piece>, String> {
        let (mut end, mut taken) = (0, 0);
        let mut pieces = Vec::with_capacity(self.0.len());
        for (offset, len) in &self.0 {
            let piece_end = offset
                .checked_add(*len)
                .filter(|piece_end| *offset >= end && *piece_end <= size);
            end = piece_end.ok_or_else(|| BROKEN.to_owned())?;
            if *len > 0 {
                pieces.push(Piece {
                    offset: *offset,
                    len: *len,
                    from: from + taken,
                });
            }
            taken += len;
        }
        if taken == stored {
            Ok(pieces)
        } else {
            Err(format!(
                "its sparse map is for {taken} bytes and it has {stored} bytes of data"
            ))
        }
    }
}
