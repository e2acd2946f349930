//! Numbers of recovery attempts.

use uruk_base::Random;

/// The upper half counts rounds, the lower is drawn at random, so that two recoverers in one round
/// have different numbers and one of them prevails.
const ROUND_BITS: u32 = 32;

/// A number larger than `seen`, and no one else's.
pub fn next_recovery(seen: u64, random: &Random) -> u64 {
    let round = (seen >> ROUND_BITS) + 1;
    (round << ROUND_BITS) | random.range(0..1 << ROUND_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_larger_than_the_one_seen_and_differs_from_a_rivals() {
        let (ours, theirs) = (Random::from_seed(1), Random::from_seed(2));
        let mut seen = 0;
        for _ in 0..100 {
            let next = next_recovery(seen, &ours);
            assert!(next > seen && next != next_recovery(seen, &theirs));
            seen = next;
        }
    }
}
