//! However the server fails, answers are right and cost no more than their budget; when it is back, it is used again.

use std::time::Duration;

use tokio::time::Instant;

use super::{Fleet, Redis, eventually, shared};

#[tokio::test]
async fn a_server_that_is_frozen_costs_the_first_batches_a_little_and_is_used_again() {
    let redis = Redis::start().await;
    let mut tier = shared(vec![redis.address()]);
    // As by default; a batch that waited for a lease would wait for ten seconds.
    tier.timeout = Duration::from_millis(5);
    let fleet = Fleet::with(tier, 1, |_| {}, |_| {}).await;
    let sidecar = &fleet.sidecars[0];
    sidecar.client.batch("t", &["0"]).await;
    sidecar.tier_is(true).await;
    redis.signal("-STOP");
    let begin = Instant::now();
    assert_eq!(sidecar.client.batch("t", &["1"]).await.ids(), ["1"]);
    let first = begin.elapsed();
    // 5 ms, and what the machine adds to it.
    assert!(first < Duration::from_millis(500), "{first:?}");
    println!("the first batch before a frozen server: {first:?}");
    sidecar.tier_is(false).await;
    let operations = async || {
        let mut sum = 0.0;
        for operation in ["get", "lease", "put"] {
            sum += sidecar.metric(&format!("sidelink_shared_operations_total{{operation=\"{operation}\"}}")).await;
        }
        sum
    };
    let before = operations().await;
    for id in 2..10 {
        let id = id.to_string();
        assert_eq!(sidecar.client.batch("t", &[&id]).await.ids(), [id]);
    }
    assert_eq!(operations().await, before, "as if there were none");
    assert!(sidecar.failures("timeout").await > 0.0);

    redis.signal("-CONT");
    sidecar.tier_is(true).await;
    eventually("it is used again", async || {
        sidecar.client.batch("t", &[&rand::random::<u32>().to_string()]).await;
        operations().await > before
    })
    .await;
}
