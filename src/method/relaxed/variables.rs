//! Z and Φ with Adam's moments: how they start, move, and are kept in a run state.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::{InitialPhi, TableRow};
use crate::Result;
use crate::estimator::{Estimate, Temperature};
use crate::noise::{Clock, Purpose, Stream};
use crate::ops::Kernels;
use crate::optimiser::{Adam, Moments};
use crate::state::State;

/// Z `[N, V]`, and Φ `[N, 1]` or `[1, 1]` where it is learned.
pub(super) struct Variables<B: Backend> {
    pub(super) z: Variable<B>,
    pub(super) phi: Option<Variable<B>>,
}

/// A tensor that the optimiser moves.
pub(in crate::method) struct Variable<B: Backend> {
    pub(in crate::method) value: Tensor<B, 2>,
    moments: Moments<B>,
}

impl<B: Kernels> Variables<B> {
    pub(super) fn new(z: Tensor<B, 2>, phi: Option<Tensor<B, 2>>) -> Self {
        Self { z: Variable::new(z), phi: phi.map(Variable::new) }
    }

    /// As `row` starts them, by the numbers of the clock's restart; Z is `[n, v]`. `options`: their device and type.
    pub(super) fn start(row: &TableRow, [n, v]: [usize; 2], clock: Clock, options: (&B::Device, DType)) -> Self {
        let stream = |purpose| Clock { step: 0, ..clock }.stream(purpose);
        let z = normal(stream(Purpose::InitialLogits), [n, v], row.initial.deviation, options);
        let phi = phi_rows(row.temperature, n).map(|rows| {
            let stream = stream(Purpose::InitialTemperature);
            match row.initial.phi {
                InitialPhi::Normal => normal(stream, [rows, 1], 1.0, options),
                InitialPhi::Uniform => {
                    let values: Vec<f32> = (0..rows).map(|row| stream.uniform(row as u32, 0)).collect();
                    Tensor::from_data(TensorData::new(values, [rows, 1]), options)
                }
            }
        });
        Self::new(z, phi)
    }

    /// Draws Z again and forgets its moments; Φ stays.
    pub(super) fn redraw(&mut self, clock: Clock, deviation: f64) {
        let old = &self.z.value;
        let z = normal(clock.stream(Purpose::InitialLogits), old.dims(), deviation, (&old.device(), old.dtype()));
        self.z = Variable::new(z);
    }

    /// Step `t` of Φ, and step `t_z` of Z since it was last drawn, both from 1.
    pub(super) fn step(&mut self, rule: Adam, t: u64, t_z: u64, estimate: &Estimate<B>) {
        self.z.step(rule, t_z, estimate.dz.clone());
        if let (Some(phi), Some(dphi)) = (&mut self.phi, &estimate.dphi) {
            phi.step(rule, t, dphi.clone());
        }
    }

    pub(super) fn save(&self, state: &mut State) {
        self.z.save("z", state);
        if let Some(phi) = &self.phi {
            phi.save("phi", state);
        }
    }

    /// Those that [`Self::save`] put into `state`.
    pub(super) fn restore(row: &TableRow, [n, v]: [usize; 2], state: &mut State, device: &B::Device) -> Result<Self> {
        let z = Variable::restore("z", [n, v], state, device)?;
        let phi = phi_rows(row.temperature, n).map(|rows| Variable::restore("phi", [rows, 1], state, device)).transpose()?;
        Ok(Self { z, phi })
    }
}

impl<B: Kernels> Variable<B> {
    pub(in crate::method) fn new(value: Tensor<B, 2>) -> Self {
        Self { moments: Moments::zeros(&value), value }
    }

    pub(in crate::method) fn step(&mut self, rule: Adam, t: u64, gradient: Tensor<B, 2>) {
        self.value = rule.step(t, self.value.clone(), gradient, &mut self.moments);
    }

    pub(in crate::method) fn save(&self, name: &str, state: &mut State) {
        state.put(name, self.value.clone());
        state.put(&format!("{name}.first"), self.moments.first.clone());
        state.put(&format!("{name}.second"), self.moments.second.clone());
    }

    pub(in crate::method) fn restore(name: &str, shape: [usize; 2], state: &mut State, device: &B::Device) -> Result<Self> {
        let value = state.take(name, shape, device)?;
        let first = state.take(&format!("{name}.first"), shape, device)?;
        Ok(Self { value, moments: Moments { first, second: state.take(&format!("{name}.second"), shape, device)? } })
    }
}

/// Rows of Φ for N positions, where it is learned.
fn phi_rows(temperature: Temperature, n: usize) -> Option<usize> {
    match temperature {
        Temperature::Learned { per_position, .. } => Some(if per_position { n } else { 1 }),
        Temperature::None | Temperature::Fixed(_) => None,
    }
}

/// A matrix of draws from N(0, deviation²).
fn normal<B: Backend>(stream: Stream, shape: [usize; 2], deviation: f64, options: (&B::Device, DType)) -> Tensor<B, 2> {
    if deviation == 0.0 {
        return Tensor::zeros(shape, options);
    }
    let values = Tensor::<B, 2>::from_data(TensorData::new(stream.normal(shape[0], shape[1]), shape), options);
    if deviation == 1.0 { values } else { values * deviation }
}
