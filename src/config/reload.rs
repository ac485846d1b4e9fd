//! The result of the last reload, for the status page.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// The result of loading the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// When.
    pub at: SystemTime,
    /// The errors, one line each with the place in the file; none if it succeeded. No error contains a secret.
    pub errors: Vec<String>,
}

impl Reload {
    /// Whether the configuration is in effect.
    pub fn succeeded(&self) -> bool {
        self.errors.is_empty()
    }
}

/// The last [`Reload`].
#[derive(Clone)]
pub struct ReloadState(Arc<Mutex<Reload>>);

impl ReloadState {
    /// A start without errors.
    pub fn started(at: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(Reload { at, errors: Vec::new() })))
    }

    /// The last reload.
    pub fn last(&self) -> Reload {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records a reload.
    pub fn note(&self, reload: Reload) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reload;
    }
}
