//! Every fuzz target over a few thousand seeded pseudo-random inputs, on stable Rust.
#![forbid(unsafe_code)]

use berth_tests::fuzz;

/// Inputs per target.
const INPUTS: u64 = 2000;

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

#[test]
fn every_target_survives_noise_and_changed_seeds() {
    // All seeds first: making them runs programs, and a child that has not begun its program yet holds whatever another target
    // has open, disk locks among it.
    let seeds: Vec<_> = fuzz::TARGETS.iter().map(|target| (target.seeds)()).collect();
    std::thread::scope(|scope| {
        for (target, seeds) in fuzz::TARGETS.iter().zip(&seeds) {
            scope.spawn(|| survive(target, seeds));
        }
    });
}

fn survive(target: &fuzz::Target, seeds: &[Vec<u8>]) {
    let mut random = Random(0x0be4_7b01_dfac_e5e5);
    for input in 0..INPUTS {
        let data = match seeds.get(random.below(seeds.len() + 1)) {
            Some(seed) => mutate(seed, &mut random),
            None => noise(&mut random),
        };
        let outcome = std::panic::catch_unwind(|| (target.run)(&data));
        assert!(
            outcome.is_ok(),
            "target {}, input {input}: {data:02x?}",
            target.name
        );
    }
}

#[test]
fn every_target_has_a_fuzzer() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz");
    let manifest = std::fs::read_to_string(format!("{folder}/Cargo.toml")).unwrap();
    for fuzz::Target { name, .. } in fuzz::TARGETS {
        assert!(
            manifest.contains(&format!("name = \"{name}\"")),
            "tests/fuzz/Cargo.toml lacks {name}"
        );
        let source = std::fs::read_to_string(format!("{folder}/fuzz_targets/{name}.rs")).unwrap();
        assert!(
            source.contains("init: berth_tests::fuzz::begin()")
                && source.contains(&format!("fuzz::{name}(data)")),
            "tests/fuzz/fuzz_targets/{name}.rs runs another, or does not begin as it should"
        );
    }
}
