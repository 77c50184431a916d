//! Waits that grow, with a random share so that a cluster's agents do not knock all at once.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// The waits between tries: doubling from the first to the longest, each cut by a random share of up to a half.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, tries: 0 }
    }

    /// Starts over with the first wait.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let full =
            self.first.saturating_mul(1_u32.checked_shl(self.tries).unwrap_or(u32::MAX)).min(self.longest);
        self.tries = (self.tries + 1).min(31);
        full - full.mul_f64(f64::from(random() as u16) / f64::from(u16::MAX) / 2.0)
    }
}

/// A number that differs from call to call and from process to process; not for secrets.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_longest_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(3));
        let first = backoff.next();
        assert!(first >= Duration::from_millis(10) && first <= Duration::from_millis(20), "{first:?}");
        for _ in 0..100 {
            assert!(backoff.next() <= Duration::from_secs(3));
        }
        assert!(backoff.next() >= Duration::from_millis(1500));
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(20));
    }
}
