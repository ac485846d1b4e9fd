//! One token's question is one request; a provider that is flooded, slow or down delays and refuses nobody, and made-up tokens take
//! nothing from others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sidelink::auth::TokenStatus;
use sidelink::demo::origin::ScriptedReply;
use sidelink::demo::origin::iam::Iam;
use sidelink::telemetry::metrics::{BreakerState, IdentityResult};

use super::{BREAKER_OPEN, CREDENTIALS, FAILED, REFUSED, World};

#[tokio::test]
async fn concurrent_questions_about_one_token_are_one_request() {
    let world = World::keystone(|_, _| {}).await;
    let (anna, bert) = (world.token("anna"), world.token("bert"));
    world.iam.hold();
    let questions = join_all((0..50).map(|number| world.asker.user(if number % 2 == 0 { &anna } else { &bert })));
    let (users, ()) = tokio::join!(questions, async {
        world.iam.arrived(2).await;
        world.iam.release();
    });
    assert_ne!(users[0], users[1]);
    assert!(users.chunks(2).all(|pair| *pair == users[..2]));
    assert_eq!((world.iam.requests_for(&anna), world.iam.requests_for(&bert)), (1, 1));
    assert_eq!(world.asker.counts(), [("user", 2)]);
    // Nothing is cached here.
    world.asker.user(&anna).await;
    assert_eq!(world.iam.requests_for(&anna), 2);
}

#[tokio::test]
async fn a_question_goes_on_when_those_who_asked_have_left() {
    let world = World::keystone(|_, _| {}).await;
    let token = world.token("anna");
    world.iam.hold();
    let (identities, asked) = (Arc::clone(&world.asker.identities), token.clone());
    let asker = tokio::spawn(async move { identities.look_up(asked.as_bytes(), true).await });
    world.iam.arrived(1).await;
    asker.abort();
    assert!(asker.await.unwrap_err().is_cancelled());
    // Who comes later joins.
    let (user, ()) = tokio::join!(world.asker.user(&token), async { world.iam.release() });
    assert_eq!((world.iam.requests_for(&token), world.asker.counts()), (1, vec![("user", 1)]));
    assert_eq!(world.asker.user(&token).await, user);
}

#[tokio::test]
async fn no_more_requests_than_configured_are_under_way_and_the_others_wait_their_turn() {
    let world = World::keystone(|_, config| config.requests = 2).await;
    let tokens: Vec<String> = (0..20).map(|_| world.token("anna")).collect();
    world.iam.hold();
    let (users, ()) = tokio::join!(join_all(tokens.iter().map(|token| world.asker.user(token))), async {
        world.iam.arrived(2).await;
        assert_eq!(world.asker.metrics.identity.in_flight.get(), 2);
        world.iam.release();
    });
    assert!(users.iter().all(|user| *user == users[0]));
    assert_eq!(world.asker.metrics.identity.in_flight.get(), 0);
    assert_eq!(world.asker.metrics.identity.duration.get_sample_count(), 20);
}

#[tokio::test]
async fn tokens_that_nobody_has_accepted_share_a_small_budget() {
    let world = World::keystone(|_, config| config.unaccepted = 3).await;
    let made_up: Vec<String> = (0..200).map(|number| format!("made-up-{number}")).collect();
    let began = Instant::now();
    let ask = |token: &String| {
        let (identities, token) = (Arc::clone(&world.asker.identities), token.clone());
        async move { identities.look_up(token.as_bytes(), false).await }
    };
    let words = join_all(made_up.iter().map(ask)).await;
    let budget = 3 * (2 + began.elapsed().as_secs());
    let refused = words.iter().filter(|word| **word == REFUSED).count() as u64;
    assert!((3..=budget).contains(&refused), "{refused} of {budget}");
    assert_eq!(world.asker.count(IdentityResult::Unaccepted), 200 - refused);
    assert_eq!(world.iam.requests() as u64, refused);
    // An accepted one needs none of it.
    world.asker.user(&world.token("anna")).await;
    assert!(!world.asker.is_breaker_open());
}

#[tokio::test]
async fn tokens_that_nobody_has_accepted_leave_room_for_the_others() {
    let world = World::keystone(|_, config| {
        // The fewest requests that can be configured.
        (config.requests, config.unaccepted, config.timeout) = (2, 1000, Duration::from_secs(3));
    })
    .await;
    world.iam.script(ScriptedReply::Hang);
    let ask = |token: &str| {
        let (identities, token) = (Arc::clone(&world.asker.identities), token.to_owned());
        tokio::spawn(async move { identities.look_up(token.as_bytes(), false).await })
    };
    let hanging = ask("made-up-0");
    world.iam.arrived(1).await;
    let token = world.token("anna");
    let others: Vec<_> = (1..20).map(|number| ask(&format!("made-up-{number}"))).chain([ask(&token)]).collect();
    // Their one request hangs; one is left, and none of them takes it.
    for _ in 0..20 {
        world.asker.user(&world.token("anna")).await;
    }
    assert_eq!(world.iam.requests(), 21);
    // Whoever has been accepted and joins a question that waits in that queue asks again, in its own.
    world.asker.user(&token).await;
    assert_eq!(hanging.await.unwrap(), FAILED);
    join_all(others).await;
    assert_eq!(world.asker.count(IdentityResult::Limited), 0);
    assert_eq!(world.asker.count(IdentityResult::Failed), 1);
}

#[tokio::test]
async fn a_provider_that_does_not_answer_costs_its_time_at_most() {
    let world = World::keystone(|_, config| config.timeout = Duration::from_millis(300)).await;
    let token = world.token("anna");
    world.iam.script(ScriptedReply::Hang);
    let began = Instant::now();
    assert_eq!(world.asker.ask(&token).await, FAILED);
    assert!(began.elapsed() >= Duration::from_millis(300));
    world.asker.user(&token).await;
    assert_eq!(world.asker.counts(), [("user", 1), ("failed", 1)]);
}

#[tokio::test]
async fn a_provider_that_is_down_is_breaker_open_and_asked_again() {
    let world = World::keystone(|_, _| {}).await;
    let (token, address) = (world.token("anna"), world.iam.address());
    world.asker.user(&token).await;
    world.iam.stop().await;
    let mut failed = 0;
    while !world.asker.is_breaker_open() {
        assert_eq!(world.asker.ask(&world.token("anna")).await, FAILED);
        failed += 1;
    }
    assert_eq!((failed, world.asker.count(IdentityResult::Failed)), (5, 5));
    assert_eq!(world.asker.ask(&token).await, BREAKER_OPEN);
    let again = Iam::start_with(address, world.clock.clone()).await.unwrap();
    let token = again.issue("anna", "p", &["reader"], super::HOUR);
    while !matches!(world.asker.ask(&token).await, TokenStatus::User { .. }) {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.asker.metrics.identity.breaker_state.of(BreakerState::Closed).get(), 1);
}

#[tokio::test]
async fn a_token_that_the_provider_fails_for_does_not_hold_others_back() {
    let world = World::keystone(|_, config| config.unaccepted = 1000).await;
    let poison = world.token("anna");
    world.asker.user(&world.token("anna")).await;
    world.iam.update(|behaviour| {
        behaviour.only_for = Some(poison.clone());
        behaviour.reply = Some(ScriptedReply::json(500, "{}"));
    });
    for _ in 0..20 {
        assert_eq!(world.asker.ask(&poison).await, FAILED);
    }
    // Nor do many tokens that nobody has accepted.
    for number in 0..20 {
        let token = format!("made-up-{number}");
        world.iam.update(|behaviour| behaviour.only_for = Some(token.clone()));
        assert_eq!(world.asker.identities.look_up(token.as_bytes(), false).await, FAILED);
    }
    world.asker.user(&world.token("anna")).await;
    assert!(!world.asker.is_breaker_open());
    // But several that have been, even if made-up ones are still refused.
    for number in 0..5 {
        let token = world.token("anna");
        world.iam.update(|behaviour| behaviour.only_for = Some(token.clone()));
        assert_eq!(world.asker.ask(&token).await, FAILED);
        let made_up = format!("another-{number}");
        let word = world.asker.identities.look_up(made_up.as_bytes(), false).await;
        assert_eq!(word, if number < 4 { REFUSED } else { BREAKER_OPEN });
    }
    assert!(world.asker.is_breaker_open());
}

#[tokio::test]
async fn a_connection_that_ended_idle_costs_no_answer() {
    let world = World::keystone(|_, _| {}).await;
    let token = world.token("anna");
    let user = world.asker.user(&token).await;
    // On the connection of the request before, as if it had been closed meanwhile.
    world.iam.script(ScriptedReply::Reset);
    assert_eq!(world.asker.user(&token).await, user);
    assert_eq!(world.asker.metrics.identity.resends.get(), 1);
}

/// Regression: five such answers in a row kept everybody's tokens from the provider.
#[tokio::test]
async fn a_provider_that_refuses_sidelink_over_made_up_tokens_is_not_held_back() {
    let world = World::oauth2(|_, config| config.unaccepted = 1000).await;
    // As a gateway does that sees an attack in them.
    world.iam.update(|behaviour| behaviour.reply = Some(ScriptedReply::json(403, "{}")));
    for number in 0..20 {
        let token = format!("<script>{number}");
        assert_eq!(world.asker.identities.look_up(token.as_bytes(), false).await, CREDENTIALS);
    }
    assert!(!world.asker.is_breaker_open());
    for _ in 0..5 {
        assert_eq!(world.asker.ask(&world.token("anna")).await, CREDENTIALS);
    }
    assert!(world.asker.is_breaker_open());
}

/// Regression: they took all the places.
#[tokio::test]
async fn made_up_tokens_that_wait_leave_places_for_the_others() {
    let world = World::keystone(|_, config| {
        (config.requests, config.unaccepted, config.timeout) = (4, 10_000, Duration::from_secs(20));
    })
    .await;
    world.iam.script(ScriptedReply::Hang);
    for number in 0..400 {
        let identities = Arc::clone(&world.asker.identities);
        tokio::spawn(async move { identities.look_up(format!("made-up-{number}").as_bytes(), false).await });
    }
    world.iam.arrived(1).await;
    world.asker.user(&world.token("anna")).await;
}

/// Regression: it waited anew after it had waited for another's question.
#[tokio::test]
async fn a_question_that_joined_one_that_found_no_turn_takes_its_time_at_most() {
    let timeout = Duration::from_secs(1);
    let world = World::keystone(|_, config| {
        (config.requests, config.unaccepted, config.timeout) = (4, 1000, timeout);
    })
    .await;
    world.iam.hold();
    let token = world.token("anna");
    let ask = |token: &str, was_accepted| {
        let (identities, token) = (Arc::clone(&world.asker.identities), token.to_owned());
        tokio::spawn(async move { identities.look_up(token.as_bytes(), was_accepted).await })
    };
    let hanging = ask("made-up", false);
    world.iam.arrived(1).await;
    let first = ask(&token, false);
    // The only other task: it has asked, and waits for its turn.
    tokio::task::yield_now().await;
    let began = Instant::now();
    let status = ask(&token, true).await.unwrap();
    // Its own time may end before it hears that there was no turn.
    assert!(matches!(status, FAILED | TokenStatus::NoUser(IdentityResult::Limited)), "{status:?}");
    assert!(began.elapsed() < timeout * 3 / 2, "{:?}", began.elapsed());
    world.iam.release();
    let _ = (hanging.await, first.await);
}
