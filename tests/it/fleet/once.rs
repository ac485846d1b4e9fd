//! Of all sidecars that miss an id at the same time, one asks the endpoint.

use std::collections::HashSet;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Zipf};
use sidelink::demo::origin::{ScriptedReply, link_is_for};

use super::{Fleet, Redis, eventually, shared};

/// Batches of 20 distinct ids, drawn by Zipf 0.99 from 10,000.
fn batches(count: usize) -> Vec<Vec<String>> {
    let mut random = StdRng::seed_from_u64(11);
    let zipf = Zipf::new(10_000.0, 0.99).unwrap();
    let mut draw = || {
        let mut batch: Vec<String> = Vec::new();
        while batch.len() < 20 {
            let id = format!("{}", zipf.sample(&mut random));
            if !batch.contains(&id) {
                batch.push(id);
            }
        }
        batch
    };
    (0..count).map(|_| draw()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_sidecars_with_the_same_batches_ask_for_each_id_once() {
    let redis = Redis::start().await;
    let mut tier = shared(vec![redis.address()]);
    tier.timeout = Duration::from_secs(10);
    let fleet = Fleet::with(tier, 3, |_| {}, |_| {}).await;
    let batches = batches(1500);
    let distinct: HashSet<&String> = batches.iter().flatten().collect();
    let mut clients = tokio::task::JoinSet::new();
    for sidecar in &fleet.sidecars {
        for part in batches.chunks(batches.len() / 4) {
            let (client, part) = (sidecar.client.clone(), part.to_vec());
            clients.spawn(async move {
                for batch in part {
                    let ids: Vec<&str> = batch.iter().map(String::as_str).collect();
                    let reply = client.batch("t", &ids).await;
                    assert_eq!(reply.ids(), batch);
                    for (id, link) in reply.links() {
                        assert!(link_is_for(&link, &id, None, "t", None, None));
                    }
                }
            });
        }
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    let (asked, distinct) = (fleet.origin.ids_asked(), distinct.len());
    println!("three sidecars: {asked} ids asked, {distinct} distinct");
    assert!(asked * 100 <= distinct * 105, "{asked} of {distinct}");
}

#[tokio::test]
async fn a_sidecar_waits_for_ids_that_another_one_fetches() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 2).await;
    fleet.origin.hold();
    let client = fleet.sidecars[0].client.clone();
    let holder = tokio::spawn(async move { client.batch("t", &["1", "2"]).await });
    fleet.origin.arrived(1).await;
    let client = fleet.sidecars[1].client.clone();
    let waiter = tokio::spawn(async move { client.batch("t", &["2", "1"]).await });
    eventually("it has found the leases taken", async || {
        fleet.sidecars[1].metric("sidelink_shared_operations_total{operation=\"lease\"}").await > 1.0
    })
    .await;
    fleet.origin.release();
    assert_eq!(holder.await.unwrap().ids(), ["1", "2"]);
    let waited = waiter.await.unwrap();
    assert_eq!(
        (waited.ids(), waited.header("cache-status")),
        (vec!["2".into(), "1".into()], "sidelink; hit; detail=shared")
    );
    assert_eq!(fleet.origin.batch_calls(), 1);
    eventually("the leases are given back", async || redis.keys("f").await.is_empty()).await;
}

#[tokio::test]
async fn a_sidecar_that_waits_for_a_failed_call_goes_on_at_once() {
    let redis = Redis::start().await;
    let mut tier = shared(vec![redis.address()]);
    // Waiting for the lease to expire would exceed the deadline.
    tier.lease_wait = Duration::from_secs(60);
    let fleet = Fleet::with(tier, 2, |_| {}, |_| {}).await;
    fleet.origin.hold();
    fleet.origin.script(ScriptedReply::json(400, r#"{"error_code":"OSM.0001","error_msg":"failed"}"#));
    let client = fleet.sidecars[0].client.clone();
    let holder = tokio::spawn(async move { client.batch("t", &["1"]).await });
    fleet.origin.arrived(1).await;
    let client = fleet.sidecars[1].client.clone();
    let waiter = tokio::spawn(async move { client.batch("t", &["1"]).await });
    eventually("it has found the lease taken", async || {
        fleet.sidecars[1].metric("sidelink_shared_operations_total{operation=\"lease\"}").await > 1.0
    })
    .await;
    fleet.origin.release();
    assert_eq!(holder.await.unwrap().status, 400);
    assert_eq!(waiter.await.unwrap().ids(), ["1"]);
}

#[tokio::test]
async fn a_batch_waits_for_another_sidecar_for_lease_wait_at_most() {
    let redis = Redis::start().await;
    let mut tier = shared(vec![redis.address()]);
    tier.lease_wait = Duration::from_millis(300);
    let fleet = Fleet::with(tier, 1, |_| {}, |_| {}).await;
    let sidecar = &fleet.sidecars[0];
    sidecar.client.batch("t", &["1"]).await;
    eventually("it is shared", async || redis.keys("l").await.len() == 1).await;
    // A lease that no sidecar will release, on an id without a link.
    let [link] = &redis.keys("l").await[..] else { panic!() };
    let lease = link.replace(":l.", ":f.");
    redis.ask(&["DEL", link]).await;
    redis.ask(&["SET", &lease, "1", "PX", "60000"]).await;
    let config = super::sidecar(fleet.origin.address(), &{
        let mut tier = shared(vec![redis.address()]);
        tier.lease_wait = Duration::from_millis(300);
        tier
    });
    let fresh = super::Sidecar::start(config, fleet.clock.clone()).await;
    fresh.tier_is(true).await;
    assert_eq!(fresh.client.batch("t", &["1"]).await.ids(), ["1"]);
    assert_eq!(fleet.origin.batch_calls(), 2);
}
