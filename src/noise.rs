//! Counter-based random numbers: Philox4x32-10, so that the same draw is the same number on every backend, in
//! chunks, with any number of threads, and after a resume.
//!
//! Key = (seed, restart), counter = (step, purpose ≪ 24 | sample, row, column / 4).
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).

use rayon::prelude::*;

/// What a draw is for. Two purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Z₀.
    InitialLogits = 0,
    /// Φ₀.
    InitialTemperature = 1,
    /// Gumbel noise of the soft prompt.
    PromptNoise = 2,
    /// Noise of tokens fed back by the model.
    FeedbackNoise = 3,
    /// The first hard prompt of a search.
    InitialPrompt = 4,
    /// Positions, ranks and acceptance of a search.
    SearchDraws = 5,
    /// Ranks of generated targets.
    Targets = 6,
    /// A second Gumbel noise of an estimate: a token drawn again from its soft sample, or a soft sample drawn given its token.
    SecondNoise = 7,
    /// The first weights of RELAX's network.
    Surrogate = 8,
    /// Other hard prompts that a search looks at when it begins.
    OtherPrompts = 9,
}

/// Where the random numbers of a step come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// The run's seed.
    pub seed: u32,
    /// Restarts before this start.
    pub restart: u32,
    /// Steps since the last restart.
    pub step: u32,
}

impl Clock {
    /// The step's numbers of `purpose`, those of its first sample.
    pub fn stream(self, purpose: Purpose) -> Stream {
        Stream::new(self.seed, self.restart, self.step, purpose, 0)
    }
}

/// A linear map of the uniform draws u that become Gumbel noise: u·scale + shift.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rescale {
    /// The factor.
    pub scale: f32,
    /// What is added.
    pub shift: f32,
}

impl Rescale {
    /// u·(largest − ε) + ε with ε = 1e-12, as the code of the paper's authors has it (github.com/Near32/sdlm): no draw exceeds `largest`,
    /// which is at most 1, and different draws stay different. Without it: u itself, to the bit. u is never 0 or 1, so neither is this.
    pub fn to(largest: Option<f64>) -> Self {
        const EPSILON: f64 = 1e-12;
        match largest {
            Some(largest) => Self { scale: (largest - EPSILON) as f32, shift: EPSILON as f32 },
            None => Self { scale: 1.0, shift: 0.0 },
        }
    }

    /// u, rescaled.
    #[inline(always)]
    pub fn of(self, u: f32) -> f32 {
        u * self.scale + self.shift
    }
}

/// One stream of numbers, addressed by row and column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    step: u32,
    lane: u32,
}

impl Stream {
    /// The stream of `purpose` for one step and sample (below 2²⁴) of a run.
    pub fn new(seed: u32, restart: u32, step: u32, purpose: Purpose, sample: u32) -> Self {
        Self { key: [seed, restart], step, lane: (purpose as u32) << 24 | (sample & 0x00ff_ffff) }
    }

    /// The same stream for another sample.
    pub fn sample(self, sample: u32) -> Self {
        Self { lane: (self.lane & 0xff00_0000) | (sample & 0x00ff_ffff), ..self }
    }

    /// What the stream adds to a row and a block of columns: both words of the key, the step, the purpose with the sample.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn words(self) -> [u32; 4] {
        [self.key[0], self.key[1], self.step, self.lane]
    }

    /// u at (row, column): uniform in (0, 1), never 0 or 1.
    pub fn uniform(&self, row: u32, column: u32) -> f32 {
        unit(self.block(row, column / 4)[column as usize % 4])
    }

    /// A `[rows, columns]` matrix of Gumbel(0, 1) draws, −ln(−ln u), row-major; u is rescaled to end at `largest`, see [`Rescale::to`].
    pub fn gumbel(&self, rows: usize, columns: usize, largest: Option<f64>) -> Vec<f32> {
        let rescale = Rescale::to(largest);
        self.matrix(rows, columns, |bits| bits.map(|x| -(-rescale.of(unit(x)).ln()).ln()))
    }

    /// A `[rows, columns]` matrix of N(0, 1) draws (Box–Muller on neighbouring pairs), row-major.
    pub fn normal(&self, rows: usize, columns: usize) -> Vec<f32> {
        self.matrix(rows, columns, |bits| {
            let pair = |a: u32, b: u32| {
                let radius = (-2.0 * unit(a).ln()).sqrt();
                let (sin, cos) = (std::f32::consts::TAU * unit(b)).sin_cos();
                [radius * cos, radius * sin]
            };
            let ([a, b], [c, d]) = (pair(bits[0], bits[1]), pair(bits[2], bits[3]));
            [a, b, c, d]
        })
    }

    /// u of the columns `first..` of a row, as many as `out` has; `first` is a multiple of 4. Many at once, for loops of vectors.
    #[inline(always)]
    pub fn fill_uniform(&self, row: u32, first: usize, out: &mut [f32]) {
        let mut block = (first / 4) as u32;
        for out in out.chunks_mut(4 * LANES) {
            let columns = philox(self.counters(row, block), self.key);
            for (lane, four) in out.chunks_mut(4).enumerate() {
                for (x, column) in four.iter_mut().zip(&columns) {
                    *x = unit(column[lane]);
                }
            }
            block += LANES as u32;
        }
    }

    fn matrix(&self, rows: usize, columns: usize, of: impl Fn([u32; 4]) -> [f32; 4] + Sync) -> Vec<f32> {
        let mut out = vec![0.0; rows * columns];
        out.par_chunks_mut(columns).enumerate().for_each(|(row, line)| {
            for (block, four) in line.chunks_mut(4).enumerate() {
                let values = of(self.block(row as u32, block as u32));
                four.copy_from_slice(&values[..four.len()]);
            }
        });
        out
    }

    fn block(&self, row: u32, block: u32) -> [u32; 4] {
        philox([[self.step], [self.lane], [row], [block]], self.key).map(|[x]| x)
    }

    /// The counters of neighbouring blocks.
    #[inline(always)]
    fn counters(&self, row: u32, block: u32) -> [[u32; LANES]; 4] {
        let blocks = std::array::from_fn(|lane| block.wrapping_add(lane as u32));
        [[self.step; LANES], [self.lane; LANES], [row; LANES], blocks]
    }
}

/// Blocks that are drawn together.
const LANES: usize = 16;

/// Draws taken one after the other from a stream: what a search needs in one step.
#[derive(Debug, Clone)]
pub struct Draws {
    stream: Stream,
    next: u32,
}

impl Draws {
    /// Starts at the first number of `stream`.
    pub fn new(stream: Stream) -> Self {
        Self { stream, next: 0 }
    }

    /// Uniform in (0, 1).
    pub fn uniform(&mut self) -> f32 {
        let u = self.stream.uniform(0, self.next);
        self.next += 1;
        u
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((f64::from(self.uniform()) * n as f64) as usize).min(n - 1)
    }
}

/// ((x ≫ 9) + ½)·2⁻²³: exact in f32, inside (0, 1).
#[inline(always)]
fn unit(x: u32) -> f32 {
    ((x >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0)
}

/// What the first and the third word of a counter are multiplied by in a round of Philox4x32.
pub(crate) const MULTIPLIER_0: u32 = 0xD251_1F53;
/// See [`MULTIPLIER_0`].
pub(crate) const MULTIPLIER_2: u32 = 0xCD9E_8D57;
/// What is added to the words of the key after a round.
pub(crate) const INCREMENT_0: u32 = 0x9E37_79B9;
/// See [`INCREMENT_0`].
pub(crate) const INCREMENT_1: u32 = 0xBB67_AE85;

/// Philox4x32-10 of L counters.
#[inline(always)]
fn philox<const L: usize>(mut counter: [[u32; L]; 4], mut key: [u32; 2]) -> [[u32; L]; 4] {
    for _ in 0..10 {
        let mut next = [[0; L]; 4];
        for i in 0..L {
            let first = u64::from(counter[0][i]) * u64::from(MULTIPLIER_0);
            let second = u64::from(counter[2][i]) * u64::from(MULTIPLIER_2);
            next[0][i] = (second >> 32) as u32 ^ counter[1][i] ^ key[0];
            next[1][i] = second as u32;
            next[2][i] = (first >> 32) as u32 ^ counter[3][i] ^ key[1];
            next[3][i] = first as u32;
        }
        counter = next;
        key = [key[0].wrapping_add(INCREMENT_0), key[1].wrapping_add(INCREMENT_1)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_answers() {
        let philox = |counter: [u32; 4], key| philox(counter.map(|x| [x]), key).map(|[x]| x);
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]);
        assert_eq!(pi, [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn extremes_stay_inside_the_open_interval() {
        assert!(unit(0) > 0.0 && unit(u32::MAX) < 1.0);
        assert!((-(-unit(u32::MAX).ln()).ln()).is_finite() && (-(-unit(0).ln()).ln()).is_finite());
    }

    #[test]
    fn a_matrix_holds_the_single_draws() {
        let stream = Stream::new(7, 1, 3, Purpose::PromptNoise, 2);
        let gumbel = stream.gumbel(3, 10, None);
        let u = stream.uniform(2, 9);
        assert_eq!(gumbel[29], -(-u.ln()).ln());
    }

    #[test]
    fn rescaled_draws_stay_inside_the_open_interval() {
        let (all, some) = (Rescale::to(None), Rescale::to(Some(0.999)));
        for bits in [0, 1 << 9, u32::MAX / 2, u32::MAX] {
            assert_eq!(all.of(unit(bits)), unit(bits));
        }
        assert!(some.of(unit(0)) > 0.0 && some.of(unit(u32::MAX)) <= 0.999 && Rescale::to(Some(1.0)).of(unit(u32::MAX)) < 1.0);
    }

    #[test]
    fn rows_filled_at_once_hold_the_single_draws() {
        let stream = Stream::new(7, 1, 3, Purpose::PromptNoise, 2);
        let mut row = [0.0; 201];
        stream.fill_uniform(5, 12, &mut row);
        let single: Vec<f32> = (12..213).map(|column| stream.uniform(5, column)).collect();
        assert_eq!(row.as_slice(), single);
    }

    #[test]
    fn normal_draws_have_the_right_moments() {
        let values = Stream::new(1, 0, 0, Purpose::InitialLogits, 0).normal(100, 1000);
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.015 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
