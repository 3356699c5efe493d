//! The seed corpus of the fuzz targets, as it is and mutated: no input may make a decoder panic, and what a decoder
//! accepts it must be able to write and read again. The targets themselves assert the latter.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

use std::path::{Path, PathBuf};

use nasnet_events::fuzzing;

/// Mutants of each seed. `just fuzz` looks for as long as one likes.
const MUTANTS: u64 = 1_500;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 7] = [
    ("row", fuzzing::row),
    ("segment", fuzzing::segment),
    ("packed", fuzzing::packed),
    ("frame", fuzzing::frame),
    ("index", fuzzing::index),
    ("bundle", fuzzing::bundle),
    ("texts", fuzzing::texts),
];

fn corpus(target: &str) -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("fuzz/corpus").join(target)
}

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = std::fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path());
    let mut seeds: Vec<_> = paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    seeds.sort();
    seeds
}

/// The same numbers every time, so that a failure can be repeated.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }
}

fn mutate(numbers: &mut Numbers, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len());
        let length = numbers.below(24).min(bytes.len() - at);
        match numbers.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << numbers.below(8),
            1 if at < bytes.len() => bytes[at] = numbers.next().to_le_bytes()[0],
            2 => drop(bytes.drain(at..at + length)),
            3 => bytes.truncate(at),
            4 => {
                let from = numbers.below(other.len());
                let part = &other[from..(from + length).min(other.len())];
                drop(bytes.splice(at..at, part.iter().copied()));
            }
            5 => bytes[at..at + length].fill([0, 0xff, 0x80, 0x7f][numbers.below(4)]),
            _ => bytes.extend_from_slice(&numbers.next().to_le_bytes()),
        }
    }
    bytes
}

#[test]
fn no_seed_and_no_mutant_of_one_makes_a_decoder_panic() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 4, "the corpus of {name} is missing");
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for (index, (_, seed)) in seeds.iter().enumerate() {
            target(seed);
            for number in 0..MUTANTS {
                let other = &seeds[(index + 1 + usize::try_from(number).unwrap() % seeds.len()) % seeds.len()].1;
                target(&mutate(&mut numbers, seed, other));
            }
        }
    }
}

#[test]
fn the_seeds_are_accepted_by_their_decoders() {
    // A corpus of nothing but refused inputs would test the first check of each decoder.
    for (target, name, bytes) in fuzzing::seeds() {
        assert!(fuzzing::is_accepted(target, &bytes), "{target} {name}");
        let stored = std::fs::read(corpus(target).join(&name)).unwrap();
        assert!(fuzzing::is_accepted(target, &stored), "{target} {name} is of an older form: run `regenerate`");
    }
}

#[test]
#[ignore = "writes the committed seeds anew, after a change of the forms"]
fn regenerate() {
    for (target, name, bytes) in fuzzing::seeds() {
        std::fs::create_dir_all(corpus(target)).unwrap();
        std::fs::write(corpus(target).join(name), bytes).unwrap();
    }
}
