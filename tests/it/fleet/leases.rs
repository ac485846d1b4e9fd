//! A lease lives as long as its owner's call, ends with its owner, and is taken over by one of those that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sidelink::config::Shared;
use tokio::task::JoinHandle;

use super::faults::{Lie, relay};
use super::{Fleet, Redis, SECRET, Sidecar, eventually, shared};
use crate::process::{Files, Process};
use crate::support::{Reply, TestClient, origin_options};

const LEASE: &str = r#"sidelink_shared_operations_total{operation="lease"}"#;
const RELEASE: &str = r#"sidelink_shared_operations_total{operation="release"}"#;
const DENIED: &str = r#"sidelink_shared_failures_total{kind="denied"}"#;

/// A tier whose batches wait for as long as a test takes.
fn patient(redis: &Redis) -> Shared {
    let mut tier = shared(vec![redis.address()]);
    tier.lease_wait = Duration::from_secs(60);
    tier
}

/// A fleet whose batches have as much time.
async fn fleet(redis: &Redis, count: usize) -> Fleet {
    Fleet::with(patient(redis), count, |_| {}, |config| config.upstream.deadline = Duration::from_secs(120)).await
}

fn ask(sidecar: &Sidecar, ids: &'static [&'static str]) -> JoinHandle<Reply> {
    let client = sidecar.client.clone();
    tokio::spawn(async move { client.batch("t", ids).await })
}

/// Waits until those of the sidecars that wait have looked again several times whether a lease is still taken.
async fn look_again(sidecars: &[Sidecar]) {
    let looks = async || {
        let mut looks = 0.0;
        for sidecar in sidecars {
            looks += sidecar.metric(LEASE).await;
        }
        looks
    };
    let before = looks().await;
    eventually("they look again", async || looks().await >= before + 20.0).await;
}

/// A process of the fleet that asks `endpoint`, with these further lines in `[shared]`.
pub async fn process(files: &Files, port: u16, more: &str) -> Process {
    let secret = files.directory.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let secret = secret.display();
    let tier =
        format!("[shared]\nurl = \"redis://127.0.0.1:{port}\"\nsecret_file = \"{secret}\"\ntimeout = \"2s\"\n{more}");
    let mut process = Process::start(&files.write(&tier)).await;
    process.says("the shared tier is in use").await;
    process
}

#[tokio::test]
async fn sidecars_that_miss_an_id_make_one_call_however_slow_the_endpoint_is() {
    let redis = Redis::start().await;
    let fleet = fleet(&redis, 5).await;
    fleet.origin.hold();
    let mut batches = vec![ask(&fleet.sidecars[0], &["1", "2"])];
    fleet.origin.arrived(1).await;
    batches.extend(fleet.sidecars[1..].iter().map(|sidecar| ask(sidecar, &["2", "1"])));
    // Each renewal comes half a second after the one before: by the fifth, a lease that is not renewed has ended.
    let owner = &fleet.sidecars[0];
    eventually("the leases are renewed", async || owner.metric(RELEASE).await >= 5.0).await;
    look_again(&fleet.sidecars[1..]).await;
    fleet.origin.release();
    for batch in batches {
        assert_eq!(batch.await.unwrap().ids().len(), 2);
    }
    assert_eq!(fleet.origin.batch_calls(), 1);
    eventually("the leases are released", async || redis.keys("f").await.is_empty()).await;
}

#[tokio::test]
async fn one_of_those_that_wait_takes_over_from_an_owner_that_is_killed() {
    let redis = Redis::start().await;
    let fleet = fleet(&redis, 5).await;
    let files = Files::new(fleet.origin.address());
    let owner = process(&files, redis.port.number(), "").await;
    fleet.origin.hold();
    let client = owner.client.clone();
    let lost = tokio::spawn(async move { client.batch("t", &["1", "2"]).await });
    fleet.origin.arrived(1).await;
    let batches: Vec<_> = fleet.sidecars.iter().map(|sidecar| ask(sidecar, &["1", "2"])).collect();
    look_again(&fleet.sidecars).await;
    assert_eq!(fleet.origin.batch_calls(), 1);
    lost.abort();
    owner.signal("KILL");
    fleet.origin.arrived(2).await;
    look_again(&fleet.sidecars).await;
    fleet.origin.release();
    for batch in batches {
        assert_eq!(batch.await.unwrap().ids(), ["1", "2"]);
    }
    assert_eq!(fleet.origin.batch_calls(), 2);
}

/// Regression: each sidecar called after `lease_wait`, too late for an answer before its deadline.
#[tokio::test]
async fn an_endpoint_that_takes_longer_than_lease_wait_is_asked_once_if_another_call_would_have_too_little_time() {
    let redis = Redis::start().await;
    let mut tier = shared(vec![redis.address()]);
    tier.lease_wait = Duration::from_secs(3);
    let fleet = Fleet::with(tier, 2, |_| {}, |config| config.upstream.deadline = Duration::from_millis(8900)).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    fleet.origin.hold();
    let first = ask(one, &["1"]);
    fleet.origin.arrived(1).await;
    let second = ask(other, &["1"]);
    // More looks than fit into three seconds: 17 until pauses are at their longest, and then one in 150 ms at most.
    let is_over = async || other.metric(LEASE).await >= 36.0 || fleet.origin.batch_calls() > 1;
    eventually("lease_wait is over", is_over).await;
    assert_eq!(fleet.origin.batch_calls(), 1);
    fleet.origin.release();
    for batch in [first, second] {
        assert_eq!(batch.await.unwrap().ids(), ["1"]);
    }
    assert_eq!(fleet.origin.batch_calls(), 1);
}

#[tokio::test]
async fn a_batch_waits_while_a_call_of_its_own_has_a_fair_time() {
    let redis = Redis::start().await;
    let fleet = fleet(&redis, 1).await;
    ask(&fleet.sidecars[0], &["1"]).await.unwrap();
    eventually("it is shared", async || redis.keys("l").await.len() == 1).await;
    let [link] = &redis.keys("l").await[..] else { panic!("a link") };
    let lease = link.replace(":l.", ":f.");
    redis.ask(&["DEL", link]).await;
    redis.ask(&["SET", &lease, "of a sidecar that hangs", "PX", "60000"]).await;
    let mut config = super::sidecar(fleet.origin.address(), &patient(&redis));
    config.upstream.deadline = Duration::from_secs(4);
    let fresh = Sidecar::start(config, fleet.clock.clone()).await;
    fresh.tier_is(true).await;
    assert_eq!(ask(&fresh, &["1"]).await.unwrap().ids(), ["1"]);
    assert_eq!((fleet.origin.batch_calls(), fresh.metric(DENIED).await), (2, 1.0));
}

#[tokio::test]
async fn a_link_that_is_no_longer_fresh_is_fetched_once() {
    let redis = Redis::start().await;
    let fleet = fleet(&redis, 3).await;
    ask(&fleet.sidecars[0], &["1"]).await.unwrap();
    eventually("it is shared", async || redis.keys("l").await.len() == 1).await;
    // Fresh for ten minutes, usable for fourteen.
    fleet.clock.step(660_000);
    fleet.origin.hold();
    let batches: Vec<_> = fleet.sidecars.iter().map(|sidecar| ask(sidecar, &["1"])).collect();
    fleet.origin.arrived(2).await;
    look_again(&fleet.sidecars).await;
    fleet.origin.release();
    for batch in batches {
        assert_eq!(batch.await.unwrap().ids(), ["1"]);
    }
    assert_eq!(fleet.origin.batch_calls(), 2);
}

#[tokio::test]
async fn what_was_purged_during_its_call_is_fetched_once_more_by_one_that_waits() {
    let redis = Redis::start().await;
    let fleet = fleet(&redis, 3).await;
    fleet.origin.hold();
    let mut batches = vec![ask(&fleet.sidecars[0], &["1"])];
    fleet.origin.arrived(1).await;
    batches.extend(fleet.sidecars[1..].iter().map(|sidecar| ask(sidecar, &["1"])));
    look_again(&fleet.sidecars[1..]).await;
    let admin = TestClient::new(fleet.sidecars[1].app.admin_address());
    let json = [("content-type", "application/json")];
    admin.send(http::Method::POST, "/purge", &json, r#"{"all":true}"#).await;
    look_again(&fleet.sidecars[1..]).await;
    fleet.origin.release();
    for batch in batches {
        assert_eq!(batch.await.unwrap().ids(), ["1"]);
    }
    assert_eq!(fleet.origin.batch_calls(), 2);
}

#[tokio::test]
async fn an_owner_releases_and_renews_no_lease_of_a_successor() {
    let redis = Redis::start().await;
    let fleet = fleet(&redis, 1).await;
    let sidecar = &fleet.sidecars[0];
    fleet.origin.hold();
    let batch = ask(sidecar, &["1", "2"]);
    fleet.origin.arrived(1).await;
    let [lease, other] = &redis.keys("f").await[..] else { panic!("two leases") };
    redis.ask(&["SET", lease, "successor", "PX", "60000"]).await;
    eventually("they are renewed", async || sidecar.metric(RELEASE).await >= 1.0).await;
    assert!(redis.number(&["PTTL", lease]).await > 10_000, "and not the successor's");
    fleet.origin.release();
    assert_eq!(batch.await.unwrap().ids(), ["1", "2"]);
    eventually("they are released", async || redis.number(&["EXISTS", other]).await == 0).await;
    assert_eq!(redis.text(&["GET", lease]).await, "successor");
}

#[tokio::test]
async fn a_server_that_denies_every_lease_is_not_asked_for_leases_any_more() {
    const TOLD: &str = "the shared tier grants no leases: ids are fetched without them";
    let redis = Redis::start().await;
    let lying = Arc::new(AtomicBool::new(false));
    let port = relay(redis.port.number(), Lie::Denied, Arc::clone(&lying)).await;
    let origin = sidelink::demo::origin::Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let mut process = process(&files, port, "lease_wait = \"200ms\"").await;
    lying.store(true, Ordering::SeqCst);
    for waits in 1..=5 {
        let id = waits.to_string();
        assert_eq!(process.client.batch("t", &[&id]).await.ids(), [id]);
        assert_eq!(process.metric(DENIED).await, f64::from(waits));
    }
    process.says(TOLD).await;
    let before = process.metric(LEASE).await;
    for id in 6..=9 {
        let id = id.to_string();
        assert_eq!(process.client.batch("t", &[&id]).await.ids(), [id]);
    }
    assert_eq!((process.metric(LEASE).await, process.metric(DENIED).await), (before, 5.0));
    assert_eq!(origin.batch_calls(), 9);
}
