//! Whole answers: the merged bodies of batches that come again as they were written. One look-up answers such a batch, without
//! reading its ids and without merging. Start at [`WholeAnswers::look_up`].
//!
//! A whole answer is stored once its batch has come twice, if memory answers all of its ids with fresh entries, none of which is
//! due for a refresh. It is found under a hash of its caller's scope and of the request's text, and compared with both. What is left of
//! expiries in seconds from now is written into it anew for each client ([`CountedDown`]).
//!
//! A whole answer ends when
//! - anything is purged, by any client ([`Revision`]);
//! - its caller is invalidated or loses an entry ([`Revision`]);
//! - a batch of its caller fetches ids although they may be fresh: as the client's directives say, or because the caller must
//!   revalidate ([`Revision`]);
//! - one of its entries becomes due for a refresh ([`WholeAnswer::is_usable`]);
//! - its caller must revalidate, or the client's directives may exclude fresh entries: the batch does not look for it then;
//! - a configuration is applied: each has whole answers of its own.
//!
//! Neither an eviction nor a refresh ahead of one of its entries ends it: the answer's links are as good as before.
//!
//! moka's expiry only frees memory: [`WholeAnswer::is_usable`] decides, by the same clocks as for entries.

use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::Expiry;
use moka::sync;

use super::countdown::{CountedDown, MergedCountdown};
use super::{Cache, Entry};
use crate::api::envelope::Envelope;
use crate::auth::{Identity, Key, KeyHasher, Scope};
use crate::clock::Moment;
use crate::config::CacheConfig;
use crate::telemetry::metrics::{IdResult, Tally};

/// Bytes of a whole answer besides its body, its request's text and its expiries: key, bookkeeping, the allocator's rounding.
const ANSWER_BYTES: usize = 704;
/// One use of an answer in this many counts as a use of its entries, so that the cache keeps those that are asked for.
const TOUCH_EVERY: u32 = 16;
/// Bytes of items and request of the longest answer that is stored.
const LONGEST: usize = 1 << 17;
/// Places for the hashes of requests that came once.
const SEEN: usize = 1 << 13;

/// A batch as its client wrote it.
#[derive(Clone, Copy)]
pub(crate) struct Written<'r> {
    /// The scope of its caller and headers. The group is part of the text.
    scope: Scope,
    text: &'r [u8],
    is_body: bool,
    /// A hash of the text, seeded by the scope, which is secret. It only has to spread answers: each is compared with the text.
    hash: u64,
}

impl<'r> Written<'r> {
    /// The text of a request: its query, or its body. The query beside a body is a part of the scope then. `None` if it has neither,
    /// and is no batch.
    pub(crate) fn new(scope: Scope, query: Option<&'r str>, body: &'r [u8]) -> Option<Self> {
        let query = query.unwrap_or_default().as_bytes();
        let (scope, text, is_body) = match (query, body) {
            (text, []) => (scope, text, false),
            ([], text) => (scope, text, true),
            (query, text) => (scope.of_fields(b"query", [query].into_iter()), text, true),
        };
        (!text.is_empty()).then(|| Self { scope, text, is_body, hash: hash(scope, text) })
    }
}

fn hash(scope: Scope, text: &[u8]) -> u64 {
    // Several times faster than a keyed cryptographic hash, on texts of kilobytes.
    let mut hasher = foldhash::fast::FixedState::with_seed(scope.seed()).build_hasher();
    hasher.write(text);
    hasher.finish()
}

/// Two counters. If one has changed, whole answers of this caller from before the change have ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Revision {
    /// Counts purges of anything.
    purges: u64,
    /// Counts changes of the owner's entries, and a caller's invalidations.
    owner: u64,
}

impl Revision {
    /// Reads the counters. Must be called before the entries of an answer are looked up.
    pub(crate) fn of(cache: &Cache, identity: &Identity) -> Self {
        Self { purges: cache.purges().revision(), owner: identity.owner().revision() }
    }
}

/// The answer to one batch: its merged body, and what the reply, the log and the metrics need of it.
pub(crate) struct WholeAnswer {
    scope: Scope,
    written: Box<[u8]>,
    is_body: bool,
    revision: Revision,
    /// When the first of its entries becomes due for a refresh.
    usable_until: Moment,
    /// When the first of its entries stops being fresh.
    fresh_until: Moment,
    body: Bytes,
    /// The numbers in the body that are written anew for each client, in their order.
    countdowns: Box<[MergedCountdown]>,
    /// Its envelope, if that came with its entries.
    envelope: Option<Arc<Envelope>>,
    tally: Tally,
    /// The keys of its entries.
    keys: Box<[Key]>,
    /// When its links expire, in milliseconds on the monotonic clock, the earliest first.
    expiries: Box<[u64]>,
    uses: AtomicU32,
}

impl WholeAnswer {
    /// The answer of `entries`, one for each id of the batch in the order asked, which were looked up at `revision`, are fresh and have
    /// one envelope; `own` is that of their API, if it names one. `None` if the answer is too long to be stored, or if an entry is due
    /// for a refresh.
    pub(crate) fn new<'e>(
        written: &Written<'_>,
        revision: Revision,
        entries: impl Iterator<Item = (&'e Entry, Key)> + Clone,
        own: Option<&Envelope>,
        now: Moment,
    ) -> Option<Self> {
        let envelope = entries.clone().next().and_then(|(entry, _)| entry.envelope()).cloned();
        let around = envelope.as_deref().or(own)?;
        let (mut tally, mut bytes, mut expiries) = (Tally::default(), written.text.len(), Vec::new());
        let (mut countdowns, mut offset) = (Vec::new(), around.head().len());
        let [mut usable_until, mut fresh_until] = [Moment::NEVER; 2];
        for (entry, key) in entries.clone() {
            let (text, deadlines) = (entry.text(), entry.deadlines());
            tally.add(if entry.is_absent() { IdResult::Absent } else { IdResult::Hit });
            bytes += text.map_or(0, <[u8]>::len);
            let merged = |countdown| MergedCountdown::new(countdown, offset, deadlines.sent());
            countdowns.extend(entry.countdowns().iter().map(merged));
            offset += text.map_or(0, |text| text.len() + 1);
            fresh_until = fresh_until.min(deadlines.fresh_until());
            usable_until = usable_until.min(deadlines.ageing_from(key.spread()));
            expiries.extend(deadlines.expires());
        }
        if bytes > LONGEST || !now.is_before(usable_until) {
            return None;
        }
        expiries.sort_unstable();
        let body = around.merge(entries.clone().filter_map(|(entry, _)| entry.text()));
        Some(Self {
            scope: written.scope,
            written: written.text.into(),
            is_body: written.is_body,
            revision,
            usable_until,
            fresh_until,
            keys: entries.map(|(_, key)| key).collect(),
            body,
            countdowns: countdowns.into(),
            envelope,
            tally,
            expiries: expiries.into(),
            uses: AtomicU32::new(0),
        })
    }

    fn is_of(&self, written: &Written<'_>) -> bool {
        self.scope == written.scope && self.is_body == written.is_body && *self.written == *written.text
    }

    /// Whether each of its entries may still be served, without a refresh.
    fn is_usable(&self, revision: Revision, now: Moment) -> bool {
        self.revision == revision && now.is_before(self.usable_until)
    }

    /// Whether its batch is written in the body.
    pub(crate) fn is_body(&self) -> bool {
        self.is_body
    }

    /// The body, if it is the same for each client.
    pub(crate) fn constant_body(&self) -> Option<&Bytes> {
        self.countdowns.is_empty().then_some(&self.body)
    }

    /// The body as it is answered at `now`.
    pub(crate) fn body(&self, now: Moment) -> CountedDown<'_> {
        CountedDown::new(&self.body, &self.countdowns, now)
    }

    /// Its envelope, if that came with its entries.
    pub(crate) fn envelope(&self) -> Option<&Envelope> {
        self.envelope.as_deref()
    }

    /// Milliseconds until the first of its entries stops being fresh.
    pub(crate) fn fresh_left(&self, now: Moment) -> u64 {
        self.fresh_until.left(now)
    }

    /// The results of its ids.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Seconds until each of its links expires, the earliest first.
    pub(crate) fn lives_left(&self, now: Moment) -> impl Iterator<Item = f64> {
        self.expiries.iter().map(move |expiry| expiry.saturating_sub(now.monotonic) as f64 / 1000.0)
    }

    fn bytes(&self) -> u32 {
        let bytes = self.body.len()
            + self.written.len()
            + size_of_val(&*self.countdowns)
            + size_of_val(&*self.expiries)
            + size_of_val(&*self.keys)
            + self.envelope().map_or(0, Envelope::bytes)
            + ANSWER_BYTES;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

/// Frees the memory of answers that cannot be used any more.
struct FreeUnusable;

impl Expiry<u64, Stored> for FreeUnusable {
    fn expire_after_create(&self, _: &u64, stored: &Stored, _: Instant) -> Option<Duration> {
        Some(stored.keep)
    }

    fn expire_after_update(&self, _: &u64, stored: &Stored, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(stored.keep)
    }
}

#[derive(Clone)]
struct Stored {
    answer: Arc<WholeAnswer>,
    /// How long moka keeps it.
    keep: Duration,
}

/// How a batch is to be answered.
pub(crate) enum Found {
    /// By this whole answer.
    Answer(Arc<WholeAnswer>),
    /// From its entries. The same text came before, so its next answer is to be stored.
    SeenBefore,
    /// From its entries. Its answer is not to be stored.
    LookUpEntries,
}

/// The part of `cache.capacity` that whole answers may take, in bytes.
pub(super) fn capacity(all: u64) -> u64 {
    all / 8
}

/// The whole answers of one configuration, bounded by bytes.
pub(crate) struct WholeAnswers {
    stored: sync::Cache<u64, Stored, BuildHasherDefault<KeyHasher>>,
    /// Hashes of requests that came once. Most batches never come again, and storing their answers would cost more than it saves.
    seen: Box<[AtomicU32]>,
}

impl WholeAnswers {
    /// No answers yet, of at most an eighth of `config.capacity`.
    pub(crate) fn new(config: &CacheConfig) -> Self {
        let stored = sync::Cache::builder().max_capacity(capacity(config.capacity));
        let stored = stored.weigher(|_, stored: &Stored| stored.answer.bytes()).expire_after(FreeUnusable);
        Self {
            stored: stored.build_with_hasher(BuildHasherDefault::default()),
            seen: (0..SEEN).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Looks up the answer to a batch whose caller is at `revision`. Now and then its entries in `cache` count as used.
    pub(crate) fn look_up(&self, written: &Written<'_>, revision: Revision, now: Moment, cache: &Cache) -> Found {
        match self.stored.get(&written.hash) {
            Some(Stored { answer, .. }) if answer.is_of(written) => {
                if !answer.is_usable(revision, now) {
                    // One that ended before it was used, as under many purges, was stored for nothing: not again at once.
                    let was_used = answer.uses.load(Ordering::Relaxed) > 0;
                    let is_wanted = was_used || self.was_seen(written.hash);
                    return if is_wanted { Found::SeenBefore } else { Found::LookUpEntries };
                }
                if answer.uses.fetch_add(1, Ordering::Relaxed) % TOUCH_EVERY == 0 {
                    cache.touch(&answer.keys);
                }
                Found::Answer(answer)
            }
            _ if self.was_seen(written.hash) => Found::SeenBefore,
            _ => Found::LookUpEntries,
        }
    }

    /// Stores the answer to a batch. Must not be called while entries are locked: moka may sweep meanwhile.
    pub(crate) fn insert(&self, written: &Written<'_>, answer: WholeAnswer, now: Moment) {
        let keep = Duration::from_millis(answer.usable_until.left(now));
        self.stored.insert(written.hash, Stored { answer: Arc::new(answer), keep });
    }

    /// Frees the memory of answers that have expired. If this is not called every second or so, a look-up pays for it.
    pub(crate) fn sweep(&self) {
        self.stored.run_pending_tasks();
    }

    /// Ends all answers.
    pub(crate) fn clear(&self) {
        self.stored.invalidate_all();
    }

    /// Number of answers, and their bytes, at the last sweep.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.stored.entry_count(), self.stored.weighted_size())
    }

    /// Whether the text of this hash was seen lately; notes it.
    fn was_seen(&self, hash: u64) -> bool {
        let [a, b, c, d, e, f, ..] = hash.to_le_bytes();
        let (place, part) = (u16::from_le_bytes([a, b]), u32::from_le_bytes([c, d, e, f]));
        let place = self.seen.get(usize::from(place) % SEEN);
        place.is_some_and(|place| place.swap(part, Ordering::Relaxed) == part)
    }
}
