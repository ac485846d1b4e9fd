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
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use super::check::write_probe;
use super::fleets::MOST_CHARS;
use super::journal::{self, Adoption, Beginning, MOST, RECORD};
use super::record::JournalEvent;
use super::sealing::FleetKey;
use super::store::RedisCommand;
use super::{Fingerprint, FleetSecret, FleetStatus, TierState};
use crate::cache::purges::Mark;
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::{BreakerState, Operation, SharedFailure, show_state};

/// The time between two synchronizations, unless the task is woken earlier.
const SYNC_INTERVAL: Duration = Duration::from_millis(400);
/// The shortest time between two synchronizations, however often the task is woken.
const MIN_INTERVAL: Duration = Duration::from_millis(20);
/// The time before the first retry of a tier that is down.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// How long a process that ends tries to tell the fleet what it was not told yet.
const LAST_TRY: Duration = Duration::from_secs(1);
/// The longest time between two retries.
const MAX_RETRY: Duration = Duration::from_secs(2);
/// Time limit for a journal, and for a piece that is appended: longer than `shared.timeout`, since no batch waits for it.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long Redis keeps a journal that no sidecar uses.
const JOURNAL_LIFE: Duration = Duration::from_secs(48 * 3600);
/// How often a journal is read again that changes meanwhile.
const ATTEMPTS: usize = 5;
/// Most pieces that are appended in one synchronization.
const MOST_PIECES: usize = 16;
/// Characters of the journal that are read and applied at once.
pub(super) const PIECE: usize = 256 * RECORD;
/// The time between two looks at which fleets use the server, and whether it can be written to.
const FLEETS_INTERVAL: Duration = Duration::from_secs(3);
/// How long Redis keeps the key that tells which fleets use the server.
const FLEETS_LIFE: Duration = Duration::from_secs(30);
/// The time between two lines about another fleet.
const SPLIT_PAUSE: Duration = Duration::from_secs(300);
/// Most reasons that are logged in one outage.
const MOST_REASONS: usize = 8;
const UNREADABLE: &str = "the journal cannot be read or written";

/// Begins a journal, `ARGV[3]`, for `ARGV[4]` seconds, in place of a text of length `ARGV[1]` that ends in `ARGV[2]`. A full server
/// refuses the first command of a script that takes memory, unless another one has written before.
const BEGIN: &str = "
if redis.call('STRLEN', KEYS[1]) ~= tonumber(ARGV[1]) then return 0 end
if redis.call('GETRANGE', KEYS[1], ARGV[1] - #ARGV[2], -1) ~= ARGV[2] then return 0 end
if ARGV[5] == '1' then redis.call('RENAME', KEYS[1], KEYS[2]) else redis.call('DEL', KEYS[2]) end
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[4])
return 1";
/// Appends `ARGV[2]` to the journal that begins with `ARGV[1]`, if it is no longer than `ARGV[3]` then; also at a full server, as
/// above.
const APPEND: &str = "
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
if redis.call('STRLEN', KEYS[1]) + #ARGV[2] > tonumber(ARGV[3]) then return 0 end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return redis.call('APPEND', KEYS[1], ARGV[2])";

/// Runs until the [`Tier`](super::Tier) is dropped.
pub(super) async fn run(state: Arc<TierState>) {
    let mut sync = Sync::default();
    let mut pause = FIRST_RETRY;
    while let Some(result) = state.closing.run_until_cancelled(sync.once(&state)).await {
        let outage = result.err().map(|reason| state.store.outage().unwrap_or(reason));
        let is_up = outage.is_none();
        state.usable.store(is_up, Ordering::Release);
        sync.tell(&state, outage);
        state.show_untold();
        let idle = async {
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
        };
        let _ = state.closing.run_until_cancelled(idle).await;
    }
    if state.untold() > 0 {
        let _ = timeout(LAST_TRY, sync.once(&state)).await;
    }
    let records = state.untold();
    if records > 0 {
        events::SharedUntold { records }.log();
        state.metrics.shared.untold.set(0);
    }
}

#[derive(Default)]
struct Sync {
    /// Whether the tier was up the last time.
    was_up: Option<bool>,
    /// The reasons that were logged in this outage.
    told: Vec<String>,
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
            for _ in 0..MOST_PIECES {
                if !Self::append_pending(state, fleet).await? {
                    break;
                }
                state.read_journal(fleet, false).await?;
                state.show_untold();
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
    /// nothing else is written, this shows a server that has become a replica, and the [`write_probe`] one that is full or takes writes
    /// again. A server that fails is seen elsewhere.
    async fn look_for_fleets(&mut self, state: &TierState) {
        let Some(fleet) = state.secrets.first() else { return };
        if !self.is_look_due() {
            return;
        }
        let (now, key) = (Instant::now(), &fleet.key.fleets);
        self.looked = Some(now);
        let (moment, span) = (state.clock.now(), state.longest_life());
        state.secrets.iter().for_each(|fleet| fleet.journal.lock().sweep(moment, span));
        let run = async |commands| state.store.run(Operation::Sync, commands, state.config.timeout).await;
        let read = RedisCommand::new("GETRANGE", key).arg(0).arg(MOST_CHARS - 1).reply_bytes(MOST_CHARS);
        let extend = |fleet: &FleetSecret| RedisCommand::new("EXPIRE", &fleet.key.journal).arg(JOURNAL_LIFE.as_secs());
        let extended = state.secrets.iter().map(extend);
        let commands = [read].into_iter().chain(extended).chain([write_probe(&state.config.prefix)]).collect();
        let replies = run(commands).await;
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

    /// Appends a piece of the pending events; returns whether there are any. Nothing is appended to a journal that has no room for
    /// it, or that is not known: it is read first.
    ///
    /// # Errors
    /// Why the journal cannot be written, for an operator.
    async fn append_pending(state: &TierState, FleetSecret { key, journal }: &FleetSecret) -> Result<bool, String> {
        let (first, text) = {
            let mut journal = journal.lock();
            let Some(text) = journal.take_pending(key) else { return Ok(false) };
            (journal.first().unwrap_or_default().to_vec(), text)
        };
        let command = RedisCommand::script(APPEND, [&*key.journal].into_iter()).arg(first).arg(text);
        let command = command.arg(MOST).arg(JOURNAL_LIFE.as_secs());
        match state.store.run(Operation::Revoke, vec![command], JOURNAL_TIMEOUT).await.as_slice() {
            [Some(Value::Int(_))] => Ok(true),
            replies => Err(unwritable(replies)),
        }
    }
}

impl FleetKey {
    pub(super) fn first_record(&self) -> RedisCommand {
        RedisCommand::new("GETRANGE", &self.journal).arg(0).arg(RECORD - 1).reply_bytes(RECORD)
    }

    pub(super) fn journal_length(&self) -> RedisCommand {
        RedisCommand::new("STRLEN", &self.journal)
    }

    fn journal_range(&self, from: u64) -> RedisCommand {
        range(&self.journal, from)
    }
}

/// Reads a journal from `from` on.
fn range(name: &str, from: u64) -> RedisCommand {
    RedisCommand::new("GETRANGE", name).arg(from).arg(-1).reply_bytes(MOST)
}

impl TierState {
    /// Reads the news of a journal and applies them; all of it if the journal was replaced. Continues a journal that is full.
    ///
    /// # Errors
    /// Why the journal cannot be read, for an operator.
    async fn read_journal(&self, fleet: &FleetSecret, with_first: bool) -> Result<(), String> {
        for _ in 0..ATTEMPTS {
            if !self.read_news(fleet, with_first, JOURNAL_TIMEOUT).await? {
                return self.read_whole(fleet).await;
            }
            let Some(next) = fleet.journal.lock().next(&fleet.key) else { return Ok(()) };
            if self.begin(&fleet.key, next).await? {
                self.metrics.shared.journals_full.inc();
            }
        }
        Err(UNREADABLE.to_owned())
    }

    /// Reads a known journal's news in one round trip within `limit`, and applies them. False if the known records are gone,
    /// or none are known yet. The last known one tells a journal from another; the first one, read `with_first`, also from one
    /// that was altered before. Of news that are no longer than a [`PIECE`], none is lost to a task that is dropped.
    ///
    /// # Errors
    /// Why the journal cannot be read, for an operator. A server that does not answer has not lost a journal.
    pub(super) async fn read_news(
        &self,
        fleet: &FleetSecret,
        with_first: bool,
        limit: Duration,
    ) -> Result<bool, String> {
        let from = {
            let journal = fleet.journal.lock();
            if journal.stamp().is_none() {
                return Ok(false);
            }
            journal.read_from()
        };
        let mut news = vec![fleet.key.journal_range(from)];
        news.extend(with_first.then(|| fleet.key.first_record()));
        let replies = self.store.run(Operation::Sync, news, limit).await;
        let (text, first) = match replies.as_slice() {
            [Some(Value::BulkString(text))] => (text, None),
            [Some(Value::BulkString(text)), Some(Value::BulkString(first))] => (text, Some(&**first)),
            _ if is_of_another_type(&replies) => return Ok(false),
            _ => return Err(UNREADABLE.to_owned()),
        };
        let is_known = first.is_none() || fleet.journal.lock().first() == first;
        Ok(is_known && self.read_text(fleet, from, text).await)
    }

    /// Reads the text of a known journal from `from` on, where its last known record is, and applies its news. Lets other tasks run
    /// between two pieces. False if the known records are gone, or if something follows that is no part of the journal.
    async fn read_text(&self, fleet: &FleetSecret, mut from: u64, mut text: &[u8]) -> bool {
        loop {
            let piece = text.get(..PIECE + RECORD).unwrap_or(text);
            let news = {
                let mut journal = fleet.journal.lock();
                if journal.read_from() != from {
                    return true; // A concurrent task has read the news.
                }
                journal.read(&fleet.key, piece)
            };
            self.apply(fleet, &news.events);
            if !news.is_whole {
                return false;
            }
            let length = piece.len() - RECORD;
            (from, text) = (from + length as u64, text.get(length..).unwrap_or_default());
            if text.len() <= RECORD {
                return true;
            }
            yield_now().await;
        }
    }

    /// Reads another journal in place of the known one, whose records are gone. Begins a journal where there is none, where
    /// the text is no journal, and where its first record is the known one.
    async fn read_whole(&self, fleet: &FleetSecret) -> Result<(), String> {
        let key = &fleet.key;
        for _ in 0..ATTEMPTS {
            let from = fleet.journal.lock().read_from();
            let commands = vec![key.journal_range(0), range(&key.previous_journal, from)];
            let replies = self.store.run(Operation::Sync, commands, JOURNAL_TIMEOUT).await;
            let (text, previous) = match replies.as_slice() {
                [Some(Value::BulkString(text)), Some(Value::BulkString(previous))] => (text, previous),
                replies if is_of_another_type(replies) => {
                    let delete = |name: &str| RedisCommand::new("DEL", name);
                    let commands = vec![delete(&key.journal), delete(&key.previous_journal)];
                    self.store.run(Operation::Sync, commands, JOURNAL_TIMEOUT).await;
                    continue;
                }
                _ => break,
            };
            if self.adopt(fleet, text, from, previous).await {
                return Ok(());
            }
            let beginning = Beginning::anew(key, text).ok_or("the journal cannot be sealed")?;
            self.begin(key, beginning).await?;
        }
        Err(UNREADABLE.to_owned())
    }

    /// Reads `text` as another journal than the known one, after the rest, from `from` on, of the journal that it continues. False if
    /// it is none.
    async fn adopt(&self, fleet: &FleetSecret, text: &[u8], from: u64, previous: &[u8]) -> bool {
        let FleetSecret { key, journal } = fleet;
        let Some(first) = text.get(..RECORD) else { return false };
        {
            let mut journal = journal.lock();
            if journal.first() == Some(first) {
                return false;
            }
            if journal.stamp().is_none()
                && let Some(first) = previous.get(..RECORD)
            {
                journal.adopt(key, first);
            }
        }
        if !previous.is_empty() && journal.lock().stamp().is_some() {
            self.read_text(fleet, from, previous).await;
        }
        let adopted = journal.lock().adopt(key, first);
        match adopted {
            Some(Adoption::Missed) => self.apply(fleet, &[journal::EVERYTHING]),
            Some(Adoption::Lost) => self.metrics.shared.failures.of(SharedFailure::Journal).inc(),
            Some(Adoption::First | Adoption::Continued) => {}
            None => return false,
        }
        self.tell_merged(fleet);
        self.read_text(fleet, 0, text).await
    }

    /// Begins a journal in place of a known text; false if the text is another one now.
    async fn begin(&self, key: &FleetKey, beginning: Beginning) -> Result<bool, String> {
        let Beginning { first_record, length, end, continues } = beginning;
        let keys = [&*key.journal, &*key.previous_journal].into_iter();
        let command = RedisCommand::script(BEGIN, keys).arg(length).arg(end).arg(first_record);
        let command = command.arg(JOURNAL_LIFE.as_secs()).arg(u8::from(continues));
        match self.store.run(Operation::Sync, vec![command], JOURNAL_TIMEOUT).await.as_slice() {
            [Some(Value::Int(begun))] => Ok(*begun == 1),
            replies => Err(unwritable(replies)),
        }
    }

    /// Counts and logs how often events were merged.
    pub(super) fn tell_merged(&self, fleet: &FleetSecret) {
        let merged = fleet.journal.lock().take_merged();
        if merged > 0 {
            self.metrics.shared.merged.inc_by(merged);
            events::SharedMerged {}.log();
        }
    }

    pub(super) fn apply(&self, fleet: &FleetSecret, events: &[JournalEvent]) {
        let now = self.clock.now();
        let is_first = self.secrets.first().is_some_and(|first| std::ptr::eq(first, fleet));
        for event in events {
            match event {
                // A sidecar with both secrets announces in both journals; this process names purges as in the first.
                JournalEvent::Purge(mark) if is_first || *mark == Mark::All => self.purges.mark(*mark, now),
                JournalEvent::Begin(_) | JournalEvent::Purge(_) | JournalEvent::Link(_) => {}
                JournalEvent::Caller(hash) => {
                    self.caller_states.drop_named(*hash, now);
                }
            }
        }
    }
}

/// Whether the server says that the journal's key has a value that is no string.
fn is_of_another_type(replies: &[Option<Value>]) -> bool {
    replies.iter().any(|reply| matches!(reply, Some(Value::ServerError(error)) if error.code() == "WRONGTYPE"))
}

/// Why the journal cannot be written, for an operator.
fn unwritable(replies: &[Option<Value>]) -> String {
    let code = match replies {
        [Some(Value::ServerError(error))] => error.code().to_owned(),
        _ => return "the journal cannot be written: no answer in time".to_owned(),
    };
    format!("the journal cannot be written: the server answers {code}")
}
