//! Every method, once: its name, what it is, its settings, and the budget that it has where nobody gives one.
//!
//! A new method is a file that says its settings, and a line of [`METHODS`]. One whose settings are of a new kind is a variant of
//! [`MethodSettings`] as well.

use std::fmt;

use serde_json::Value;

use super::adc::{self, Adc, AdcMethod};
use super::control::{self, Control, ControlMethod};
use super::pez::{self, Pez, PezMethod};
use super::relaxed::{self, RelaxedMethod, TableRow, dlmi, gbda, rebar, reinforce, relax, soda, stgs};
use super::search::{self, Search, SearchMethod, arca, autoprompt, gcg, random, snap};
use super::{Build, Method};
use crate::ops::{Kernels, Products, TrackedBackend};
use crate::setting::{self, Checked, Choice, Key, Slot, Written};
use crate::subject::Footprint;

/// All methods, in the order in which they are listed.
pub const METHODS: &[Registered] = {
    use MethodSettings::*;
    &[
        method(
            "dlmi",
            steps(256),
            Relaxed(dlmi::DLMI),
            "The paper's: a relaxed prompt, Gumbel-softmax with learned temperatures, teacher forcing",
        ),
        method("dlmi-tf", steps(256), Relaxed(dlmi::DLMI_TF), "The same, the model fed its own output"),
        method("gbda", steps(256), Relaxed(gbda::GBDA), "Gumbel-softmax with a fixed temperature, the model fed its own output"),
        method(
            "gbda-forced",
            steps(100),
            Relaxed(gbda::GBDA_FORCED),
            "The same, the target's own tokens fed, as the authors of ARCA ran it",
        ),
        method(
            "reinforce",
            steps(256),
            Relaxed(reinforce::REINFORCE),
            "Whole tokens drawn from the relaxed prompt, no gradient through the model",
        ),
        method("soda", steps(256), Relaxed(soda::SODA), "A sharp softmax without noise, decaying logits"),
        method("stgs", steps(256), Relaxed(stgs::STGS), "DLMI, the model shown whole tokens: straight-through Gumbel-softmax"),
        method("rebar", steps(256), Relaxed(rebar::REBAR), "REINFORCE, the relaxed prompt as a control variate"),
        method("relax", steps(256), Relaxed(relax::RELAX), "The same, and a small network that learns beside it"),
        method(
            "snap",
            seconds(600.0),
            Search(snap::SNAP),
            "Search on whole tokens led by the gradient: always holds a prompt that can be typed",
        ),
        method("gcg", steps(250), Search(gcg::GCG), "Greedy coordinate gradient, as nanoGCG runs it"),
        method("arca", steps(1000), Search(arca::ARCA), "Position by position, the best of those that gradients at random tokens propose"),
        method("autoprompt", steps(1000), Search(autoprompt::AUTOPROMPT), "A random position, the best of ten tokens by the gradient"),
        method("pez", steps(3000), Pez(pez::PEZ), "Embeddings moved by the gradient at the nearest tokens"),
        method("adc", steps(5000), Adc(adc::ADC), "Relaxed rows that become sparser the fewer target tokens are wrong"),
        method("random", steps(256), Search(random::RANDOM), "Control: random swaps of single tokens"),
        method("echo", steps(1), Control(control::Control::Echo), "Control: the target itself as the prompt"),
        method("floor", steps(32), Control(control::Control::Floor), "Control: another random prompt at every step"),
    ]
};

/// The method of a run that names none.
const DEFAULT: &str = "snap";

/// A method as it is listed.
#[derive(Debug)]
pub struct Registered {
    /// As typed.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// How long it runs where nobody says.
    pub budget: DefaultBudget,
    /// Its settings where nobody says otherwise.
    pub defaults: MethodSettings,
}

const fn method(name: &'static str, budget: DefaultBudget, defaults: MethodSettings, about: &'static str) -> Registered {
    Registered { name, about, budget, defaults }
}

/// A budget of steps or of seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DefaultBudget {
    /// Steps of each start.
    pub steps: Option<u64>,
    /// Seconds in all.
    pub seconds: Option<f64>,
}

const fn steps(steps: u64) -> DefaultBudget {
    DefaultBudget { steps: Some(steps), seconds: None }
}

const fn seconds(seconds: f64) -> DefaultBudget {
    DefaultBudget { steps: None, seconds: Some(seconds) }
}

/// The name of a registered method.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MethodName(usize);

impl MethodName {
    /// The names of all methods, in the order of [`METHODS`].
    pub fn all() -> impl Iterator<Item = Self> {
        (0..METHODS.len()).map(Self)
    }

    /// What is listed under it.
    pub fn registered(self) -> &'static Registered {
        &METHODS[self.0]
    }

    /// Its place in [`METHODS`].
    pub fn index(self) -> usize {
        self.0
    }
}

impl Choice for MethodName {
    const ALL: &'static [(Self, &'static str, &'static str)] = &{
        let mut all = [(Self(0), "", ""); METHODS.len()];
        let mut i = 0;
        while i < all.len() {
            all[i] = (Self(i), METHODS[i].name, METHODS[i].about);
            i += 1;
        }
        all
    };
}

impl Default for MethodName {
    fn default() -> Self {
        setting::named(DEFAULT).expect("the default is registered")
    }
}

impl fmt::Display for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.registered().name)
    }
}

impl fmt::Debug for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.registered().name)
    }
}

/// The settings of one method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MethodSettings {
    /// A relaxed method: its row of Table 1.
    Relaxed(TableRow),
    /// A search on whole tokens.
    Search(Search),
    /// A prompt in embeddings.
    Pez(Pez),
    /// Relaxed prompts that become sparse.
    Adc(Adc),
    /// What nothing searches for, which has no settings.
    Control(Control),
}

impl MethodSettings {
    /// Names of all settings of this kind, and a line about each. Not every method has all of them, see [`Self::get`].
    pub fn keys(&self) -> Vec<(&'static str, &'static str)> {
        fn listed<S>(keys: &[Key<S>]) -> Vec<(&'static str, &'static str)> {
            keys.iter().map(|key| (key.name, key.doc)).collect()
        }
        match self {
            Self::Relaxed(_) => listed(relaxed::KEYS),
            Self::Search(_) => listed(search::KEYS),
            Self::Pez(_) => listed(pez::KEYS),
            Self::Adc(_) => listed(adc::KEYS),
            Self::Control(_) => Vec::new(),
        }
    }

    /// The value of a setting, `Null` for `none`; nothing where this method has no such setting.
    pub fn get(mut self, name: &str) -> Option<Value> {
        self.slot(name).map(Slot::value)
    }

    /// Writes a setting; nothing where this method has no such setting.
    pub fn set(&mut self, name: &str, written: &Written) -> Option<Checked<()>> {
        self.slot(name).map(|slot| slot.write(written))
    }

    fn slot(&mut self, name: &str) -> Option<Slot<'_>> {
        match self {
            Self::Relaxed(row) => setting::find(relaxed::KEYS, row, name),
            Self::Search(search) => setting::find(search::KEYS, search, name),
            Self::Pez(settings) => setting::find(pez::KEYS, settings, name),
            Self::Adc(settings) => setting::find(adc::KEYS, settings, name),
            Self::Control(_) => None,
        }
    }

    /// Whether the settings agree with each other. The error is a sentence with the names of settings in backticks.
    pub fn check(&self) -> Checked<()> {
        match self {
            Self::Relaxed(row) => row.check(),
            Self::Search(search) => search.check(),
            Self::Pez(_) | Self::Adc(_) | Self::Control(_) => Ok(()),
        }
    }

    /// The same with a hinge that aims so many logits higher.
    #[must_use]
    pub fn aiming_higher(mut self, by: f64) -> Self {
        match &mut self {
            Self::Relaxed(row) => row.goal.margin += by,
            Self::Search(search) => search.goal.margin += by,
            Self::Pez(settings) => settings.goal.margin += by,
            Self::Adc(settings) => settings.goal.margin += by,
            Self::Control(_) => (),
        }
        self
    }

    /// How exact most products of a step are.
    pub fn products<B: Kernels>(&self) -> Products {
        match self {
            Self::Search(search) => search.products::<B>(),
            Self::Relaxed(_) | Self::Pez(_) | Self::Adc(_) | Self::Control(_) => Products::Full,
        }
    }

    /// The row of Table 1, where the method has one.
    pub fn row(&self) -> Option<TableRow> {
        match self {
            Self::Relaxed(row) => Some(*row),
            Self::Search(_) | Self::Pez(_) | Self::Adc(_) | Self::Control(_) => None,
        }
    }
}

impl Build for MethodSettings {
    fn build<B: TrackedBackend>(&self) -> Box<dyn Method<B>> {
        match self {
            Self::Relaxed(row) => Box::new(RelaxedMethod::new(*row)),
            Self::Search(search) => Box::new(SearchMethod::new(*search)),
            Self::Pez(settings) => Box::new(PezMethod::new(*settings)),
            Self::Adc(settings) => Box::new(AdcMethod::new(*settings)),
            Self::Control(control) => Box::new(ControlMethod::new(*control)),
        }
    }

    fn footprint(&self) -> Footprint {
        match self {
            Self::Relaxed(row) => row.footprint(),
            Self::Search(search) => search.footprint(),
            Self::Adc(adc) => adc.footprint(),
            Self::Pez(_) | Self::Control(_) => Footprint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::DType;

    use super::*;
    use crate::method::Clock;
    use crate::model::Llama;
    use crate::problem::{Problem, PromptOptions, Target};
    use crate::setting::names;
    use crate::subject::Subject;
    use crate::testing::{one_at_a_time, tiny};

    #[test]
    fn methods_are_called_what_they_are_typed_as() {
        assert_eq!(
            names::<MethodName>(),
            [
                "dlmi",
                "dlmi-tf",
                "gbda",
                "gbda-forced",
                "reinforce",
                "soda",
                "stgs",
                "rebar",
                "relax",
                "snap",
                "gcg",
                "arca",
                "autoprompt",
                "pez",
                "adc",
                "random",
                "echo",
                "floor"
            ]
        );
        for method in MethodName::all() {
            assert_eq!(setting::named(method.registered().name), Some(method));
        }
        assert_eq!(MethodName::default().to_string(), "snap");
    }

    #[test]
    fn defaults_agree_with_each_other_and_with_their_own_ranges() {
        for method in MethodName::all() {
            let defaults = method.registered().defaults;
            assert_eq!(defaults.check(), Ok(()), "{method}");
            for (name, doc) in defaults.keys() {
                let Some(value) = defaults.get(name) else { continue };
                let text = if value.is_null() { "none".to_owned() } else { value.to_string().replace('"', "") };
                let mut again = defaults;
                assert_eq!(again.set(name, &Written::untyped(text)), Some(Ok(())), "{method}.{name}");
                assert_eq!(again, defaults, "{method}.{name}");
                assert!(doc.len() > 5 && !doc.contains('\n'), "{method}.{name}: {doc}");
            }
        }
    }

    #[test]
    fn a_key_writes_its_own_field_only() {
        let samples = ["7", "0.5", "true", "false", "none", "uniform", "hard", "shared"];
        for method in MethodName::all() {
            let defaults = method.registered().defaults;
            let (keys, mut written) = (defaults.keys(), 0);
            for (name, _) in &keys {
                for text in samples {
                    let mut changed = defaults;
                    if changed.set(name, &Written::untyped(text)).is_none_or(|outcome| outcome.is_err()) || changed == defaults {
                        continue;
                    }
                    written += 1;
                    for (other, _) in keys.iter().filter(|(other, _)| other != name) {
                        // A choice may bring settings of its own, or take them away.
                        let (was, is) = (defaults.get(other), changed.get(other));
                        assert!(was == is || was.is_none() || is.is_none(), "{method}: {name} = {text} writes {other}");
                    }
                }
            }
            assert_eq!(written == 0, keys.is_empty(), "{method}");
        }
    }

    #[test]
    fn a_hinge_aims_higher_by_what_is_asked() {
        let margin = |settings: &MethodSettings| settings.get("margin").and_then(|margin| margin.as_f64());
        for method in MethodName::all() {
            let defaults = method.registered().defaults;
            let higher = margin(&defaults.aiming_higher(0.5));
            assert_eq!(higher, margin(&defaults).map(|margin| margin + 0.5), "{method}");
        }
    }

    /// Objectives of some steps.
    fn objectives(settings: &MethodSettings, dtype: DType) -> Vec<f32> {
        let mut checkpoint = tiny();
        let (config, tokenizer) = (checkpoint.config.clone(), checkpoint.tokenizer.clone());
        let target = Target::from_text("he is", &tokenizer).unwrap();
        let options = PromptOptions { tokens: 4, prefix: "on".into(), suffix: "it".into(), ..PromptOptions::default() };
        let problem = Problem::new(options, target, &tokenizer, config.vocab_size).unwrap();
        let model = Llama::load(&config, &mut checkpoint, &Default::default(), dtype).unwrap();
        let subject = Subject::<Autodiff<Flex>>::new(model, tokenizer);
        let mut method = settings.build::<Autodiff<Flex>>();
        let clock = |step| Clock { seed: 3, restart: 0, step };
        method.start(&subject, &problem, clock(0)).unwrap();
        let steps = (0..4).map(|step| method.step(&subject, &problem, clock(step)).unwrap().objective).collect();
        crate::invert::scores::scores(&*method, &subject, &problem, clock(4));
        steps
    }

    /// Nothing meets a tensor of another type, and DLMI's first step costs what it does in f32 up to 1 %: the others decide in between.
    #[test]
    fn every_method_works_in_half_precision() {
        let _guard = one_at_a_time();
        for method in MethodName::all() {
            let mut settings = method.registered().defaults;
            // Where it has that setting.
            let _ = settings.set("samples", &Written::untyped("2"));
            let whole = objectives(&settings, DType::F32);
            for dtype in [DType::F16, DType::BF16] {
                let half = objectives(&settings, dtype);
                assert!(half.iter().all(|x| x.is_finite()), "{method} in {dtype:?}: {half:?}");
                let near = (half[0] - whole[0]).abs() <= 0.01 * whole[0].abs();
                assert!(near || method.registered().name != "dlmi", "{method} in {dtype:?}: {half:?}, {whole:?}");
            }
        }
    }
}
