//! What written sectors hold, so that reading tells a sector that is another's, older than it should be, or torn. Plain code, which
//! the host's tests compile too.

const MAGIC: u64 = 0x6265_7274_6862_6e63;

/// Words of a sector.
const SECTOR: usize = 64;

/// Fills a buffer that will be written from `sector` on for the `generation`th time.
pub fn fill(words: &mut [u64], sector: u64, generation: u32) {
    for (index, chunk) in words.chunks_exact_mut(SECTOR).enumerate() {
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
pub fn check(words: &[u64], sector: u64, generation: u32) -> Result<(), (u64, u64)> {
    for (index, chunk) in words.chunks_exact(SECTOR).enumerate() {
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

/// What a block from `sector` on that was written for the `generation`th time adds to the sum of a disk.
pub fn mark(sector: u64, generation: u32) -> u64 {
    mix(sector, generation, 0)
}

/// The sum of a disk of such blocks, of `block` words each, that the host has before it: of those that were written, which must be whole.
#[allow(dead_code)] // The guest knows what it wrote.
pub fn sum(disk: &[u64], block: usize) -> Result<u64, (u64, u64)> {
    let mut sum = 0_u64;
    for (index, words) in disk.chunks_exact(block).enumerate() {
        let sector = (index * block / SECTOR) as u64;
        let generation = words[1] as u32;
        check(words, sector, generation)?;
        if generation != 0 {
            sum = sum.wrapping_add(mark(sector, generation));
        }
    }
    Ok(sum)
}

fn mix(sector: u64, generation: u32, place: usize) -> u64 {
    let x = (sector << 6 | place as u64) ^ (generation as u64) << 40;
    x.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) ^ x
}
