//! The background task of the tier: connects, reads the journals, appends this process's events, and sees which fleets use the
//! server.
//!
//! No batch waits for it. A server that is down is tried again within [`MAX_RETRY`], so it is used again soon after it is back;
//! the log has one line when the tier goes down and one when it comes back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use redis::Value;
use tokio::time::{Instant, sleep, timeout};

use super::fleets::MOST_CHARS;
use super::journal::{self, MOST, RECORD};
use super::record::JournalEvent;
use super::sealing::FleetKey;
use super::store::RedisCommand;
use super::{Fingerprint, FleetSecret, FleetStatus, TierState};
use crate::cache::purges::{self, Mark};
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::{BreakerState, Operation, SharedFailure, show_state};

/// The time between two synchronizations, unless the task is woken earlier.
const SYNC_INTERVAL: Duration = Duration::from_millis(400);
/// The shortest time between two synchronizations, however often the task is woken.
const MIN_INTERVAL: Duration = Duration::from_millis(20);
/// The time before the first retry of a tier that is down.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// The longest time between two retries.
const MAX_RETRY: Duration = Duration::from_secs(2);
const WHOLE_JOURNAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long Redis keeps a journal that no sidecar uses.
const JOURNAL_LIFE: Duration = Duration::from_secs(48 * 3600);
/// How long appending may be refused before the journal is deleted instead.
const MAX_REFUSED: Duration = Duration::from_secs(1);
/// The time between two looks at which fleets use the server, and whether it can be written to.
const FLEETS_INTERVAL: Duration = Duration::from_secs(3);
/// How long Redis keeps the key that tells which fleets use the server.
const FLEETS_LIFE: Duration = Duration::from_secs(30);
/// The time between two lines about another fleet.
const SPLIT_PAUSE: Duration = Duration::from_secs(300);
/// Most reasons that are logged in one outage.
const MOST_REASONS: usize = 8;
const UNREADABLE: &str = "the journal cannot be read or written";

/// Runs until the [`Tier`](super::Tier) is dropped.
pub(super) async fn run(state: Arc<TierState>) {
    let mut sync = Sync::default();
    let mut pause = FIRST_RETRY;
    loop {
        let is_last = state.closing.load(Ordering::Acquire);
        let outage = sync.once(&state).await.err().map(|reason| state.store.outage().unwrap_or(reason));
        let is_up = outage.is_none();
        state.usable.store(is_up, Ordering::Release);
        sync.tell(&state, outage);
        if is_last {
            return;
        }
        if is_up {
            sync.look_for_fleets(&state).await;
            pause = FIRST_RETRY;
            sleep(MIN_INTERVAL).await;
            let _ = timeout(SYNC_INTERVAL, state.wake.notified()).await;
        } else {
            let jittered = pause.mul_f64(rand::rng().random_range(0.8..1.0));
            // Waking the task would not bring the server back.
            sleep(MIN_INTERVAL + jittered).await;
            pause = (pause * 2).min(MAX_RETRY);
        }
    }
}

#[derive(Default)]
struct Sync {
    /// Whether the tier was up the last time.
    was_up: Option<bool>,
    /// The reasons that were logged in this outage.
    told: Vec<String>,
    /// When the server began to refuse appending.
    refused: Option<Instant>,
    /// The last look at which fleets use the server, and whether it can be written to.
    looked: Option<Instant>,
    /// Limits the lines about other fleets, while there are any.
    split: Option<LogThrottle>,
}

impl Sync {
    async fn once(&mut self, state: &TierState) -> Result<(), String> {
        let journals: Vec<&str> = state.secrets.iter().map(|fleet| &*fleet.key.journal).collect();
        state.store.connect(&journals).await?;
        for fleet in &state.secrets {
            state.read_journal(fleet, self.is_look_due()).await?;
            if self.append_pending(state, fleet).await {
                state.read_journal(fleet, false).await?;
            }
        }
        Ok(())
    }

    /// Shows and logs whether the tier is up; each reason for an outage once.
    fn tell(&mut self, state: &TierState, outage: Option<String>) {
        let is_up = outage.is_none();
        let has_changed = self.was_up.replace(is_up) != Some(is_up);
        if has_changed {
            let breaker = if is_up { BreakerState::Closed } else { BreakerState::Open };
            show_state(&state.metrics.shared.breaker_state, breaker);
        }
        match &outage {
            None if has_changed => {
                self.told.clear();
                events::SharedUp {}.log();
            }
            Some(reason) if !self.told.contains(reason) && self.told.len() < MOST_REASONS => {
                events::SharedDown { reason }.log();
                self.told.push(reason.clone());
            }
            _ => {}
        }
        *state.outage.lock() = outage;
    }

    /// Whether it is time for what changes seldom.
    fn is_look_due(&self) -> bool {
        self.looked.is_none_or(|last| last.elapsed() >= FLEETS_INTERVAL)
    }

    /// Looks, if it is time, which fleets use the server, and writes that this one does. Extends the lives of the journals: where
    /// nothing else is written, this shows a server that has become a replica. A server that fails is seen elsewhere.
    async fn look_for_fleets(&mut self, state: &TierState) {
        let Some(fleet) = state.secrets.first() else { return };
        if !self.is_look_due() {
            return;
        }
        let (now, key) = (Instant::now(), &fleet.key.fleets);
        self.looked = Some(now);
        let span = Duration::from_millis(state.revalidate).max(purges::span_of_links(&state.freshness));
        state.secrets.iter().for_each(|fleet| fleet.journal.lock().sweep(state.clock.now(), span));
        let run = async |commands| state.store.run(Operation::Sync, commands, state.config.timeout).await;
        let read = RedisCommand::new("GETRANGE", key).arg(0).arg(MOST_CHARS - 1).reply_bytes(MOST_CHARS);
        let extend = |fleet: &FleetSecret| RedisCommand::new("EXPIRE", &fleet.key.journal).arg(JOURNAL_LIFE.as_secs());
        let replies = run([read].into_iter().chain(state.secrets.iter().map(extend)).collect()).await;
        let text = match replies.first() {
            Some(Some(Value::BulkString(text))) => text.as_slice(),
            // Something else has that name, and is replaced.
            Some(reply) if is_of_another_type(std::slice::from_ref(reply)) => b"",
            _ => return,
        };
        let (status, text) = {
            let mut fleets = state.fleets.lock();
            let text = fleets.read(text, now);
            fleets.update_since(now, state.clock.now());
            (fleets.status(now), text)
        };
        if let Some(text) = text {
            run(vec![RedisCommand::new("SET", key).arg(text).arg("EX").arg(FLEETS_LIFE.as_secs())]).await;
        }
        let Some(FleetStatus { fingerprint, others, .. }) = status else { return };
        if others.is_empty() {
            if self.split.take().is_some() {
                events::SharedSplitOver {}.log();
            }
        } else {
            let others = others.iter().map(Fingerprint::to_string).collect::<Vec<_>>().join(", ");
            let fleet = format_args!("{fingerprint}");
            let throttle = self.split.get_or_insert_with(|| LogThrottle::every(SPLIT_PAUSE));
            throttle.when_due(|_| events::SharedSplit { fleet, others: &others }.log());
        }
    }

    /// Appends pending events; returns whether there were any.
    async fn append_pending(&mut self, state: &TierState, FleetSecret { key, journal }: &FleetSecret) -> bool {
        let Some(text) = journal.lock().take_pending(key) else { return false };
        let run = async |command| state.store.run(Operation::Revoke, vec![command], state.config.timeout).await;
        if let [Some(Value::Int(_))] = *run(RedisCommand::new("APPEND", &key.journal).arg(text)).await {
            self.refused = None;
            return true;
        }
        // A full server refuses to append, and allows to delete: without a journal no value counts.
        if self.refused.get_or_insert_with(Instant::now).elapsed() > MAX_REFUSED {
            self.refused = None;
            run(RedisCommand::new("DEL", &key.journal)).await;
        }
        false
    }
}

impl FleetKey {
    pub(super) fn first_record(&self) -> RedisCommand {
        self.journal_range(0, RECORD as i64 - 1).reply_bytes(RECORD)
    }

    pub(super) fn journal_length(&self) -> RedisCommand {
        RedisCommand::new("STRLEN", &self.journal)
    }

    fn journal_range(&self, from: i64, to: i64) -> RedisCommand {
        RedisCommand::new("GETRANGE", &self.journal).arg(from).arg(to).reply_bytes(MOST)
    }
}

impl TierState {
    /// Reads the news of a journal and applies them; all of it if the journal was replaced. Begins a journal anew that is too long.
    ///
    /// # Errors
    /// Why the journal cannot be read, for an operator.
    async fn read_journal(&self, fleet: &FleetSecret, with_first: bool) -> Result<(), String> {
        if self.read_news(fleet, with_first, WHOLE_JOURNAL_TIMEOUT).await? {
            if !fleet.journal.lock().is_full() {
                return Ok(());
            }
            self.begin(&fleet.key, false).await?;
        }
        self.read_whole(fleet).await
    }

    /// Reads a known journal's news in one round trip within `limit`, and applies them. False if the known records are gone,
    /// or none are known yet. The last known one tells a journal from another; the first one, read `with_first`, also from one
    /// that was altered before.
    ///
    /// # Errors
    /// Why the journal cannot be read, for an operator. A server that does not answer has not lost a journal.
    pub(super) async fn read_news(
        &self,
        fleet: &FleetSecret,
        with_first: bool,
        limit: Duration,
    ) -> Result<bool, String> {
        let FleetSecret { key, journal } = fleet;
        let from = {
            let journal = journal.lock();
            if journal.stamp().is_none() {
                return Ok(false);
            }
            journal.read_from()
        };
        let mut news = vec![key.journal_range(i64::try_from(from).unwrap_or(i64::MAX), -1)];
        news.extend(with_first.then(|| key.first_record()));
        let replies = self.store.run(Operation::Sync, news, limit).await;
        let (text, first) = match replies.as_slice() {
            [Some(Value::BulkString(text))] => (text, None),
            [Some(Value::BulkString(text)), Some(Value::BulkString(first))] => (text, Some(&**first)),
            _ if is_of_another_type(&replies) => return Ok(false),
            _ => return Err(UNREADABLE.to_owned()),
        };
        let now = self.clock.now();
        let read = {
            let mut journal = journal.lock();
            if journal.read_from() != from {
                return Ok(true); // A concurrent task has read the news.
            }
            journal.read(key, first, text, now)
        };
        let Some(news) = read else {
            self.metrics.shared.failures.of(SharedFailure::Journal).inc();
            return Ok(false);
        };
        self.apply(fleet, &news);
        Ok(true)
    }

    /// Reads a whole journal in place of the known one, whose records are gone. Begins a journal where there is none, where
    /// the text is no journal, and where its first record is the known one.
    async fn read_whole(&self, fleet: &FleetSecret) -> Result<(), String> {
        let FleetSecret { key, journal } = fleet;
        for _ in 0..3 {
            let replies = self.store.run(Operation::Sync, vec![key.journal_range(0, -1)], WHOLE_JOURNAL_TIMEOUT).await;
            let text = match replies.as_slice() {
                [Some(Value::BulkString(text))] => text.as_slice(),
                replies if is_of_another_type(replies) => b"of another type",
                _ => break,
            };
            if text.is_empty() {
                self.begin(key, true).await?;
                continue;
            }
            let now = self.clock.now();
            let read = {
                let mut journal = journal.lock();
                let is_known = text.get(..RECORD).is_some_and(|first| journal.first() == Some(first));
                if is_known { None } else { journal.adopt(key, text, now) }
            };
            if let Some(news) = read {
                self.apply(fleet, &news);
                return Ok(());
            }
            self.begin(key, false).await?;
        }
        Err(UNREADABLE.to_owned())
    }

    async fn begin(&self, key: &FleetKey, if_absent: bool) -> Result<(), String> {
        let first = journal::begin(key).ok_or("the journal cannot be sealed")?;
        let mut command = RedisCommand::new("SET", &key.journal).arg(first).arg("EX").arg(JOURNAL_LIFE.as_secs());
        if if_absent {
            command = command.arg("NX");
        }
        match self.store.run(Operation::Sync, vec![command], WHOLE_JOURNAL_TIMEOUT).await.as_slice() {
            [Some(Value::Okay | Value::Nil)] => Ok(()),
            _ => Err("the journal cannot be written: is the server read-only, or full?".to_owned()),
        }
    }

    fn apply(&self, fleet: &FleetSecret, events: &[JournalEvent]) {
        let now = self.clock.now();
        let is_first = self.secrets.first().is_some_and(|first| std::ptr::eq(first, fleet));
        for event in events {
            match event {
                // A sidecar with both secrets announces in both journals; this process names purges as in the first.
                JournalEvent::Purge(mark) if is_first || *mark == Mark::All => self.purges.mark(*mark, now),
                JournalEvent::Begin | JournalEvent::Purge(_) => {}
                JournalEvent::Caller(hash) => self.caller_states.drop_named(*hash, now),
            }
        }
    }
}

/// Whether the server says that the journal's key has a value that is no string.
fn is_of_another_type(replies: &[Option<Value>]) -> bool {
    replies.iter().any(|reply| matches!(reply, Some(Value::ServerError(error)) if error.code() == "WRONGTYPE"))
}
