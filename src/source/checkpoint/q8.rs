//! The rounding of weights to 8 bits, as files of GGUF's type Q8_0 hold them.

use half::f16;
use rayon::prelude::*;

/// Neighbours in a row that share a scale.
const BLOCK: usize = 32;

/// Rounds a matrix with rows of so many values to what Q8_0 holds of it: whole multiples of a scale, 127 of which are the largest of a
/// block. Rows that are no whole number of blocks become F16, as those who write such files have it.
pub fn round_to_q8(values: &mut [f32], row: usize) {
    match row.is_multiple_of(BLOCK) {
        true => values.par_chunks_mut(BLOCK).for_each(round_block),
        false => values.par_iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32()),
    }
}

fn round_block(block: &mut [f32]) {
    let scale = block.iter().fold(0.0, |largest: f32, value| largest.max(value.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { scale.recip() };
    // The scale is stored in 16 bits, but whole numbers are found with the one that is not.
    let stored = f16::from_f32(scale).to_f32();
    block.iter_mut().for_each(|value| *value = (*value * inverse).round() * stored);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rounding_moves_no_value_by_more_than_its_step(
            values in proptest::collection::vec(-3f32..3.0, 2 * BLOCK),
            exponent in -6i32..3,
        ) {
            let values: Vec<f32> = values.iter().map(|value| value * 2f32.powi(exponent)).collect();
            let mut rounded = values.clone();
            round_to_q8(&mut rounded, BLOCK);
            for (before, after) in values.chunks(BLOCK).zip(rounded.chunks(BLOCK)) {
                let step = before.iter().fold(0.0, |largest: f32, value| largest.max(value.abs())) / 127.0;
                // Half a step, and what 127 of them lose in the scale's 11 bits.
                prop_assert!(before.iter().zip(after).all(|(a, b)| (a - b).abs() <= step * (0.5 + 127.0 / 2048.0) + 1e-6));
                let steps: Vec<i32> = after.iter().map(|value| (value / f16::from_f32(step).to_f32()).round() as i32).collect();
                prop_assert_eq!(steps.iter().map(|steps| steps.abs()).max(), Some(127));
            }
        }
    }

    #[test]
    fn nothing_stays_nothing_and_odd_rows_become_halves() {
        let mut zeros = vec![0.0; BLOCK];
        round_to_q8(&mut zeros, BLOCK);
        assert_eq!(zeros, [0.0; BLOCK]);
        let mut values = vec![0.1, -1.0 / 3.0, 65504.0];
        round_to_q8(&mut values, 3);
        assert_eq!(values, [0.1, -1.0 / 3.0, 65504.0].map(|value| f16::from_f32(value).to_f32()));
    }
}
