//! Loops over slices that compile to vectors, and functions that would otherwise be calls. All of it must be inlined into a function
//! that is compiled for a width of vectors (`pulp::with_simd`), which a closure handed to one is not.

/// Sixteen running sums, so that the loop is one of vectors, added in a fixed order.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (mut sums, (a, a_rest), (b, b_rest)) = ([0.0f32; 16], a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Sixteen running sums, added in a fixed order.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [0.0f32; 16];
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += chunk[i];
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// In place, shifted by the largest value.
#[inline(always)]
pub fn softmax(row: &mut [f32]) {
    let top = largest(row);
    for x in row.iter_mut() {
        *x = exp(*x - top);
    }
    let total = sum(row);
    for x in row.iter_mut() {
        *x /= total;
    }
}

/// eˣ within two units in the last place, without a call: 2ⁿ·e^r with |r| ≤ ln 2 / 2 and a polynomial for e^r. What underflows is
/// 0, what overflows is very large; a NaN stays one.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.3, 88.0);
    let n = (clamped * std::f32::consts::LOG2_E + 0.5).floor();
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    let p = [8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0].into_iter().fold(1.398_2e-3, |p, c| p * r + c);
    let power = p * f32::from_bits(((n as i32 + 127) << 23) as u32);
    if x < -87.3 { 0.0 } else { power }
}

/// ln x of a positive, normal x, within two units in the last place, near 1 too: x = 2ᵉ·m with m in [√½, √2) and a polynomial for
/// ln m.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // √½, so that what is shifted out is the exponent of x/√½.
    const HALF_ROOT: u32 = 0x3f35_04f3;
    let shifted = x.to_bits().wrapping_sub(HALF_ROOT);
    let e = (shifted as i32 >> 23) as f32;
    let f = f32::from_bits((shifted & 0x007f_ffff) + HALF_ROOT) - 1.0;
    let square = f * f;
    let p =
        [-1.151_461_e-1, 1.167_699_9e-1, -1.242_014_1e-1, 1.424_932_3e-1, -1.666_805_8e-1, 2.000_071_5e-1, -2.499_999_4e-1, 3.333_333e-1];
    let p = p.into_iter().fold(7.037_684e-2, |p, c| p * f + c);
    f + (p * f * square + e * LN_2_LOW - 0.5 * square) + e * LN_2_HIGH
}

/// The largest value, −∞ of nothing; a NaN is passed over.
#[inline(always)]
pub fn largest(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// out += Σ_j weights_j·rows_j; row j begins at `j·stride`.
#[inline(always)]
pub fn add_mixed(weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    let (blocks, rest) = out.as_chunks_mut::<256>();
    for (c, block) in blocks.iter_mut().enumerate() {
        add_mixed_block(weights, rows, stride, c * 256, block);
    }
    let mut done = blocks.len() * 256;
    let (blocks, rest) = rest.as_chunks_mut::<64>();
    for (c, block) in blocks.iter_mut().enumerate() {
        add_mixed_block(weights, rows, stride, done + c * 64, block);
    }
    done += blocks.len() * 64;
    let (blocks, rest) = rest.as_chunks_mut::<16>();
    for (c, block) in blocks.iter_mut().enumerate() {
        add_mixed_block(weights, rows, stride, done + c * 16, block);
    }
    let done = done + blocks.len() * 16;
    for (i, out) in rest.iter_mut().enumerate() {
        *out += weights.iter().enumerate().map(|(j, weight)| weight * rows[j * stride + done + i]).sum::<f32>();
    }
}

/// As [`add_mixed`], for W columns from `first`, whose sums stay in registers.
#[inline(always)]
fn add_mixed_block<const W: usize>(weights: &[f32], rows: &[f32], stride: usize, first: usize, out: &mut [f32; W]) {
    let mut sums = *out;
    for (j, weight) in weights.iter().enumerate() {
        let row: &[f32; W] = rows[j * stride + first..][..W].try_into().expect("W values");
        for i in 0..W {
            sums[i] += weight * row[i];
        }
    }
    *out = sums;
}
