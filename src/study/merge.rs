//! The records of a study out of one folder or several, one line each, in the order of its cells.

use serde_json::Value;

use super::{Cell, Store};
use crate::backend::BackendName;
use crate::{Error, Result, setting};

/// What a clock, a path or a machine decides, `.` between a key and one within it.
const NOT_SCIENCE: [&str; 17] = [
    "provenance",
    "moment",
    "cell.model",
    "inversion.model.spec",
    "inversion.backend",
    "inversion.device",
    "inversion.settings.backend",
    "inversion.settings.device",
    "inversion.settings.max_memory",
    "inversion.settings.model",
    "inversion.load_seconds",
    "inversion.seconds",
    "inversion.seconds_to_exact",
    "trace.seconds",
    "backend",
    "seconds",
    "gradients.seconds",
];

/// Of an inversion.
const SCORES: [&str; 4] = ["relaxed_forced", "relaxed_free", "hard_forced", "hard_free"];

/// The record of every cell that is over, and the cells that are not. With `science`, without what a clock, a path or a machine decides.
///
/// # Errors
/// A broken record; two CPUs' different results of one cell.
pub fn merge<'a>(cells: &'a [Cell], stores: &[Store], science: bool) -> Result<(Vec<Value>, Vec<&'a Cell>)> {
    let (mut records, mut missing) = (Vec::new(), Vec::new());
    for cell in cells {
        let Some(mut record) = one(cell, stores)? else {
            missing.push(cell);
            continue;
        };
        // Names and groups are the file's own.
        record["cell"] = cell.summary();
        records.push(if science { self::science(record) } else { record });
    }
    Ok((records, missing))
}

/// What the folders say of a cell: a result before a failure, the first result before later ones.
fn one(cell: &Cell, stores: &[Store]) -> Result<Option<Value>> {
    let mut found: Option<Value> = None;
    for store in stores {
        let Some(record) = store.record(&cell.id)? else { continue };
        match &found {
            None => found = Some(record),
            Some(_) if record.get("failed").is_some() => (),
            Some(known) if known.get("failed").is_some() => found = Some(record),
            Some(known) => agree(cell, known, &record)?,
        }
    }
    Ok(found)
}

/// Refuses two results of one cell that differ, unless a GPU made one of them: there the first one stands.
fn agree(cell: &Cell, known: &Value, other: &Value) -> Result<()> {
    // The names in records are of the files that they were made by.
    let named = |record: &Value| {
        let mut record = science(record.clone());
        record["cell"] = Value::Null;
        record
    };
    if named(known) == named(other) {
        return Ok(());
    }
    let on_gpu = |record: &Value| {
        let backend = record.get("inversion").unwrap_or(record)["backend"].as_str().unwrap_or_default();
        setting::named::<BackendName>(backend).is_some_and(|name| !name.on_cpu())
    };
    if on_gpu(known) || on_gpu(other) {
        let apart = distance(known, other).map_or(String::new(), |apart| format!(", up to {apart:.3} apart in a score"));
        tracing::warn!("two different results of cell {} ({cell}){apart}, one of a GPU; the first one is taken", cell.id);
        return Ok(());
    }
    Err(Error::input(format!("the folders hold two different results of cell {} ({cell}); delete the wrong one", cell.id)))
}

/// The largest difference of two inversions in one of the four scores.
fn distance(one: &Value, other: &Value) -> Option<f64> {
    let score = |record: &Value, name: &str| record["inversion"]["lcs"][name].as_f64();
    let apart = SCORES.iter().filter_map(|name| Some((score(one, name)? - score(other, name)?).abs()));
    apart.reduce(f64::max)
}

/// A record without what a clock, a path or a machine decides.
fn science(mut record: Value) -> Value {
    for path in NOT_SCIENCE {
        remove(&mut record, path);
    }
    record
}

fn remove(value: &mut Value, path: &str) {
    match (value, path.split_once('.')) {
        (Value::Array(values), _) => values.iter_mut().for_each(|value| remove(value, path)),
        (Value::Object(map), None) => _ = map.shift_remove(path),
        (Value::Object(map), Some((key, rest))) => {
            if let Some(value) = map.get_mut(key) {
                remove(value, rest);
            }
        }
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn science_leaves_out_paths_and_clocks_and_keeps_the_order() {
        let record = json!({
            "cell": { "id": "a", "model": "/here" }, "trace": [{ "step": 1, "seconds": 3.0 }, { "step": 2, "seconds": 4.0 }],
            "inversion": { "exact": true, "seconds": 1.0, "settings": { "seed": 1, "backend": "flex" } }, "provenance": {}, "moment": 5,
        });
        let kept = r#"{"cell":{"id":"a"},"trace":[{"step":1},{"step":2}],"inversion":{"exact":true,"settings":{"seed":1}}}"#;
        assert_eq!(science(record).to_string(), kept);
    }
}
