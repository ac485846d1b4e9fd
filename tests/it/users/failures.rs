//! An identity provider that is down, slow or wrong costs sharing, never an answer.

use std::time::Duration;

use sidelink::demo::origin::ScriptedReply;
use tokio::time::Instant;

use super::World;
use crate::support::eventually;

#[tokio::test]
async fn while_the_identity_provider_is_down_each_token_is_a_caller_by_itself() {
    let world = World::start().await;
    let [first, second] = world.tokens("alice");
    world.iam.stop().await;
    for token in [&first, &second, &first, &second] {
        world.batch(token, &["1"]).await;
    }
    assert_eq!(world.asked().len(), 2, "each asked once, and then had its own");
}

#[tokio::test]
async fn answers_that_make_no_sense_share_nothing() {
    let replies = [
        ScriptedReply::json(200, "{}"),
        ScriptedReply::json(200, r#"{"token":{}}"#),
        ScriptedReply::json(200, "<html>"),
        ScriptedReply::json(500, "{}"),
        ScriptedReply::Truncated(r#"{"token":{"user":{"id":"alice"}"#.into()),
    ];
    for reply in replies {
        let world = World::start().await;
        let [first, second] = world.tokens("alice");
        world.iam.update(|behaviour| behaviour.reply = Some(reply.clone()));
        for token in [&first, &second, &first, &second] {
            world.batch(token, &["1"]).await;
        }
        assert_eq!(world.asked().len(), 2, "{reply:?}");
    }
}

#[tokio::test]
async fn a_slow_identity_provider_delays_a_batch_by_its_timeout_at_most() {
    let timeout = Duration::from_millis(300);
    let world = World::with(|_| {}, |_, config| config.callers.identity.as_mut().unwrap().timeout = timeout).await;
    let token = world.token("alice");
    world.iam.hold();
    let began = Instant::now();
    world.batch(&token, &["1"]).await;
    // On a busy machine as well; the provider itself never answers.
    assert!((timeout..timeout * 20).contains(&began.elapsed()), "{:?}", began.elapsed());
    let asked = world.iam.requests_for(&token);
    world.batch(&token, &["1"]).await;
    assert_eq!(world.iam.requests_for(&token), asked, "not asked again at once");
    world.iam.release();
}

#[tokio::test]
async fn a_token_is_asked_about_again_once_the_identity_provider_is_back() {
    let world = World::start().await;
    let [first, second] = world.tokens("alice");
    world.iam.update(|behaviour| behaviour.reply = Some(ScriptedReply::json(503, "{}")));
    world.batch(&first, &["1"]).await;
    world.batch(&second, &["1"]).await;
    world.iam.update(|behaviour| behaviour.reply = None);
    // More than the time for which nothing is known of a token, and for which a failing provider is held back.
    eventually("they share", async || {
        world.clock.step(6_000);
        for token in [&first, &second] {
            world.batch(token, &["2"]).await;
        }
        world.stack.metric("sidelink_identity_callers").await == 2.0
    })
    .await;
    assert_eq!(world.stack.metric("sidelink_identity_users").await, 1.0);
}

#[tokio::test]
async fn made_up_tokens_do_not_flood_the_identity_provider() {
    let world = World::with(|_| {}, |_, config| config.callers.identity.as_mut().unwrap().unaccepted = 1).await;
    let token = world.token("alice");
    world.batch(&token, &["1"]).await;
    for number in 0..50 {
        world.stack.client.batch(&format!("made-up-{number}"), &["1"]).await;
    }
    assert!(world.iam.requests() < 20, "{}", world.iam.requests());
    // What the endpoint takes is asked about without that budget.
    let other = world.token("alice");
    world.batch(&other, &["1"]).await;
    world.clock.step(6_000);
    let before = world.asked().len();
    world.batch(&other, &["1"]).await;
    assert_eq!(world.asked().len(), before);
    assert_eq!(world.stack.metric("sidelink_identity_callers").await, 2.0);
}

/// As one whose URL is wrong: a gateway answers with a 404 of its own.
#[tokio::test]
async fn an_identity_provider_that_knows_no_token_costs_no_calls() {
    let timeout = Duration::from_secs(20);
    let world = World::with(|_| {}, |_, config| config.callers.identity.as_mut().unwrap().timeout = timeout).await;
    let unknown = ScriptedReply::json(404, r#"{"error_code":"APIG.0101","error_msg":"no such API"}"#);
    world.iam.update(|behaviour| behaviour.reply = Some(unknown));
    let token = world.token("alice");
    world.iam.hold();
    let batches: Vec<_> = (0..20)
        .map(|_| {
            let (client, token) = (world.stack.client.clone(), token.clone());
            tokio::spawn(async move { client.batch(&token, &["1", "2"]).await })
        })
        .collect();
    world.iam.arrived(1).await;
    eventually("all batches are there", async || world.stack.metric("sidelink_connections").await >= 20.0).await;
    world.iam.release();
    for batch in batches {
        world.assert_of(&token, &batch.await.unwrap());
    }
    assert_eq!(world.asked().len(), 1, "they share a call as they do without an identity");
    // Its acceptance is over, and its links are still fresh.
    world.clock.step(300_000);
    world.batch(&token, &["1"]).await;
    world.batch(&token, &["2"]).await;
    assert_eq!(world.asked().len(), 2, "{:?}", world.asked());
}
