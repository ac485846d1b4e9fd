use std::collections::HashSet;
use std::time::Duration;

use http::HeaderMap;
use proptest::prelude::*;

use super::caller_state::CALLERS;
use super::*;

fn callers() -> Callers {
    let config = CallersConfig {
        revalidate: Duration::from_secs(300),
        cache_control: true,
        scope_headers: vec![HeaderName::from_static("x-tenant")],
        identity: None,
        keys: Vec::new(),
    };
    at("http://h", Arc::new(CallerStates::new([7; 16])), &config)
}

pub(super) fn at(endpoint: &str, caller_states: Arc<CallerStates>, config: &CallersConfig) -> Callers {
    let endpoint = Endpoint::parse(endpoint).unwrap();
    let api = Arc::new(BatchApi::preset("huawei-osm").unwrap());
    Callers::new(api, config, Arc::default(), caller_states, &endpoint, Clock::simulated(1_000_000))
}

pub(super) fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    list.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

pub(super) fn identify(callers: &Callers, headers: &HeaderMap) -> Result<Identity, Bypass> {
    identify_on(&LastToken::default(), callers, headers)
}

/// As [`identify`], over a connection that has shown `last`.
pub(super) fn identify_on(last: &LastToken, callers: &Callers, headers: &HeaderMap) -> Result<Identity, Bypass> {
    let (mut head, ()) = http::Request::new(()).into_parts();
    head.headers = headers.clone();
    let credential = callers.credential(headers)?;
    Ok(callers.identify(&credential, last, &head, b"", callers.clock.now()).ok().unwrap())
}

/// The caller with the token `t`.
fn caller(callers: &Callers) -> Identity {
    identify(callers, &headers(&[("x-auth-token", "t")])).ok().unwrap()
}

/// Records that the endpoint accepts a caller now.
fn accept(callers: &Callers, identity: &Identity) -> bool {
    callers.accept(identity, callers.clock.now(), identity.caller_state.invalidations())
}

fn drop_entries(callers: &Callers, identity: &Identity) {
    callers.drop_entries(identity);
}

fn must_revalidate(callers: &Callers, identity: &Identity) -> bool {
    callers.must_revalidate(identity, callers.clock.now())
}

fn scope(callers: &Callers, identity: &Identity, headers: &HeaderMap) -> Scope {
    callers.scope(identity, headers.into(), &http::Uri::from_static("/"))
}

fn key(callers: &Callers, list: &[(&'static str, &str)], group: Option<&str>, id: &str) -> Key {
    let list = headers(list);
    let identity = identify(callers, &list).ok().unwrap();
    scope(callers, &identity, &list).of_group(&group.into()).key(id)
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
fn requests_without_exactly_one_credential_are_bypassed_with_their_reason() {
    let callers = callers();
    for (list, expected) in [
        (&[][..], Bypass::NoCredential),
        (&[("x-auth-token", "")][..], Bypass::NoCredential),
        (&[("authorization", "SDK-HMAC-SHA256 x")], Bypass::Algorithm),
        (&[("authorization", "V11-HMAC-SHA256 Access=a")], Bypass::Algorithm),
        (&[("authorization", "SDK-HMAC-SHA256 Access=a, x")], Bypass::UnknownKey),
        (&[("authorization", ""), ("x-auth-token", "")], Bypass::NoCredential),
        (&[("authorization", "x"), ("x-auth-token", "t")], Bypass::Credentials),
        (&[("authorization", "x"), ("authorization", "y")], Bypass::Credentials),
        (&[("x-security-token", "x"), ("x-auth-token", "t")], Bypass::Credentials),
        (&[("x-auth-token", "t"), ("x-auth-token", "u")], Bypass::Credentials),
        (&[("origin", "https://h"), ("x-auth-token", "t")], Bypass::Origin),
        (&[("range", "bytes=0-"), ("x-auth-token", "t")], Bypass::Range),
    ] {
        assert_eq!(identify(&callers, &headers(list)).err(), Some(expected), "{list:?}");
    }
}

/// Moka evicts in batches.
fn count(
    states: &moka::sync::Cache<Caller, Arc<CallerState>, impl std::hash::BuildHasher + Clone + Send + Sync + 'static>,
) -> usize {
    states.run_pending_tasks();
    usize::try_from(states.entry_count()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn made_up_tokens_crowd_out_no_caller() {
    let callers = callers();
    let list = headers(&[("x-auth-token", "good")]);
    let identity = identify(&callers, &list).ok().unwrap();
    accept(&callers, &identity);
    for made_up in 0..CALLERS + 1000 {
        let _ = identify(&callers, &headers(&[("x-auth-token", &made_up.to_string())]));
    }
    assert!((CALLERS / 2..=CALLERS).contains(&count(&callers.caller_states.unaccepted)));
    let again = identify(&callers, &list).ok().unwrap();
    assert!(Arc::ptr_eq(&identity.caller_state, &again.caller_state));
}

#[tokio::test]
async fn callers_that_were_accepted_are_bounded_in_number_too() {
    let callers = callers();
    let accept = |token: &str| {
        let identity = identify(&callers, &headers(&[("x-auth-token", token)])).ok().unwrap();
        accept(&callers, &identity);
        identity.caller
    };
    let is_remembered = |caller: Caller| callers.caller_states.accepted.contains_key(&caller);
    let (idle, frequent) = (accept("idle"), accept("frequent"));
    for caller in 0..CALLERS + 1000 {
        accept(&caller.to_string());
        if caller % 1000 == 0 {
            accept("frequent");
        }
    }
    assert!((CALLERS / 2..=CALLERS).contains(&count(&callers.caller_states.accepted)));
    let newest = accept("newest");
    count(&callers.caller_states.accepted);
    assert!(!is_remembered(idle) && is_remembered(frequent) && is_remembered(newest), "the least recently seen goes");
}

#[tokio::test(start_paused = true)]
async fn a_call_sent_before_an_invalidation_does_not_undo_it() {
    let callers = callers();
    let identity = caller(&callers);
    let before = identity.caller_state.invalidations();
    identity.caller_state.invalidate(callers.clock.now());
    assert!(!callers.accept(&identity, callers.clock.now(), before));
    assert!(must_revalidate(&callers, &identity));
    assert!(accept(&callers, &identity));
    assert!(!must_revalidate(&callers, &identity));
}

/// Regression: an acceptance that was being recorded overwrote a concurrent invalidation.
#[tokio::test(start_paused = true)]
async fn an_invalidation_during_an_acceptance_is_not_overwritten() {
    let callers = callers();
    let identity = caller(&callers);
    let (caller_state, now) = (&identity.caller_state, callers.clock.now());
    std::thread::scope(|scope| {
        let mut invalidating = None;
        caller_state.owner.acceptance.accept_if(now, || {
            invalidating = Some(scope.spawn(|| caller_state.invalidate(now)));
            // Time for the invalidation to finish, if nothing serialized the two.
            let begin = std::time::Instant::now();
            while caller_state.invalidations() == 0 && begin.elapsed() < Duration::from_millis(100) {
                std::thread::yield_now();
            }
            true
        });
        invalidating.unwrap().join().unwrap();
    });
    assert_eq!(caller_state.invalidations(), 1);
    assert!(callers.must_revalidate(&identity, now));
}

#[tokio::test(start_paused = true)]
async fn an_acceptance_counts_for_its_time_and_a_drop_ends_it() {
    let callers = callers();
    let list = headers(&[("x-auth-token", "t")]);
    let identity = identify(&callers, &list).ok().unwrap();
    assert!(must_revalidate(&callers, &identity), "a caller never seen is not accepted");
    accept(&callers, &identity);
    tokio::time::advance(Duration::from_secs(299)).await;
    assert!(!must_revalidate(&callers, &identity));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(must_revalidate(&callers, &identity));

    accept(&callers, &identity);
    let before = scope(&callers, &identity, &list);
    callers.drop_entries(&identity);
    let again = identify(&callers, &list).ok().unwrap();
    assert!(must_revalidate(&callers, &again));
    assert!(before != scope(&callers, &again, &list));
    assert!(before == scope(&callers, &identity, &list), "a call that was sent before keeps the old version");
}

/// Regression: a caller that was evicted and seen again during a call was not affected by the refusal of that call.
#[tokio::test(start_paused = true)]
async fn a_refusal_concerns_a_caller_that_was_forgotten_and_met_again_meanwhile() {
    let refusals: [fn(&Callers, &Identity); 2] = [drop_entries, Callers::invalidate];
    for refuse in refusals {
        let callers = callers();
        let list = headers(&[("x-auth-token", "t")]);
        let asked = identify(&callers, &list).ok().unwrap();
        accept(&callers, &asked);
        callers.caller_states.accepted.invalidate(&asked.caller);
        callers.caller_states.unaccepted.invalidate(&asked.caller);
        let again = identify(&callers, &list).ok().unwrap();
        assert!(!Arc::ptr_eq(&asked.caller_state, &again.caller_state));
        accept(&callers, &again);
        assert!(!must_revalidate(&callers, &again));
        refuse(&callers, &asked);
        assert!(must_revalidate(&callers, &again));
        assert!(must_revalidate(&callers, &asked));
    }
}

#[tokio::test(start_paused = true)]
async fn what_ends_a_callers_acceptance_ends_it_for_a_connection_that_remembers_an_evicted_state() {
    let ends: [fn(&Callers, &Identity); 3] = [drop_entries, Callers::invalidate, |callers, identity| {
        callers.caller_states.set_fleet_names(&identity.caller_state, vec![7]);
        callers.caller_states.drop_named(7, callers.clock.now());
    }];
    for end in ends {
        let (callers, last, list) = (callers(), LastToken::default(), headers(&[("x-auth-token", "t")]));
        let evict = |identity: &Identity| callers.caller_states.unaccepted.invalidate(&identity.caller);
        let asked = caller(&callers);
        evict(&asked);
        // Twice: a new state is looked up again.
        let [_, remembered] = [(); 2].map(|()| identify_on(&last, &callers, &list).unwrap());
        assert!(!Arc::ptr_eq(&asked.caller_state, &remembered.caller_state));
        // The state of before the eviction is the one that is kept.
        accept(&callers, &asked);
        accept(&callers, &remembered);
        evict(&remembered);
        assert!(!must_revalidate(&callers, &identify_on(&last, &callers, &list).unwrap()));
        end(&callers, &asked);
        assert!(must_revalidate(&callers, &identify_on(&last, &callers, &list).unwrap()));
    }
}

/// Between the update of a state and the count of the change, others are updated, and the caller may be accepted again.
#[tokio::test(start_paused = true)]
async fn a_connection_does_not_go_on_with_a_scope_whose_entries_were_dropped_before_the_change_is_counted() {
    let (callers, last, list) = (callers(), LastToken::default(), headers(&[("x-auth-token", "t")]));
    let [_, remembered] = [(); 2].map(|()| identify_on(&last, &callers, &list).unwrap());
    accept(&callers, &remembered);
    // As `drop_entries` and `drop_named` do, before they count.
    callers.caller_states.drop_entries(&remembered.caller_state, callers.clock.now(), None);
    accept(&callers, &caller(&callers));
    let now = identify_on(&last, &callers, &list).unwrap();
    assert!(!must_revalidate(&callers, &now));
    assert!(scope(&callers, &now, &list) != scope(&callers, &remembered, &list));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_remembers_a_new_state_shares_the_old_one_that_comes_back() {
    let (callers, last, list) = (callers(), LastToken::default(), headers(&[("x-auth-token", "t")]));
    let asked = caller(&callers);
    callers.caller_states.unaccepted.invalidate(&asked.caller);
    let [_, remembered] = [(); 2].map(|()| identify_on(&last, &callers, &list).unwrap());
    assert!(!Arc::ptr_eq(&asked.caller_state, &remembered.caller_state));
    accept(&callers, &asked);
    assert!(Arc::ptr_eq(&asked.caller_state, &identify_on(&last, &callers, &list).unwrap().caller_state));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_remembers_an_evicted_state_shares_the_new_one() {
    let (callers, last, list) = (callers(), LastToken::default(), headers(&[("x-auth-token", "t")]));
    let remembered = identify_on(&last, &callers, &list).unwrap();
    callers.caller_states.unaccepted.invalidate(&remembered.caller);
    let other = caller(&callers);
    assert!(Arc::ptr_eq(&other.caller_state, &identify_on(&last, &callers, &list).unwrap().caller_state));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_shows_other_tokens_or_another_endpoint_has_other_callers() {
    let states = Arc::new(CallerStates::new([7; 16]));
    let at = |endpoint| at(endpoint, Arc::clone(&states), &CallersConfig::default());
    let (one, two, last) = (at("http://one"), at("http://two"), LastToken::default());
    let (long, longer) = ("t".repeat(2049), "t".repeat(2050));
    for token in ["a", "a", "b", "ab", "a", &long, &long, &longer, "a"] {
        let list = headers(&[("x-auth-token", token)]);
        for callers in [&one, &one, &two, &one] {
            let (fresh, on) = (identify(callers, &list).unwrap(), identify_on(&last, callers, &list).unwrap());
            assert!(fresh.caller == on.caller && Arc::ptr_eq(&fresh.caller_state, &on.caller_state), "{token}");
            assert!(scope(callers, &fresh, &list) == scope(callers, &on, &list), "{token}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_remembered_caller_counts_as_seen() {
    let (callers, last, list) = (callers(), LastToken::default(), headers(&[("x-auth-token", "t")]));
    let new = |number: usize| identify(&callers, &headers(&[("x-auth-token", &number.to_string())])).unwrap();
    let others: Vec<Identity> = (0..CALLERS + 1000).map(new).collect();
    let remembered = identify_on(&last, &callers, &list).unwrap();
    accept(&callers, &remembered);
    for other in &others {
        accept(&callers, other);
        let _ = identify_on(&last, &callers, &list);
    }
    assert!(callers.caller_states.accepted.contains_key(&remembered.caller));
}

proptest! {
    /// Different lists of fields have different hashes, also where their concatenations are equal.
    #[test]
    fn fields_do_not_run_together(a in proptest::collection::vec(".{0,4}", 0..4), b in proptest::collection::vec(".{0,4}", 0..4)) {
        let hash = |list: &[String]| {
            KeyedHash::new(&[1; 16], b"test").with(list.iter().map(|field| Some(field.as_bytes())))
        };
        prop_assert_eq!(a == b, hash(&a) == hash(&b));
    }
}

#[test]
fn a_token_at_one_endpoint_is_another_caller_at_another_endpoint() {
    let caller_states = Arc::new(CallerStates::new([7; 16]));
    let at = |endpoint| at(endpoint, Arc::clone(&caller_states), &CallersConfig::default());
    let scope = |callers: &Callers| {
        let headers = headers(&[("x-auth-token", "t")]);
        let identity = identify(callers, &headers).unwrap();
        scope(callers, &identity, &headers)
    };
    assert!(scope(&at("http://one")) == scope(&at("http://one")));
    assert!(scope(&at("http://one")) != scope(&at("http://other")));
    assert!(scope(&at("http://one")) != scope(&at("https://one")));
}

#[test]
fn an_authorization_that_is_a_signature_or_bound_to_its_connection_is_no_credential() {
    let api = Arc::new(BatchApi::preset("git-lfs").unwrap());
    let endpoint = Endpoint::parse("http://h").unwrap();
    let (config, states) = (CallersConfig::default(), Arc::new(CallerStates::new([7; 16])));
    let callers = Callers::new(api, &config, Arc::default(), states, &endpoint, Clock::simulated(1_000_000));
    let of = |value: &str| callers.credential(&headers(&[("authorization", value)])).map(|_| ());
    for token in
        ["Bearer a.b-c_d~e", "basic dXNlcjpwYXNz==", "RemoteAuth x", "Bot 1.2", "token", "Bearer", "Bearer  a "]
    {
        assert_eq!(of(token), Ok(()), "{token}");
    }
    for other in [
        "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=c",
        "Digest username=\"a\"",
        "OAuth oauth_token=\"x\"",
        "AWS key:signature",
        "Negotiate abc",
        "NTLM abc",
        "DPoP abc",
        "Bearer a b",
        "Basic ===",
    ] {
        assert_eq!(of(other), Err(Bypass::Algorithm), "{other}");
    }
    assert_eq!(of(""), Err(Bypass::NoCredential));
}

/// Regression: each revocation in the fleet's journal went through all callers.
#[test]
fn a_revocation_by_name_looks_at_the_named_caller_alone() {
    const COUNT: usize = 5000;
    let callers = callers();
    let states = &callers.caller_states;
    let all: Vec<Identity> = (0..COUNT)
        .map(|number| identify(&callers, &headers(&[("x-auth-token", &number.to_string())])).ok().unwrap())
        .collect();
    for (number, identity) in all.iter().enumerate() {
        assert!(accept(&callers, identity));
        // Names of two secrets, given again by each batch.
        for _ in 0..2 {
            states.set_fleet_names(&identity.caller_state, vec![number as u128, (COUNT + number) as u128]);
        }
    }
    let now = callers.clock.now();
    let looked_at = |name: usize| states.drop_named(name as u128, now);
    assert_eq!((0..1000).map(looked_at).sum::<usize>(), 1000);
    assert_eq!((COUNT + 1000..COUNT + 1100).map(looked_at).sum::<usize>(), 100);
    assert_eq!((2 * COUNT..3 * COUNT).map(looked_at).sum::<usize>(), 0, "nobody's names");
    let accepted = all.iter().filter(|identity| identity.caller_state.is_accepted()).count();
    assert_eq!(accepted, COUNT - 1100);
}

#[test]
fn names_of_callers_that_are_gone_are_forgotten() {
    let states = CallerStates::new([7; 16]);
    for name in 0..10_000 {
        states.set_fleet_names(&Arc::new(CallerState::new(1)), vec![name]);
    }
    assert!(states.names() <= 1024, "{}", states.names());
}

/// Regression: of two Content-Types, the first was ignored if it was the usual one.
#[test]
fn each_list_of_content_types_of_a_get_is_a_scope_of_its_own() {
    const JSON: &str = "application/json";
    let callers = callers();
    let lists: [&[&str]; 8] =
        [&[JSON], &["a"], &["b"], &[JSON, "a"], &["a", JSON], &[JSON, JSON], &["a", "b"], &[JSON, "a", "b"]];
    let of = |types: &[&str]| {
        let types = types.iter().map(|media_type| ("content-type", *media_type));
        key(&callers, &[("x-auth-token", "t")].into_iter().chain(types).collect::<Vec<_>>(), None, "1")
    };
    assert_eq!(lists.map(of).into_iter().collect::<HashSet<_>>().len(), lists.len());
    assert!(of(&[]) == of(&[JSON]), "a call without one has the usual one");
}
