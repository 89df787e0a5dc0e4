//! `dlmi study cells --cost`: the hours that cells take.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::place;
use crate::Result;
use crate::cli::answer;
use crate::cli::args::{Cells, Cli};
use crate::study::cost::{Rates, measure};
use crate::study::{Store, Study};
use crate::ui::table::pairs;

#[inline]
pub(super) fn run(cli: &Cli, verb: &Cells, study: &mut Study, store: Option<&Store>, cells: &[usize]) -> Result<ExitCode> {
    let (backend, device) = place(cli)?;
    let choice = study.device(backend, device)?;
    let on_gpu = choice.device.is_gpu();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if !on_gpu {
        // Of one core: with more, threads that wait for each other would count too. Whoever has made the pool already keeps it.
        _ = rayon::ThreadPoolBuilder::new().num_threads(1).build_global();
    }
    let mut rates = store.map_or_else(|| Ok(Rates::default()), |store| Rates::of_finished(study, store, &choice.device))?;
    let missing = rates.missing(study, cells);
    let measured = measure(study, &choice, &missing, if on_gpu { wall_seconds } else { cpu_seconds })?;
    rates.add(study, &measured);
    // From 0: the sum of nothing is −0.
    let hours = cells.iter().fold(0.0, |seconds, &cell| seconds + rates.seconds(study, cell)) / 3600.0;
    let here = if on_gpu { hours } else { hours / cores as f64 };
    let mut figures = Map::new();
    let mut put = |name: &str, value: Value| drop(figures.insert(name.into(), value));
    put("cells", cells.len().into());
    put("device", choice.device.to_string().into());
    put("finished_cells", rates.finished.into());
    put("measured_steps", rates.measured.into());
    if !on_gpu {
        put("core_hours", hours.into());
        put("workers", cores.into());
    }
    put("hours_here", here.into());
    put("hours_on_gpu", json!(verb.speed_up.map(|times| here / times)));
    answer(cli, &figures, || readable(figures.clone(), verb.speed_up, on_gpu))?;
    Ok(ExitCode::SUCCESS)
}

fn readable(mut figures: Map<String, Value>, speed_up: Option<f64>, on_gpu: bool) -> String {
    for (_, value) in figures.iter_mut().filter(|(name, _)| name.contains("hours")) {
        *value = value.as_f64().map_or("more than can be said".into(), in_hours).into();
    }
    match speed_up {
        Some(times) => {
            figures["hours_on_gpu"] = format!("{} at {times} times this speed", figures["hours_on_gpu"].as_str().unwrap_or_default()).into()
        }
        None if on_gpu => drop(figures.shift_remove("hours_on_gpu")),
        None => figures["hours_on_gpu"] = "unknown: --speed-up X, the ratio of `dlmi bench step` there and here, extrapolates".into(),
    }
    pairs(&figures)
}

/// With three digits that say something.
fn in_hours(hours: f64) -> String {
    let digits = (2.0 - hours.max(1e-9).log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{hours:.digits$}")
}

fn wall_seconds() -> f64 {
    static BEGAN: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    BEGAN.elapsed().as_secs_f64()
}

/// Seconds of this process's threads, whatever else the machine does.
#[cfg(unix)]
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to `time` alone.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(not(unix))]
fn cpu_seconds() -> f64 {
    wall_seconds()
}
