use super::*;
use crate::auth::tests::{at, headers, identify};
use crate::auth::{CallerStates, Scope};

const ONE: UserId = UserId([1; 32]);
const OTHER: UserId = UserId([2; 32]);

fn callers() -> Callers {
    at("http://h", Arc::new(CallerStates::new([7; 16])), &CallersConfig::default())
}

fn caller(callers: &Callers, token: &str) -> Identity {
    identify(callers, &headers(&[("x-auth-token", token)])).ok().unwrap()
}

fn scope(callers: &Callers, token: &str) -> Scope {
    caller(callers, token).scope
}

fn is_accepted(callers: &Callers, token: &str) -> bool {
    !callers.must_revalidate(&caller(callers, token), callers.clock.now())
}

/// The endpoint takes it.
fn accept(callers: &Callers, token: &str) -> bool {
    let caller = caller(callers, token);
    callers.accept(&caller, callers.clock.now(), caller.caller_state.invalidations())
}

fn learn(callers: &Callers, token: &str, word: Word) {
    let caller = caller(callers, token);
    callers.learn(&caller, word, callers.clock.now());
}

fn user(id: UserId) -> Word {
    Word::User { id, ends: None, is_live: true }
}

fn due(callers: &Callers, token: &str) -> Due {
    callers.due(&caller(callers, token), callers.clock.now())
}

#[tokio::test(start_paused = true)]
async fn tokens_of_one_user_share_and_those_of_others_do_not() {
    let callers = callers();
    let alone = scope(&callers, "a");
    for (token, word) in [("a", user(ONE)), ("b", user(ONE)), ("c", user(OTHER)), ("d", Word::Unknown)] {
        assert_eq!(due(&callers, token), Due::Word);
        learn(&callers, token, word);
        assert_eq!(due(&callers, token), Due::Nothing);
    }
    assert!(scope(&callers, "a") == scope(&callers, "b") && scope(&callers, "a") != alone);
    assert!(scope(&callers, "a") != scope(&callers, "c") && scope(&callers, "c") != scope(&callers, "d"));
    assert!(Arc::ptr_eq(caller(&callers, "a").owner(), caller(&callers, "b").owner()));
    assert!(!is_accepted(&callers, "a") && accept(&callers, "a"), "the endpoint has to take one of them");
    assert!(is_accepted(&callers, "b") && !is_accepted(&callers, "c") && !is_accepted(&callers, "d"));
    callers.invalidate(&caller(&callers, "b"));
    assert!(!is_accepted(&callers, "a"));
}

#[tokio::test(start_paused = true)]
async fn a_signature_says_whose_a_token_is_and_accepts_it_not() {
    let callers = callers();
    learn(&callers, "a", Word::User { id: ONE, ends: None, is_live: false });
    assert!(caller(&callers, "a").membership.is_some() && !is_accepted(&callers, "a"));
    learn(&callers, "b", Word::User { id: ONE, ends: None, is_live: false });
    assert!(!callers.may_share(&caller(&callers, "a")), "nor are the user's stale links its");
    assert!(accept(&callers, "a"));
    assert!(is_accepted(&callers, "a") && callers.may_share(&caller(&callers, "a")));
    assert!(!is_accepted(&callers, "b") && !callers.may_share(&caller(&callers, "b")));
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_its_user_no_more_and_the_others_are_until_the_endpoint_takes_it_again() {
    let callers = callers();
    for token in ["a", "b"] {
        learn(&callers, token, user(ONE));
        assert!(accept(&callers, token));
    }
    let (refused, shared) = (caller(&callers, "a"), scope(&callers, "b"));
    callers.drop_entries(&refused);
    assert!(scope(&callers, "a") != shared && !is_accepted(&callers, "a"));
    assert!(scope(&callers, "b") == shared && is_accepted(&callers, "b"));
    // Nobody else's word counts, not even one that was under way.
    assert_eq!(due(&callers, "a"), Due::Nothing);
    learn(&callers, "a", user(ONE));
    callers.learn(&refused, user(ONE), callers.clock.now());
    assert!(scope(&callers, "a") != shared && !is_accepted(&callers, "a"));
    assert!(accept(&callers, "a"));
    assert_eq!(due(&callers, "a"), Due::Word);
    learn(&callers, "a", user(ONE));
    assert!(scope(&callers, "a") == shared);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_the_identity_provider_refuses_is_a_caller_by_itself_that_is_not_asked_about_for_a_while() {
    let callers = callers();
    learn(&callers, "a", user(ONE));
    let shared = scope(&callers, "a");
    learn(&callers, "a", Word::Refused);
    assert!(scope(&callers, "a") != shared && !is_accepted(&callers, "a"));
    assert!(accept(&callers, "a"));
    assert!(scope(&callers, "a") != shared && is_accepted(&callers, "a"), "the endpoint takes it");
    assert_eq!(due(&callers, "a"), Due::Nothing);
    tokio::time::advance(Duration::from_secs(300)).await;
    assert_eq!(due(&callers, "a"), Due::Word);
}

#[tokio::test(start_paused = true)]
async fn a_word_is_good_no_longer_than_its_token_lives_and_than_an_acceptance_is() {
    let callers = callers();
    let ends = callers.clock.now().wall + 100_000;
    learn(&callers, "a", Word::User { id: ONE, ends: Some(ends), is_live: true });
    learn(&callers, "b", user(ONE));
    let shared = scope(&callers, "b");
    tokio::time::advance(Duration::from_secs(80)).await;
    assert_eq!(due(&callers, "a"), Due::Renewal);
    callers.renews(&caller(&callers, "a"), callers.clock.now());
    assert_eq!(due(&callers, "a"), Due::Nothing, "somebody else asks");
    tokio::time::advance(Duration::from_secs(5)).await;
    learn(&callers, "a", Word::Unknown);
    assert!(scope(&callers, "a") == shared, "what was said before is good still");
    tokio::time::advance(Duration::from_secs(15)).await;
    assert!(scope(&callers, "a") != shared);
    assert_eq!(due(&callers, "a"), Due::Word);
    assert!(scope(&callers, "b") == shared);
    tokio::time::advance(Duration::from_secs(140)).await;
    assert_eq!(due(&callers, "b"), Due::Renewal);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(scope(&callers, "b") != shared, "callers.revalidate is 5 minutes");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_remembers_its_caller_sees_a_new_word_and_the_end_of_one() {
    use crate::auth::LastToken;
    use crate::auth::tests::identify_on;

    let (callers, last) = (callers(), LastToken::default());
    let list = headers(&[("x-auth-token", "a")]);
    let seen = || identify_on(&last, &callers, &list).unwrap();
    assert!(seen().membership.is_none());
    learn(&callers, "a", user(ONE));
    assert!(seen().membership.is_some());
    tokio::time::advance(Duration::from_secs(290)).await;
    learn(&callers, "a", user(ONE));
    tokio::time::advance(Duration::from_secs(20)).await;
    assert!(seen().membership.is_some(), "it was renewed");
    tokio::time::advance(Duration::from_secs(290)).await;
    assert!(seen().membership.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_remembers_its_caller_sees_that_another_source_says_who_is_a_user() {
    use crate::auth::LastToken;
    use crate::auth::tests::identify_on;

    let (before, last) = (callers(), LastToken::default());
    let list = headers(&[("x-auth-token", "a")]);
    learn(&before, "a", user(ONE));
    assert!(identify_on(&last, &before, &list).unwrap().membership.is_some());
    let config = CallersConfig { identity: Some(IdentityConfig::blank()), ..CallersConfig::default() };
    let after = at("http://h", Arc::clone(&before.caller_states), &config);
    assert!(identify_on(&last, &after, &list).unwrap().membership.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_word_that_is_good_for_longer_than_another_configuration_allows_does_not_count_there() {
    let before = callers();
    learn(&before, "a", user(ONE));
    let config = CallersConfig { revalidate: Duration::from_secs(10), ..CallersConfig::default() };
    let after = at("http://h", Arc::clone(&before.caller_states), &config);
    assert_eq!(due(&after, "a"), Due::Word);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_said_to_be_invalid_again_keeps_what_the_endpoint_gave_to_it_since() {
    let callers = callers();
    learn(&callers, "a", user(ONE));
    learn(&callers, "a", Word::Refused);
    let alone = scope(&callers, "a");
    assert!(accept(&callers, "a"));
    learn(&callers, "a", Word::Refused);
    learn(&callers, "a", Word::Unknown);
    learn(&callers, "a", Word::Refused);
    assert!(scope(&callers, "a") == alone && is_accepted(&callers, "a"));
    // A word in between makes the next one a change.
    learn(&callers, "a", user(ONE));
    learn(&callers, "a", Word::Refused);
    assert!(scope(&callers, "a") != alone && !is_accepted(&callers, "a"));
}

#[tokio::test(start_paused = true)]
async fn a_word_that_a_token_is_invalid_that_several_asked_for_drops_its_entries_once() {
    let callers = callers();
    let askers = [caller(&callers, "a"), caller(&callers, "a")];
    callers.learn(&askers[0], Word::Refused, callers.clock.now());
    let alone = scope(&callers, "a");
    callers.learn(&askers[1], Word::Refused, callers.clock.now());
    assert!(scope(&callers, "a") == alone);
}

#[test]
fn users_that_nobody_is_any_more_are_forgotten_and_a_revision_does_not_come_back() {
    let states = CallerStates::new([7; 16]);
    let first = states.owner_of(Scope::of_test(1));
    first.end_answers();
    let (revision, again) = (first.revision(), states.owner_of(Scope::of_test(1)));
    assert!(Arc::ptr_eq(&first, &again));
    drop((first, again));
    assert!(states.owner_of(Scope::of_test(1)).revision() > revision);
    (0..3 * FEW as u128).for_each(|user| drop(states.owner_of(Scope::of_test(user))));
    assert!(states.owners() <= FEW + 1, "{}", states.owners());
}
