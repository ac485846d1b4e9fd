//! When the endpoint fails, links in memory are still served, one caller's failures cost no other caller, and the number of calls is
//! bounded. On a paused clock and connections in memory.

use std::time::Duration;

use http::StatusCode;
use sidelink::demo::origin::ScriptedReply;
use tokio::time::{Instant, advance, sleep};

use crate::simulated::{Client, World};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn is_refused(client: &mut Client, token: &str, ids: &[&str], code: &str) -> crate::support::Reply {
    let reply = client.batch(token, ids).await;
    assert_eq!(reply.json()["error_code"], code, "{reply:?}");
    reply
}

#[tokio::test(start_paused = true)]
async fn calls_without_an_answer_and_with_a_502_503_or_504_are_retried() {
    for reply in [
        ScriptedReply::Reset,
        ScriptedReply::json(502, "{}"),
        ScriptedReply::json(503, "{}"),
        ScriptedReply::json(504, "{}"),
    ] {
        let world = World::new(|_| {}, |_| {});
        world.origin.script(reply.clone());
        world.origin.script(reply);
        assert_eq!(world.client().await.batch("t", &["1"]).await.ids(), ["1"]);
        assert_eq!(world.origin.batch_calls(), 3);
        assert_eq!(world.metric("sidelink_upstream_retries_total"), 2.0);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_with_any_other_answer_are_not_retried() {
    for status in [400, 403, 404, 429, 500, 200] {
        let world = World::new(|_| {}, |_| {});
        world.origin.script(ScriptedReply::json(status, r#"{"error_code":"OSM.0004"}"#));
        assert_eq!(world.client().await.batch("t", &["1"]).await.status, status);
        assert_eq!(world.origin.batch_calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn retries_are_a_share_of_calls() {
    let world = World::new(|_| {}, |config| config.upstream.breaker.consecutive = 1_000_000);
    world.update(|options| options.fail_ratio = 1.0);
    let mut client = world.client().await;
    for id in 0..100 {
        assert_eq!(client.batch("t", &[&id.to_string()]).await.status, 503);
    }
    let retries = world.metric("sidelink_upstream_retries_total");
    // A fifth of the calls, and one a second.
    assert!((1.0..=20.0 + 10.0).contains(&retries), "{retries}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_endpoint_opens_the_breaker_and_a_live_one_closes_it() {
    let world = World::new(|_| {}, |config| config.upstream.retry.attempts = 0);
    let mut client = world.client().await;
    client.batch("t", &["cached"]).await;
    world.update(|options| options.fail_ratio = 1.0);
    for id in 0..5 {
        assert_eq!(client.batch("t", &[&id.to_string()]).await.status, 503);
    }
    let calls = world.origin.batch_calls();
    let began = Instant::now();
    let refused = is_refused(&mut client, "t", &["new"], "SIDELINK.1003").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(["2", "3"].contains(&refused.header("retry-after")));
    assert!(began.elapsed() < Duration::from_millis(1));
    assert_eq!(client.batch("t", &["cached"]).await.header("cache-status"), "sidelink; hit");
    assert_eq!(world.origin.batch_calls(), calls);
    assert_eq!(world.metric(r#"sidelink_breaker_state{state="open"}"#), 1.0);

    world.update(|options| options.fail_ratio = 0.0);
    advance(seconds(3)).await;
    assert_eq!(client.batch("t", &["new"]).await.ids(), ["new"]);
    assert_eq!(world.metric(r#"sidelink_breaker_state{state="closed"}"#), 1.0);
}

#[tokio::test(start_paused = true)]
async fn while_a_probe_hangs_no_batch_queues_behind_it() {
    let world = World::new(
        |_| {},
        |config| {
            config.upstream.retry.attempts = 0;
            config.upstream.calls_per_scope = 1;
            config.upstream.breaker.consecutive = 2;
        },
    );
    for (token, id) in [("u", "1"), ("v", "2")] {
        assert_eq!(world.client().await.batch(token, &[id]).await.status, 200);
    }
    for (token, id) in [("u", "3"), ("v", "4")] {
        world.origin.script(ScriptedReply::json(503, "{}"));
        world.client().await.batch(token, &[id]).await;
    }
    advance(seconds(3)).await;
    world.origin.hold();
    let mut hanging = world.client().await;
    let probe = tokio::spawn(async move { hanging.batch("t", &["1"]).await });
    world.origin.arrived(5).await;
    let mut client = world.client().await;
    let began = Instant::now();
    is_refused(&mut client, "w", &["5"], "SIDELINK.1003").await;
    assert!(began.elapsed() < Duration::from_millis(1));
    world.origin.release();
    assert_eq!(probe.await.unwrap().ids(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn stale_links_are_served_while_the_endpoint_fails_and_they_are_usable() {
    let world = World::new(
        |options| options.link_life = seconds(900),
        |config| {
            config.upstream.retry.attempts = 0;
            config.freshness.max = seconds(100);
            config.freshness.refresh_ahead = false;
        },
    );
    let mut client = world.client().await;
    let first = client.batch("t", &["1", "2"]).await;
    sleep(seconds(101)).await;
    world.origin.script(ScriptedReply::json(500, r#"{"error_code":"OSM.0004"}"#));
    let stale = client.batch("t", &["1", "2"]).await;
    assert_eq!(stale.header("cache-status"), "sidelink; fwd=stale; fwd-status=500; detail=stale");
    assert_eq!(stale.header("cache-control"), "no-store");
    assert_eq!(stale.links(), first.links());
    assert_eq!(world.metric(r#"sidelink_ids_total{result="stale"}"#), 2.0);

    world.origin.script(ScriptedReply::json(400, r#"{"error_code":"OSM.0001"}"#));
    assert_eq!(client.batch("t", &["1", "2"]).await.status, 400, "a refusal is no failure");
    world.origin.script(ScriptedReply::json(500, r#"{"error_code":"OSM.0004"}"#));
    assert_eq!(client.batch("t", &["1", "new"]).await.status, 500, "nothing partial as if whole");

    sleep(seconds(300)).await;
    world.origin.script(ScriptedReply::json(500, r#"{"error_code":"OSM.0004"}"#));
    assert_eq!(client.batch("t", &["1"]).await.status, 500, "past stale_if_error");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_caller_is_paused_and_others_are_not() {
    let world = World::new(
        |_| {},
        |config| {
            config.freshness.max = seconds(10);
            config.freshness.refresh_ahead = false;
        },
    );
    let mut client = world.client().await;
    client.batch("t", &["cached"]).await;
    sleep(seconds(11)).await;
    world.update(|options| {
        options.poison = vec!["busy".into()];
        options.poison_status = 429;
    });
    let throttled = client.batch("t", &["busy"]).await;
    assert_eq!((throttled.status.as_u16(), throttled.header("retry-after")), (429, "2"));
    let calls = world.origin.batch_calls();
    sleep(Duration::from_millis(1900)).await;
    let paused = client.batch("t", &["new"]).await;
    assert_eq!(
        (paused.status, paused.json()),
        (throttled.status, throttled.json()),
        "the endpoint's answer as it came"
    );
    assert_eq!(paused.header("retry-after"), "1", "it says what is left");
    let stale = client.batch("t", &["cached"]).await;
    assert_eq!(stale.header("cache-status"), "sidelink; hit; detail=stale");
    assert_eq!(world.origin.batch_calls(), calls, "no call for two seconds");
    assert_eq!(client.batch("other", &["new"]).await.ids(), ["new"]);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(client.batch("t", &["new"]).await.ids(), ["new"]);
}

#[tokio::test(start_paused = true)]
async fn a_popular_link_is_refreshed_ahead_and_never_a_miss() {
    let world = World::new(
        |options| options.link_life = seconds(3600),
        |config| {
            config.freshness.max = seconds(100);
            config.callers.revalidate = seconds(3600);
        },
    );
    let mut client = world.client().await;
    client.batch("t", &["1", "2"]).await;
    for _ in 0..30 {
        sleep(seconds(10)).await;
        assert_eq!(client.batch("t", &["1", "2"]).await.header("cache-status"), "sidelink; hit");
    }
    let calls = world.origin.batch_calls();
    assert!((3..=8).contains(&calls), "{calls} calls in three freshness periods");
    assert!(world.metric(r#"sidelink_refetched_total{cause="refresh"}"#) >= 4.0);

    // A link that no batch asks for is not refreshed.
    client.batch("t", &["3"]).await;
    let calls = world.origin.batch_calls();
    sleep(seconds(200)).await;
    assert_eq!(world.origin.batch_calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_costs_nothing() {
    let world = World::new(
        |_| {},
        |config| {
            config.freshness.max = seconds(100);
            config.upstream.retry.attempts = 0;
        },
    );
    let mut client = world.client().await;
    let first = client.batch("t", &["1"]).await;
    sleep(seconds(95)).await;
    world.origin.script(ScriptedReply::json(500, "{}"));
    assert_eq!(client.batch("t", &["1"]).await.links(), first.links());
    world.origin.arrived(2).await;
    assert_eq!(client.batch("t", &["1"]).await.links(), first.links());
}

/// The first four calls are sent at once; further ids gather into the next.
#[tokio::test(start_paused = true)]
async fn no_batch_waits_longer_than_two_round_trips_in_a_stampede() {
    let world = World::new(|options| options.delay = Duration::from_millis(100), |_| {});
    let mut waits = Vec::new();
    let mut clients = Vec::new();
    for batch in 0..64usize {
        let mut client = world.client().await;
        clients.push(tokio::spawn(async move {
            let ids: Vec<String> = (0..20).map(|at| ((batch * 7 + at * 3) % 40).to_string()).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let began = Instant::now();
            assert_eq!(client.batch("t", &ids).await.ids(), ids);
            began.elapsed()
        }));
    }
    for client in clients {
        waits.push(client.await.unwrap());
    }
    let longest = waits.into_iter().max().unwrap();
    println!("stampede: {} ids, {} calls, {longest:?} at most", world.origin.ids_asked(), world.origin.batch_calls());
    assert_eq!(world.origin.ids_asked(), 40);
    assert!(world.origin.batch_calls() <= 5);
    assert!(longest <= Duration::from_millis(210), "{longest:?}");
}

/// A caller may serve many users. Of the ids that gather into one call, one may be to blame for its failure.
#[tokio::test(start_paused = true)]
async fn an_id_that_fails_its_call_fails_no_other_batch_of_its_caller() {
    for status in [500, 502, 504] {
        let world = World::new(
            |options| {
                options.poison = vec!["bad".into()];
                options.poison_status = status;
            },
            |config| {
                config.upstream.retry.attempts = 0;
                config.upstream.calls_per_scope = 1;
            },
        );
        world.client().await.batch("t", &["0"]).await;
        world.origin.hold();
        let mut batches = Vec::new();
        for id in ["1", "bad", "good"] {
            let mut client = world.client().await;
            batches.push(tokio::spawn(async move { client.batch("t", &[id]).await.status.as_u16() }));
            if id == "1" {
                world.origin.arrived(2).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
        // Ids that came while the call was under way go into one call.
        sleep(Duration::from_millis(1)).await;
        world.origin.release();
        let mut statuses = Vec::new();
        for batch in batches {
            statuses.push(batch.await.unwrap());
        }
        assert_eq!(statuses, [200, status, 200]);
    }
}

/// The budget of calls that find out which batch is at fault is each caller's own: another's failures do not use it up.
#[tokio::test(start_paused = true)]
async fn a_caller_whose_calls_all_fail_leaves_others_the_calls_that_save_their_good_batches() {
    let world = World::new(|options| options.poison = vec!["bad".into()], |config| config.upstream.calls = 8);
    for token in ["t", "u"] {
        assert_eq!(world.client().await.batch(token, &["0"]).await.status, 200);
    }
    // Batches that join the call of the first, which fails.
    let share_a_call = async |token: &'static str, ids: Vec<&'static [&'static str]>| {
        let calls = world.origin.batch_calls();
        world.origin.hold();
        let mut batches = Vec::new();
        for ids in ids {
            let mut client = world.client().await;
            batches.push(tokio::spawn(async move { client.batch(token, ids).await.status.as_u16() }));
            world.origin.arrived(calls + 1).await;
            sleep(Duration::from_millis(1)).await;
        }
        world.origin.release();
        batches
    };
    let faulty = share_a_call("t", vec![&["1", "bad"]; 300]).await;
    // The calls for these alone are under way for long.
    world.update(|options| options.delay = seconds(5));
    sleep(Duration::from_millis(1)).await;
    world.update(|options| options.delay = Duration::ZERO);
    assert!(faulty.iter().any(|batch| batch.is_finished()), "there is a budget");

    let good = vec![&["1"][..]; 20];
    let batches = share_a_call("u", [vec![&["1", "bad"][..]], good].concat()).await;
    let mut statuses = Vec::new();
    for batch in batches {
        statuses.push(batch.await.unwrap());
    }
    assert_eq!(statuses, [vec![500], vec![200; 20]].concat());
}
