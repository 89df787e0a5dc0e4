//! Cells put side by side: what may be compared stands in one group.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::data::{Budget, Cell, Data, Inversion};
use super::palette::Style;
use super::statistics::{Estimate, Rate, estimate};
use crate::method::registry::METHODS;

/// The method of cells that nobody searched for, random prompts, and their label.
pub const FLOOR: &str = "floor";

/// The four scores, what a user gets first.
pub const SCORES: [Score; 4] = [
    Score { name: "hard_free", title: "hard prompt, free-running", of: |found| found.lcs.hard_free },
    Score { name: "hard_forced", title: "hard prompt, target fed", of: |found| found.lcs.hard_forced },
    Score { name: "relaxed_free", title: "relaxed prompt, free-running", of: |found| found.lcs.relaxed_free },
    Score { name: "relaxed_forced", title: "relaxed prompt, target fed", of: |found| found.lcs.relaxed_forced },
];

/// A number of a result.
#[derive(Clone, Copy)]
pub struct Score {
    /// As in records.
    pub name: &'static str,
    /// In words.
    pub title: &'static str,
    /// None where the method has none.
    pub of: fn(&Inversion) -> Option<f64>,
}

/// Cells of one model, N and budget: they differ in method, target and seed alone.
pub struct Group<'a> {
    /// The model by name.
    pub model: String,
    /// N.
    pub prompt_tokens: u64,
    /// The budget.
    pub budget: Budget,
    /// The methods, the floor apart.
    pub series: Vec<Series<'a>>,
    /// Random prompts, where there are some.
    pub floor: Option<Series<'a>>,
    /// All targets, by k and name.
    pub targets: Vec<Target<'a>>,
}

/// A target of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target<'a> {
    /// The k that it was drawn with.
    pub k: Option<u32>,
    /// Its name.
    pub name: &'a str,
    /// y.
    pub ids: &'a [u32],
}

/// The cells of a method.
pub struct Series<'a> {
    /// What tables call it.
    pub label: &'a str,
    /// How it is drawn.
    pub style: Style,
    /// Its runs, each that counts.
    pub cells: Vec<&'a Cell>,
    /// Runs left out, as their seed decides nothing: another one is the same run.
    pub repeated: usize,
}

impl<'a> Target<'a> {
    fn of(cell: &'a Cell) -> Self {
        Self { k: cell.place.k, name: &cell.place.target, ids: &cell.place.target_ids }
    }

    /// What it is one of: its k, else its name without the number at its end.
    pub fn kind(&self) -> String {
        let name = self.name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['-', '_', '.', ' ']);
        self.k.map_or_else(|| if name.is_empty() { self.name } else { name }.to_owned(), |k| format!("k = {k}"))
    }
}

impl<'a> Series<'a> {
    /// In the order of targets and seeds; of runs that draw nothing, one for each target.
    fn of(label: &'a str, style: Style, mut cells: Vec<&'a Cell>) -> Self {
        cells.sort_by_key(|cell| (Target::of(cell), cell.place.seed, &cell.place.id));
        let all = cells.len();
        cells.dedup_by(|later, first| {
            !later.draws_anything() && !first.draws_anything() && later.place.target_ids == first.place.target_ids
        });
        Self { label, style, repeated: all - cells.len(), cells }
    }

    /// A number of each run that has one, by target.
    pub fn by_target(&self, targets: &[Target], of: impl Fn(&Cell) -> Option<f64>) -> Vec<Vec<f64>> {
        let places: HashMap<&[u32], usize> = targets.iter().enumerate().map(|(place, target)| (target.ids, place)).collect();
        let mut numbers = vec![Vec::new(); targets.len()];
        for cell in &self.cells {
            if let Some(&place) = places.get(&*cell.place.target_ids) {
                numbers[place].extend(of(cell));
            }
        }
        numbers
    }

    /// The mean of a number of each run that has one over these targets.
    pub fn mean(&self, targets: &[Target], of: impl Fn(&Cell) -> Option<f64>) -> Option<Estimate> {
        estimate(&self.by_target(targets, of))
    }

    /// How many of the runs of which it can be said are so.
    pub fn rate(&self, targets: &[Target], of: impl Fn(&Cell) -> Option<bool>) -> Rate {
        let found = self.by_target(targets, |cell| of(cell).map(|is_so| f64::from(u8::from(is_so))));
        let of_targets = found.iter().filter(|runs| !runs.is_empty());
        let (successes, runs) = (found.iter().flatten().sum::<f64>() as usize, found.iter().flatten().count());
        Rate { successes, runs, targets: of_targets.count() }
    }

    /// A number of each run by target. What failed counts as 0, where the method has this number at all.
    pub fn runs(&self, targets: &[Target], of: impl Fn(&Inversion) -> Option<f64>) -> Vec<Vec<f64>> {
        let has = self.cells.iter().any(|cell| cell.found().is_some_and(|found| of(found).is_some()));
        self.by_target(targets, |cell| if has { cell.found().map_or(Some(0.0), &of) } else { None })
    }

    /// The same where what failed counts as 0.
    pub fn estimate(&self, targets: &[Target], of: impl Fn(&Inversion) -> Option<f64>) -> Option<Estimate> {
        estimate(&self.runs(targets, of))
    }

    /// The steps at which some run of it was scored.
    pub fn steps(&self) -> BTreeSet<u64> {
        self.cells.iter().flat_map(|cell| cell.trace.iter().map(|step| step.step)).collect()
    }

    /// Runs that failed.
    pub fn failed(&self) -> usize {
        self.cells.iter().filter(|cell| cell.outcome.is_err()).count()
    }
}

impl<'a> Group<'a> {
    /// The targets of each k, in its order.
    pub fn by_k(&self) -> Vec<(Option<u32>, Vec<Target<'a>>)> {
        let mut groups: BTreeMap<Option<u32>, Vec<Target>> = BTreeMap::new();
        self.targets.iter().for_each(|target| groups.entry(target.k).or_default().push(*target));
        groups.into_iter().collect()
    }

    /// The targets of each kind, where there are several of which some have several.
    pub fn by_kind(&self) -> Vec<(String, Vec<Target<'a>>)> {
        let mut kinds: BTreeMap<String, Vec<Target>> = BTreeMap::new();
        self.targets.iter().for_each(|target| kinds.entry(target.kind()).or_default().push(*target));
        if kinds.len() < 2 || kinds.len() == self.targets.len() { Vec::new() } else { kinds.into_iter().collect() }
    }

    /// The methods, and the floor after them.
    pub fn all_series(&self) -> impl Iterator<Item = &Series<'a>> {
        self.series.iter().chain(&self.floor)
    }

    /// `bard, N = 10, 256 steps`.
    pub fn title(&self) -> String {
        format!("{}, N = {}, {}", self.model, self.prompt_tokens, self.budget)
    }

    /// Its part of file names.
    pub fn slug(&self) -> String {
        slug(&self.model, self.prompt_tokens, &self.budget.to_string().replace(" steps", ""))
    }
}

/// A model, N and a budget as part of a file's name.
pub fn slug(model: &str, prompt_tokens: u64, budget: &str) -> String {
    let name = model.replace(' ', "-");
    let letters: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    format!("{}-n{prompt_tokens}-{}", letters.to_ascii_lowercase(), budget.replace(' ', "-"))
}

/// All groups, by model, N and budget, each with the floor of its own budget, else with the one of the largest: random prompts have no
/// budget, but two floors have prompts in common.
pub fn groups<'a>(data: &'a Data) -> Vec<Group<'a>> {
    let models = model_names(data);
    let styles = styles(data);
    let place = |cell: &Cell| (models[cell.place.model_digest.as_str()].as_str(), cell.place.prompt_tokens);
    let (floor, searched): (Vec<&Cell>, Vec<&Cell>) = data.cells.iter().partition(|cell| cell.place.method == FLOOR);
    let mut sorted: BTreeMap<(&str, u64, Budget), Vec<&Cell>> = BTreeMap::new();
    for cell in searched {
        let (model, n) = place(cell);
        sorted.entry((model, n, cell.place.budget)).or_default().push(cell);
    }
    let one = |((model, n, budget), cells): ((&str, u64, Budget), Vec<&'a Cell>)| {
        let mut floor: Vec<&Cell> = floor.iter().copied().filter(|cell| place(cell) == (model, n)).collect();
        let budgets = || floor.iter().map(|cell| cell.place.budget);
        let its = budgets().find(|its| *its == budget).or_else(|| budgets().max());
        floor.retain(|cell| Some(cell.place.budget) == its);
        group(model, n, budget, cells, floor, &styles)
    };
    sorted.into_iter().map(one).collect()
}

fn group<'a>(
    model: &str,
    prompt_tokens: u64,
    budget: Budget,
    cells: Vec<&'a Cell>,
    floor: Vec<&'a Cell>,
    styles: &[(&'a str, Style)],
) -> Group<'a> {
    let mut targets: Vec<Target> = cells.iter().map(|cell| Target::of(cell)).collect();
    targets.sort_by_key(|target| target.ids);
    targets.dedup_by_key(|target| target.ids);
    targets.sort();
    let labelled = |label: &str| cells.iter().copied().filter(|cell| cell.place.method == label).collect::<Vec<_>>();
    let series = styles.iter().map(|(label, style)| Series::of(label, *style, labelled(label))).filter(|series| !series.cells.is_empty());
    let floor = floor.into_iter().filter(|cell| targets.iter().any(|target| target.ids == cell.place.target_ids)).collect();
    let floor = Some(Series::of(FLOOR, Style::FLOOR, floor)).filter(|series| !series.cells.is_empty());
    Group { model: model.to_owned(), prompt_tokens, budget, series: series.collect(), floor, targets }
}

/// Names of models by digest: that of their file, else the digest's beginning; both where two have the same name.
pub fn model_names(data: &Data) -> BTreeMap<&str, String> {
    let mut names: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    for cell in &data.cells {
        let name = names.entry(&cell.place.model_digest).or_default();
        *name = name.or(cell.place.model.as_deref().map(file_name));
    }
    for gradient in &data.gradients {
        let name = names.entry(&gradient.model).or_default();
        *name = name.or(data.measured_models.get(&gradient.model).map(|name| file_name(name)));
    }
    let shared = |name: &str| names.values().filter(|other| **other == Some(name)).count() > 1;
    let start = |digest: &str| digest.chars().take(8).collect::<String>();
    let name = |digest: &str, name: &Option<&str>| match name {
        None => format!("model {}", start(digest)),
        Some(name) if shared(name) => format!("{name} {}", start(digest)),
        Some(name) => (*name).to_owned(),
    };
    names.iter().map(|(digest, given)| (*digest, name(digest, given))).collect()
}

/// The last part of a path, or of a name on the hub.
fn file_name(path: &str) -> &str {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default()
}

/// All labels, by method, and how each is drawn in all figures of a report.
fn styles(data: &Data) -> Vec<(&str, Style)> {
    let mut labels: BTreeMap<&str, &str> = BTreeMap::new();
    for cell in &data.cells {
        let method = cell.found().map_or("", |found| found.method.as_str());
        let known = labels.entry(&cell.place.method).or_default();
        *known = if known.is_empty() { method } else { known };
    }
    let place = |method: &str| METHODS.iter().position(|known| known.name == method).unwrap_or(METHODS.len());
    let mut order: Vec<(&str, &str)> = labels.into_iter().filter(|(label, _)| *label != FLOOR).collect();
    order.sort_by_key(|(label, method)| (place(method), *label));
    let methods: Vec<&str> = order.iter().map(|(_, method)| *method).collect();
    let styles = Style::of_methods(&methods);
    order.into_iter().map(|(label, _)| label).zip(styles).collect()
}
