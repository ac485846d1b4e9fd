//! Any number of purges and revocations, from any number of sidecars, leaves the tier working.

use serde_json::json;

use super::{Fleet, Redis, Sidecar, eventually};
use crate::support::TestClient;

/// Purges `count` ids, of `from` on, in one request; returns the answer.
pub async fn purge_ids(sidecar: &Sidecar, from: usize, count: usize) -> serde_json::Value {
    let ids: Vec<String> = (from..from + count).map(|id| id.to_string()).collect();
    purge(sidecar, &json!({ "accessory_ids": ids })).await
}

pub async fn purge(sidecar: &Sidecar, body: &serde_json::Value) -> serde_json::Value {
    let admin = TestClient::new(sidecar.app.admin_address());
    let json = [("content-type", "application/json")];
    let reply = admin.send(http::Method::POST, "/purge", &json, body.to_string()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

/// The sum of a series over the fleet.
pub async fn sum(fleet: &Fleet, series: &str) -> f64 {
    let mut sum = 0.0;
    for sidecar in &fleet.sidecars {
        sum += sidecar.metric(series).await;
    }
    sum
}

/// Waits until nothing is appended to the journal any more, and links are shared.
async fn is_calm(fleet: &Fleet, redis: &Redis) {
    let [journal] = &redis.keys("j").await[..] else { panic!() };
    let appended = async || redis.number(&["STRLEN", journal]).await;
    let syncs = async || sum(fleet, r#"sidelink_shared_operations_total{operation="sync"}"#).await;
    eventually("all is told", async || {
        let (before, begun) = (appended().await, syncs().await);
        // Each sidecar has synchronized several times.
        eventually("they synchronize", async || syncs().await > begun + 24.0).await;
        appended().await == before
    })
    .await;
    let [one, .., other] = &fleet.sidecars[..] else { panic!() };
    let id = format!("after-all-{}", rand::random::<u32>());
    let before = redis.keys("l").await.len();
    one.client.batch("t", &[&id]).await;
    eventually("it is shared", async || redis.keys("l").await.len() > before).await;
    assert_eq!(other.client.batch("t", &[&id]).await.header("cache-status"), "sidelink; hit; detail=shared");
}

/// Regression: each sidecar announced its events again whenever a full journal had begun anew, which filled it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purges_of_the_same_ids_at_all_sidecars_fill_the_journal_once() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 6).await;
    for sidecar in &fleet.sidecars {
        purge_ids(sidecar, 0, 1700).await;
    }
    is_calm(&fleet, &redis).await;
    // 10,200 records: one journal is full, and no event is in the next one that was in it.
    assert_eq!(sum(&fleet, "sidelink_shared_journals_full_total").await, 1.0);
    for (series, expected) in [
        ("sidelink_shared_purges_merged_total", 0.0),
        (r#"sidelink_shared_failures_total{kind="journal"}"#, 0.0),
        (r#"sidelink_shared_failures_total{kind="reply"}"#, 0.0),
    ] {
        assert_eq!(sum(&fleet, series).await, expected, "{series}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purges_of_thousands_of_ids_at_each_of_three_sidecars_leave_the_tier_in_use() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 3).await;
    for id in ["1", "5000", "10499"] {
        fleet.sidecars[0].client.batch("t", &[id]).await;
    }
    for (at, sidecar) in fleet.sidecars.iter().enumerate() {
        purge_ids(sidecar, at * 3500, 3500).await;
    }
    eventually("all purges are heard", async || {
        let headers = [("x-auth-token", "t"), ("cache-control", "only-if-cached")];
        let mut gone = true;
        for id in ["1", "5000", "10499"] {
            gone &= fleet.sidecars[0].client.get(&crate::support::query(&[id]), &headers).await.status == 504;
        }
        gone
    })
    .await;
    is_calm(&fleet, &redis).await;
    assert_eq!(sum(&fleet, "sidelink_shared_journals_full_total").await, 1.0);
    assert_eq!(sum(&fleet, "sidelink_shared_purges_merged_total").await, 0.0);
}

/// A journal that is lost while many sidecars have announced the same events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_journal_has_each_event_again_whoever_announced_it() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 6).await;
    for sidecar in &fleet.sidecars {
        purge_ids(sidecar, 0, 100).await;
    }
    is_calm(&fleet, &redis).await;
    let [journal] = &redis.keys("j").await[..] else { panic!() };
    redis.ask(&["FLUSHALL"]).await;
    eventually("it begins anew", async || redis.number(&["STRLEN", journal]).await >= 100 * 101).await;
    is_calm(&fleet, &redis).await;
    assert_eq!(sum(&fleet, "sidelink_shared_journals_full_total").await, 0.0);
    assert!(sum(&fleet, r#"sidelink_shared_failures_total{kind="journal"}"#).await >= 6.0, "and it is counted");
}
