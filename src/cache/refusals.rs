//! Ids that the endpoint refuses to a caller, with a 403 or a 200 that is an error.
//!
//! Two things are remembered, both by [`Key`], so neither crosses scopes, and none is found once the caller's entries are dropped:
//! - for every id of a refused call, when that call was sent: items of calls sent no later are not stored, wherever they come
//!   from, the shared tier included;
//! - for a call that asked for one id alone, its answer, for `freshness.absent`: a batch of exactly that id gets it again.
//!
//! Both are bounded; an eviction costs a call.

use std::hash::BuildHasherDefault;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use quick_cache::unsync::Cache;
use quick_cache::{UnitWeighter, Weighter};

use super::KeyHasher;
use super::freshness::Deadlines;
use super::purges::Marks;
use crate::auth::{Caller, Key};
use crate::clock::Moment;
use crate::message::headers::copied;

/// Bytes of remembered answers to accepted callers. Answers to other callers have as many bytes of their own, so that made-up
/// tokens evict no accepted caller's answers.
const ANSWER_BYTES: u64 = 1 << 20;
/// Bytes of an answer besides its headers and body.
const ENTRY_BYTES: usize = 512;
/// Bytes of a header besides its name and value.
const HEADER_BYTES: usize = 96;
/// Longest body, and longest head, that is remembered.
const LONGEST: usize = 16 << 10;
/// Most ids whose refused call's send time is remembered.
const IDS: usize = 1 << 14;
/// Milliseconds for which a send time is remembered: longer than any call that was under way then.
const SENT_FOR: u64 = 10 * 60 * 1000;

/// The endpoint's answer to a call that asked for one id alone.
pub(crate) struct Refusal {
    /// Whose call it was: it is no answer to other callers that are the same user.
    caller: Caller,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Fresh for `freshness.absent` from when the call was sent, at most.
    pub(crate) deadlines: Deadlines,
    head_bytes: usize,
}

impl Refusal {
    /// A copy, which keeps no read buffer alive. `None` if the answer is too long, or fresh for no time.
    pub(crate) fn new(
        caller: Caller,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        deadlines: Deadlines,
    ) -> Option<Self> {
        let head_bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_BYTES).sum();
        if body.len() > LONGEST || head_bytes > LONGEST || deadlines.fresh_left(deadlines.sent()).is_none() {
            return None;
        }
        let (headers, body) = (copied(headers), Bytes::copy_from_slice(body));
        Some(Self { caller, status, headers, body, deadlines, head_bytes })
    }
}

struct AnswerWeight;

impl Weighter<Key, Arc<Refusal>> for AnswerWeight {
    fn weight(&self, _: &Key, refusal: &Arc<Refusal>) -> u64 {
        (ENTRY_BYTES + refusal.head_bytes + refusal.body.len()) as u64
    }
}

type RefusalTable = Cache<Key, Arc<Refusal>, AnswerWeight, BuildHasherDefault<KeyHasher>>;

struct Tables {
    /// Answers to callers that the endpoint accepts, and to others.
    answers: [RefusalTable; 2],
    /// When the last refused call for an id was sent.
    sent: Cache<Key, Moment, UnitWeighter, BuildHasherDefault<KeyHasher>>,
}

/// What the endpoint has refused lately.
pub(crate) struct Refusals(Mutex<Tables>);

impl Default for Refusals {
    fn default() -> Self {
        let entries = (1 << 20) / ENTRY_BYTES / 2;
        let answers = || {
            RefusalTable::with(entries, ANSWER_BYTES, AnswerWeight, BuildHasherDefault::default(), Default::default())
        };
        let sent = Cache::with(IDS, IDS as u64, UnitWeighter, BuildHasherDefault::default(), Default::default());
        Self(Mutex::new(Tables { answers: [answers(), answers()], sent }))
    }
}

impl Refusals {
    /// Whether nothing was refused lately.
    pub(crate) fn is_empty(&self) -> bool {
        let tables = self.0.lock();
        tables.sent.is_empty() && tables.answers.iter().all(RefusalTable::is_empty)
    }

    /// Records that a call for the id of `key`, sent at `sent`, was refused.
    pub(crate) fn note_refused(&self, key: Key, sent: Moment) {
        let sent_times = &mut self.0.lock().sent;
        let later = sent_times.peek(&key).copied().filter(|known| known.monotonic > sent.monotonic);
        sent_times.insert(key, later.unwrap_or(sent));
    }

    /// Whether a call for the id of `key` that was sent at `sent` or later was refused.
    pub(crate) fn is_refused_since(&self, key: Key, sent: Moment) -> bool {
        self.0.lock().sent.peek(&key).is_some_and(|refused| refused.monotonic >= sent.monotonic)
    }

    /// Remembers the answer to a call for the id of `key` alone, for a caller that the endpoint accepts or not.
    pub(crate) fn remember(&self, key: Key, refusal: Refusal, is_accepted: bool) {
        let [accepted, unaccepted] = &mut self.0.lock().answers;
        let (answers, other) = if is_accepted { (accepted, unaccepted) } else { (unaccepted, accepted) };
        other.remove(&key);
        answers.insert(key, Arc::new(refusal));
    }

    /// The answer remembered for `caller` under `key`, the key of `id`, if it is fresh at `now` and was not purged.
    pub(crate) fn look_up(
        &self,
        caller: Caller,
        key: Key,
        id: &str,
        marks: &Marks<'_>,
        now: Moment,
    ) -> Option<Arc<Refusal>> {
        let refusal = self.0.lock().answers.iter().find_map(|answers| answers.get(&key).cloned())?;
        let is_fresh = refusal.deadlines.fresh_left(now).is_some() && !marks.cover(id, refusal.deadlines.sent());
        let counts = is_fresh && refusal.caller == caller;
        counts.then_some(refusal)
    }

    /// Records that a call for the id of `key`, sent at `sent`, was not refused: forgets earlier answers.
    pub(crate) fn note_accepted(&self, key: Key, sent: Moment) {
        for answers in &mut self.0.lock().answers {
            answers.remove_if(&key, |refusal| refusal.deadlines.sent().monotonic < sent.monotonic);
        }
    }

    /// Forgets what is out of date at `now`.
    pub(super) fn sweep(&self, now: Moment) {
        let Tables { answers, sent } = &mut *self.0.lock();
        for answers in answers {
            answers.retain(|_, refusal| refusal.deadlines.fresh_left(now).is_some());
        }
        sent.retain(|_, sent| now.since(*sent) < SENT_FOR);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::Scope;

    const CALLER: fn() -> Caller = || Caller::of_test(1);
    use crate::cache::purges::Purges;
    use crate::clock::Clock;

    fn refusal(body: usize, sent: Moment) -> Option<Refusal> {
        let deadlines = Deadlines::absent(sent, Duration::from_secs(5));
        Refusal::new(CALLER(), StatusCode::FORBIDDEN, &HeaderMap::new(), &vec![b'x'; body], deadlines)
    }

    #[tokio::test(start_paused = true)]
    async fn long_answers_and_empty_spans_are_not_remembered() {
        let now = Clock::simulated(0).now();
        assert!(refusal(LONGEST, now).is_some());
        assert!(refusal(LONGEST + 1, now).is_none());
        let none = Deadlines::absent(now, Duration::ZERO);
        assert!(Refusal::new(CALLER(), StatusCode::FORBIDDEN, &HeaderMap::new(), b"", none).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_stay_within_their_bytes_and_made_up_tokens_evict_no_accepted_callers_answers() {
        let (refusals, now) = (Refusals::default(), Clock::simulated(0).now());
        let purges = Purges::new([7; 16], Duration::from_secs(60));
        let marks = purges.of("a", None);
        let (caller, made_up) = (Scope::of_test(1), Scope::of_test(2));
        refusals.remember(caller.key("1"), refusal(LONGEST, now).unwrap(), true);
        for id in 0..5_000 {
            refusals.remember(made_up.key(&id.to_string()), refusal(1000, now).unwrap(), false);
            refusals.note_refused(made_up.key(&id.to_string()), now);
        }
        assert!(refusals.look_up(CALLER(), caller.key("1"), "1", &marks, now).is_some());
        let unaccepted = |tables: &Tables| (tables.answers[1].weight(), tables.answers[1].len());
        let (weight, count) = unaccepted(&refusals.0.lock());
        assert!(weight <= ANSWER_BYTES && count > 100);
        for id in 0..100_000 {
            refusals.note_refused(made_up.key(&id.to_string()), now);
        }
        assert!(refusals.0.lock().sent.len() <= IDS);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_until_a_later_call_is_not_refused() {
        let (refusals, clock) = (Refusals::default(), Clock::simulated(0));
        let purges = Purges::new([7; 16], Duration::from_secs(60));
        let marks = purges.of("a", None);
        let (key, first) = (Scope::of_test(1).key("1"), clock.now());
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = clock.now();
        refusals.remember(key, refusal(1, second).unwrap(), true);
        refusals.note_refused(key, second);
        refusals.note_accepted(key, first);
        assert!(refusals.look_up(CALLER(), key, "1", &marks, second).is_some());
        assert!(refusals.is_refused_since(key, first) && refusals.is_refused_since(key, second));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!refusals.is_refused_since(key, clock.now()));
        refusals.note_accepted(key, clock.now());
        assert!(refusals.look_up(CALLER(), key, "1", &marks, clock.now()).is_none());
    }
}
