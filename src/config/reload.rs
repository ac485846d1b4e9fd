//! How reloading has gone: for metrics, and for an operator to read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// What came of reading the configuration last, at the start or since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// When.
    pub at: SystemTime,
    /// What was wrong, one line each, with its place in the file; empty where it is in force. No secret is in one.
    pub errors: Vec<String>,
}

impl Reload {
    /// Whether what was read is in force.
    pub fn succeeded(&self) -> bool {
        self.errors.is_empty()
    }
}

/// The last [`Reload`], shared by who reloads and who shows it.
#[derive(Clone)]
pub struct ReloadState(Arc<Mutex<Reload>>);

impl ReloadState {
    /// As of a start with a configuration without errors.
    pub fn started(at: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(Reload { at, errors: Vec::new() })))
    }

    /// The last one.
    pub fn last(&self) -> Reload {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what has come of one more.
    pub fn note(&self, reload: Reload) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reload;
    }
}
