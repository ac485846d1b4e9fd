//! The results of a batch's ids.

use super::labels::IdResult;

/// The results of one batch's distinct ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally(pub(super) [u32; IdResult::ALL.len()]);

impl Tally {
    /// Counts one id.
    pub fn add(&mut self, result: IdResult) {
        if let Some(count) = self.0.get_mut(result as usize) {
            *count += 1;
        }
    }

    /// The count of `result`.
    pub fn count(&self, result: IdResult) -> u32 {
        self.0.get(result as usize).copied().unwrap_or(0)
    }

    /// All ids.
    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }
}
