//! Users: callers that are one and the same to the identity provider share entries.
//!
//! A caller is one token, or one access key; it is accepted, paused and refused by itself. Entries have an [`Owner`]: the caller, or
//! the user that it is known to be ([`Membership`]), as long as that word is good. What is not known to be the same user is not.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::acceptance::Acceptance;
use super::scope::Scope;
use super::{CallerState, Callers, Identity};
use crate::clock::Moment;
use crate::config::{CallerKey, CallersConfig, IdentityConfig};
use crate::limits::permits::Permits;

/// A user, with project and roles: a SHA-256 digest of all that an identity provider, a verified token or the configuration says of
/// it, the same in all sidecars of a fleet. Two that differ in anything are two users.
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
    /// The user of these fields, each of which counts; `source` says who vouches for them, and how.
    pub fn of<'f>(source: &'f str, fields: impl IntoIterator<Item = &'f [u8]>) -> Self {
        let mut digest = Sha256::new();
        for field in std::iter::once(source.as_bytes()).chain(fields) {
            // Each field is preceded by its length.
            digest.update((field.len() as u64).to_be_bytes());
            digest.update(field);
        }
        Self(digest.finalize().into())
    }
}

/// What is said of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is this user's.
    User {
        /// The user.
        id: UserId,
        /// When the token ends, in Unix milliseconds, if it says so.
        ends: Option<u64>,
        /// Whether the identity provider vouches for the token now: what the endpoint says of another token of the user holds for it as
        /// well. A signature says only whose it is.
        is_live: bool,
    },
    /// It is not valid.
    Refused,
    /// It is a caller by itself: what is said of it does not make a user.
    Apart,
    /// Nothing is known, so it is a caller by itself: nobody answers, or too much is asked.
    Unknown,
}

/// What the owner of entries has besides: a caller, or a user with several.
pub(crate) struct Owner {
    /// The last acceptance of the caller, or of any of the user's that is vouched for.
    pub(super) acceptance: Acceptance,
    /// Counts the events that end its whole answers.
    revision: AtomicU64,
    /// Permits of calls under way, so that no owner takes all permits of the process. `fetch` resizes them before each use.
    pub(crate) calls: Permits,
    /// Its ids in flight.
    pub(crate) flights: Arc<AtomicUsize>,
}

impl Owner {
    pub(super) fn new(first_revision: u64) -> Self {
        Self {
            acceptance: Acceptance::default(),
            revision: AtomicU64::new(first_revision),
            calls: Permits::new(0),
            flights: Arc::default(),
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

/// The user that a caller is known to be.
pub(crate) struct Membership {
    /// The user.
    pub(crate) id: UserId,
    /// The scope of the user's requests without scope headers; a hash of the user, of the process's own key.
    pub(super) scope: Scope,
    /// Shared with all callers that are this user.
    pub(crate) owner: Arc<Owner>,
    /// Whether somebody vouches for the caller, so that an acceptance of any other caller that is this user is its own.
    pub(super) is_live: bool,
    /// When the word is no longer good.
    pub(super) until: Moment,
}

impl Membership {
    /// Shown as eight hex digits, as a caller is.
    pub(crate) fn short(&self) -> u32 {
        self.scope.short()
    }
}

/// What is known of a caller's user, and for how long.
pub(super) struct Known {
    /// Of the [`Callers`] that were told.
    pub(super) source: u64,
    /// `None`: it is a caller by itself.
    pub(super) membership: Option<Arc<Membership>>,
    /// The identity provider's last word was that it is not valid.
    pub(super) is_invalid: bool,
    /// When this is to be asked again, while it is still good.
    pub(super) renewal: Moment,
    /// When it is no longer good.
    pub(super) until: Moment,
}

/// The owners of users that callers are known to be: one for each user, as long as a caller or a request has it.
#[derive(Default)]
pub(super) struct Users {
    owners: HashMap<Scope, Weak<Owner>>,
    /// Dead ones are removed when there are this many.
    most: usize,
}

/// Users up to which dead ones are not removed.
const FEW: usize = 1024;

impl Users {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.owners.len()
    }

    /// The owner of the user of `scope`; a new one begins with a revision that none had before.
    pub(super) fn owner(&mut self, scope: Scope, revision: impl FnOnce() -> u64) -> Arc<Owner> {
        if self.owners.len() >= self.most {
            self.owners.retain(|_, owner| owner.strong_count() > 0);
            // So that the cost is shared by as many insertions.
            self.most = (2 * self.owners.len()).max(FEW);
        }
        match self.owners.entry(scope) {
            Entry::Occupied(mut known) => known.get().upgrade().unwrap_or_else(|| {
                let owner = Arc::new(Owner::new(revision()));
                known.insert(Arc::downgrade(&owner));
                owner
            }),
            Entry::Vacant(vacant) => {
                let owner = Arc::new(Owner::new(revision()));
                vacant.insert(Arc::downgrade(&owner));
                owner
            }
        }
    }
}

/// Milliseconds after which a caller of whom nothing is known is asked about again, and one whose word could not be renewed.
const UNKNOWN_FOR: u64 = 5000;

/// Whether somebody is to be asked who a caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// No: it is known for some time, or the endpoint has refused the caller.
    Nothing,
    /// In the background: the word is good for a while.
    Renewal,
    /// Before the caller is answered.
    Word,
}

/// The part of the configuration that says which callers are one user, under a number of its own: what was said under another one
/// does not count.
#[derive(Default)]
pub(super) struct Source {
    identity: Option<IdentityConfig>,
    keys: Vec<CallerKey>,
    /// How long a word is good.
    revalidate: Duration,
    number: u64,
}

impl Source {
    /// The number of this configuration: that of the last one, if it was the same.
    pub(super) fn number(&mut self, config: &CallersConfig) -> u64 {
        if self.identity != config.identity || self.keys != config.keys || self.revalidate != config.revalidate {
            *self = Self {
                identity: config.identity.clone(),
                keys: config.keys.clone(),
                revalidate: config.revalidate,
                number: self.number + 1,
            };
        }
        self.number
    }
}

impl Callers {
    /// What is known of a caller's user.
    pub(super) fn known_user(&self, state: &CallerState) -> Option<Arc<Known>> {
        state.known.load_full().filter(|known| known.source == self.source)
    }

    /// Whether somebody is to be asked who the caller is.
    pub(crate) fn due(&self, identity: &Identity, now: Moment) -> Due {
        if identity.caller_state.is_refused.load(Ordering::Acquire) {
            return Due::Nothing;
        }
        match self.known_user(&identity.caller_state) {
            Some(known) if now.is_before(known.renewal) => Due::Nothing,
            Some(known) if now.is_before(known.until) => Due::Renewal,
            _ => Due::Word,
        }
    }

    /// Lets others not ask for a renewal at the same time.
    pub(crate) fn renews(&self, identity: &Identity, now: Moment) {
        let state = &identity.caller_state;
        let Some(known) = self.known_user(state) else { return };
        let renewal = now.after(UNKNOWN_FOR);
        let known = Known { membership: known.membership.clone(), renewal, ..*known };
        state.learn(known, || self.is_current(identity));
    }

    /// Takes what was said of a caller, to a question that was asked at `asked`. It is good no longer than the token lives, and than an
    /// acceptance is.
    pub(crate) fn learn(&self, identity: &Identity, word: Word, asked: Moment) {
        let (state, now) = (&identity.caller_state, self.clock.now());
        let before = self.known_user(state);
        let was_invalid = before.as_ref().is_some_and(|known| known.is_invalid);
        let good = before.as_ref().filter(|known| known.membership.is_some() && now.is_before(known.until));
        match word {
            Word::User { id, ends, is_live } => {
                let ends =
                    ends.map_or(Moment::NEVER, |wall| Moment { wall, ..now.after(wall.saturating_sub(now.wall)) });
                let until = ends.min(asked.after(self.revalidate));
                let life = until.left(asked);
                let times = [asked.after(life - life / 5), until];
                if self.is_member(state, (id, is_live), times, || self.is_current(identity)) && is_live {
                    // No made-up token.
                    self.caller_states.insert_accepted(identity.caller, state);
                }
            }
            // Others who asked at the same time were told so as well, and have dropped the entries.
            Word::Refused if !self.is_current(identity) => {}
            Word::Refused => {
                // What it brought since it was first said to be invalid, the endpoint has given to it alone.
                if !was_invalid {
                    self.drop_entries(identity);
                    // The endpoint is asked with the token, and may take it: it is a caller by itself for as long as a word is good.
                    state.is_refused.store(false, Ordering::Release);
                }
                self.is_alone(state, asked.after(self.revalidate), true);
            }
            Word::Apart => self.is_alone(state, asked.after(self.revalidate), false),
            Word::Unknown if good.is_some() => {}
            Word::Unknown => self.is_alone(state, now.after(UNKNOWN_FOR), was_invalid),
        }
    }

    /// Takes a caller for this user from here on, if `condition` holds, and returns whether it does: until the second moment, to be renewed
    /// at the first.
    pub(super) fn is_member(
        &self,
        state: &CallerState,
        (id, is_live): (UserId, bool),
        [renewal, until]: [Moment; 2],
        condition: impl FnOnce() -> bool,
    ) -> bool {
        let scope = self.scope_of_user(id);
        let before = self.known_user(state).and_then(|known| known.membership.clone());
        let is_same = before.is_some_and(|before| before.scope == scope);
        let owner = self.caller_states.owner_of(scope);
        let membership = Arc::new(Membership { id, scope, owner, is_live, until });
        let known = Known { source: self.source, membership: Some(membership), is_invalid: false, renewal, until };
        let learns = state.learn(known, condition);
        if learns && !is_same {
            self.caller_states.changed();
        }
        learns
    }

    /// Takes a caller for one by itself until then.
    fn is_alone(&self, state: &CallerState, until: Moment, is_invalid: bool) {
        state.learn(Known { source: self.source, membership: None, is_invalid, renewal: until, until }, || true);
        self.caller_states.changed();
    }

    /// For an operator: the short hash of a caller's user, how many callers are that user, and for how many milliseconds more the caller
    /// is known to be it, if that ends.
    pub(crate) fn user_now(&self, identity: &Identity, now: Moment) -> Option<(u32, usize, Option<u64>)> {
        let membership = identity.membership.as_ref()?;
        let callers = self.caller_states.users(now).get(&membership.scope).copied().unwrap_or_default();
        let left = (membership.until != Moment::NEVER).then(|| membership.until.left(now));
        Some((membership.short(), callers, left))
    }

    /// `identity` without a membership whose time is over.
    pub(super) fn at(&self, identity: Identity, now: Moment) -> Identity {
        let is_over = |identity: &Identity| {
            identity.membership.as_ref().is_some_and(|membership| !now.is_before(membership.until))
        };
        if !is_over(&identity) {
            return identity;
        }
        // The word may have been renewed since the identity was remembered.
        let renewed = self.identity(identity.caller, identity.caller_state, identity.signer);
        if !is_over(&renewed) {
            return renewed;
        }
        let scope = self.scope_of(renewed.caller, renewed.entries_version);
        Identity { membership: None, scope, ..renewed }
    }
}

#[cfg(test)]
mod tests;
