//! The shared tier: what a fleet of sidecars keeps together in Redis or Valkey, behind each one's memory.
//!
//! It is asked for ids that memory lacks, in one round trip a batch, and gets what the endpoint brings in the background.
//! It may be slow, full, gone, or lie, and all that costs is hits: each round trip has a limit, a server that fails is not
//! asked again before the background has reached it (`keeper`), and a value counts only if it opens (`sealing`), is not past
//! its end (`values`), and nothing was purged or revoked since its writer had asked the endpoint (`journal`).

mod journal;
mod keeper;
mod node;
mod record;
mod sealing;
mod store;
pub mod trial;
mod values;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{RedisConnectionInfo, Value};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsConnector;
use tower::retry::budget::{Budget, TpsBudget};

use crate::api::id;
use crate::auth::{CallerStates, Identity};
use crate::cache::Entry;
use crate::cache::purges::{Mark, Purges, Target};
use crate::clock::{Clock, Moment, millis};
use crate::config::{self, Config};
use crate::telemetry::metrics::{BreakerState, Kind, Metrics, Operation, show_position};
use journal::{Journal, RECORD};
use keeper::State;
use node::Way;
use record::{Event, Stamp};
use sealing::{CallerKey, FleetKey, ScopeNames};
use store::{Command, Store};
use values::Sealed;

/// Round trips that write at a time; what comes beyond is not written.
const WRITES: usize = 64;
/// Revocations a second of callers whom the endpoint is not known to have accepted: made-up tokens must not fill the journal.
const STRANGERS_A_SECOND: u32 = 1;

/// The shared tier, as one sidecar sees it.
pub struct Tier {
    inner: Arc<Inner>,
}

impl Drop for Tier {
    fn drop(&mut self) {
        // Its last look tells what is yet to be told.
        self.inner.closing.store(true, Ordering::Release);
        self.inner.kick.notify_one();
    }
}

struct Inner {
    /// A number of its own: keys derived under another configuration are told from those of this one.
    number: u64,
    config: config::Shared,
    freshness: config::Freshness,
    /// Milliseconds that an acceptance counts.
    revalidate: u64,
    /// The first one seals, all open.
    keys: Vec<FleetKey>,
    /// One for each key.
    journals: Mutex<Vec<Journal>>,
    store: Store,
    /// Whether the journals are known: without them no value counts.
    usable: AtomicBool,
    /// Nobody has the tier any more.
    closing: AtomicBool,
    /// Wakes the keeper.
    kick: Notify,
    writes: Arc<Semaphore>,
    strangers: TpsBudget,
    caller_states: Arc<CallerStates>,
    purges: Arc<Purges>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// A caller's keys, one for each of the fleet's secrets.
pub struct CallerKeys {
    tier: u64,
    keys: Vec<CallerKey>,
}

impl CallerKeys {
    /// Whether the journal calls this caller so.
    pub(crate) fn is_called(&self, hash: u128) -> bool {
        self.keys.iter().any(|key| key.hash == hash)
    }
}

/// One scope, as the tier names and seals what is in it.
pub struct Share {
    keys: Arc<CallerKeys>,
    names: Vec<ScopeNames>,
    /// What the journal calls the group, under each secret; two of them, where it has two readings.
    groups: Vec<Vec<Event>>,
}

/// What the journals said when a call was sent.
#[derive(Clone)]
pub struct Stamps(Stamp);

/// What a look-up does about leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leases {
    /// Nothing.
    Leave,
    /// Takes those that are free, for [`Tier::lease_wait`] at most.
    Take,
    /// Sees which are taken.
    See,
}

/// What a look-up has found.
#[derive(Default)]
pub struct Found {
    /// When a call was sent that showed, somewhere in the fleet, that the endpoint accepts the caller.
    pub accepted: Option<Moment>,
    /// What is there for each id, fresh or stale.
    pub links: Vec<Option<Entry>>,
    /// Of each id, whether someone else has it leased; if that was asked.
    pub leased: Vec<bool>,
}

/// What a call brought that is to be shared.
#[derive(Default)]
pub struct Brought {
    /// When it was sent.
    pub sent: Option<Moment>,
    /// Whether it shows that the endpoint accepts the caller.
    pub accepted: bool,
    /// What may be kept.
    pub links: Vec<(Box<str>, Entry)>,
    /// Leased ids: whoever waits for them need not any more.
    pub released: Vec<Box<str>>,
}

impl Tier {
    /// The tier of `config`, to be reached in the background. Marks of purges, of others and to others, go through `purges`,
    /// and revocations through `caller_states`. `tls`: what to trust, for `rediss://`. Must be called within a tokio runtime.
    pub fn new(
        shared: &config::Shared,
        config: &Config,
        tls: Option<rustls::ClientConfig>,
        caller_states: Arc<CallerStates>,
        purges: Arc<Purges>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let inner = Arc::new(Inner::new(shared, config, tls, caller_states, purges, metrics, clock));
        tokio::spawn(keeper::keep(Arc::clone(&inner)));
        Self { inner }
    }

    /// The key under which the fleet names what is purged.
    pub fn purge_key(shared: &config::Shared, endpoint: &config::Endpoint) -> Option<[u8; 16]> {
        let secret = shared.secret_file.secret.first()?;
        Some(FleetKey::new(secret.clone(), endpoint, &shared.prefix).marks)
    }

    /// Whether it may be asked now.
    pub fn is_usable(&self) -> bool {
        self.inner.usable.load(Ordering::Acquire)
    }

    /// The longest that a batch waits for ids that another sidecar fetches.
    pub fn lease_wait(&self) -> Duration {
        self.inner.config.lease_wait
    }

    /// How a scope is named and sealed: that of the requester whose credential `credential` makes up, and of what `scope`
    /// makes up.
    pub fn share(
        &self,
        requester: &Identity,
        (kind, credential): (&'static str, &[Option<&[u8]>]),
        scope: &[Option<&[u8]>],
        group: Option<&str>,
    ) -> Share {
        let fleet = &requester.caller_state.fleet;
        let known = fleet.load_full().filter(|keys| keys.tier == self.inner.number);
        let keys = known.unwrap_or_else(|| {
            let keys = self.inner.keys.iter().map(|key| key.caller(kind, credential)).collect();
            let keys = Arc::new(CallerKeys { tier: self.inner.number, keys });
            fleet.store(Some(Arc::clone(&keys)));
            keys
        });
        self.inner.share(keys, scope, group)
    }

    /// What the journal says now, to go with what is asked of the endpoint from here on.
    pub fn stamp(&self) -> Option<Stamps> {
        if !self.is_usable() {
            return None;
        }
        self.inner.journals().first().and_then(Journal::stamp).map(Stamps)
    }

    /// Looks `ids` up, and the caller's acceptance. One round trip, and a second where the journal has news. `None`: the tier
    /// is as good as not there.
    pub async fn look_up(&self, share: &Share, ids: &[&str], leases: Leases) -> Option<Found> {
        self.is_usable().then_some(())?;
        self.inner.look_up(share, ids, leases).await
    }

    /// Shares what a call brought that was sent when the journal said `stamp`, in the background; without a stamp, nothing but
    /// that leases are given back.
    pub fn put(&self, share: &Arc<Share>, stamp: Option<Stamps>, brought: Brought) {
        let nothing = brought.links.is_empty() && brought.released.is_empty() && !brought.accepted;
        if nothing || !self.is_usable() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.inner.writes).try_acquire_owned() else {
            self.inner.metrics.shared.count_failure(Kind::Busy);
            return;
        };
        let (inner, share, stamp) = (Arc::clone(&self.inner), Arc::clone(share), stamp.map(|stamp| stamp.0));
        tokio::spawn(async move {
            inner.put(&share, stamp, brought).await;
            drop(permit);
        });
    }

    /// The endpoint refuses the caller as a whole: what is kept for it counts no more, anywhere. `known`: the endpoint was
    /// known to accept it.
    pub fn revoke(&self, share: &Share, known: bool) {
        if !known && !self.inner.strangers.withdraw() {
            return;
        }
        self.inner.say(|at, _| share.keys.keys.get(at).map(|key| Event::Caller(key.hash)));
    }

    /// The endpoint keeps `ids` from the caller: they are taken away, and so is its acceptance, in the background. If that
    /// fails, all that is kept for it counts no more.
    pub fn withdraw(&self, share: &Arc<Share>, ids: Vec<Box<str>>) {
        let (inner, share) = (Arc::clone(&self.inner), Arc::clone(share));
        tokio::spawn(async move {
            let mut commands = Vec::new();
            for (key, names) in share.keys.keys.iter().zip(&share.names) {
                let names = ids.iter().map(|id| names.link(id)).chain([key.acceptance.clone()]);
                commands.extend(names.map(delete));
            }
            let replies = inner.store.run(Operation::Revoke, commands, inner.config.timeout).await;
            if !replies.iter().all(|reply| matches!(reply, Some(Value::Int(_)))) {
                inner.say(|at, _| share.keys.keys.get(at).map(|key| Event::Caller(key.hash)));
            }
        });
    }

    /// Tells the fleet of a purge.
    pub fn purge(&self, target: Target<'_>) {
        self.inner.say(|_, key| Some(key.says(target)));
    }
}

impl FleetKey {
    /// What the journal calls `target`.
    fn says(&self, target: Target<'_>) -> Event {
        match Purges::name_under(self.marks, target) {
            Mark::All => Event::All,
            Mark::Over(name) => Event::Over(name.0),
        }
    }
}

fn delete(key: Box<str>) -> Command {
    let command = redis::cmd("DEL").arg(&*key).to_owned();
    Command { key, command, most: 0 }
}

impl Inner {
    /// Of a tier that was not reached yet.
    fn new(
        shared: &config::Shared,
        config: &Config,
        tls: Option<rustls::ClientConfig>,
        caller_states: Arc<CallerStates>,
        purges: Arc<Purges>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let mut login = RedisConnectionInfo::default().set_db(shared.database);
        if let Some(password) = &shared.password_file {
            login = login.set_password(String::from_utf8_lossy(password.secret.expose()));
        }
        if let Some(username) = &shared.username {
            login = login.set_username(username);
        }
        let way = Way {
            login: login.set_skip_set_lib_name(),
            tls: tls.map(|tls| TlsConnector::from(Arc::new(tls))),
            timeout: shared.timeout,
            metrics: Arc::clone(&metrics),
        };
        let endpoint = &config.upstream.endpoint;
        let keys: Vec<FleetKey> = shared
            .secret_file
            .secret
            .iter()
            .map(|secret| FleetKey::new(secret.clone(), endpoint, &shared.prefix))
            .collect();
        // Until it has been reached.
        show_position(&metrics.shared.breaker_state, BreakerState::Open);
        Self {
            number: rand::random(),
            freshness: config.freshness.clone(),
            revalidate: millis(config.callers.revalidate),
            journals: Mutex::new(keys.iter().map(|_| Journal::new()).collect()),
            keys,
            store: Store::new(way, shared.nodes.clone(), shared.cluster),
            config: shared.clone(),
            usable: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            kick: Notify::new(),
            writes: Arc::new(Semaphore::new(WRITES)),
            strangers: TpsBudget::new(Duration::from_secs(10), STRANGERS_A_SECOND, 0.0),
            caller_states,
            purges,
            metrics,
            clock,
        }
    }

    fn journals(&self) -> MutexGuard<'_, Vec<Journal>> {
        // No step leaves a journal half-done.
        self.journals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Event something in each journal, in its own words.
    fn say(&self, words: impl Fn(usize, &FleetKey) -> Option<Event>) {
        let mut journals = self.journals();
        for (at, (journal, key)) in journals.iter_mut().zip(&self.keys).enumerate() {
            if let Some(says) = words(at, key) {
                journal.say(says);
            }
        }
        drop(journals);
        self.kick.notify_one();
    }

    fn share(&self, keys: Arc<CallerKeys>, scope: &[Option<&[u8]>], group: Option<&str>) -> Share {
        let names = keys.keys.iter().map(|key| key.scope(scope.iter().copied())).collect();
        let group = |key: &FleetKey| {
            let readings = group.into_iter().flat_map(id::readings);
            readings.map(|group| key.says(Target::Group(&group))).collect()
        };
        Share { groups: self.keys.iter().map(group).collect(), keys, names }
    }

    async fn look_up(&self, share: &Share, ids: &[&str], leases: Leases) -> Option<Found> {
        // Taken before: what is purged from here on covers what is found.
        let now = self.clock.now();
        let mut names = Vec::with_capacity((ids.len() + 1) * (share.names.len() + 1));
        // First: a holder writes what it has, and then gives back its lease.
        let mut takes = Vec::new();
        if let Some(scope) = share.names.first().filter(|_| leases == Leases::Take) {
            takes.extend(ids.iter().map(|id| self.take_lease(scope.lease(id))));
        }
        if leases == Leases::See
            && let Some(scope) = share.names.first()
        {
            names.extend(ids.iter().map(|id| scope.lease(id)));
        }
        let values = names.len();
        for (key, scope) in share.keys.keys.iter().zip(&share.names) {
            names.push(key.acceptance.clone());
            names.extend(ids.iter().map(|id| scope.link(id)));
        }
        let journals = self.keys.iter().flat_map(|key| [head(key), length(key)]).collect();
        let operation = if leases == Leases::Leave { Operation::Get } else { Operation::Lease };
        let limit = self.config.timeout;
        // Leases are taken first: what a holder has written before it gave back its own is found then.
        let (taken, mut leased, journals) = self.store.get(takes, names.clone(), journals, operation, limit).await;
        self.heed_journals(&journals).await?;

        let found = leased.split_off(values);
        let leased = match leases {
            // Where there is no telling, the id is fetched: at worst it is fetched twice.
            Leases::Take => taken.into_iter().map(|reply| matches!(reply, Some(Value::Nil))).collect(),
            _ => leased.into_iter().map(|value| value.is_some()).collect(),
        };
        let names = names.split_off(values);
        let mut result = Found { accepted: None, links: Vec::new(), leased };
        result.links.resize_with(ids.len(), || None);
        let each = names.chunks(ids.len() + 1).zip(found.chunks(ids.len() + 1));
        for ((at, key), (names, values)) in share.keys.keys.iter().enumerate().zip(each) {
            let mut named = names.iter().zip(values);
            if let Some((name, Some(value))) = named.next()
                && result.accepted.is_none()
            {
                result.accepted = self.acceptance(at, key, name, value, now);
            }
            for ((link, id), (name, value)) in result.links.iter_mut().zip(ids).zip(named) {
                if let (None, Some(value)) = (&link, value) {
                    *link = self.link(at, key, share, id, name, value, now);
                }
            }
        }
        if leases == Leases::Leave {
            let hits = result.links.iter().flatten().filter(|kept| kept.deadlines().fresh_left(now).is_some()).count();
            self.metrics.shared.hits.inc_by(hits as u64);
            self.metrics.shared.misses.inc_by((ids.len() - hits) as u64);
        }
        Some(result)
    }

    fn take_lease(&self, key: Box<str>) -> Command {
        let lease = millis(self.config.lease_wait).max(1);
        let command = redis::cmd("SET").arg(&*key).arg("1").arg("NX").arg("PX").arg(lease).to_owned();
        Command { key, command, most: 0 }
    }

    /// Reads on in each journal if it has news, given the beginning and the length of each. `None`: one is not what it was.
    async fn heed_journals(&self, replies: &[Option<Value>]) -> Option<()> {
        for (at, replies) in replies.chunks(2).enumerate() {
            let [Some(Value::BulkString(first)), Some(Value::Int(length))] = replies else { return None };
            let length = u64::try_from(*length).ok()?;
            let news = {
                let journals = self.journals();
                let journal = journals.get(at)?;
                let known = journal.stamp()?.position;
                if journal.first() != Some(first) || length < known {
                    drop(journals);
                    self.kick.notify_one();
                    return None;
                }
                length > known
            };
            if news {
                match self.read_on(at, self.config.timeout).await {
                    Ok(State::Known | State::Full) => {}
                    // Reading it anew takes longer than a batch has.
                    Ok(State::Unknown | State::Lost) | Err(_) => {
                        self.kick.notify_one();
                        return None;
                    }
                }
            }
        }
        Some(())
    }

    async fn put(&self, share: &Share, stamp: Option<Stamp>, brought: Brought) {
        let mut commands = Vec::with_capacity(brought.links.len() + brought.released.len() + 1);
        if let Some(stamp) = stamp {
            commands.extend(self.sealed(share, stamp, &brought).into_iter().map(|sealed| {
                let Sealed { name, value, left } = sealed;
                let command = redis::cmd("SET").arg(&*name).arg(value).arg("PX").arg(left).to_owned();
                Command { key: name, command, most: 0 }
            }));
        }
        // After what was brought, for what names that has the same server.
        if let Some(scope) = share.names.first() {
            commands.extend(brought.released.iter().map(|id| delete(scope.lease(id))));
        }
        if !commands.is_empty() {
            self.store.run(Operation::Put, commands, self.config.timeout).await;
        }
    }
}

/// The first record of a journal.
fn head(key: &FleetKey) -> Command {
    range(key, 0, RECORD as i64 - 1, RECORD)
}

fn range(key: &FleetKey, from: i64, to: i64, most: usize) -> Command {
    let command = redis::cmd("GETRANGE").arg(&*key.journal).arg(from).arg(to).to_owned();
    Command { key: key.journal.clone(), command, most }
}

fn length(key: &FleetKey) -> Command {
    let command = redis::cmd("STRLEN").arg(&*key.journal).to_owned();
    Command { key: key.journal.clone(), command, most: 0 }
}
