//! What the status page says of the tier while it is in use, and once it is back.

use std::time::{Duration, Instant};

use super::{Fleet, Redis, Sidecar, eventually, shared, sidecar};
use crate::alerts::{alerts, says};
use crate::support::{Stack, TestClient};

/// The text of the tier's alert, if there is one.
pub async fn tier_alert(admin: &TestClient) -> Option<String> {
    let found = alerts(admin).await;
    let alert = found.iter().find(|alert| alert["kind"] == "shared_tier")?;
    Some(format!("{}: {}", alert["title"].as_str().unwrap(), alert["text"].as_str().unwrap()))
}

/// A sidelink at this server.
async fn at(redis: &Redis) -> (Stack, TestClient) {
    let stack = Stack::with(|_| {}, |config| config.shared = Some(shared(vec![redis.address()]))).await;
    eventually("the tier is up", async || stack.metric(IS_UP).await == 1.0).await;
    let admin = TestClient::new(stack.app.admin_address());
    (stack, admin)
}

const IS_UP: &str = "sidelink_shared_breaker_state{state=\"closed\"}";

/// Nobody asks anything: the background task notices it, and that it is over.
#[tokio::test]
async fn a_shared_tier_that_refuses_writes_is_alerted_until_it_takes_them_although_it_is_up() {
    for (key, on, off, code, words) in [
        ("maxmemory", "1", "0", "OOM", "purges are told"),
        ("min-replicas-to-write", "1", "0", "NOREPLICAS", "is told to no other"),
    ] {
        let redis = Redis::start().await;
        // Two, of which one at a time writes that there is the fleet.
        let fleet = Fleet::start(&redis, 2).await;
        let [admin, other] = [0, 1].map(|at: usize| TestClient::new(fleet.sidecars[at].app.admin_address()));
        let alerted = async |is_so: bool| {
            let begin = Instant::now();
            for admin in [&admin, &other] {
                eventually("it is alerted, or over", async || tier_alert(admin).await.is_some() == is_so).await;
            }
            // Three, and time for a busy machine; without a write of its own a sidecar takes longer.
            assert!(begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());
        };
        alerted(false).await;
        redis.ask(&["CONFIG", "SET", key, on]).await;
        alerted(true).await;
        let words = ["The shared tier refuses writes", code, words, "No batch fails"];
        says(&alerts(&admin).await, "shared_tier", "warning", "operator", &words);
        let text = tier_alert(&admin).await.unwrap();
        assert!(!text.contains("reach it late") && !text.contains("round trips"), "{text}");
        fleet.sidecars[0].tier_is(true).await;
        redis.ask(&["CONFIG", "SET", key, off]).await;
        alerted(false).await;
    }
}

/// Regression: a sidelink that was started then said that the tier is in use, and nothing else.
#[tokio::test]
async fn a_shared_tier_that_refuses_writes_from_the_start_is_alerted_at_once() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 1).await;
    redis.ask(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    let config = sidecar(fleet.origin.address(), &shared(vec![redis.address()]));
    let started = Sidecar::start(config, fleet.clock.clone()).await;
    started.tier_is(true).await;
    let text = tier_alert(&TestClient::new(started.app.admin_address())).await.unwrap_or_default();
    assert!(text.starts_with("The shared tier refuses writes") && text.contains("NOREPLICAS"), "{text}");
}

/// Regression: failures of before went on being alerted for two minutes, as more than there were round trips.
#[tokio::test]
async fn a_shared_tier_that_is_back_is_not_alerted_for_what_failed_before() {
    let redis = Redis::start().await;
    let (stack, admin) = at(&redis).await;
    let port = redis.port.clone();
    drop(redis);
    eventually("it is down", async || stack.metric(IS_UP).await == 0.0).await;
    let failures = r#"sidelink_shared_failures_total{kind="connect"}"#;
    eventually("it is tried again and again", async || stack.metric(failures).await >= 5.0).await;
    let _redis = Redis::at(port, &[]).await;
    eventually("it is back", async || stack.metric(IS_UP).await == 1.0).await;
    assert_eq!(tier_alert(&admin).await, None);
}
