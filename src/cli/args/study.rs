//! The parts of `study`.

use std::path::PathBuf;

use clap::{Args, Subcommand, value_parser};

/// `study`.
#[derive(Subcommand, Debug)]
pub enum Study {
    /// List the cells of a study: a table by axis, or JSON Lines with --json
    #[command(after_help = "\
Examples:
  dlmi study cells configs/study/smoke.toml
  dlmi study cells configs/study/smoke.toml --json | head
  dlmi study cells configs/study/smoke.toml --pending --out smoke --ids
  dlmi study cells configs/study/smoke.toml --cost --speed-up 30
  dlmi study cells configs/study/figure2.toml --cost --stand-in SmolLM2-135M-Instruct.Q4_1.gguf

The model's files are read, its weights are not loaded. All methods of a target, N and seed stand together, and the
list is balanced over k and N: any beginning of it compares alike with alike.")]
    Cells(Cells),
    /// Compute the cells that are not done
    #[command(after_help = "\
Examples:
  dlmi study run configs/study/smoke.toml --out smoke
  dlmi study run configs/study/smoke.toml --out smoke --workers 2
  dlmi study run configs/study/smoke.toml --out smoke --shard 2/8
  dlmi study cells configs/study/smoke.toml --ids | parallel dlmi study run configs/study/smoke.toml --out smoke --cell {}

Stop it when you like, with Ctrl-C or kill -9: the same command goes on from the last checkpoints. Several runs may share
a folder. --backend and --device say where to compute; all other settings are the study's own.

Exit code: 0 all of these cells are done, 1 one or more failed, 2 bad input, 3 no such device, hub or disk space,
4 one or more are still to be done, 130 interrupted, 138 warned by SIGUSR1 that the time is nearly up.")]
    Run(Compute),
    /// Print a Slurm batch script for the cells that are not done; it submits nothing
    #[command(after_help = "\
Examples:
  dlmi study slurm configs/study/smoke.toml --out smoke --tasks 8 > smoke.sbatch
  sbatch --partition=P --account=A smoke.sbatch
  dlmi study slurm configs/study/smoke.toml --out smoke --tasks 8 --workers 4 --gpus --backend cuda

The cells are cut into so many lists of nearly the same work, which lie in DIR/lists; each task of the job array computes one.
A task that is warned, preempted or loses its node is queued again and goes on from its checkpoints.")]
    Slurm(Slurm),
    /// Count the cells that are done, failed, running and pending
    #[command(after_help = "\
Examples:
  dlmi study status configs/study/smoke.toml --out smoke
  dlmi study status configs/study/smoke.toml --out here --out there")]
    Status {
        /// The study
        file: PathBuf,
        /// A folder of the study; may be repeated
        #[arg(long, value_name = "DIR", required = true)]
        out: Vec<PathBuf>,
    },
    /// Put the records of one folder or several into one JSON Lines file, in the order of the cells
    #[command(after_help = "\
Examples:
  dlmi study merge configs/study/smoke.toml --out smoke -o smoke.jsonl
  dlmi study merge configs/study/smoke.toml --out here --out there --science -o smoke.jsonl

Exit code: 0 every cell is there, 4 one or more are missing.")]
    Merge {
        /// The study
        file: PathBuf,
        /// A folder of the study; may be repeated
        #[arg(long, value_name = "DIR", required = true)]
        out: Vec<PathBuf>,
        /// Leave out what a clock, a path or a machine decides: the same bytes however the study was run
        #[arg(long)]
        science: bool,
        /// Where to write [default: standard output]
        #[arg(short = 'o', long = "merged", value_name = "MERGED")]
        merged: Option<PathBuf>,
    },
    /// A worker of `study run --workers`: computes the cells named on standard input
    #[command(hide = true)]
    Worker(Compute),
}

/// Which cells to list, and how.
#[derive(Args, Debug)]
pub struct Cells {
    /// The study, a TOML file: docs/experiments.md
    pub file: PathBuf,
    /// Only those that are neither done nor failed in --out
    #[arg(long, requires = "out")]
    pub pending: bool,
    /// And those that have failed
    #[arg(long, requires = "pending")]
    pub retry: bool,
    /// The study's folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print their ids, one a line
    #[arg(long)]
    pub ids: bool,
    /// Predict the hours they take, from the finished cells in --out or a measurement of a few seconds
    #[arg(long, conflicts_with = "ids")]
    pub cost: bool,
    /// Another model in place of the study's, whose weights need not be here: to check its cells and their cost
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["out", "ids"])]
    pub stand_in: Option<String>,
    /// How many times as fast as this machine a GPU is, as `dlmi bench step` on both says
    #[arg(long, value_name = "X", requires = "cost", value_parser = positive)]
    pub speed_up: Option<f64>,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| *x > 0.0 && x.is_finite()).ok_or_else(|| "it must be a number above 0".to_owned())
}

/// What a job array computes.
#[derive(Args, Debug)]
pub struct Slurm {
    /// The study
    pub file: PathBuf,
    /// Where the results are kept: a folder that all nodes see
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Tasks of the array, each with its part of the cells
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=100_000))]
    pub tasks: u32,
    /// Processes of a task that compute
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1024))]
    pub workers: u32,
    /// A GPU for each of them
    #[arg(long)]
    pub gpus: bool,
    /// Compute failed cells again
    #[arg(long)]
    pub retry: bool,
    /// How long a task may run at a time, as Slurm writes it: what is begun then goes on in the next
    #[arg(long, value_name = "TIME", default_value = "04:00:00", value_parser = slurm_time)]
    pub time: String,
}

/// What to compute, and where it is kept.
#[derive(Args, Debug)]
pub struct Compute {
    /// The study
    pub file: PathBuf,
    /// Where the results are kept, and what is under way
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Processes that compute, each with its share of the cores
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1024))]
    pub workers: u32,
    /// Only the I-th of K parts of the cells
    #[arg(long, value_name = "I/K", value_parser = shard)]
    pub shard: Option<(usize, usize)>,
    /// Only this cell; may be repeated
    #[arg(long, value_name = "ID", conflicts_with = "shard")]
    pub cell: Vec<String>,
    /// Only the cells whose ids this file holds, one a line
    #[arg(long, value_name = "LIST", conflicts_with_all = ["shard", "cell"])]
    pub cells: Option<PathBuf>,
    /// Compute at most so many cells
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Compute failed cells again
    #[arg(long)]
    pub retry: bool,
}

/// Seconds before its end at which Slurm warns a task.
pub(in crate::cli) const WARNED: u64 = 120;

/// `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` or `days-hours:minutes:seconds`.
fn slurm_time(text: &str) -> Result<String, String> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|c| c.is_ascii_digit())).map(u64::from);
    let (days, rest) = text.split_once('-').map_or((None, text), |(days, rest)| (Some(days), rest));
    let parts = rest.split(':').map(number).collect::<Option<Vec<u64>>>().unwrap_or_default();
    let [days, hours, minutes, seconds] = match (days.map(number), &parts[..]) {
        (None, &[minutes]) => [0, 0, minutes, 0],
        (None, &[minutes, seconds]) => [0, 0, minutes, seconds],
        (None, &[hours, minutes, seconds]) => [0, hours, minutes, seconds],
        (Some(Some(days)), &[hours]) => [days, hours, 0, 0],
        (Some(Some(days)), &[hours, minutes]) => [days, hours, minutes, 0],
        (Some(Some(days)), &[hours, minutes, seconds]) => [days, hours, minutes, seconds],
        _ => return Err("it must be a time as Slurm writes it, such as 04:00:00 or 2-00:00:00".to_owned()),
    };
    if ((days * 24 + hours) * 60 + minutes) * 60 + seconds <= WARNED {
        return Err(format!("a task is warned {WARNED} seconds before its end, so it must have more than that"));
    }
    Ok(text.to_owned())
}

fn shard(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
    let shard = parts.filter(|&(number, of): &(usize, usize)| number >= 1 && number <= of && of <= 1_000_000);
    shard.ok_or_else(|| "it must be I/K with I from 1 to K, such as 2/8".to_owned())
}
