//! What written sectors hold, so that reading tells a sector that is another's, older than it should be, or torn.

use crate::mem::words;

const MAGIC: u64 = 0x6265_7274_6862_6e63;

/// Fills a buffer that will be written from `sector` on for the `generation`th time.
pub fn fill(at: u64, len: u32, sector: u64, generation: u32) {
    for (index, chunk) in words(at, len as usize).chunks_exact_mut(64).enumerate() {
        let sector = sector + index as u64;
        chunk[0] = MAGIC ^ sector;
        chunk[1] = generation as u64;
        for (place, word) in chunk.iter_mut().enumerate().skip(2) {
            *word = mix(sector, generation, place);
        }
    }
}

/// Looks whether a buffer holds what was read from `sector` on: what `generation` wrote, or if that is 0, what any did or zeros.
/// Fails with the sector and the first word that is wrong.
pub fn check(at: u64, len: u32, sector: u64, generation: u32) -> Result<(), (u64, u64)> {
    for (index, chunk) in words(at, len as usize).chunks_exact(64).enumerate() {
        let sector = sector + index as u64;
        if generation == 0 && chunk.iter().all(|word| *word == 0) {
            continue;
        }
        let written = chunk[1] as u32;
        if chunk[0] != MAGIC ^ sector {
            return Err((sector, chunk[0]));
        }
        if chunk[1] >> 32 != 0 || (generation != 0 && written != generation) {
            return Err((sector, chunk[1]));
        }
        for (place, word) in chunk.iter().enumerate().skip(2) {
            if *word != mix(sector, written, place) {
                return Err((sector, *word));
            }
        }
    }
    Ok(())
}

fn mix(sector: u64, generation: u32, place: usize) -> u64 {
    let x = (sector << 6 | place as u64) ^ (generation as u64) << 40;
    x.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) ^ x
}
