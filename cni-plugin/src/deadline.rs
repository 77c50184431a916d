//! The time by which a call must have ended.

use std::time::{Duration, Instant};

/// A point in time that bounds several waits together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// The point in time that far from now.
    pub(crate) fn after(duration: Duration) -> Self {
        Self(Instant::now() + duration)
    }

    /// The time left; `None` when there is none.
    pub(crate) fn remaining(self) -> Option<Duration> {
        Some(self.0.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }
}
