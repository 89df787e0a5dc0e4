//! How far a study is, in all and along each axis.

use std::ops::AddAssign;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::cell::AXES;
use super::{Cell, Store};

/// Cells by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All of them.
    pub cells: usize,
    /// Finished.
    pub done: usize,
    /// Cannot be had.
    pub failed: usize,
    /// Somebody is at it.
    pub running: usize,
    /// Nobody is.
    pub pending: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.cells += other.cells;
        self.done += other.done;
        self.failed += other.failed;
        self.running += other.running;
        self.pending += other.pending;
    }
}

impl Counts {
    fn of(cell: &Cell, stores: &[Store]) -> Self {
        let any = |asked: fn(&Store, &str) -> bool| stores.iter().any(|store| asked(store, &cell.id));
        let one = Self { cells: 1, ..Self::default() };
        match () {
            () if any(Store::is_done) => Self { done: 1, ..one },
            () if any(Store::is_running) => Self { running: 1, ..one },
            () if any(Store::has_failed) => Self { failed: 1, ..one },
            () => Self { pending: 1, ..one },
        }
    }
}

/// Counts of a study.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Of all cells.
    pub all: Counts,
    /// Axis, and for each of its values the counts.
    pub axes: Vec<(&'static str, Vec<(Value, Counts)>)>,
}

/// Counts cells by what lies in these folders; without a folder all are pending.
pub fn counts<'a>(cells: impl IntoIterator<Item = &'a Cell>, stores: &[Store]) -> Status {
    let (mut all, mut axes) = (Counts::default(), AXES.map(|axis| (axis, Vec::<(Value, Counts)>::new())).to_vec());
    for cell in cells {
        let one = Counts::of(cell, stores);
        all += one;
        for ((_, values), value) in axes.iter_mut().zip(cell.axes()) {
            match values.iter_mut().find(|(known, _)| *known == value) {
                Some((_, counts)) => *counts += one,
                None => values.push((value, one)),
            }
        }
    }
    // An axis on which no cell has a value is none of this study.
    axes.retain(|(_, values)| values.iter().any(|(value, _)| !value.is_null()));
    Status { all, axes }
}

impl Status {
    /// `{"cells", "done", …, "axes": {"method": [{"value", "cells", …}]}}`.
    pub fn to_json(&self) -> Value {
        let row = |(value, counts): &(Value, Counts)| {
            let mut row = json!({ "value": value });
            row.as_object_mut().expect("an object").extend(object(counts));
            row
        };
        let axes: Map<String, Value> =
            self.axes.iter().map(|(axis, values)| ((*axis).to_owned(), values.iter().map(row).collect())).collect();
        let mut all = object(&self.all);
        all.insert("axes".into(), axes.into());
        all.into()
    }
}

fn object(counts: &Counts) -> Map<String, Value> {
    match serde_json::to_value(counts) {
        Ok(Value::Object(map)) => map,
        _ => unreachable!("counts are an object"),
    }
}
