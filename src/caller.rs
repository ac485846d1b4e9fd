//! Who asks: credentials → [`Caller`] → [`Scope`] → [`Key`].
//!
//! Everything here is a keyed 128-bit hash over length-prefixed fields (SipHash-2-4-128, key drawn at start), so neither
//! two field lists that run together nor a token and its prefix can meet, and a dump of memory's keys names nobody.
//! A scope holds its caller's *generation*: dropping everything kept for a caller is drawing a new one, at once and
//! whatever the number of links; what a call brings that left before is filed under the old one, where nobody looks.

use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, COOKIE, RANGE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue};
use siphasher::sip128::{Hasher128, SipHasher24};
use tokio::sync::Semaphore;

use crate::api;
use crate::clock::{Clock, Moment, millis};
use crate::config;
use crate::hold::Hold;

/// Most callers remembered at a time: so many that the endpoint has accepted, and so many that it has not, apart, so that
/// nobody crowds out callers by making up tokens. The least recently seen is forgotten, and its links with it.
const CALLERS: u64 = 50_000;

/// Who asks: a token's keyed hash. Never the token itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller(u128);

impl Caller {
    /// Eight hex digits for a log line: enough to follow a caller, useless to become one.
    pub fn short(self) -> String {
        format!("{:08x}", self.0 >> 96)
    }
}

/// Caller, group and the values of the headers that may change an answer. Links never cross scopes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope(u128);

/// One id in one scope.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u128);

impl Key {
    /// A number from 0 to 1 that is this key's own, so that links fetched together need not be refreshed together.
    pub fn spread(self) -> f64 {
        let [low, ..] = self.0.to_le_bytes();
        f64::from(low) / 255.0
    }
}

/// What is remembered of a caller besides its links.
pub struct Standing {
    generation: AtomicU64,
    /// Send time of the last call that the endpoint accepted, on both clocks; `u64::MAX`: never.
    accepted: [AtomicU64; 2],
    /// How often its acceptance has been doubted.
    doubts: AtomicU64,
    /// Permits of calls under way for this caller: no one may take all there are.
    pub(crate) calls: Semaphore,
    /// Ids being fetched for this caller right now.
    pub(crate) flights: AtomicUsize,
    /// The endpoint has asked this caller to hold back.
    pub(crate) hold: Hold,
}

impl Standing {
    fn new(generation: u64, calls: usize) -> Self {
        Self {
            doubts: AtomicU64::new(0),
            calls: Semaphore::new(calls),
            generation: AtomicU64::new(generation),
            accepted: [AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)],
            flights: AtomicUsize::new(0),
            hold: Hold::default(),
        }
    }

    fn accept(&self, sent: Moment) {
        let [monotonic, wall] = &self.accepted;
        monotonic.store(sent.monotonic, Ordering::Relaxed);
        wall.store(sent.wall, Ordering::Relaxed);
    }

    /// Makes the next batch ask the endpoint, whatever is in memory.
    pub fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::AcqRel);
        for clock in &self.accepted {
            clock.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Changes with each doubt. What a call brings counts only if this is as it was when the call left.
    pub fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Acquire)
    }

    fn accepted_within(&self, span: u64, now: Moment) -> bool {
        let [monotonic, wall] = &self.accepted;
        let at = Moment { monotonic: monotonic.load(Ordering::Relaxed), wall: wall.load(Ordering::Relaxed) };
        at.monotonic != u64::MAX && at.wall != u64::MAX && now.since(at) < span
    }
}

/// A caller with what its calls carry.
#[derive(Clone)]
pub struct Requester {
    /// Who asks.
    pub caller: Caller,
    /// What is remembered of it.
    pub standing: Arc<Standing>,
    /// Credential and scope headers, as the client sent them: all of a client's headers that a call carries.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    generation: u64,
}

/// Why a batch is forwarded untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bypass {
    /// No credential, or an empty one.
    NoCredential,
    /// More than one credential.
    Credentials,
    /// An `Authorization` whose signature sidelink cannot make again.
    Signed,
    /// A Cookie may shape the answer.
    Cookie,
    /// A Range asks for a piece.
    Range,
    /// Not readable as a batch.
    Unreadable,
    /// An answer that could not be matched to the ids asked for.
    Unmatched,
}

impl Bypass {
    /// Every reason, for metrics.
    pub const ALL: [Bypass; 7] = [
        Bypass::NoCredential,
        Bypass::Credentials,
        Bypass::Signed,
        Bypass::Cookie,
        Bypass::Range,
        Bypass::Unreadable,
        Bypass::Unmatched,
    ];

    /// Its name in metrics and in `Cache-Status`.
    pub fn name(self) -> &'static str {
        match self {
            Bypass::NoCredential => "no-credential",
            Bypass::Credentials => "credentials",
            Bypass::Signed => "signed",
            Bypass::Cookie => "cookie",
            Bypass::Range => "range",
            Bypass::Unreadable => "unreadable",
            Bypass::Unmatched => "unmatched",
        }
    }
}

/// Tells callers apart and remembers their standing.
pub struct Callers {
    key: [u8; 16],
    scope_headers: Vec<HeaderName>,
    /// Credentials, then scope headers.
    vary: Vec<HeaderName>,
    revalidate: u64,
    calls_per_caller: usize,
    /// Of callers that the endpoint has accepted once.
    standings: moka::sync::Cache<Caller, Arc<Standing>>,
    /// Of those that it has not.
    strangers: moka::sync::Cache<Caller, Arc<Standing>>,
    /// Generations are never used twice, so a caller forgotten and met again finds none of its old links.
    next_generation: AtomicU64,
    clock: Clock,
}

impl Callers {
    /// `key` must be random and secret; `calls_per_caller` is how many calls one caller may have under way.
    pub fn new(config: &config::Callers, calls_per_caller: usize, key: [u8; 16], clock: Clock) -> Self {
        let mut scope_headers = api::SCOPE_HEADERS.to_vec();
        scope_headers.extend(config.scope_headers.iter().cloned());
        let mut vary = vec![api::TOKEN, AUTHORIZATION];
        vary.extend(scope_headers.iter().cloned());
        Self {
            key,
            scope_headers,
            vary,
            revalidate: millis(config.revalidate),
            standings: standings(),
            strangers: standings(),
            calls_per_caller,
            next_generation: AtomicU64::new(1),
            clock,
        }
    }

    /// Reads the credential of a batch.
    ///
    /// # Errors
    /// Why the request cannot be anyone's batch: it is to be forwarded untouched.
    pub fn identify(&self, headers: &HeaderMap) -> Result<Requester, Bypass> {
        if headers.contains_key(COOKIE) {
            return Err(Bypass::Cookie);
        }
        if headers.contains_key(RANGE) {
            return Err(Bypass::Range);
        }
        let token = match (headers.contains_key(AUTHORIZATION), headers.contains_key(api::TOKEN)) {
            (true, false) => return Err(Bypass::Signed),
            (true, true) => return Err(Bypass::Credentials),
            (false, false) => return Err(Bypass::NoCredential),
            (false, true) => {
                let mut tokens = headers.get_all(api::TOKEN).iter();
                match (tokens.next(), tokens.next()) {
                    (Some(token), None) if !token.is_empty() => token,
                    (Some(_), None) => return Err(Bypass::NoCredential),
                    _ => return Err(Bypass::Credentials),
                }
            }
        };
        if headers.contains_key(api::SECURITY_TOKEN) {
            return Err(Bypass::Credentials);
        }
        let mut hash = Fields::new(&self.key, b"caller/token");
        hash.field(token.as_bytes());
        let caller = Caller(hash.finish());
        let standing = self.standing(caller);

        let mut carried = Vec::with_capacity(1 + self.scope_headers.len());
        let mut secret = token.clone();
        secret.set_sensitive(true);
        carried.push((api::TOKEN, secret));
        for name in &self.scope_headers {
            for value in headers.get_all(name) {
                carried.push((name.clone(), value.clone()));
            }
        }
        let generation = standing.generation.load(Ordering::Acquire);
        Ok(Requester { caller, standing, headers: carried, generation })
    }

    /// The scope of a requester's batch in `group`.
    pub fn scope(&self, requester: &Requester, group: Option<&str>) -> Scope {
        let mut hash = Fields::new(&self.key, b"scope");
        hash.field(&requester.caller.0.to_be_bytes());
        hash.field(&requester.generation.to_be_bytes());
        match group {
            Some(group) => hash.field(group.as_bytes()),
            None => hash.absent(),
        }
        // The credential comes first and is in the caller already.
        for (name, value) in requester.headers.iter().skip(1) {
            hash.field(name.as_str().as_bytes());
            hash.field(value.as_bytes());
        }
        Scope(hash.finish())
    }

    /// The key of `id` in `scope`.
    pub fn key(&self, scope: Scope, id: &str) -> Key {
        let mut hash = Fields::new(&self.key, b"link");
        hash.field(&scope.0.to_be_bytes());
        hash.field(id.as_bytes());
        Key(hash.finish())
    }

    /// Whether the endpoint's acceptance of this caller is too old to answer from memory.
    pub fn must_revalidate(&self, requester: &Requester) -> bool {
        !requester.standing.accepted_within(self.revalidate, self.clock.now())
    }

    /// The endpoint has accepted a caller in a call sent at `sent`, when its doubts were `doubts`. A call that left before
    /// a drop or a doubt proves nothing; whether it does.
    pub fn accept(&self, requester: &Requester, sent: Moment, doubts: u64) -> bool {
        let proves = self.is_current(requester) && requester.standing.doubts() == doubts;
        if proves {
            requester.standing.accept(sent);
            // No stranger any more.
            self.standings.entry(requester.caller).or_insert_with(|| Arc::clone(&requester.standing));
        }
        proves
    }

    fn standing(&self, caller: Caller) -> Arc<Standing> {
        let stranger = || Arc::new(Standing::new(self.generation(), self.calls_per_caller));
        self.standings.get(&caller).unwrap_or_else(|| self.strangers.get_with(caller, stranger))
    }

    /// Whether nothing was dropped for the caller since `requester` was identified.
    pub fn is_current(&self, requester: &Requester) -> bool {
        requester.standing.generation.load(Ordering::Acquire) == requester.generation
    }

    /// Drops everything kept for a caller, at once.
    pub fn drop_links(&self, requester: &Requester) {
        requester.standing.generation.store(self.generation(), Ordering::Release);
        requester.standing.doubt();
    }

    /// The names that `Vary` lists, and that an endpoint's `Vary` may name: the credential and the scope headers.
    pub fn vary(&self) -> &[HeaderName] {
        &self.vary
    }

    /// Whether an answer's `Vary` names anything that is not part of a scope (RFC 9111 §4.1).
    pub fn varies_outside(&self, headers: &HeaderMap) -> bool {
        headers.get_all(VARY).iter().any(|line| {
            line.to_str().map_or(true, |line| {
                line.split(',').map(str::trim).filter(|name| !name.is_empty()).any(|name| {
                    // Codings are undone, so what they vary by cannot be seen in a link.
                    let coding = name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str());
                    !coding && !self.vary.iter().any(|known| name.eq_ignore_ascii_case(known.as_str()))
                })
            })
        })
    }

    fn generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Ordering::Relaxed)
    }
}

fn standings() -> moka::sync::Cache<Caller, Arc<Standing>> {
    let builder = moka::sync::Cache::builder().max_capacity(CALLERS);
    builder.eviction_policy(moka::policy::EvictionPolicy::lru()).build()
}

/// A keyed hash over fields, each preceded by its length.
struct Fields(SipHasher24);

impl Fields {
    fn new(key: &[u8; 16], purpose: &[u8]) -> Self {
        let mut fields = Self(SipHasher24::new_with_key(key));
        fields.field(purpose);
        fields
    }

    fn field(&mut self, bytes: &[u8]) {
        self.0.write_u64(bytes.len() as u64);
        self.0.write(bytes);
    }

    /// A field that is not there differs from one that is empty.
    fn absent(&mut self) {
        self.0.write_u64(u64::MAX);
    }

    fn finish(self) -> u128 {
        self.0.finish128().as_u128()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn callers() -> Callers {
        let config = config::Callers {
            revalidate: Duration::from_secs(300),
            cache_control: true,
            scope_headers: vec![HeaderName::from_static("x-tenant")],
        };
        Callers::new(&config, 2, [7; 16], Clock::simulated(1_000_000))
    }

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn key(callers: &Callers, list: &[(&'static str, &str)], group: Option<&str>, id: &str) -> Key {
        let requester = callers.identify(&headers(list)).ok().unwrap();
        callers.key(callers.scope(&requester, group), id)
    }

    #[test]
    fn whatever_may_change_an_answer_changes_the_key() {
        let callers = callers();
        let keys: HashSet<Key> = [
            key(&callers, &[("x-auth-token", "t")], None, "1"),
            key(&callers, &[("x-auth-token", "t")], Some("g"), "1"),
            key(&callers, &[("x-auth-token", "t")], Some("g"), "2"),
            key(&callers, &[("x-auth-token", "t")], Some("g1"), ""),
            key(&callers, &[("x-auth-token", "tt")], None, "1"),
            key(&callers, &[("x-auth-token", "t"), ("x-language", "en-us")], None, "1"),
            key(&callers, &[("x-auth-token", "t"), ("x-time-zone", "en-us")], None, "1"),
            key(&callers, &[("x-auth-token", "t"), ("x-site", "0")], None, "1"),
            key(&callers, &[("x-auth-token", "t"), ("x-site", "1")], None, "1"),
            key(&callers, &[("x-auth-token", "t"), ("x-tenant", "1")], None, "1"),
            key(&callers, &[("x-auth-token", "t"), ("x-site", "")], None, "1"),
        ]
        .into_iter()
        .collect();
        assert_eq!(keys.len(), 11);
        let same = key(&callers, &[("x-auth-token", "t"), ("accept", "*/*")], None, "1");
        assert!(keys.contains(&same), "other headers are not part of a scope");
    }

    #[test]
    fn requests_that_are_nobodys_batch_are_told_apart() {
        let callers = callers();
        for (list, expected) in [
            (&[][..], Bypass::NoCredential),
            (&[("x-auth-token", "")][..], Bypass::NoCredential),
            (&[("authorization", "SDK-HMAC-SHA256 x")], Bypass::Signed),
            (&[("authorization", "x"), ("x-auth-token", "t")], Bypass::Credentials),
            (&[("x-security-token", "x"), ("x-auth-token", "t")], Bypass::Credentials),
            (&[("x-auth-token", "t"), ("x-auth-token", "u")], Bypass::Credentials),
            (&[("cookie", "a=b"), ("x-auth-token", "t")], Bypass::Cookie),
            (&[("range", "bytes=0-"), ("x-auth-token", "t")], Bypass::Range),
        ] {
            assert_eq!(callers.identify(&headers(list)).err(), Some(expected), "{list:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn made_up_tokens_crowd_out_no_caller() {
        let callers = callers();
        let list = headers(&[("x-auth-token", "good")]);
        let requester = callers.identify(&list).ok().unwrap();
        callers.accept(&requester, callers.clock.now(), requester.standing.doubts());
        for stranger in 0..CALLERS + 1000 {
            let _ = callers.identify(&headers(&[("x-auth-token", &stranger.to_string())]));
        }
        callers.standings.run_pending_tasks();
        callers.strangers.run_pending_tasks();
        assert!(callers.strangers.entry_count() <= CALLERS);
        let again = callers.identify(&list).ok().unwrap();
        assert!(Arc::ptr_eq(&requester.standing, &again.standing));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_left_before_a_doubt_does_not_undo_it() {
        let callers = callers();
        let requester = callers.identify(&headers(&[("x-auth-token", "t")])).ok().unwrap();
        let before = requester.standing.doubts();
        requester.standing.doubt();
        assert!(!callers.accept(&requester, callers.clock.now(), before));
        assert!(callers.must_revalidate(&requester));
        assert!(callers.accept(&requester, callers.clock.now(), requester.standing.doubts()));
        assert!(!callers.must_revalidate(&requester));
    }

    #[tokio::test(start_paused = true)]
    async fn an_acceptance_counts_for_its_time_and_a_drop_ends_it() {
        let callers = callers();
        let list = headers(&[("x-auth-token", "t")]);
        let requester = callers.identify(&list).ok().unwrap();
        assert!(callers.must_revalidate(&requester), "a caller never met has not been accepted");
        callers.accept(&requester, callers.clock.now(), requester.standing.doubts());
        tokio::time::advance(Duration::from_secs(299)).await;
        assert!(!callers.must_revalidate(&requester));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(callers.must_revalidate(&requester));

        callers.accept(&requester, callers.clock.now(), requester.standing.doubts());
        let before = callers.scope(&requester, None);
        callers.drop_links(&requester);
        let again = callers.identify(&list).ok().unwrap();
        assert!(callers.must_revalidate(&again));
        assert!(before != callers.scope(&again, None));
        assert!(before == callers.scope(&requester, None), "a call that had left files under the old generation");
    }

    proptest! {
        /// Lists of fields that differ never hash alike, however their bytes run together.
        #[test]
        fn fields_do_not_run_together(a in proptest::collection::vec(".{0,4}", 0..4), b in proptest::collection::vec(".{0,4}", 0..4)) {
            let hash = |list: &[String]| {
                let mut fields = Fields::new(&[1; 16], b"test");
                list.iter().for_each(|field| fields.field(field.as_bytes()));
                fields.finish()
            };
            prop_assert_eq!(a == b, hash(&a) == hash(&b));
        }
    }
}
