//! The words that label what is counted: closed sets.

/// What became of one id of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdResult {
    /// From memory, fresh.
    Hit,
    /// From memory, past its freshness, for an endpoint that failed.
    Stale,
    /// From a flight that another batch had started.
    Joined,
    /// From the shared tier.
    Shared,
    /// From a call for this batch.
    Fetched,
    /// Remembered as left out.
    Absent,
    /// Not to be had.
    Failed,
}

impl IdResult {
    /// Every result, in the order of [`Tally`]'s counts.
    pub const ALL: [IdResult; 7] = [
        IdResult::Hit,
        IdResult::Stale,
        IdResult::Joined,
        IdResult::Shared,
        IdResult::Fetched,
        IdResult::Absent,
        IdResult::Failed,
    ];

    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            IdResult::Hit => "hit",
            IdResult::Stale => "stale",
            IdResult::Joined => "joined",
            IdResult::Shared => "shared",
            IdResult::Fetched => "fetched",
            IdResult::Absent => "absent",
            IdResult::Failed => "failed",
        }
    }
}

/// The results of one batch's distinct ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally(pub(super) [u32; 7]);

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

/// How a batch was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All from memory.
    Hit,
    /// Some from memory, some fetched or joined.
    Partial,
    /// None from memory.
    Miss,
    /// At least one link past its freshness.
    Stale,
    /// Forwarded untouched.
    Bypass,
    /// An error, the endpoint's or sidelink's own.
    Error,
}

impl Outcome {
    /// Every outcome, for metrics.
    pub const ALL: [Outcome; 6] =
        [Outcome::Hit, Outcome::Partial, Outcome::Miss, Outcome::Stale, Outcome::Bypass, Outcome::Error];

    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Hit => "hit",
            Outcome::Partial => "partial",
            Outcome::Miss => "miss",
            Outcome::Stale => "stale",
            Outcome::Bypass => "bypass",
            Outcome::Error => "error",
        }
    }
}

/// Which way a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The batch route.
    Batch,
    /// Any other route of the endpoint.
    Passthrough,
}

impl Route {
    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Route::Batch => "batch",
            Route::Passthrough => "passthrough",
        }
    }
}

/// What the breaker lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Every call.
    Closed,
    /// One probe.
    HalfOpen,
    /// None.
    Open,
}

impl Position {
    /// Every position, for metrics.
    pub const ALL: [Position; 3] = [Position::Closed, Position::HalfOpen, Position::Open];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Position::Closed => "closed",
            Position::HalfOpen => "half_open",
            Position::Open => "open",
        }
    }
}
