//! `dlmi study slurm`: lists of cells, and the batch script whose tasks compute them.

use std::path::Path;
use std::process::ExitCode;

use sha2::{Digest, Sha256};

use crate::backend::BackendName;
use crate::cli::args::study::WARNED;
use crate::cli::args::{Cli, Slurm};
use crate::files::replace;
use crate::study::{Store, Study, chunks};
use crate::ui::print_result;
use crate::{Error, Result};

/// Cores of a worker that has a GPU: they confirm results.
const CORES_BESIDE_GPU: u32 = 4;
/// The largest array of a cluster that has Slurm's defaults.
const USUAL_ARRAY: u32 = 1000;

pub(super) fn run(cli: &Cli, verb: &Slurm, study: &Study) -> Result<ExitCode> {
    let backend = study.backend(super::place(cli)?.0)?;
    if verb.gpus && (backend == BackendName::Auto || backend.on_cpu()) {
        return Err(Error::input("--gpus: say what computes on them, `--backend cuda` or `--backend wgpu`"));
    }
    let store = Store::create(&verb.out)?;
    let due = study.due(&store, verb.retry);
    if due.is_empty() {
        tracing::warn!("every cell is over: there is nothing to submit (--retry computes failed ones again)");
        return Ok(ExitCode::SUCCESS);
    }
    if verb.tasks > USUAL_ARRAY {
        tracing::warn!("many clusters take arrays of at most {USUAL_ARRAY} tasks (MaxArraySize in `scontrol show config`)");
    }
    let parts = chunks(&due, |place| study.work(place), verb.tasks as usize);
    let lists: Vec<String> =
        parts.iter().map(|part| part.iter().map(|&place| format!("{}\n", study.cells()[place].id)).collect()).collect();
    let folder = write(&verb.out, &lists)?;
    print_result(&script(cli, verb, study, &folder, lists.len())?)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the lists, `1` to `n`, into a folder that is named after what they hold: those of an array that still waits stay as they are.
/// The folder's absolute path.
fn write(out: &Path, lists: &[String]) -> Result<String> {
    let digest = Sha256::digest(lists.join("\n"));
    let name = crate::files::hex(&digest[..6]);
    let folder = out.join("lists").join(name);
    std::fs::create_dir_all(&folder).map_err(|error| Error::writing(&folder, &error))?;
    for (number, list) in (1..).zip(lists) {
        replace(&folder.join(number.to_string()), list.as_bytes())?;
    }
    absolute(&folder)
}

fn script(cli: &Cli, verb: &Slurm, study: &Study, lists: &str, tasks: usize) -> Result<String> {
    let Slurm { file, out, workers, gpus, time, .. } = verb;
    let cores = if *gpus { workers * CORES_BESIDE_GPU } else { *workers };
    let memory = u64::from(*workers) * study.memory().div_ceil(1 << 20);
    let gres = if *gpus { format!("#SBATCH --gres=gpu:{workers}\n") } else { String::new() };
    let name: String = file.file_stem().unwrap_or_default().to_string_lossy().chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let lost = |error| Error::environment(format!("cannot find the current folder, or this program: {error}"));
    let here = absolute(&std::env::current_dir().map_err(lost)?)?;
    let program = absolute(&std::env::current_exe().map_err(lost)?)?;
    let mut command = format!("{} study run {} --out {}", quoted(&program), quoted(&absolute(file)?), quoted(&absolute(out)?));
    command += &format!(" --cells {}/\"$SLURM_ARRAY_TASK_ID\" --workers {workers} -q", quoted(lists));
    for (key, value) in cli.place()? {
        command += &format!(" --{key} {}", quoted(&value));
    }
    for (wanted, flag) in [(cli.global.offline, " --offline"), (verb.retry, " --retry")] {
        command += if wanted { flag } else { "" };
    }
    Ok(format!(
        r#"#!/bin/bash
#SBATCH --job-name=dlmi-{name}
#SBATCH --array=1-{tasks}
#SBATCH --time={time}
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task={cores} --mem={memory}M
{gres}#SBATCH --signal=USR1@{WARNED}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={output}
# Submit it with sbatch --partition=... --account=... {WARNED} seconds before the end of its time a task is warned, writes its checkpoints and
# ends with 138 (128 + SIGUSR1); it is then queued again, and goes on.
cd {here} || exit
srun --cpus-per-task={cores} {command}
code=$?
if [ "$code" = 138 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
"#,
        output = directive(&format!("{}/%a.log", lists.replace('%', "%%"))),
        here = quoted(&here),
    ))
}

/// An absolute path as text that may stand in a script.
fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(|error| Error::reading(path, &error))?;
    let text = path.to_str().filter(|text| !text.contains(char::is_control));
    text.map(str::to_owned).ok_or_else(|| Error::input(format!("{path:?} cannot stand in a batch script; choose a plainer path")))
}

/// A word for the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A value for a line of `#SBATCH`.
fn directive(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}
