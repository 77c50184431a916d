//! Numbers for tests that try many orders and delays.

/// A small generator of numbers that look random and are the same in every run (Numerical Recipes' constants).
#[derive(Debug)]
pub struct Numbers(u32);

impl Numbers {
    /// The numbers that follow from `seed`.
    pub fn new(seed: u32) -> Self {
        Self(seed)
    }

    /// The next one, from 0 to below `limit`.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % limit
    }
}
