//! Damaged inputs for short fuzz runs: what every `cargo test` has of the fuzz targets.

use bytes::Bytes;

use crate::Random;

/// One of the valid inputs with bytes changed, cut, repeated and spliced with others. One seed gives one sequence.
///
/// # Panics
/// If `corpus` is empty.
pub fn spliced(corpus: &[Bytes], random: &Random) -> Vec<u8> {
    let below = |n: usize| random.range(0..n as u64) as usize;
    let mut input = corpus[below(corpus.len())].to_vec();
    for _ in 0..1 + below(4) {
        let other = &corpus[below(corpus.len())];
        let (at, from) = (below(input.len() + 1), below(other.len() + 1));
        match below(5) {
            0 => input.truncate(at),
            1 => input.splice(at.., other[from..].iter().copied()).for_each(drop),
            2 => input.splice(at..at, other[from..].iter().take(8).copied()).for_each(drop),
            3 => input[at..].iter_mut().take(4).for_each(|byte| *byte = 0xFF),
            _ => input[at..].iter_mut().take(1).for_each(|byte| *byte ^= 1 << below(8)),
        }
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence_of_damaged_inputs() {
        let corpus = [Bytes::from_static(b"some valid input"), Bytes::from_static(b"other"), Bytes::new()];
        let sequence = |seed| {
            let random = Random::from_seed(seed);
            (0..200).map(|_| spliced(&corpus, &random)).collect::<Vec<_>>()
        };
        assert_eq!(sequence(1), sequence(1));
        let damaged = sequence(1).iter().filter(|input| !corpus.iter().any(|valid| valid == input.as_slice())).count();
        assert!(damaged > 100, "{damaged}");
    }
}
