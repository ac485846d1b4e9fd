//! An endpoint that asks a caller for a pause gets no calls of that caller meanwhile, and the caller gets that answer again. Everyone
//! pauses only once two accepted callers with disjoint ids have been asked. On a paused clock.

use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use sidelink::demo::origin::ScriptedReply;
use tokio::time::sleep;

use crate::simulated::{Client, World};
use crate::support::query;

const BODY: &str = r#"{"error_code":"APIGW.0308","error_msg":"throttled","request_id":"of-the-first"}"#;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// An answer that asks for a pause of `seconds`.
fn asks_for_a_pause(status: u16, seconds: u32) -> ScriptedReply {
    let headers = HeaderMap::from_iter([
        (CONTENT_TYPE, "application/json".parse().unwrap()),
        (RETRY_AFTER, seconds.to_string().parse().unwrap()),
    ]);
    ScriptedReply::Whole(StatusCode::from_u16(status).unwrap(), headers, BODY.into())
}

/// The caller gets the endpoint's answer again, with so many seconds left.
async fn is_told(client: &mut Client, token: &str, ids: &[&str], status: u16, left: &str) {
    let reply = client.batch(token, ids).await;
    let seen = (reply.status.as_u16(), reply.header("retry-after"), reply.header("content-type"));
    assert_eq!(seen, (status, left, "application/json"), "{reply:?}");
    assert_eq!(reply.body, BODY, "{reply:?}");
}

async fn is_served(client: &mut Client, token: &str, id: &str) {
    let reply = client.batch(token, &[id]).await;
    assert_eq!(reply.status, 200, "{token} {id}: {reply:?}");
    assert_eq!(reply.ids(), [id]);
}

/// A world whose endpoint has accepted these callers, and asked each of `told` to pause for ten seconds, for its id.
async fn told_to_pause(accepted: &[&str], told: &[(&str, &str)]) -> (World, Client) {
    let world = World::new(|_| {}, |config| config.upstream.retry.attempts = 0);
    let mut client = world.client().await;
    for token in accepted {
        is_served(&mut client, token, &format!("first-{token}")).await;
    }
    // All are asked at about the same time: a pause of one must not keep the next from calling.
    world.origin.hold();
    let before = world.origin.batch_calls();
    let mut clients = tokio::task::JoinSet::new();
    for (at, (token, id)) in told.iter().enumerate() {
        world.origin.script(asks_for_a_pause(503, 10));
        let (mut client, token, id) = (world.client().await, (*token).to_owned(), (*id).to_owned());
        clients.spawn(async move { client.batch(&token, &[&id]).await.status });
        world.origin.arrived(before + at + 1).await;
    }
    world.origin.release();
    assert!(clients.join_all().await.iter().all(|status| *status == 503));
    (world, client)
}

#[tokio::test(start_paused = true)]
async fn a_throttled_caller_gets_the_429_as_it_came_until_the_pause_is_over() {
    let world = World::new(|_| {}, |_| {});
    let mut client = world.client().await;
    is_served(&mut client, "t", "cached").await;
    world.origin.script(asks_for_a_pause(429, 5));
    is_told(&mut client, "t", &["1"], 429, "5").await;
    let calls = world.origin.batch_calls();
    for (id, left) in [("1", "4"), ("2", "3"), ("3", "2"), ("4", "1")] {
        sleep(seconds(1)).await;
        is_told(&mut client, "t", &[id], 429, left).await;
    }
    assert_eq!(client.batch("t", &["cached"]).await.header("cache-status"), "sidelink; hit");
    assert_eq!(world.origin.batch_calls(), calls, "no call while the pause lasts");
    is_served(&mut client, "other", "1").await;
    sleep(Duration::from_millis(1100)).await;
    is_served(&mut client, "t", "1").await;
    assert_eq!(world.metric(r#"sidelink_breaker_state{state="closed"}"#), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_caller_gets_the_429_in_every_scope_and_form() {
    let world = World::new(|_| {}, |_| {});
    let mut client = world.client().await;
    world.origin.script(asks_for_a_pause(429, 5));
    is_told(&mut client, "t", &["1"], 429, "5").await;
    for headers in [&[("x-auth-token", "t"), ("x-language", "en-us")][..], &[("x-auth-token", "t")]] {
        let reply = client.get(&format!("{}&group_id=g", query(&["2"])), headers).await.unwrap();
        assert_eq!((reply.status.as_u16(), &reply.body[..]), (429, BODY.as_bytes()), "{reply:?}");
    }
    assert_eq!(world.origin.batch_calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_503_with_retry_after_pauses_its_caller_alone() {
    let (world, mut client) = told_to_pause(&["one", "other"], &[("one", "1")]).await;
    let calls = world.origin.batch_calls();
    sleep(seconds(4)).await;
    is_told(&mut client, "one", &["2"], 503, "6").await;
    assert_eq!(world.origin.batch_calls(), calls);
    is_served(&mut client, "other", "2").await;
    is_served(&mut client, "new", "2").await;
    sleep(seconds(7)).await;
    is_served(&mut client, "one", "2").await;
}

#[tokio::test(start_paused = true)]
async fn a_503_with_retry_after_to_two_accepted_callers_with_disjoint_ids_pauses_everyone() {
    let (world, mut client) = told_to_pause(&["one", "two", "other"], &[("one", "1"), ("two", "2")]).await;
    let calls = world.origin.batch_calls();
    for token in ["other", "new"] {
        let reply = client.batch(token, &["3"]).await;
        assert_eq!(reply.status, 503, "{reply:?}");
        let left: u64 = reply.header("retry-after").parse().unwrap();
        assert!((1..=10).contains(&left), "{left}");
    }
    assert_eq!(client.batch("other", &["first-other"]).await.header("cache-status"), "sidelink; hit");
    assert_eq!(world.origin.batch_calls(), calls);
    let left = world.metric("sidelink_upstream_pause_seconds");
    assert!((1.0..=10.0).contains(&left), "{left}");
    sleep(seconds(11)).await;
    assert_eq!(world.metric("sidelink_upstream_pause_seconds"), 0.0);
    for token in ["one", "two", "other", "new"] {
        is_served(&mut client, token, "3").await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_callers_that_were_asked_for_the_same_id_pause_no_other() {
    let (_, mut client) = told_to_pause(&["one", "two"], &[("one", "same"), ("two", "same")]).await;
    is_served(&mut client, "other", "3").await;
}

#[tokio::test(start_paused = true)]
async fn callers_that_were_never_accepted_pause_no_other() {
    let made_up: Vec<(String, String)> = (0..5).map(|at| (format!("made-up-{at}"), format!("id-{at}"))).collect();
    let told: Vec<(&str, &str)> = made_up.iter().map(|(token, id)| (token.as_str(), id.as_str())).collect();
    let (_, mut client) = told_to_pause(&["other", "one"], &[&told[..], &[("one", "1")]].concat()).await;
    is_served(&mut client, "other", "3").await;
}

#[tokio::test(start_paused = true)]
async fn one_caller_that_is_asked_again_and_again_pauses_no_other() {
    let (world, mut client) = told_to_pause(&["one", "other"], &[("one", "1")]).await;
    for id in ["2", "3", "4"] {
        sleep(seconds(11)).await;
        world.origin.script(asks_for_a_pause(503, 10));
        is_told(&mut client, "one", &[id], 503, "10").await;
        is_served(&mut client, "other", id).await;
    }
}
