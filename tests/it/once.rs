//! While an id is fresh or in flight in a scope, no second call fetches it. Every id of every batch is counted exactly once.

use std::collections::HashSet;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use sidelink::demo::origin::{ScriptedReply, link_is_for};
use sidelink::telemetry::metrics::IdResult;

use crate::support::Stack;

async fn counted(stack: &Stack) -> f64 {
    let mut sum = 0.0;
    for result in IdResult::ALL {
        sum += stack.metric(&format!("sidelink_ids_total{{result=\"{}\"}}", result.name())).await;
    }
    sum
}

#[tokio::test]
async fn concurrent_misses_share_flights() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let client = stack.client.clone();
    let leader = tokio::spawn(async move { client.batch("t", &["1", "2"]).await });
    stack.origin.arrived(1).await;
    let client = stack.client.clone();
    let joiner = tokio::spawn(async move { client.batch("t", &["2", "3", "1"]).await });
    stack.origin.arrived(2).await;
    let client = stack.client.clone();
    let follower = tokio::spawn(async move { client.batch("t", &["1", "2"]).await });
    // This batch causes no call, so the endpoint cannot tell when it has arrived.
    stack.origin.release();
    assert_eq!(leader.await.unwrap().ids(), ["1", "2"]);
    let joined = joiner.await.unwrap();
    assert_eq!(joined.ids(), ["2", "3", "1"]);
    follower.await.unwrap();
    assert_eq!(stack.asked(), [vec!["1", "2"], vec!["3"]]);
    assert_eq!(counted(&stack).await, 7.0);
}

#[tokio::test]
async fn joined_batches_complete_after_the_first_client_disconnects() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let client = stack.client.clone();
    let leader = tokio::spawn(async move { client.batch("t", &["1", "2"]).await });
    stack.origin.arrived(1).await;
    let client = stack.client.clone();
    let joiner = tokio::spawn(async move { client.batch("t", &["1", "2", "3"]).await });
    stack.origin.arrived(2).await;
    leader.abort();
    let _ = leader.await;
    stack.origin.release();
    assert_eq!(joiner.await.unwrap().ids(), ["1", "2", "3"]);
    assert_eq!(stack.asked(), [vec!["1", "2"], vec!["3"]]);
}

#[tokio::test]
async fn a_bad_id_fails_only_its_own_batch() {
    for status in [500, 400, 200] {
        let stack = Stack::with(
            |endpoint| {
                endpoint.poison = vec!["bad".into()];
                endpoint.poison_status = status;
            },
            |_| {},
        )
        .await;
        stack.origin.hold();
        let client = stack.client.clone();
        let faulty = tokio::spawn(async move { client.batch("t", &["1", "bad"]).await });
        stack.origin.arrived(1).await;
        let client = stack.client.clone();
        let innocent = tokio::spawn(async move { client.batch("t", &["2", "1"]).await });
        stack.origin.arrived(2).await;
        stack.origin.release();
        assert_eq!(innocent.await.unwrap().ids(), ["2", "1"], "{status}");
        let error = faulty.await.unwrap();
        assert_eq!(error.status, status);
        assert!(error.json()["error_code"].as_str().unwrap().starts_with("OSM."), "the endpoint's own error");
    }
}

#[tokio::test]
async fn a_batch_with_an_unmatched_answer_is_forwarded_whole() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1"]).await;
    let odd = r#"{"accessory_urls":[{"accessory_id":2,"accessory_url":"u"}]}"#;
    stack.origin.script(ScriptedReply::json(200, odd));
    let whole = r#"{"accessory_urls":[{"accessory_id":1},{"accessory_id":2}]}"#;
    stack.origin.script(ScriptedReply::json(200, whole));
    let reply = stack.client.batch("t", &["1", "2"]).await;
    assert_eq!(reply.body, whole);
    assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=unmatched");
    assert_eq!(stack.asked(), [vec!["1"], vec!["2"], vec!["1", "2"]]);

    stack.origin.script(ScriptedReply::json(200, odd));
    let alone = stack.client.batch("t", &["2"]).await;
    assert_eq!(alone.body, odd, "the call was the whole batch, so its answer is passed on");
    assert_eq!(stack.asked().len(), 4);
    assert_eq!(stack.metric(r#"sidelink_uncacheable_total{reason="unmatched"}"#).await, 2.0);
}

/// 64 different cold batches over 40 ids at once.
#[tokio::test]
async fn a_cold_stampede_fetches_each_id_once_in_at_most_five_calls() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let mut random = StdRng::seed_from_u64(7);
    let batches: Vec<Vec<String>> = (0..64).map(|_| draw(&mut random, 20, 40)).collect();
    let distinct: HashSet<&String> = batches.iter().flatten().collect();
    let clients: Vec<_> = batches
        .iter()
        .map(|batch| {
            let (client, batch) = (stack.client.clone(), batch.clone());
            tokio::spawn(async move { client.batch("t", &refs(&batch)).await.ids() == batch })
        })
        .collect();
    // A batch is counted and joins its flights without an await between, so all 64 have joined.
    while stack.metric("sidelink_batch_ids_count").await < 64.0 {}
    stack.origin.release();
    for client in clients {
        assert!(client.await.unwrap());
    }
    assert_eq!(stack.origin.ids_asked(), distinct.len());
    assert!(stack.origin.batch_calls() <= 5, "{} calls", stack.origin.batch_calls());
    println!("stampede: {} ids in {} calls", stack.origin.ids_asked(), stack.origin.batch_calls());
}

/// Skewed batches over 64 connections: upstream ids ÷ distinct ids is exactly 1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_batches_fetch_each_id_exactly_once() {
    let stack = Stack::start().await;
    let (batches, connections) = (3_200, 64);
    let clients: Vec<_> = (0..connections)
        .map(|seed| {
            let client = stack.client.clone();
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(seed);
                let mut seen = HashSet::new();
                for _ in 0..batches / connections {
                    let batch = draw(&mut random, 20, 2_000);
                    let reply = client.batch("t", &refs(&batch)).await;
                    assert_eq!(reply.ids(), batch);
                    for (id, link) in reply.links() {
                        assert!(link_is_for(&link, &id, None, "t", None, None));
                    }
                    seen.extend(batch);
                }
                seen
            })
        })
        .collect();
    let mut distinct = HashSet::new();
    for client in clients {
        distinct.extend(client.await.unwrap());
    }
    assert_eq!(stack.origin.ids_asked(), distinct.len());
    assert_eq!(counted(&stack).await, f64::from(u32::try_from(batches * 20).unwrap()));
}

/// `count` distinct ids below `most`; low ids are more likely.
fn draw(random: &mut impl Rng, count: usize, most: usize) -> Vec<String> {
    let mut batch: Vec<String> = Vec::new();
    while batch.len() < count {
        let id = random.random_range(0..most).min(random.random_range(0..most));
        if !batch.contains(&id.to_string()) {
            batch.push(id.to_string());
        }
    }
    batch
}

fn refs(batch: &[String]) -> Vec<&str> {
    batch.iter().map(String::as_str).collect()
}
