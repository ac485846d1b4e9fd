//! What the tier does while nobody asks: it connects, reads the journals, and tells what is to be told.
//!
//! No batch ever waits for any of it. A server that is gone is tried again within [`LONGEST`], so it is used again soon after
//! it is back; the log has one line when the tier goes and one when it comes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use redis::Value;
use tokio::time::{Instant, sleep, timeout};

use super::journal::{self, MOST, RECORD, Read};
use super::record::Event;
use super::store::Command;
use super::{Inner, Mark, delete, head, length, range};
use crate::cache::purges::{self, Name};
use crate::telemetry::log::events;
use crate::telemetry::metrics::{BreakerState, Kind, Operation, show_position};

/// Between two looks into the journals while nobody asks.
const LOOK: Duration = Duration::from_millis(400);
/// The shortest time between two, however often it is asked for.
const SHORTEST: Duration = Duration::from_millis(20);
/// Between two tries of a tier that is down: at first, and at most.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(2);
/// The longest that reading a whole journal may take.
const WHOLE: Duration = Duration::from_secs(1);
/// How long a journal stays where nobody looks after it.
const JOURNAL_LIFE: Duration = Duration::from_secs(48 * 3600);
/// How often its life is lengthened.
const LENGTHEN: Duration = Duration::from_secs(600);
/// How long what is to be told may be refused before the journal is given up in its place.
const REFUSED: Duration = Duration::from_secs(1);

/// Keeps the tier going, until nobody has it any more.
pub(super) async fn keep(inner: Arc<Inner>) {
    let mut keeper = Keeper { inner, lengthened: None, refused: None };
    let mut pause = FIRST;
    let mut was_up = None;
    loop {
        let last = keeper.inner.closing.load(Ordering::Acquire);
        let wait = match keeper.look().await {
            Ok(()) => {
                keeper.inner.usable.store(true, Ordering::Release);
                if was_up != Some(true) {
                    keeper.show(BreakerState::Closed);
                    events::SharedUp {}.log();
                }
                was_up = Some(true);
                pause = FIRST;
                LOOK
            }
            Err(reason) => {
                keeper.inner.usable.store(false, Ordering::Release);
                if was_up != Some(false) {
                    keeper.show(BreakerState::Open);
                    events::SharedDown { reason: &reason }.log();
                }
                was_up = Some(false);
                let wait = pause.mul_f64(rand::rng().random_range(0.8..1.0));
                pause = (pause * 2).min(LONGEST);
                wait
            }
        };
        if last {
            return;
        }
        sleep(SHORTEST.min(wait)).await;
        if was_up == Some(true) {
            let _ = timeout(wait, keeper.inner.kick.notified()).await;
        } else {
            // A server that is down is not back for being asked for.
            sleep(wait).await;
        }
    }
}

struct Keeper {
    inner: Arc<Inner>,
    /// When the journals' lives were lengthened last.
    lengthened: Option<Instant>,
    /// Since when what is to be told is refused.
    refused: Option<Instant>,
}

impl Keeper {
    fn show(&self, position: BreakerState) {
        show_position(&self.inner.metrics.shared.breaker_state, position);
    }

    /// One look after everything.
    async fn look(&mut self) -> Result<(), String> {
        let inner = Arc::clone(&self.inner);
        let journals: Vec<&str> = inner.keys.iter().map(|key| &*key.journal).collect();
        inner.store.connect(&journals).await?;
        for at in 0..inner.keys.len() {
            inner.read_journal(at).await?;
            if self.tell(at).await {
                inner.read_journal(at).await?;
            }
        }
        if self.lengthened.is_none_or(|last| last.elapsed() > LENGTHEN) {
            self.lengthened = Some(Instant::now());
            let lengthen = inner.keys.iter().map(|key| {
                let life = JOURNAL_LIFE.as_secs();
                let command = redis::cmd("EXPIRE").arg(&*key.journal).arg(life).to_owned();
                Command { key: key.journal.clone(), command, most: 0 }
            });
            inner.store.run(Operation::Sync, lengthen.collect(), inner.config.timeout).await;
            let span = Duration::from_millis(inner.revalidate).max(purges::span_of_links(&inner.freshness));
            let now = inner.clock.now();
            inner.journals().iter_mut().for_each(|journal| journal.sweep(now, span));
        }
        Ok(())
    }

    /// Appends what is to be told. Whether anything was.
    async fn tell(&mut self, at: usize) -> bool {
        let inner = Arc::clone(&self.inner);
        let Some(key) = inner.keys.get(at) else { return false };
        let text = inner.journals().get_mut(at).and_then(|journal| journal.take_pending(key));
        let Some(text) = text else { return false };
        let command = redis::cmd("APPEND").arg(&*key.journal).arg(text).to_owned();
        let append = vec![Command { key: key.journal.clone(), command, most: 0 }];
        let replies = inner.store.run(Operation::Revoke, append, inner.config.timeout).await;
        if matches!(replies.as_slice(), [Some(Value::Int(_))]) {
            self.refused = None;
            return true;
        }
        // A full server takes nothing in, but it lets go: without a journal nothing counts that is there.
        if self.refused.get_or_insert_with(Instant::now).elapsed() > REFUSED {
            self.refused = None;
            inner.store.run(Operation::Revoke, vec![delete(key.journal.clone())], inner.config.timeout).await;
        }
        false
    }
}

/// How a journal stands after reading on in it.
pub(super) enum State {
    /// All of it is known.
    Known,
    /// So it is, and it has become too long.
    Full,
    /// It has not been read yet.
    Unknown,
    /// What was known does not stand there any more.
    Lost,
}

impl Inner {
    /// Reads on in a journal, or anew where it is another one, and heeds its news. No batch waits for this.
    ///
    /// # Errors
    /// Why it cannot be read, for an operator.
    pub(super) async fn read_journal(&self, at: usize) -> Result<(), String> {
        match self.read_on(at, WHOLE).await? {
            State::Known => Ok(()),
            State::Full => self.begin_anew(at).await,
            State::Unknown => self.read_whole(at, false).await,
            State::Lost => self.read_whole(at, true).await,
        }
    }

    /// Reads on in a journal that is known, in one round trip within `limit`, and heeds its news.
    ///
    /// # Errors
    /// Why it cannot be read, for an operator. A server that says nothing has not lost a journal.
    pub(super) async fn read_on(&self, at: usize, limit: Duration) -> Result<State, String> {
        let unreadable = || "the journal cannot be read or written".to_owned();
        let key = self.keys.get(at).ok_or_else(unreadable)?;
        let (known, from, full) = {
            let journals = self.journals();
            let journal = journals.get(at).ok_or_else(unreadable)?;
            (journal.stamp().is_some(), journal.read_from(), journal.is_full())
        };
        if !known {
            return Ok(State::Unknown);
        }
        let on = vec![head(key), range(key, i64::try_from(from).unwrap_or(i64::MAX), -1, MOST)];
        let replies = self.store.run(Operation::Sync, on, limit).await;
        let [Some(Value::BulkString(first)), Some(Value::BulkString(text))] = replies.as_slice() else {
            return if self.is_of_another_type(key, limit).await { Ok(State::Lost) } else { Err(unreadable()) };
        };
        let now = self.clock.now();
        let read = {
            let mut journals = self.journals();
            let journal = journals.get_mut(at).ok_or_else(unreadable)?;
            if journal.read_from() != from {
                return Ok(State::Known); // Someone else has read on meanwhile.
            }
            journal.read(key, first, text, now)
        };
        match read {
            Read::News(news) => {
                self.heed(at, &news);
                Ok(if full { State::Full } else { State::Known })
            }
            Read::Lost => {
                self.metrics.shared.count_failure(Kind::Journal);
                Ok(State::Lost)
            }
        }
    }

    /// Whether what stands in a journal's place is no string. Only an answer says so.
    async fn is_of_another_type(&self, key: &super::FleetKey, limit: Duration) -> bool {
        let command = redis::cmd("TYPE").arg(&*key.journal).to_owned();
        let ask = vec![Command { key: key.journal.clone(), command, most: 64 }];
        match self.store.run(Operation::Sync, ask, limit).await.as_slice() {
            [Some(Value::SimpleString(kind))] => kind != "string" && kind != "none",
            _ => false,
        }
    }

    /// Reads a whole journal, in place of what was known of another one. One that is not there begins; so does, in place of
    /// what is there, one that is not another one, though `changed`, or is nobody's.
    async fn read_whole(&self, at: usize, changed: bool) -> Result<(), String> {
        let unreadable = || "the journal cannot be read or written".to_owned();
        let key = self.keys.get(at).ok_or_else(unreadable)?;
        for _ in 0..3 {
            let replies = self.store.run(Operation::Sync, vec![range(key, 0, -1, MOST), length(key)], WHOLE).await;
            let text = match replies.as_slice() {
                [Some(Value::BulkString(text)), Some(Value::Int(_))] => text.as_slice(),
                _ if self.is_of_another_type(key, WHOLE).await => b"of another type",
                _ => return Err(unreadable()),
            };
            if text.is_empty() {
                self.begin(key, true).await?;
                continue;
            }
            let now = self.clock.now();
            let read = {
                let mut journals = self.journals();
                let journal = journals.get_mut(at).ok_or_else(unreadable)?;
                let same = text.get(..RECORD).is_some_and(|first| journal.first() == Some(first));
                if changed && same { Read::Lost } else { journal.adopt(key, text, now) }
            };
            match read {
                Read::News(news) => {
                    self.heed(at, &news);
                    return Ok(());
                }
                Read::Lost => self.begin(key, false).await?,
            }
        }
        Err(unreadable())
    }

    /// Begins a journal that has become too long anew.
    async fn begin_anew(&self, at: usize) -> Result<(), String> {
        if let Some(key) = self.keys.get(at) {
            self.begin(key, false).await?;
        }
        self.read_whole(at, false).await
    }

    async fn begin(&self, key: &super::FleetKey, if_absent: bool) -> Result<(), String> {
        let first = journal::begin(key).ok_or("the journal cannot be sealed")?;
        let life = JOURNAL_LIFE.as_secs();
        let mut command = redis::cmd("SET");
        command.arg(&*key.journal).arg(first).arg("EX").arg(life);
        if if_absent {
            command.arg("NX");
        }
        let begin = vec![Command { key: key.journal.clone(), command, most: 0 }];
        match self.store.run(Operation::Sync, begin, WHOLE).await.as_slice() {
            [Some(_)] => Ok(()),
            _ => Err("the journal cannot be written: is the server read-only, or full?".to_owned()),
        }
    }

    /// What others have told counts here.
    fn heed(&self, at: usize, news: &[Event]) {
        let now = self.clock.now();
        for says in news {
            match says {
                Event::Begin => {}
                Event::All => self.purges.mark(Mark::All, now),
                // Who has both secrets tells in both journals; here things are called as in the first.
                Event::Over(name) if at == 0 => self.purges.mark(Mark::Over(Name(*name)), now),
                Event::Over(_) => {}
                Event::Caller(hash) => self.caller_states.drop_named(*hash, now),
            }
        }
    }
}
