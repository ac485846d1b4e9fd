use std::collections::HashSet;
use std::time::Duration;

use http::HeaderMap;
use proptest::prelude::*;

use super::caller_state::CALLERS;
use super::*;
use crate::api::id::Group;

fn callers() -> Callers {
    let config = config::Callers {
        revalidate: Duration::from_secs(300),
        cache_control: true,
        scope_headers: vec![HeaderName::from_static("x-tenant")],
        keys: Vec::new(),
    };
    at("http://h", Arc::new(CallerStates::new([7; 16])), &config)
}

fn at(endpoint: &str, caller_states: Arc<CallerStates>, config: &config::Callers) -> Callers {
    let endpoint = config::Endpoint::parse(endpoint).unwrap();
    Callers::new(config, Arc::default(), caller_states, &endpoint, Clock::simulated(1_000_000))
}

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    list.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

fn identify(callers: &Callers, headers: &HeaderMap) -> Result<Identity, Bypass> {
    let (mut head, ()) = http::Request::new(()).into_parts();
    head.headers = headers.clone();
    let credential = callers.credential(headers)?;
    Ok(callers.identify(&credential, &head, b"").ok().unwrap())
}

fn key(callers: &Callers, list: &[(&'static str, &str)], group: Option<&str>, id: &str) -> Key {
    let list = headers(list);
    let requester = identify(callers, &list).ok().unwrap();
    callers.scope(&requester, &list, &group.into()).key(id)
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

#[tokio::test(start_paused = true)]
async fn made_up_tokens_crowd_out_no_caller() {
    let callers = callers();
    let list = headers(&[("x-auth-token", "good")]);
    let requester = identify(&callers, &list).ok().unwrap();
    callers.accept(&requester, callers.clock.now(), requester.caller_state.invalidations());
    for stranger in 0..CALLERS + 1000 {
        let _ = identify(&callers, &headers(&[("x-auth-token", &stranger.to_string())]));
    }
    assert!(callers.caller_states.strangers.len() <= CALLERS);
    let again = identify(&callers, &list).ok().unwrap();
    assert!(Arc::ptr_eq(&requester.caller_state, &again.caller_state));
}

#[tokio::test]
async fn callers_that_were_accepted_are_bounded_in_number_too() {
    let callers = callers();
    for caller in 0..CALLERS + 1000 {
        let requester = identify(&callers, &headers(&[("x-auth-token", &caller.to_string())])).ok().unwrap();
        callers.accept(&requester, callers.clock.now(), requester.caller_state.invalidations());
    }
    assert!((CALLERS / 2..=CALLERS).contains(&callers.caller_states.accepted.len()));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_left_before_a_doubt_does_not_undo_it() {
    let callers = callers();
    let requester = identify(&callers, &headers(&[("x-auth-token", "t")])).ok().unwrap();
    let before = requester.caller_state.invalidations();
    requester.caller_state.invalidate(callers.clock.now());
    assert!(!callers.accept(&requester, callers.clock.now(), before));
    assert!(callers.must_revalidate(&requester, callers.clock.now()));
    assert!(callers.accept(&requester, callers.clock.now(), requester.caller_state.invalidations()));
    assert!(!callers.must_revalidate(&requester, callers.clock.now()));
}

/// Regression: an acceptance that was being noted was put back over an invalidation.
#[tokio::test(start_paused = true)]
async fn a_doubt_that_comes_while_an_acceptance_is_noted_is_not_forgotten() {
    let callers = callers();
    let requester = identify(&callers, &headers(&[("x-auth-token", "t")])).ok().unwrap();
    let (caller_state, now) = (&requester.caller_state, callers.clock.now());
    std::thread::scope(|scope| {
        let mut doubting = None;
        caller_state.accept_if(now, || {
            doubting = Some(scope.spawn(|| caller_state.invalidate(now)));
            // As long as it would take, if it could.
            let begin = std::time::Instant::now();
            while caller_state.invalidations() == 0 && begin.elapsed() < Duration::from_millis(100) {
                std::thread::yield_now();
            }
            true
        });
        doubting.unwrap().join().unwrap();
    });
    assert_eq!(caller_state.invalidations(), 1);
    assert!(callers.must_revalidate(&requester, now));
}

#[tokio::test(start_paused = true)]
async fn an_acceptance_counts_for_its_time_and_a_drop_ends_it() {
    let callers = callers();
    let list = headers(&[("x-auth-token", "t")]);
    let requester = identify(&callers, &list).ok().unwrap();
    assert!(callers.must_revalidate(&requester, callers.clock.now()), "a caller never met has not been accepted");
    callers.accept(&requester, callers.clock.now(), requester.caller_state.invalidations());
    tokio::time::advance(Duration::from_secs(299)).await;
    assert!(!callers.must_revalidate(&requester, callers.clock.now()));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(callers.must_revalidate(&requester, callers.clock.now()));

    callers.accept(&requester, callers.clock.now(), requester.caller_state.invalidations());
    let before = callers.scope(&requester, &list, &Group::Absent);
    callers.drop_links(&requester);
    let again = identify(&callers, &list).ok().unwrap();
    assert!(callers.must_revalidate(&again, callers.clock.now()));
    assert!(before != callers.scope(&again, &list, &Group::Absent));
    assert!(
        before == callers.scope(&requester, &list, &Group::Absent),
        "a call that had left files under the old generation"
    );
}

/// Regression: a caller that was forgotten and met again while a call of its was under way was not concerned by what the
/// endpoint said to that call.
#[tokio::test(start_paused = true)]
async fn a_refusal_concerns_a_caller_that_was_forgotten_and_met_again_meanwhile() {
    let refusals: [fn(&Callers, &Identity); 2] = [Callers::drop_links, Callers::invalidate];
    for refuse in refusals {
        let callers = callers();
        let list = headers(&[("x-auth-token", "t")]);
        let asked = identify(&callers, &list).ok().unwrap();
        callers.accept(&asked, callers.clock.now(), asked.caller_state.invalidations());
        callers.caller_states.accepted.remove(&asked.caller);
        callers.caller_states.strangers.remove(&asked.caller);
        let again = identify(&callers, &list).ok().unwrap();
        assert!(!Arc::ptr_eq(&asked.caller_state, &again.caller_state));
        callers.accept(&again, callers.clock.now(), again.caller_state.invalidations());
        assert!(!callers.must_revalidate(&again, callers.clock.now()));
        refuse(&callers, &asked);
        assert!(callers.must_revalidate(&again, callers.clock.now()));
        assert!(callers.must_revalidate(&asked, callers.clock.now()));
    }
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

#[test]
fn a_caller_at_one_endpoint_is_nobody_at_another() {
    let caller_states = Arc::new(CallerStates::new([7; 16]));
    let at = |endpoint| at(endpoint, Arc::clone(&caller_states), &config::Callers::default());
    let scope = |callers: &Callers| {
        let headers = headers(&[("x-auth-token", "t")]);
        let requester = identify(callers, &headers).unwrap();
        callers.scope(&requester, &headers, &Group::Absent)
    };
    assert!(scope(&at("http://one")) == scope(&at("http://one")));
    assert!(scope(&at("http://one")) != scope(&at("http://other")));
    assert!(scope(&at("http://one")) != scope(&at("https://one")));
}
