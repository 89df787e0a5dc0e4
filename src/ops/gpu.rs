//! Blocks with kernels of their own on GPUs, written once in CubeCL for CUDA and Vulkan.

use std::ops::Range;

use burn::tensor::{DType, Tensor, TensorPrimitive};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{Kernels, Parallel};
use crate::noise::{INCREMENT_0, INCREMENT_1, MULTIPLIER_0, MULTIPLIER_2, Rescale, Stream};
use crate::tensor::data;

impl<R: CubeRuntime, F: FloatElement, I: IntElement, T: BoolElement> Parallel for CubeBackend<R, F, I, T> {}

impl<R: CubeRuntime, F: FloatElement, I: IntElement, T: BoolElement> Kernels for CubeBackend<R, F, I, T> {
    /// Drawn where it is used: it is V wide, of each sample, and drawn again on the way back.
    fn gumbel(
        stream: Stream,
        largest: Option<f64>,
        samples: Range<usize>,
        [n, v]: [usize; 2],
        (device, dtype): (&Self::Device, DType),
    ) -> Tensor<Self, 2> {
        let rows = samples.len() * n;
        if rows == 0 {
            // CUDA refuses to launch nothing.
            return Tensor::empty([0, v], (device, dtype));
        }
        let noise = empty_device_contiguous_dtype(R::client(device), device.clone(), [rows, v].into(), DType::F32);
        let units = rows * v.div_ceil(4);
        let cube = CubeDim::new(&noise.client, units);
        let [seed, restart, step, lane] = stream.sample(samples.start as u32).words();
        let Rescale { scale, shift } = Rescale::to(largest);
        fill_gumbel::launch::<R>(
            &noise.client,
            calculate_cube_count_elemwise(&noise.client, units, cube),
            cube,
            noise.clone().into_array_arg(),
            CounterLaunch::new(seed, restart, step, lane, n as u32, v as u32),
            scale,
            shift,
        );
        Tensor::<Self, 2>::from_primitive(TensorPrimitive::Float(noise)).cast(dtype)
    }

    /// Looked for where the values are, which are many to send.
    fn argmax_rows(x: Tensor<Self, 2>) -> Vec<u32> {
        let v = x.dims()[1] as i64;
        // In a row without any number it finds none, and embeddings are not asked whether they have such a row.
        data(x.argmax(1)).iter::<i64>().map(|id| if (0..v).contains(&id) { id as u32 } else { 0 }).collect()
    }
}

/// Where in [`crate::noise`] the draws of a launch lie: the words of its first sample's stream, and rows and columns of each sample.
#[derive(CubeLaunch, CubeType)]
struct Counter {
    seed: u32,
    restart: u32,
    step: u32,
    lane: u32,
    rows: u32,
    columns: u32,
}

/// −ln(−ln u) of the uniform draws u, rescaled: a unit makes the four of a Philox block.
#[cube(launch)]
fn fill_gumbel(noise: &mut Array<f32>, at: Counter, scale: f32, shift: f32) {
    let blocks = at.columns.div_ceil(4u32);
    let row = ABSOLUTE_POS as u32 / blocks;
    let block = ABSOLUTE_POS as u32 % blocks;
    let mut c0 = at.step;
    let mut c1 = at.lane + row / at.rows;
    let mut c2 = row % at.rows;
    let mut c3 = block;
    let mut k0 = at.seed;
    let mut k1 = at.restart;
    #[unroll]
    for _ in 0..10 {
        let high0 = c0.mul_hi(MULTIPLIER_0);
        let low0 = c0 * MULTIPLIER_0;
        let high2 = c2.mul_hi(MULTIPLIER_2);
        let low2 = c2 * MULTIPLIER_2;
        c0 = high2 ^ c1 ^ k0;
        c1 = low2;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += INCREMENT_0;
        k1 += INCREMENT_1;
    }
    let first = row as usize * at.columns as usize + block as usize * 4;
    let left = at.columns - block * 4;
    if first < noise.len() {
        noise[first] = gumbel(c0, scale, shift);
        if left > 1 {
            noise[first + 1] = gumbel(c1, scale, shift);
        }
        if left > 2 {
            noise[first + 2] = gumbel(c2, scale, shift);
        }
        if left > 3 {
            noise[first + 3] = gumbel(c3, scale, shift);
        }
    }
}

/// Gumbel noise of random bits, as [`Stream::gumbel`] has it.
#[cube]
fn gumbel(bits: u32, scale: f32, shift: f32) -> f32 {
    let u = (f32::cast_from(bits >> 9) + 0.5) * (1.0 / 8_388_608.0);
    -ln(-ln(u * scale + shift))
}

/// ln x of a normal x > 0, to a few units in the last place wherever it is. GPUs' own logarithms may be off by 2⁻²¹ near 1 (Vulkan's limit), where
/// the largest noise comes from. With x = m·2ᵏ, m in [√½, √2) and s = (m − 1)/(m + 1): k·ln 2 + 2·artanh s.
#[cube]
fn ln(x: f32) -> f32 {
    // √½, so that its exponent counts as 0 and 1's too.
    let shifted = u32::reinterpret(x) - 0x3F35_04F3u32;
    let k = i32::reinterpret(shifted) >> 23;
    let m = f32::reinterpret((shifted & 0x007F_FFFFu32) + 0x3F35_04F3u32);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let series = z * (2.0 / 3.0 + z * (2.0 / 5.0 + z * (2.0 / 7.0 + z * (2.0 / 9.0))));
    f32::cast_from(k) * std::f32::consts::LN_2 + (2.0 * s + s * series)
}
