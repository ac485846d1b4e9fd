//! Users: several callers that the identity provider, or the configuration, takes for one and the same.
//!
//! A caller is one token, or one access key; it is accepted, paused and refused as such. Entries have an [`Owner`]: the caller's user where
//! that is known ([`super::user_cache`]), else the caller.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use sha2::{Digest, Sha256};
use tower::retry::budget::TpsBudget;

use super::acceptance::Acceptance;
use super::scope::Scope;
use crate::limits::permits::Permits;
use crate::telemetry::metrics::IdentityResult;

/// A user: a SHA-256 digest over the source and the fields that make a user there (docs/IDENTITY.md). The same in all sidecars of a fleet.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserId(pub [u8; 32]);

/// The first eight hex digits.
impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "UserId({:08x}…)", u32::from_be_bytes([a, b, c, d]))
    }
}

impl UserId {
    /// The user of these fields of `source`. An absent field differs from an empty one.
    pub fn of<'f>(source: &'f str, fields: impl IntoIterator<Item = Option<&'f [u8]>>) -> Self {
        let mut digest = Sha256::new();
        for field in std::iter::once(Some(source.as_bytes())).chain(fields) {
            // Each field is preceded by its length.
            digest.update(field.map_or(u64::MAX, |field| field.len() as u64).to_be_bytes());
            digest.update(field.unwrap_or_default());
        }
        Self(digest.finalize().into())
    }
}

/// The result of looking up a token, by the identity provider or by its verified claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenStatus {
    /// It belongs to this user.
    User {
        /// The user.
        id: UserId,
        /// When the token expires, in Unix milliseconds, if it says so.
        expires: Option<u64>,
        /// Whether the identity provider says that the token is active: then an acceptance of any token of the user counts for this one.
        /// A verified signature says only whose the token is.
        is_active: bool,
    },
    /// It is its own caller, for this reason: any result but `User`.
    NoUser(IdentityResult),
}

impl TokenStatus {
    /// The result as a label.
    pub fn result(self) -> IdentityResult {
        match self {
            Self::User { .. } => IdentityResult::User,
            Self::NoUser(reason) => reason,
        }
    }
}

/// The state that all callers share who share entries: one caller, or all of a user.
pub(crate) struct Owner {
    /// The last acceptance of the caller, or of any active token of the user.
    pub(super) acceptance: Acceptance,
    /// Counts the events that end its whole answers.
    revision: AtomicU64,
    /// Permits of calls under way, so that no owner takes all permits of the process. `fetch` resizes them before each use.
    pub(crate) calls: Permits,
    /// Its ids in flight.
    pub(crate) flights: Arc<AtomicUsize>,
    /// Allows calls that repeat a failed call for one batch alone. `fetch` makes it when it is needed first.
    pub(crate) extra_calls: OnceLock<Box<TpsBudget>>,
}

impl Owner {
    pub(super) fn new(first_revision: u64) -> Self {
        Self {
            acceptance: Acceptance::default(),
            revision: AtomicU64::new(first_revision),
            calls: Permits::new(0),
            flights: Arc::default(),
            extra_calls: OnceLock::new(),
        }
    }

    /// Ends the owner's whole answers. Must be called after the entries have changed, so that a batch that reads the new revision
    /// finds the new entries.
    pub(crate) fn end_answers(&self) {
        self.revision.fetch_add(1, Ordering::AcqRel);
    }

    /// The number of times that the owner's whole answers have ended.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }
}

/// The owners of users: one for each user, as long as a caller or a request refers to it.
#[derive(Default)]
pub(super) struct Users {
    owners: HashMap<Scope, Weak<Owner>>,
    /// Dead ones are removed when there are this many.
    prune_at: usize,
}

/// Users up to which dead ones are not removed.
const MIN_PRUNE: usize = 1024;

impl Users {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.owners.len()
    }

    /// The owner of the user of `scope`; a new one begins with a revision that none had before.
    pub(super) fn owner(&mut self, scope: Scope, revision: impl FnOnce() -> u64) -> Arc<Owner> {
        if let Some(known) = self.owners.get(&scope).and_then(Weak::upgrade) {
            return known;
        }
        if self.owners.len() >= self.prune_at {
            self.owners.retain(|_, owner| owner.strong_count() > 0);
            // So that the cost is shared by as many insertions.
            self.prune_at = (2 * self.owners.len()).max(MIN_PRUNE);
        }
        let owner = Arc::new(Owner::new(revision()));
        self.owners.insert(scope, Arc::downgrade(&owner));
        owner
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::CallerStates;

    #[test]
    fn users_without_a_caller_are_forgotten_and_a_revision_does_not_come_back() {
        let states = CallerStates::new([7; 16]);
        let first = states.owner_of(Scope::of_test(1));
        first.end_answers();
        let (revision, again) = (first.revision(), states.owner_of(Scope::of_test(1)));
        assert!(Arc::ptr_eq(&first, &again));
        drop((first, again));
        assert!(states.owner_of(Scope::of_test(1)).revision() > revision);
        (0..3 * MIN_PRUNE as u128).for_each(|user| drop(states.owner_of(Scope::of_test(user))));
        assert!(states.owners() <= MIN_PRUNE + 1, "{}", states.owners());
    }
}
