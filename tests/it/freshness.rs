//! A link is served from memory only while it is fresh and has `freshness.min_remaining` of its own life left, by the later
//! of the endpoint's clock and this machine's.

use std::time::Duration;

use sidelink::clock::Clock;
use sidelink::demo::origin::LinkSigner;

use crate::support::Stack;

fn clock(hours_off: i64) -> Clock {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Clock::simulated(i64::try_from(now.as_millis()).unwrap() + hours_off * 3_600_000)
}

#[tokio::test]
async fn a_link_under_the_floor_is_passed_on_and_asked_again() {
    let stack = Stack::with(|endpoint| endpoint.link_life = Duration::from_secs(50), |_| {}).await;
    for _ in 0..2 {
        let reply = stack.client.batch("t", &["1"]).await;
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=miss");
        assert_eq!(reply.header("cache-control"), "no-store");
    }
    assert_eq!(stack.asked().len(), 2);
    assert_eq!(stack.metric(r#"sidelink_uncacheable_total{reason="under_floor"}"#).await, 2.0);
}

#[tokio::test]
async fn a_link_is_asked_again_once_its_life_nears_its_end() {
    let clock = clock(0);
    let life = Duration::from_secs(100);
    let configure = |config: &mut sidelink::config::Config| config.freshness.refresh_ahead = false;
    let stack = Stack::on(clock.clone(), |endpoint| endpoint.link_life = life, configure).await;
    stack.client.batch("t", &["1"]).await;
    clock.step(37_000);
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit");
    clock.step(3_000);
    // Links outlast the 40 s by which the local clock is ahead by now.
    stack.origin.update(|endpoint| endpoint.link_life = 2 * life);
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; fwd=miss; stored");
}

#[tokio::test]
async fn a_machine_an_hour_behind_serves_no_dead_link_and_wastes_no_live_one() {
    let clock = clock(-1);
    let stack = Stack::on(clock.clone(), |_| {}, |_| {}).await;
    stack.client.batch("t", &["1"]).await;
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit");
    // Life: 15 min; freshness.max: 10 min.
    clock.step(601_000);
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; fwd=miss; stored");

    stack.origin.update(|endpoint| endpoint.link_life = Duration::from_secs(50));
    stack.client.batch("t", &["2"]).await;
    assert_eq!(stack.client.batch("t", &["2"]).await.header("cache-status"), "sidelink; fwd=miss");
    let skew = stack.metric("sidelink_clock_skew_seconds").await;
    assert!((skew - (601.0 - 3600.0)).abs() < 5.0, "{skew}");
}

/// Which of the two clocks is right cannot be known: safety before hits.
#[tokio::test]
async fn a_machine_an_hour_ahead_keeps_only_links_that_live_that_much_longer() {
    let stack = Stack::on(clock(1), |_| {}, |_| {}).await;
    for _ in 0..2 {
        assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; fwd=miss");
    }
    assert_eq!(stack.metric(r#"sidelink_uncacheable_total{reason="under_floor"}"#).await, 2.0);
    let skew = stack.metric("sidelink_clock_skew_seconds").await;
    assert!((skew - 3600.0).abs() < 5.0, "{skew}");
    stack.origin.update(|endpoint| endpoint.link_life = Duration::from_secs(3600 + 900));
    stack.client.batch("t", &["1"]).await;
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit");
}

#[tokio::test]
async fn every_way_of_signing_has_its_freshness() {
    for (signer, status, max_age) in [
        (LinkSigner::V2, "sidelink; hit", "private, max-age=599"),
        (LinkSigner::V4, "sidelink; hit", "private, max-age=599"),
        (LinkSigner::Obs, "sidelink; hit", "private, max-age=599"),
        (LinkSigner::Unsigned, "sidelink; hit", "private, max-age=59"),
        (LinkSigner::Unreadable, "sidelink; fwd=miss", "no-store"),
    ] {
        let clock = clock(0);
        let stack = Stack::on(clock.clone(), |endpoint| endpoint.signer = Some(signer), |_| {}).await;
        stack.client.batch("t", &["1"]).await;
        clock.step(100);
        let again = stack.client.batch("t", &["1"]).await;
        assert_eq!(again.header("cache-status"), status, "{signer:?}");
        assert_eq!(again.header("cache-control"), max_age, "{signer:?}");
    }
}

#[tokio::test]
async fn the_endpoints_cache_control_is_honoured() {
    let no_store = |endpoint: &mut sidelink::demo::origin::Options| endpoint.cache_control = Some("no-store".into());
    let stack = Stack::with(no_store, |_| {}).await;
    for _ in 0..2 {
        assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; fwd=miss");
    }
    let stack = Stack::with(no_store, |config| config.freshness.honour_no_store = false).await;
    stack.client.batch("t", &["1"]).await;
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit");

    let clock = clock(0);
    let max_age = |endpoint: &mut sidelink::demo::origin::Options| endpoint.cache_control = Some("max-age=30".into());
    let stack = Stack::on(clock.clone(), max_age, |_| {}).await;
    stack.client.batch("t", &["1"]).await;
    clock.step(31_000);
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; fwd=miss; stored");
}

#[tokio::test]
async fn each_link_of_a_batch_keeps_its_own_deadline() {
    let clock = clock(0);
    let stack = Stack::on(clock.clone(), |endpoint| endpoint.link_life = Duration::from_secs(100), |_| {}).await;
    stack.client.batch("t", &["short"]).await;
    stack.origin.update(|endpoint| endpoint.link_life = Duration::from_secs(900));
    stack.client.batch("t", &["short", "long"]).await;
    clock.step(45_000);
    let reply = stack.client.batch("t", &["short", "long"]).await;
    assert_eq!(reply.header("cache-status"), "sidelink; fwd=partial; stored; detail=\"hit=1 fetched=1\"");
    assert_eq!(stack.asked().last().unwrap(), &["short"]);
}
