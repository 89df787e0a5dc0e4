//! What a run goes on from: everything that the next step depends on, as plain data.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::tensor::host;
use crate::{Error, Result};

/// Named tensors and one JSON value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// Values with their shapes.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// Everything else.
    pub fields: Value,
}

impl State {
    /// A state of plain fields.
    pub fn new(fields: &impl Serialize) -> Self {
        Self { tensors: BTreeMap::new(), fields: serde_json::to_value(fields).expect("plain data") }
    }

    /// The plain fields, as their type.
    pub fn fields<T: DeserializeOwned>(&self) -> Result<T> {
        typed(&self.fields)
    }

    /// One of them, as its type; one that is missing as if it were null.
    pub fn field<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        typed(&self.fields[name])
    }

    /// Adds a field to those of a struct.
    pub fn put_field(&mut self, name: &str, value: &impl Serialize) {
        self.fields[name] = serde_json::to_value(value).expect("plain data");
    }

    /// Adds a tensor.
    pub fn put<B: Backend>(&mut self, name: &str, tensor: Tensor<B, 2>) {
        self.put_values(name, tensor.dims()[0], host(tensor));
    }

    /// Adds a tensor of so many rows by its values, row-major.
    pub fn put_values(&mut self, name: &str, rows: usize, values: Vec<f32>) {
        self.tensors.insert(name.to_owned(), (vec![rows, values.len() / rows], values));
    }

    /// Takes a tensor `[rows, columns]`.
    pub fn take<B: Backend>(&mut self, name: &str, shape: [usize; 2], device: &B::Device) -> Result<Tensor<B, 2>> {
        Ok(Tensor::from_data(TensorData::new(self.take_values(name, shape)?, shape), device))
    }

    /// Takes the values of a tensor `[rows, columns]`, row-major.
    pub fn take_values(&mut self, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
        match self.tensors.remove(name) {
            Some((found, values)) if found == shape => Ok(values),
            Some((found, _)) => Err(Error::input(format!("`{name}` in the checkpoint has shape {found:?}, but this run needs {shape:?}"))),
            None => Err(Error::input(format!("the checkpoint lacks `{name}`; start from the beginning"))),
        }
    }
}

fn typed<T: DeserializeOwned>(value: &Value) -> Result<T> {
    serde_json::from_value(value.clone()).map_err(|error| Error::input(format!("the checkpoint does not belong to this method: {error}")))
}
