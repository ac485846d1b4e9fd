//! Ids that the endpoint refuses to a caller, with a 403 or a 200 that is an error.
//!
//! Two things are remembered, both by [`Key`], so neither crosses scopes or outlives a caller's generation:
//! - of every id in a refused call, when that call was sent: an item from a call sent no later is not kept any more, also
//!   where another call brings it, or the shared tier has it still;
//! - of a call that asked for one id alone, the answer, for `freshness.absent`: a batch of exactly that id gets it again.
//!
//! Both are bounded; what is evicted costs a call.

use std::hash::BuildHasherDefault;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use quick_cache::sync::{self, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter, Weighter};

use super::KeyHasher;
use super::freshness::Deadlines;
use super::purges::Marks;
use crate::auth::Key;
use crate::clock::Moment;

/// Bytes of remembered answers: of callers that the endpoint accepts, and as many of those that it does not, so that
/// made-up tokens evict nothing of a caller's.
const ANSWER_BYTES: u64 = 1 << 20;
/// Bytes that an answer takes besides its headers and body.
const ENTRY_BYTES: usize = 512;
/// Bytes that a header takes besides its name and value.
const HEADER_BYTES: usize = 96;
/// Longest body that is remembered, and longest head.
const LONGEST: usize = 16 << 10;
/// Most ids of which the time of the refused call is remembered.
const IDS: usize = 1 << 14;
/// Milliseconds for which it is: longer than a call that was under way at the time.
const SENT_FOR: u64 = 10 * 60 * 1000;
/// Shards of each table; each takes its share of the bytes, of which one answer must leave room.
const SHARDS: usize = 4;

/// The endpoint's answer to a call that asked for one id alone, and until when it counts.
pub struct Refusal {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Fresh for `freshness.absent` from when the call was sent, at most.
    pub deadlines: Deadlines,
}

impl Refusal {
    /// A copy, which keeps no read buffer alive. `None`: it is too long to be remembered, or not to be remembered at all.
    pub fn new(status: StatusCode, headers: &HeaderMap, body: &[u8], deadlines: Deadlines) -> Option<Self> {
        let head: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_BYTES).sum();
        if body.len() > LONGEST || head > LONGEST || deadlines.fresh_left(deadlines.sent()).is_none() {
            return None;
        }
        let mut copied = HeaderMap::with_capacity(headers.len());
        for (name, value) in headers {
            copied.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
        }
        Some(Self { status, headers: copied, body: Bytes::copy_from_slice(body), deadlines })
    }

    fn bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_BYTES);
        ENTRY_BYTES + self.body.len() + headers.sum::<usize>()
    }
}

#[derive(Clone)]
struct AnswerWeight;

impl Weighter<Key, Arc<Refusal>> for AnswerWeight {
    fn weight(&self, _: &Key, refusal: &Arc<Refusal>) -> u64 {
        refusal.bytes() as u64
    }
}

type Hashed = BuildHasherDefault<KeyHasher>;
type Answers = sync::Cache<Key, Arc<Refusal>, AnswerWeight, Hashed>;

/// What the endpoint has refused lately.
pub struct Refusals {
    accepted: Answers,
    unaccepted: Answers,
    /// When the last refused call for an id was sent.
    sent: sync::Cache<Key, Moment, UnitWeighter, Hashed>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { accepted: answers(), unaccepted: answers(), sent: sent_times() }
    }
}

impl Refusals {
    /// Whether nothing was refused lately, so that there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.accepted.is_empty() && self.unaccepted.is_empty()
    }

    /// A call for the id of `key`, sent at `sent`, was refused.
    pub fn refused(&self, key: Key, sent: Moment) {
        let later = self.sent.peek(&key).filter(|known| known.monotonic > sent.monotonic);
        self.sent.insert(key, later.unwrap_or(sent));
    }

    /// Whether a call for the id of `key` that was sent at `sent` or later was refused.
    pub fn is_refused_since(&self, key: Key, sent: Moment) -> bool {
        self.sent.peek(&key).is_some_and(|refused| refused.monotonic >= sent.monotonic)
    }

    /// Remembers the answer to a call for the id of `key` alone, for a caller that the endpoint accepts or not.
    pub fn remember(&self, key: Key, refusal: Refusal, is_accepted: bool) {
        let (table, other) =
            if is_accepted { (&self.accepted, &self.unaccepted) } else { (&self.unaccepted, &self.accepted) };
        other.remove(&key);
        table.insert(key, Arc::new(refusal));
    }

    /// The answer remembered under `key`, that of `id`, if it counts at `now` and was not purged.
    pub fn look_up(&self, key: Key, id: &str, marks: &Marks<'_>, now: Moment) -> Option<Arc<Refusal>> {
        let refusal = self.accepted.get(&key).or_else(|| self.unaccepted.get(&key))?;
        let counts = refusal.deadlines.fresh_left(now).is_some() && !marks.cover(id, refusal.deadlines.sent());
        counts.then_some(refusal)
    }

    /// A call for the id of `key`, sent at `sent`, was not refused: an answer from before counts no more.
    pub fn not_refused(&self, key: Key, sent: Moment) {
        for table in [&self.accepted, &self.unaccepted] {
            table.remove_if(&key, |refusal| refusal.deadlines.sent().monotonic < sent.monotonic);
        }
    }

    /// Forgets what counts no more at `now`.
    pub fn sweep(&self, now: Moment) {
        for table in [&self.accepted, &self.unaccepted] {
            table.retain(|_, refusal| refusal.deadlines.fresh_left(now).is_some());
        }
        self.sent.retain(|_, sent| now.since(*sent) < SENT_FOR);
    }
}

fn answers() -> Answers {
    let entries = usize::try_from(ANSWER_BYTES).unwrap_or(usize::MAX) / ENTRY_BYTES / 2;
    let mut options = OptionsBuilder::new();
    options.shards(SHARDS).estimated_items_capacity(entries).weight_capacity(ANSWER_BYTES);
    match options.build() {
        Ok(options) => Answers::with_options(options, AnswerWeight, Hashed::default(), DefaultLifecycle::default()),
        // Never: both numbers are given.
        Err(_) => Answers::with(entries, ANSWER_BYTES, AnswerWeight, Hashed::default(), DefaultLifecycle::default()),
    }
}

fn sent_times() -> sync::Cache<Key, Moment, UnitWeighter, Hashed> {
    sync::Cache::with(IDS, IDS as u64, UnitWeighter, Hashed::default(), DefaultLifecycle::default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::Scope;
    use crate::cache::purges::Purges;
    use crate::clock::Clock;

    fn refusal(body: usize, sent: Moment) -> Option<Refusal> {
        let deadlines = Deadlines::absent(sent, Duration::from_secs(5));
        Refusal::new(StatusCode::FORBIDDEN, &HeaderMap::new(), &vec![b'x'; body], deadlines)
    }

    #[tokio::test(start_paused = true)]
    async fn long_bodies_and_empty_spans_are_not_remembered() {
        let now = Clock::simulated(0).now();
        assert!(refusal(LONGEST, now).is_some());
        assert!(refusal(LONGEST + 1, now).is_none());
        let none = Deadlines::absent(now, Duration::ZERO);
        assert!(Refusal::new(StatusCode::FORBIDDEN, &HeaderMap::new(), b"", none).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_stay_within_their_bytes_and_made_up_tokens_evict_none_of_a_callers() {
        let (refusals, now) = (Refusals::default(), Clock::simulated(0).now());
        let purges = Purges::new([7; 16], Duration::from_secs(60));
        let marks = purges.of_group(None);
        let (caller, made_up) = (Scope::of_test(1), Scope::of_test(2));
        refusals.remember(caller.key("1"), refusal(LONGEST, now).unwrap(), true);
        for id in 0..5_000 {
            refusals.remember(made_up.key(&id.to_string()), refusal(1000, now).unwrap(), false);
            refusals.refused(made_up.key(&id.to_string()), now);
        }
        assert!(refusals.look_up(caller.key("1"), "1", &marks, now).is_some());
        assert!(refusals.unaccepted.weight() <= ANSWER_BYTES && refusals.unaccepted.len() > 100);
        for id in 0..100_000 {
            refusals.refused(made_up.key(&id.to_string()), now);
        }
        assert!(refusals.sent.len() <= IDS);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_until_a_later_call_is_not_refused() {
        let (refusals, clock) = (Refusals::default(), Clock::simulated(0));
        let purges = Purges::new([7; 16], Duration::from_secs(60));
        let marks = purges.of_group(None);
        let (key, first) = (Scope::of_test(1).key("1"), clock.now());
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = clock.now();
        refusals.remember(key, refusal(1, second).unwrap(), true);
        refusals.refused(key, second);
        refusals.not_refused(key, first);
        assert!(refusals.look_up(key, "1", &marks, second).is_some());
        assert!(refusals.is_refused_since(key, first) && refusals.is_refused_since(key, second));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!refusals.is_refused_since(key, clock.now()));
        refusals.not_refused(key, clock.now());
        assert!(refusals.look_up(key, "1", &marks, clock.now()).is_none());
    }
}
