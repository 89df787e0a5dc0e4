//! The estimators of figure 5, each by the row that its run goes by.

use crate::estimator::Temperature;
use crate::method::registry::MethodName;
use crate::method::relaxed::TableRow;
use crate::setting::{self, Choice};
use crate::settings::Options;
use crate::{Error, Result};

/// An estimator that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compared {
    /// REINFORCE with the baseline of its method
    Reinforce,
    /// Gumbel-softmax, τ = 1
    GsTau1,
    /// Gumbel-softmax, τ = 100
    GsTau100,
    /// Gumbel-softmax, one learned temperature, τ0 = 1: the paper's L
    GsLearnedTau1,
    /// Gumbel-softmax, one learned temperature, τ0 = 100: the paper's L
    GsLearnedTau100,
    /// Gumbel-softmax, a learned temperature for each position, τ0 = 1: the paper's D + L
    GsDecoupledTau1,
    /// Gumbel-softmax, a learned temperature for each position, τ0 = 100: the paper's D + L
    GsDecoupledTau100,
    /// Straight-through Gumbel-softmax
    Stgs,
    /// REBAR
    Rebar,
    /// RELAX
    Relax,
}

impl Choice for Compared {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::Reinforce, "reinforce", "REINFORCE with the baseline of its method"),
        (Self::GsTau1, "gs-tau1", "Gumbel-softmax, tau = 1"),
        (Self::GsTau100, "gs-tau100", "Gumbel-softmax, tau = 100"),
        (Self::GsLearnedTau1, "gs-learned-tau1", "Gumbel-softmax, one learned temperature, tau0 = 1: the paper's L"),
        (Self::GsLearnedTau100, "gs-learned-tau100", "The same, tau0 = 100"),
        (
            Self::GsDecoupledTau1,
            "gs-decoupled-tau1",
            "Gumbel-softmax, a learned temperature for each position, tau0 = 1: the paper's D + L",
        ),
        (Self::GsDecoupledTau100, "gs-decoupled-tau100", "The same, tau0 = 100"),
        (Self::Stgs, "stgs", "Straight-through Gumbel-softmax"),
        (Self::Rebar, "rebar", "REBAR"),
        (Self::Relax, "relax", "RELAX"),
    ];
}

impl Compared {
    /// All of them, in the order in which they are listed.
    pub fn all() -> Vec<Self> {
        Self::ALL.iter().map(|(estimator, ..)| *estimator).collect()
    }

    /// What lines and tables call it.
    pub fn label(self) -> &'static str {
        setting::name(&self)
    }

    /// What the paper's figure calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Reinforce => "REINFORCE",
            Self::GsTau1 => "GS, τ = 1",
            Self::GsTau100 => "GS, τ = 100",
            Self::GsLearnedTau1 => "GS, L, τ₀ = 1",
            Self::GsLearnedTau100 => "GS, L, τ₀ = 100",
            Self::GsDecoupledTau1 => "GS, D + L, τ₀ = 1",
            Self::GsDecoupledTau100 => "GS, D + L, τ₀ = 100",
            Self::Stgs => "STGS",
            Self::Rebar => "REBAR",
            Self::Relax => "RELAX",
        }
    }

    /// The method whose section of the settings its row is.
    pub fn method(self) -> &'static str {
        match self {
            Self::Reinforce => "reinforce",
            Self::GsTau1 | Self::GsTau100 => "gbda",
            Self::GsLearnedTau1 | Self::GsLearnedTau100 | Self::GsDecoupledTau1 | Self::GsDecoupledTau100 => SHARED,
            Self::Stgs => "stgs",
            Self::Rebar => "rebar",
            Self::Relax => "relax",
        }
    }

    /// The τ that is in its name; the others have their method's.
    fn temperature(self) -> Option<Temperature> {
        let learned = |tau0, per_position| Temperature::Learned { tau0, per_position };
        match self {
            Self::GsTau1 => Some(Temperature::Fixed(1.0)),
            Self::GsTau100 => Some(Temperature::Fixed(100.0)),
            Self::GsLearnedTau1 => Some(learned(1.0, false)),
            Self::GsLearnedTau100 => Some(learned(100.0, false)),
            Self::GsDecoupledTau1 => Some(learned(1.0, true)),
            Self::GsDecoupledTau100 => Some(learned(100.0, true)),
            Self::Reinforce | Self::Stgs | Self::Rebar | Self::Relax => None,
        }
    }

    /// Its row: that of its method, with the samples, the objective and the feeding of [`SHARED`], which all have in common.
    ///
    /// # Errors
    /// Settings that contradict each other.
    pub fn row(self, options: &Options) -> Result<TableRow> {
        let TableRow { samples, goal, feeding, .. } = section(options, SHARED);
        let own = section(options, self.method());
        let row = TableRow { samples, goal, feeding, temperature: self.temperature().unwrap_or(own.temperature), ..own };
        row.check().map_err(|wrong| Error::input(format!("{}: {wrong}", self.label())))?;
        Ok(row)
    }
}

/// The method that says what all have in common: DLMI without teacher forcing.
pub const SHARED: &str = "dlmi-tf";

fn section(options: &Options, method: &str) -> TableRow {
    let method: MethodName = setting::named(method).expect("it is registered");
    options.section(method).row().expect("a relaxed method")
}
