//! Samples, their percentiles, and goals that a figure meets or misses.

use std::{fmt, time::Duration};

/// Durations of one thing, sorted when they are asked about.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn extend(&mut self, more: impl IntoIterator<Item = Duration>) {
        self.0.extend(more);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest sample that `percent` per cent of all do not exceed, in milliseconds; not a number when
    /// there is none.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e3)
    }

    pub(crate) fn p50(&self) -> f64 {
        self.percentile(50)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.percentile(99)
    }
}

/// The middle one of some figures; not a number when there is none.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What a figure has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    Below(f64),
    Between(f64, f64),
}

impl Goal {
    fn met(self, figure: f64) -> bool {
        match self {
            Self::AtMost(limit) => figure <= limit,
            Self::AtLeast(limit) => figure >= limit,
            Self::Below(limit) => figure < limit,
            Self::Between(low, high) => (low..=high).contains(&figure),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
            Self::Below(limit) => write!(f, "< {limit}"),
            Self::Between(low, high) => write!(f, "{low} to {high}"),
        }
    }
}

/// Prints a figure with its goal and whether it is met.
pub(crate) fn judge(what: &str, figure: f64, unit: &str, goal: Goal) {
    let verdict = if goal.met(figure) { "met" } else { "MISSED" };
    let figure = format!("{figure:.2} {unit}");
    println!("  {what:<58} {figure:>10}   goal {:<12} {verdict}", goal.to_string());
}

/// Prints the head of a topic.
pub(crate) fn topic(title: &str) {
    println!("\n{title}");
}
