//! The shared tier: items that a fleet of sidecars shares in Redis or Valkey, behind each one's memory. Start at [`Tier`].
//!
//! The tier is asked for ids that are missing in memory, in one round trip a batch; what calls bring is written in the
//! background. The tier may be slow, full, down, or lie: that costs hits and nothing else. Each round trip has a time limit; a
//! server that fails is not asked again before the background task has reached it (`sync`); and a value counts only if it
//! opens (`sealing`), has not expired (`values`), and nothing was purged or revoked since its writer asked the endpoint
//! (`journal`).

mod journal;
mod node;
mod record;
mod sealing;
mod store;
mod sync;
pub mod testing;
mod values;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::Value;
use tokio::sync::{Notify, Semaphore};
use tower::retry::budget::{Budget, TpsBudget};

use crate::api::id;
use crate::auth::{CallerStates, Identity};
use crate::cache::Entry;
use crate::cache::purges::{Purges, Target};
use crate::clock::{Clock, Moment, millis};
use crate::config::{self, Config};
use crate::telemetry::metrics::{BreakerState, Kind, Metrics, Operation, show_position};
use journal::Journal;
use node::ConnectOptions;
use record::Event;
pub use record::Stamp;
use sealing::{CallerKey, FleetKey, ScopeNames};
use store::{Command, Store};
use sync::JournalStatus;
use values::Sealed;

/// Round trips that write at a time; beyond that, nothing is written.
const WRITES: usize = 64;
/// Revocations a second of unaccepted callers: made-up tokens must not fill the journal.
const UNACCEPTED_REVOCATIONS_A_SECOND: u32 = 1;

/// The shared tier, as one sidecar sees it.
pub struct Tier(Arc<TierState>);

impl Drop for Tier {
    fn drop(&mut self) {
        // The background task announces what is pending before it ends.
        self.closing.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}

impl Deref for Tier {
    type Target = Arc<TierState>;

    fn deref(&self) -> &Arc<TierState> {
        &self.0
    }
}

/// What batches and the background task share.
pub struct TierState {
    config: config::Shared,
    freshness: config::Freshness,
    /// Milliseconds that an acceptance counts.
    revalidate: u64,
    /// One for each of the fleet's secrets: the first seals, all open.
    keys: Vec<FleetKey>,
    /// One for each key.
    journals: Mutex<Vec<Journal>>,
    store: Store,
    /// Whether the journals are known: without them no value counts.
    usable: AtomicBool,
    closing: AtomicBool,
    /// Wakes the background task.
    wake: Notify,
    writes: Arc<Semaphore>,
    unaccepted_revocations: TpsBudget,
    caller_states: Arc<CallerStates>,
    purges: Arc<Purges>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// One scope in the tier: names and keys, under each of the fleet's secrets.
pub struct Share(Vec<FleetShare>);

/// One scope under one of the fleet's secrets.
struct FleetShare {
    /// The secret's index.
    at: usize,
    caller: CallerKey,
    names: ScopeNames,
    /// The key of names in the journal.
    purge_key: [u8; 16],
    /// Purges of the group; two of them, where it has two readings.
    group: Vec<Event>,
}

impl FleetShare {
    /// The events that void the link of `id`, besides [`Event::All`].
    fn events(&self, id: &str) -> Vec<Event> {
        let ids = id::readings(id).map(|id| Event::purge(self.purge_key, Target::Id(&id)));
        ids.chain(self.group.iter().copied()).chain([self.revocation()]).collect()
    }

    fn revocation(&self) -> Event {
        Event::Caller(self.caller.hash)
    }
}

/// How a look-up treats leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leases {
    /// Ignores them.
    Leave,
    /// Takes free ones, for [`TierState::lease_wait`] at most.
    Take,
    /// Sees which are taken.
    See,
}

/// Result of a look-up.
#[derive(Default)]
pub(crate) struct Found {
    /// When a call was sent that showed, somewhere in the fleet, that the endpoint accepts the caller.
    pub(crate) accepted: Option<Moment>,
    /// The entry of each id, fresh or stale.
    pub(crate) links: Vec<Option<Entry>>,
    /// Whether another sidecar has leased each id; empty with [`Leases::Leave`].
    pub(crate) leased: Vec<bool>,
}

/// What a call brought that is to be shared.
#[derive(Default)]
pub struct Brought {
    /// When the call was sent.
    pub sent: Option<Moment>,
    /// Whether the call shows that the endpoint accepts the caller.
    pub accepted: bool,
    /// Entries to write.
    pub links: Vec<(Box<str>, Entry)>,
    /// Leased ids, whose leases are released.
    pub released: Vec<Box<str>>,
}

impl Tier {
    /// Connects in the background. Must be called within a tokio runtime.
    pub(crate) fn start(state: TierState) -> Self {
        let state = Arc::new(state);
        tokio::spawn(sync::run(Arc::clone(&state)));
        Self(state)
    }

    /// The key with which the fleet hashes names of purges.
    pub(crate) fn purge_key(shared: &config::Shared, endpoint: &config::Endpoint) -> Option<[u8; 16]> {
        let secret = shared.secret_file.secret.first()?;
        Some(FleetKey::new(secret.clone(), endpoint, &shared.prefix).purge_key)
    }
}

impl TierState {
    /// Not connected yet. `tls`: what to trust, for `rediss://`. Purges and revocations by other sidecars are applied to
    /// `purges` and `caller_states`.
    pub(crate) fn new(
        shared: &config::Shared,
        config: &Config,
        tls: Option<rustls::ClientConfig>,
        caller_states: Arc<CallerStates>,
        purges: Arc<Purges>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let endpoint = &config.upstream.endpoint;
        let key = |secret: &config::Secret| FleetKey::new(secret.clone(), endpoint, &shared.prefix);
        let keys: Vec<FleetKey> = shared.secret_file.secret.iter().map(key).collect();
        show_position(&metrics.shared.breaker_state, BreakerState::Open);
        let options = ConnectOptions::new(shared, tls, Arc::clone(&metrics));
        Self {
            freshness: config.freshness.clone(),
            revalidate: millis(config.callers.revalidate),
            journals: Mutex::new(keys.iter().map(|_| Journal::default()).collect()),
            keys,
            store: Store::new(options, shared.nodes(), shared.cluster),
            config: shared.clone(),
            usable: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            wake: Notify::new(),
            writes: Arc::new(Semaphore::new(WRITES)),
            unaccepted_revocations: TpsBudget::new(Duration::from_secs(10), UNACCEPTED_REVOCATIONS_A_SECOND, 0.0),
            caller_states,
            purges,
            metrics,
            clock,
        }
    }

    /// Whether the tier may be asked now.
    pub(crate) fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }

    /// The longest that a batch waits for ids that another sidecar fetches.
    pub(crate) fn lease_wait(&self) -> Duration {
        self.config.lease_wait
    }

    /// Derives names and keys of a scope from a caller's credential, and from the fields of the scope.
    pub(crate) fn share(
        &self,
        identity: &Identity,
        (kind, credential): (&'static str, &[Option<&[u8]>]),
        scope: &[Option<&[u8]>],
        group: Option<&str>,
    ) -> Share {
        let share = self.derive_share(kind, credential, scope, group);
        let names: Vec<u128> = share.0.iter().map(|fleet| fleet.caller.hash).collect();
        let known = &identity.caller_state.fleet_names;
        if known.load().as_deref() != Some(&names) {
            known.store(Some(Arc::new(names)));
        }
        share
    }

    fn derive_share(
        &self,
        kind: &str,
        credential: &[Option<&[u8]>],
        scope: &[Option<&[u8]>],
        group: Option<&str>,
    ) -> Share {
        let derive = |(at, key): (usize, &FleetKey)| {
            let caller = key.caller(kind, credential);
            let groups = group.into_iter().flat_map(id::readings);
            FleetShare {
                at,
                names: caller.scope(scope.iter().copied()),
                caller,
                purge_key: key.purge_key,
                group: groups.map(|group| Event::purge(key.purge_key, Target::Group(&group))).collect(),
            }
        };
        Share(self.keys.iter().enumerate().map(derive).collect())
    }

    /// The state of the journal, to go with calls that are sent from here on.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        if !self.is_usable() {
            return None;
        }
        self.journals.lock().first()?.stamp()
    }

    /// Looks up `ids`, and the caller's acceptance, in one round trip, or two where the journal has news. `None` if the tier
    /// is of no use now.
    pub(crate) async fn look_up(&self, share: &Share, ids: &[&str], leases: Leases) -> Option<Found> {
        if !self.is_usable() {
            return None;
        }
        // Before the round trip: what is purged from here on covers what is found.
        let now = self.clock.now();
        let lease_names = || {
            let first = share.0.first().into_iter();
            first.flat_map(|fleet| ids.iter().map(|id| fleet.names.lease(id)))
        };
        let (mut takes, mut names) = (Vec::new(), Vec::new());
        match leases {
            Leases::Leave => {}
            Leases::Take => takes.extend(lease_names().map(|name| self.take_lease(&name))),
            Leases::See => names.extend(lease_names()),
        }
        let values = names.len();
        for fleet in &share.0 {
            names.push(fleet.caller.acceptance.clone());
            names.extend(ids.iter().map(|id| fleet.names.link(id)));
        }
        let journals = self.keys.iter().flat_map(|key| [key.first_record(), key.journal_length()]).collect();
        let operation = if leases == Leases::Leave { Operation::Get } else { Operation::Lease };
        // Leases are taken first: an owner writes its values before it releases its leases, so they are found then.
        let (taken, mut leased, journals) =
            self.store.get(takes, &names, journals, operation, self.config.timeout).await;
        self.follow_journals(&journals).await?;

        let found = leased.split_off(values);
        let leased = match leases {
            // An error counts as not leased by another: at worst the id is fetched twice.
            Leases::Take => taken.into_iter().map(|reply| matches!(reply, Some(Value::Nil))).collect(),
            _ => leased.into_iter().map(|value| value.is_some()).collect(),
        };
        let mut result = Found { accepted: None, links: vec![None; ids.len()], leased };
        let mut values = names.iter().skip(values).zip(found);
        for fleet in &share.0 {
            if let Some((name, Some(value))) = values.next()
                && result.accepted.is_none()
            {
                result.accepted = self.open_acceptance(fleet, name, &value, now);
            }
            for ((link, id), (name, value)) in result.links.iter_mut().zip(ids).zip(&mut values) {
                if let (None, Some(value)) = (&link, value) {
                    *link = self.open_link(fleet, id, name, &value, now);
                }
            }
        }
        if leases == Leases::Leave {
            let is_fresh = |entry: &&Entry| entry.deadlines().fresh_left(now).is_some();
            let hits = result.links.iter().flatten().filter(is_fresh).count();
            self.metrics.shared.hits.inc_by(hits as u64);
            self.metrics.shared.misses.inc_by((ids.len() - hits) as u64);
        }
        Some(result)
    }

    fn take_lease(&self, name: &str) -> Command {
        Command::new("SET", name).arg("1").arg("NX").arg("PX").arg(millis(self.config.lease_wait).max(1))
    }

    /// Reads the news of each journal, given the first record and the length of each. `None` if a journal was replaced.
    async fn follow_journals(&self, replies: &[Option<Value>]) -> Option<()> {
        for (at, replies) in replies.chunks(2).enumerate() {
            let [Some(Value::BulkString(first)), Some(Value::Int(length))] = replies else { return None };
            let length = u64::try_from(*length).ok()?;
            let known = {
                let journals = self.journals.lock();
                let journal = journals.get(at)?;
                let known = journal.stamp()?.position;
                (journal.first() == Some(first)).then_some(known)
            };
            let is_followed = match known {
                Some(known) if length == known => true,
                Some(known) if length > known => {
                    let status = self.read_news(at, self.config.timeout).await;
                    matches!(status, Ok(JournalStatus::Known | JournalStatus::Full))
                }
                _ => false,
            };
            if !is_followed {
                // Reading the whole journal takes longer than a batch has.
                self.wake.notify_one();
                return None;
            }
        }
        Some(())
    }

    /// Writes what a call brought, in the background, with the stamp of when it was sent; without a stamp, only releases
    /// leases.
    pub(crate) fn put(self: &Arc<Self>, share: &Arc<Share>, stamp: Option<Stamp>, brought: Brought) {
        let is_empty = brought.links.is_empty() && brought.released.is_empty() && !brought.accepted;
        if is_empty || !self.is_usable() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else {
            self.metrics.shared.count_failure(Kind::Busy);
            return;
        };
        let (state, share) = (Arc::clone(self), Arc::clone(share));
        tokio::spawn(async move {
            let _permit = permit;
            let sealed = stamp.map(|stamp| state.seal(&share, stamp, &brought)).unwrap_or_default();
            let set = |Sealed { name, value, left }| Command::new("SET", &name).arg(value).arg("PX").arg(left);
            let mut commands: Vec<Command> = sealed.into_iter().map(set).collect();
            // After the values: commands for the same server keep their order.
            if let Some(fleet) = share.0.first() {
                commands.extend(brought.released.iter().map(|id| Command::new("DEL", &fleet.names.lease(id))));
            }
            if !commands.is_empty() {
                state.store.run(Operation::Put, commands, state.config.timeout).await;
            }
        });
    }

    /// Voids all of a caller's values, anywhere in the fleet. `was_accepted`: the endpoint was known to accept the caller.
    pub(crate) fn revoke(&self, share: &Share, was_accepted: bool) {
        if was_accepted || self.unaccepted_revocations.withdraw() {
            self.announce_revocation(share);
        }
    }

    fn announce_revocation(&self, share: &Share) {
        self.announce(|at, _| share.0.get(at).map(FleetShare::revocation));
    }

    /// Deletes a caller's acceptance, and its values of `ids`, in the background. If that fails, all of the caller's values
    /// are voided.
    pub(crate) fn withdraw(self: &Arc<Self>, share: &Arc<Share>, ids: Vec<Box<str>>) {
        let (state, share) = (Arc::clone(self), Arc::clone(share));
        tokio::spawn(async move {
            let names = share
                .0
                .iter()
                .flat_map(|fleet| ids.iter().map(|id| fleet.names.link(id)).chain([fleet.caller.acceptance.clone()]));
            let commands = names.map(|name| Command::new("DEL", &name)).collect();
            let replies = state.store.run(Operation::Revoke, commands, state.config.timeout).await;
            if !replies.iter().all(|reply| matches!(reply, Some(Value::Int(_)))) {
                state.announce_revocation(&share);
            }
        });
    }

    /// Announces a purge to the fleet.
    pub(crate) fn purge(&self, target: Target<'_>) {
        self.announce(|_, key| Some(Event::purge(key.purge_key, target)));
    }

    /// Announces an event in each journal.
    fn announce(&self, event: impl Fn(usize, &FleetKey) -> Option<Event>) {
        let mut journals = self.journals.lock();
        for (at, (journal, key)) in journals.iter_mut().zip(&self.keys).enumerate() {
            if let Some(event) = event(at, key) {
                journal.announce(event);
            }
        }
        drop(journals);
        self.wake.notify_one();
    }
}
