//! The shared tier: items that a fleet of sidecars shares in Redis or Valkey, behind each one's memory. Start at [`Tier`].
//!
//! The tier is asked for ids that are missing in memory, in one round trip a batch; what calls bring is written in the
//! background. The tier may be slow, full, down, or lie: that costs hits and nothing else. Each round trip has a time limit; a
//! server that fails is not asked again before the background task has reached it (`sync`); and a value counts only if it
//! opens (`sealing`), has not expired (`values`), and nothing was purged or revoked since its writer asked the endpoint
//! (`journal`).

mod announcements;
mod check;
mod fleets;
mod journal;
mod layout;
mod leases;
mod node;
mod record;
mod sealing;
mod sentinel;
mod store;
mod sync;
pub mod testing;
mod values;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use redis::Value;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::BatchApi;
use crate::auth::{CallerStates, Identity};
use crate::cache::Entry;
use crate::cache::purges::Purges;
use crate::clock::{Clock, Moment, millis};
use crate::config::{self, Config, IdentityConfig};
use crate::telemetry::metrics::{BreakerState, Metrics, Operation, SharedFailure, show_state};
use fleets::Fleets;
pub use fleets::{Fingerprint, FleetStatus};
use journal::Journal;
pub use leases::Lease;
pub(crate) use leases::LeaseState;
use leases::LeaseTable;
pub(crate) use node::WriteRefusal;
use record::JournalEvent;
pub use record::Stamp;
pub(crate) use sealing::UserSecrets;
use sealing::{FleetKey, ScopeKeys, Secrets};
use store::{RedisCommand, Store};
use sync::PIECE;
use values::Sealed;

/// Most round trips that write at a time. While they are under way, further entries are not written.
const WRITES: usize = 64;

/// The shared tier, as one sidecar sees it.
pub struct Tier {
    state: Arc<TierState>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Tier {
    fn drop(&mut self) {
        // The background task announces what is pending before it ends.
        self.closing.cancel();
    }
}

impl Deref for Tier {
    type Target = Arc<TierState>;

    fn deref(&self) -> &Arc<TierState> {
        &self.state
    }
}

/// The state of the tier, which batches and the background task share.
pub struct TierState {
    config: config::Shared,
    freshness: config::Freshness,
    /// Milliseconds for which an acceptance counts.
    revalidate: u64,
    /// The fleet's secrets. The first seals values; each opens them.
    secrets: Vec<FleetSecret>,
    fleets: Mutex<Fleets>,
    store: Store,
    leases: Arc<LeaseTable>,
    /// Whether the journals are known: without them no value counts.
    usable: AtomicBool,
    /// Why the tier is down, for an operator.
    outage: Mutex<Option<String>>,
    closing: CancellationToken,
    wake: Arc<Notify>,
    /// Counts events that were announced as one purge of everything.
    covered: AtomicU64,
    /// Notified when pending events were seen in a journal.
    told: Notify,
    writes: Arc<Semaphore>,
    caller_states: Arc<CallerStates>,
    purges: Arc<Purges>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// One of the fleet's secrets, and the journal under it.
struct FleetSecret {
    key: FleetKey,
    journal: Mutex<Journal>,
}

impl FleetSecret {
    fn is_valid(&self, stamp: Stamp, events: &[JournalEvent]) -> Option<()> {
        self.journal.lock().is_valid(stamp, events).then_some(())
    }
}

/// One scope in the tier: its keys under each of the fleet's secrets.
pub struct TierScope(Vec<ScopeKeys>);

/// How a look-up treats leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leases {
    /// Ignores them.
    Ignore,
    /// Takes free ones.
    Acquire,
    /// Reads which are taken.
    Check,
}

#[derive(Default)]
pub(crate) struct TierResult {
    /// When a call was sent that showed, somewhere in the fleet, that the endpoint accepts the caller.
    pub(crate) accepted: Option<Moment>,
    /// For each id its entry, fresh or stale, if the tier has one that counts.
    pub(crate) entries: Vec<Option<Entry>>,
    /// The lease on each id; empty with [`Leases::Ignore`].
    pub(crate) leases: Vec<LeaseState>,
}

/// The part of a call's result that is shared.
#[derive(Default)]
pub struct TierUpdate {
    /// When the call was sent, if it shows that the endpoint accepts the caller.
    pub accepted: Option<Moment>,
    /// Entries to write.
    pub entries: Vec<(TierId, Entry)>,
    /// Leases on the ids, which are released once the entries are written.
    pub leases: Vec<Lease>,
}

/// An id in a scope of the tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierId {
    /// Its name.
    pub id: Box<str>,
    /// What its element says besides, where that is part of what is asked.
    pub element: Option<Box<str>>,
}

impl From<&str> for TierId {
    fn from(id: &str) -> Self {
        Self { id: id.into(), element: None }
    }
}

impl Tier {
    /// Connects in the background. Must be called within a tokio runtime.
    pub(crate) fn start(state: TierState) -> Self {
        let state = Arc::new(state);
        tokio::spawn(leases::run(Arc::clone(&state)));
        let task = Mutex::new(Some(tokio::spawn(sync::run(Arc::clone(&state)))));
        Self { state, task }
    }

    /// Tries a last time to tell the fleet what it was not told yet, for a second at most, and ends the background task.
    pub(crate) async fn end(&self) {
        self.closing.cancel();
        let task = self.task.lock().take();
        if let Some(task) = task {
            // It does not panic, and nothing aborts it.
            let _ = task.await;
        }
    }

    /// The key with which the fleet hashes names of purges.
    pub(crate) fn purge_key(shared: &config::Shared, endpoint: &config::Endpoint) -> Option<[u8; 16]> {
        let secret = shared.secret_file.secret.first()?;
        Some(FleetKey::new(secret.clone(), endpoint, &shared.prefix).purge_key)
    }
}

impl TierState {
    /// A tier that is not connected yet. `tls` has the authorities to trust, for `rediss://`. Purges and revocations by other sidecars are applied to
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
        let fleet = |secret: &config::Secret| FleetSecret {
            key: FleetKey::new(secret.clone(), endpoint, &shared.prefix),
            journal: Mutex::default(),
        };
        let secrets: Vec<FleetSecret> = shared.secret_file.secret.iter().map(fleet).collect();
        let mut names: Vec<String> = config.batch.iter().map(BatchApi::fingerprint).collect();
        names.extend(config.callers.scope_headers.iter().map(ToString::to_string));
        names.extend(config.callers.identity.iter().map(IdentityConfig::meaning));
        let own = secrets.iter().map(|fleet| fleet.key.fingerprint(&names)).collect();
        show_state(&metrics.shared.breaker_state, BreakerState::Open);
        let wake = Arc::new(Notify::new());
        Self {
            freshness: config.freshness.clone(),
            revalidate: millis(config.callers.revalidate),
            secrets,
            fleets: Mutex::new(Fleets::new(own)),
            store: Store::new(shared, tls, &wake, &metrics),
            leases: Arc::default(),
            config: shared.clone(),
            usable: AtomicBool::new(false),
            outage: Mutex::default(),
            closing: CancellationToken::new(),
            wake,
            covered: AtomicU64::new(0),
            told: Notify::new(),
            writes: Arc::new(Semaphore::new(WRITES)),
            caller_states,
            purges,
            metrics,
            clock,
        }
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }

    /// Why the tier is down, for an operator; `None` while it is up.
    pub(crate) fn outage(&self) -> Option<String> {
        self.outage.lock().clone()
    }

    /// Why a node of the tier is down, without which the others are used.
    pub(crate) fn node_down(&self) -> Option<String> {
        self.store.node_down()
    }

    /// What a server of the tier refuses, which is used otherwise.
    pub(crate) fn write_refusal(&self) -> Option<WriteRefusal> {
        self.store.write_refusal()
    }

    /// This sidecar's fleet, and other fleets that use the same server, database and prefix.
    pub(crate) fn fleet(&self) -> Option<FleetStatus> {
        self.fleets.lock().status(Instant::now())
    }

    /// The keys of a scope of `identity`, from the kind and the fields of its credential and of its user, and from the fields of the
    /// scope. Purges of `api`'s ids, and of `group`, concern it.
    pub(crate) fn scope(
        &self,
        identity: &Identity,
        credential: Secrets<'_>,
        user: Option<UserSecrets<'_>>,
        fields: &[Option<&[u8]>],
        api: &str,
        group: Option<&str>,
    ) -> TierScope {
        let scope = self.derive_scope(credential, user, fields, api, group);
        let names = scope.0.iter().map(|keys| keys.caller).collect();
        self.caller_states.set_fleet_names(&identity.caller_state, names);
        scope
    }

    /// Lets the fleet's revocations of a caller be found here from now on. One of before counts as well: the caller loses all that nobody but
    /// another token of its user has been given, until the endpoint takes it.
    pub(crate) fn introduce(&self, identity: &Identity, credential: Secrets<'_>, api: &str) {
        let (state, is_new) = (&identity.caller_state, !identity.caller_state.has_fleet_names());
        let TierScope(keys) = self.scope(identity, credential, None, &[], api, None);
        let is_revoked = |(fleet, keys): (&FleetSecret, &ScopeKeys)| fleet.journal.lock().has_event(&keys.revocation());
        if is_new && self.secrets.iter().zip(&keys).any(is_revoked) {
            self.caller_states.refused_elsewhere(state, self.clock.now());
        }
    }

    fn derive_scope(
        &self,
        credential: Secrets<'_>,
        user: Option<UserSecrets<'_>>,
        fields: &[Option<&[u8]>],
        api: &str,
        group: Option<&str>,
    ) -> TierScope {
        TierScope(self.secrets.iter().map(|fleet| fleet.key.scope(credential, user, fields, api, group)).collect())
    }

    /// Each of the fleet's secrets, with the keys of `scope` under it.
    fn of_scope<'s>(&'s self, scope: &'s TierScope) -> impl Iterator<Item = (&'s FleetSecret, &'s ScopeKeys)> {
        self.secrets.iter().zip(&scope.0)
    }

    /// The state of the journal, to go with calls that are sent from here on.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        if !self.is_usable() {
            return None;
        }
        self.secrets.first()?.journal.lock().stamp()
    }

    /// Looks up `ids`, and the caller's acceptance, in one round trip, or two if the journal has news. `None` if the tier
    /// cannot be used now.
    pub(crate) async fn look_up(&self, scope: &TierScope, ids: &[TierId], leases: Leases) -> Option<TierResult> {
        if !self.is_usable() {
            return None;
        }
        // Read before the round trip, so that purges from here on cover what is found.
        let now = self.clock.now();
        let lease_scope = scope.0.first().filter(|_| leases != Leases::Ignore);
        let lease_names = |keys: &ScopeKeys| ids.iter().map(|id| keys.lease(id)).collect::<Vec<_>>();
        let lease_names = lease_scope.map(lease_names).unwrap_or_default();
        let token = rand::random();
        // Leases come first: an owner writes its values before it releases its leases, so they are found then.
        let (commands, mut names) = match leases {
            Leases::Acquire => (Self::acquire(&lease_names, token), Vec::new()),
            Leases::Ignore | Leases::Check => (Vec::new(), lease_names.clone()),
        };
        let checked = names.len();
        for keys in &scope.0 {
            names.push(keys.acceptance.clone());
            names.extend(ids.iter().map(|id| keys.link(id)));
        }
        let journals =
            self.secrets.iter().flat_map(|fleet| [fleet.key.first_record(), fleet.key.journal_length()]).collect();
        let operation = if leases == Leases::Ignore { Operation::Get } else { Operation::Lease };
        let (acquired, found, journals) =
            self.store.get(commands, &names, journals, operation, self.config.timeout).await;
        let mut values = names.iter().zip(found);
        let checked = values.by_ref().take(checked);
        let leases = match leases {
            Leases::Acquire => self.acquired(lease_names, token, acquired),
            Leases::Ignore | Leases::Check => {
                checked.map(|(_, token)| token.map_or(LeaseState::Free, |_| LeaseState::Taken)).collect()
            }
        };
        self.follow_journals(&journals).await?;

        let mut result = TierResult { accepted: None, entries: vec![None; ids.len()], leases };
        for (fleet, keys) in self.of_scope(scope) {
            if let Some((_, Some(value))) = values.next()
                && result.accepted.is_none()
            {
                result.accepted = self.open_acceptance(fleet, keys, &value, now);
            }
            for ((entry, id), (name, value)) in result.entries.iter_mut().zip(ids).zip(&mut values) {
                if let (None, Some(value)) = (&entry, value) {
                    *entry = self.open_link(fleet, keys, (&id.id, name), &value, now);
                }
            }
        }
        Some(result)
    }

    /// Reads the news of each journal, given the first record and the length of each. `None` if a journal was replaced.
    async fn follow_journals(&self, replies: &[Option<Value>]) -> Option<()> {
        for (fleet, replies) in self.secrets.iter().zip(replies.chunks(2)) {
            let [Some(Value::BulkString(first)), Some(Value::Int(length))] = replies else { return None };
            let length = u64::try_from(*length).ok()?;
            let known = {
                let journal = fleet.journal.lock();
                (journal.first() == Some(first)).then(|| journal.len())
            };
            let is_followed = match known {
                Some(known) if length == known => true,
                Some(known) if length > known && length - known <= PIECE as u64 => {
                    matches!(self.read_news(fleet, false, self.config.timeout).await, Ok(true))
                }
                _ => false,
            };
            if !is_followed {
                // Reading much of a journal takes longer than a batch has.
                self.wake.notify_one();
                return None;
            }
        }
        Some(())
    }

    /// Writes what a call brought, in the background, with the stamp of when it was sent, and then releases its leases; without
    /// a stamp, releases them at once.
    pub(crate) fn put(self: &Arc<Self>, scope: &Arc<TierScope>, stamp: Option<Stamp>, update: TierUpdate) {
        let is_empty = update.entries.is_empty() && update.accepted.is_none();
        let Some(stamp) = stamp.filter(|_| !is_empty && self.is_usable()) else { return };
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else {
            self.metrics.shared.failures.of(SharedFailure::Busy).inc();
            return;
        };
        let (state, scope) = (Arc::clone(self), Arc::clone(scope));
        tokio::spawn(async move {
            let _permit = permit;
            let set = |Sealed { name, value, left }| RedisCommand::new("SET", &name).arg(value).arg("PX").arg(left);
            let commands: Vec<RedisCommand> = state.seal(&scope, stamp, &update).into_iter().map(set).collect();
            if !commands.is_empty() {
                state.store.run(Operation::Put, commands, state.config.timeout).await;
            }
            // Releases the leases.
            drop(update);
        });
    }
}
