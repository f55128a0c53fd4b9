//! Every fuzz target over a few thousand seeded pseudo-random inputs, on stable Rust.
#![forbid(unsafe_code)]

use berth_tests::{formats, fuzz, guests};

/// Inputs per target and seed file.
const INPUTS: u64 = 3000;

/// Xorshift: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Numbers that break things more often than others.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 63,
    u64::MAX,
];

/// `seed` changed in a few places: bytes, edge numbers of any width, a cut, a doubled part.
fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..=random.below(8) {
        if data.is_empty() {
            data.push(random.next() as u8);
        }
        // Headers decide; most changes go there.
        let room = if random.below(3) > 0 {
            data.len().min(1024)
        } else {
            data.len()
        };
        let at = random.below(room);
        match random.below(6) {
            0 | 1 => data[at] = random.next() as u8,
            2 => data[at] ^= 1 << random.below(8),
            3 => {
                let width = [2, 4, 8][random.below(3)];
                let edge = EDGES[random.below(EDGES.len())]
                    .wrapping_sub(random.next() & 1)
                    .to_le_bytes();
                let end = (at + width).min(data.len());
                data[at..end].copy_from_slice(&edge[..end - at]);
            }
            4 => data.truncate(at),
            _ => {
                let end = (at + random.below(64)).min(data.len());
                let part = data[at..end].to_vec();
                data.splice(at..at, part);
            }
        }
    }
    data
}

fn noise(random: &mut Random) -> Vec<u8> {
    (0..random.below(512)).map(|_| random.next() as u8).collect()
}

/// Runs `target` over noise and over changed `seeds`. A panic names the input, which can be added to the seeds.
fn run(name: &str, seeds: &[Vec<u8>]) {
    let (_, target) = fuzz::TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let mut random = Random(0x0be4_7b01_dfac_e5e5);
    for input in 0..INPUTS {
        let data = match seeds.get(random.below(seeds.len() + 1)) {
            Some(seed) => mutate(seed, &mut random),
            None => noise(&mut random),
        };
        let outcome = std::panic::catch_unwind(|| target(&data));
        assert!(outcome.is_ok(), "target {name}, input {input}: {data:02x?}");
    }
}

#[test]
fn loading_a_kernel_survives_any_bytes() {
    let elf = std::fs::read(guests::tiny()).unwrap();
    let mut seeds = Vec::new();
    for file in [elf.clone(), std::fs::read(guests::byte()).unwrap()] {
        for choice in 0..3 {
            seeds.push([&[choice][..], &file].concat());
        }
    }
    for (name, _) in formats::COMPRESSIONS {
        let packed = formats::compress(name, &elf);
        seeds.push([&[0][..], &packed].concat());
        seeds.push([&[0][..], &formats::bzimage(&packed, elf.len())].concat());
    }
    run("kernel", &seeds);
}

#[test]
fn every_target_has_a_test_here() {
    let own = include_str!("corpus.rs");
    for (name, _) in fuzz::TARGETS {
        assert!(
            own.contains(&format!("run(\"{name}\"")),
            "no test runs the fuzz target {name}"
        );
    }
}
