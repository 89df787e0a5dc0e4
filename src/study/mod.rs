//! Studies: a grid of inversions, cell by cell, on one machine or many.
//!
//! A [`Cell`] is one inversion, and its id is the hash of all that decides its result. So cells can be computed anywhere, in any order,
//! twice without harm, and what is done is what lies in the folder ([`Store`]).

pub mod cell;
pub mod chunks;
pub mod cost;
pub mod grid;
pub mod merge;
mod order;
pub mod queue;
pub mod status;
pub mod store;
pub mod worker;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use crate::backend::{self, BackendName, Choice, Dtype};
use crate::error::quoted;
use crate::invert::Model;
use crate::problem::targets::Labelled;
use crate::settings::{Options, Resolved};
use crate::source::hub;
use crate::{Error, Result};

pub use cell::Cell;
pub use chunks::chunks;
pub use grid::Grid;
pub use merge::merge;
pub use queue::{Queue, Tally};
pub use status::{Counts, Status, counts};
pub use store::Store;
pub use worker::{End, Foreman, work};

/// A study's cells in their order, and its models, opened.
pub struct Study {
    cells: Vec<Cell>,
    models: Vec<Model>,
    /// Each result says whether its prompt is exact in other circumstances too. It is no part of a cell: kept results are asked as well.
    robust: bool,
}

impl Study {
    /// Reads a study's file, opens its models and lists its cells. The weights are not loaded.
    ///
    /// # Errors
    /// Those of [`Grid::read`], a model or target file that is not there, settings that are wrong, and two cells that are the same.
    pub fn open(path: &Path, offline: bool, observer: hub::Observer) -> Result<Self> {
        Self::of_grid(&Grid::read(path)?, offline, observer)
    }

    /// As [`Self::open`] with another model in place of the file's: to see what there is, and what it costs, without their weights.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_stand_in(path: &Path, model: &str, offline: bool, observer: hub::Observer) -> Result<Self> {
        let mut grid = Grid::read(path)?;
        grid.models = vec![model.to_owned()];
        Self::of_grid(&grid, offline, observer)
    }

    fn of_grid(grid: &Grid, offline: bool, observer: hub::Observer) -> Result<Self> {
        let models: Vec<Model> = grid.models.iter().map(|spec| Model::open_with(spec, offline, observer)).collect::<Result<_>>()?;
        let cells = cell::list(grid, &models)?;
        match twins(&cells) {
            Some((one, two)) => Err(grid.wrong(format!("{one} and {two} are the same cell; leave one of them out"))),
            None => Ok(Self { cells, models, robust: false }),
        }
    }

    /// A list of targets in place of a grid: a cell for each in their order, all with these settings.
    ///
    /// # Errors
    /// Two targets with the same tokens.
    pub fn of_targets(model: Model, targets: Vec<Labelled>, resolved: &Resolved) -> Result<Self> {
        let method = resolved.settings.method.to_string();
        let cell = |target| Cell::new(0, &model, target, &method, resolved, resolved.settings.seed);
        let cells: Vec<Cell> = targets.into_iter().map(cell).collect();
        match twins(&cells) {
            Some((one, two)) => {
                let (one, two) = (quoted(&one.target.id), quoted(&two.target.id));
                Err(Error::input(format!("the targets {one} and {two} are the same tokens; leave one of them out")))
            }
            None => Ok(Self { cells, models: vec![model], robust: false }),
        }
    }

    /// One target in place of a grid: a cell for each of `count` seeds, from that of the settings on.
    pub fn of_seeds(model: Model, target: &Labelled, resolved: &Resolved, count: u32) -> Self {
        let Options { method, seed, .. } = &resolved.settings;
        let method = method.to_string();
        let cell = |more| Cell::new(0, &model, target.clone(), &method, resolved, seed.wrapping_add(more));
        Self { cells: (0..count).map(cell).collect(), models: vec![model], robust: false }
    }

    /// With this, each result says too whether its prompt is exact in other circumstances.
    pub fn robust(self, robust: bool) -> Self {
        Self { robust, ..self }
    }

    /// All cells. All methods of a target, N, budget and seed stand together, and any beginning of the list is balanced over k and N.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// The operations that a cell is expected to take: see [`cost`].
    pub fn work(&self, place: usize) -> f64 {
        let cell = &self.cells[place];
        cost::work(cell, self.models[cell.model].config())
    }

    /// The operations that a step of a cell is expected to take.
    pub fn step(&self, place: usize) -> f64 {
        let cell = &self.cells[place];
        cost::step(cell, self.models[cell.model].config())
    }

    /// Bytes of main memory that a worker should have: for the weights of the largest model in f32, as much again for what is computed, and a
    /// GiB. On a GPU's machine they are those of the copy that confirms.
    pub fn memory(&self) -> u64 {
        let weights = |model: &Model| 4 * model.config().parameters() as u64;
        2 * self.models.iter().map(weights).max().unwrap_or(0) + (1 << 30)
    }

    /// The places of these cells, in the order of the list.
    ///
    /// # Errors
    /// An id that no cell has.
    pub fn places<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> Result<Vec<usize>> {
        let places: HashMap<&str, usize> = self.cells.iter().enumerate().map(|(place, cell)| (&*cell.id, place)).collect();
        let found: Result<BTreeSet<usize>> = ids.into_iter().map(|id| places.get(id).copied().ok_or_else(|| cell::unknown(id))).collect();
        Ok(found?.into_iter().collect())
    }

    /// The places of the cells that are not over in `store`; of the failed ones too with `retry`.
    pub fn due(&self, store: &Store, retry: bool) -> Vec<usize> {
        (0..self.cells.len()).filter(|&place| !store.is_over(&self.cells[place].id, retry)).collect()
    }

    /// The places that shard `number` of `of` has (from 1): a block, which is balanced as the whole is.
    pub fn shard(&self, number: usize, of: usize) -> std::ops::Range<usize> {
        let end = |number: usize| self.cells.len() * number / of;
        end(number - 1)..end(number)
    }

    /// The backend for all cells: what the study says, else what `asked` names.
    ///
    /// # Errors
    /// They contradict each other.
    pub fn backend(&self, asked: Option<BackendName>) -> Result<BackendName> {
        let own = self.cells[0].options.backend;
        match asked {
            Some(asked) if own != BackendName::Auto && asked != own => {
                Err(Error::option("backend", format!("the study's file says {own}, not {asked}; leave one of them out")))
            }
            _ => Ok(asked.unwrap_or(own)),
        }
    }

    /// The device for all cells: what the study says, else what `backend` and `device` ask for.
    ///
    /// # Errors
    /// `backend` contradicts the study; there is no such device.
    pub fn device(&self, backend: Option<BackendName>, device: Option<usize>) -> Result<Choice> {
        backend::open(self.backend(backend)?, device, self.dtype())
    }

    /// The element type of all cells.
    fn dtype(&self) -> Dtype {
        self.cells[0].options.dtype
    }
}

/// The first two cells that are the same.
fn twins(cells: &[Cell]) -> Option<(&Cell, &Cell)> {
    let mut seen = HashMap::new();
    cells.iter().find_map(|cell| seen.insert(&cell.id, cell).map(|other| (other, cell)))
}

#[cfg(test)]
mod tests;
