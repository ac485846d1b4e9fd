//! Not tests: what docs/SCALE.md models, with 3 and with 20 real sidecars and a real server. Each prints a table for that page.

#![allow(clippy::print_stdout, reason = "prints tables for a page")]

use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::costs::info;
use super::journal::{purge, sum};
use super::leases::process;
use super::{Fleet, Redis, eventually, shared};
use crate::process::Files;
use crate::support::{TestClient, query};

const IDS: [&str; 20] =
    ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19", "20"];

async fn bytes(redis: &Redis) -> u64 {
    info(redis, "stats", "total_net_input_bytes:").await + info(redis, "stats", "total_net_output_bytes:").await
}

/// `told` of `count` sidecars are told at once to purge the same `ids`.
async fn storm(count: usize, told: usize, ids: usize) {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, count).await;
    for sidecar in &fleet.sidecars {
        sidecar.client.batch("t", &["marker"]).await;
    }
    let body = json!({ "accessory_ids": (0..ids).map(|id| id.to_string()).collect::<Vec<_>>() }).to_string();
    let (begin, before) = (Instant::now(), bytes(&redis).await);
    let mut purges = JoinSet::new();
    for sidecar in &fleet.sidecars[..told] {
        let (admin, body) = (TestClient::new(sidecar.app.admin_address()), body.clone());
        purges.spawn(async move {
            admin.send(Method::POST, "/purge", &[("content-type", "application/json")], body).await.status
        });
    }
    assert!(purges.join_all().await.iter().all(|status| *status == 200));
    eventually("all is told", async || sum(&fleet, "sidelink_shared_untold_records").await == 0.0).await;
    let all_told = begin.elapsed();
    let mut records = 0;
    for journal in redis.list(&["KEYS", "sidelink:[jo].*"]).await {
        records += redis.number(&["STRLEN", &journal]).await / 100 - 1;
    }
    // The journal's last record: who has read it has read all.
    purge_marker(&fleet).await;
    let all_read = begin.elapsed();
    let bytes = bytes(&redis).await - before;
    let continued = sum(&fleet, "sidelink_shared_journals_full_total").await;
    println!(
        "| {count} | {told} | {ids} | {}{records} | {continued} | {} | {} | {:.2} | {:.2} | {:.1} |",
        // Of more than two journals, the last two are there.
        if continued > 1.0 { "over " } else { "" },
        sum(&fleet, "sidelink_shared_purges_merged_total").await,
        sum(&fleet, r#"sidelink_shared_breaker_state{state="open"}"#).await,
        all_told.as_secs_f64(),
        all_read.as_secs_f64(),
        bytes as f64 / 1e6,
    );
}

async fn purge_marker(fleet: &Fleet) {
    let body = json!({ "accessory_ids": ["marker"] });
    purge(&fleet.sidecars[0], &body).await;
    let headers = [("x-auth-token", "t"), ("cache-control", "only-if-cached")];
    for sidecar in &fleet.sidecars {
        let target = query(&["marker"]);
        eventually("it is read", async || sidecar.client.get(&target, &headers).await.status == 504).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and shows nothing by itself"]
async fn storms_of_purges() {
    println!(
        "| sidecars | told | ids | records | journals continued | merged or missed | tier down | all told after s | read by all after s | MB |"
    );
    for count in [3, 20] {
        // As many records as sidecars in one process can open within seconds, unoptimized.
        let many = if count == 3 { 1000 } else { 100 };
        for (told, ids) in [(1, 1000), (count, 10), (count, many), (count, 5000)] {
            storm(count, told, ids).await;
        }
    }
}

/// `count` sidecars miss the same ids at once, and a call takes `call`; where `dies`, the first that calls is killed halfway.
async fn misses(count: usize, call: Duration, dies: bool) {
    let redis = Redis::start().await;
    let mut tier = shared(vec![redis.address()]);
    tier.lease_wait = Duration::from_secs(5);
    let fleet = Fleet::with(
        tier,
        count - usize::from(dies),
        |endpoint| endpoint.delay = call,
        |config| config.upstream.deadline = Duration::from_secs(10),
    )
    .await;
    // An endpoint of which each sidecar knows how long it takes.
    let mut earlier = JoinSet::new();
    for (at, sidecar) in fleet.sidecars.iter().enumerate().filter(|_| call < Duration::from_secs(10)) {
        let client = sidecar.client.clone();
        earlier.spawn(async move { client.batch("t", &[&format!("earlier-{at}")]).await });
    }
    earlier.join_all().await;
    let files = Files::new(fleet.origin.address());
    let owner = if dies { Some(process(&files, redis.port.number(), "").await) } else { None };
    let before = fleet.origin.batch_calls();
    let begin = Instant::now();
    let mut lost = JoinSet::new();
    if let Some(owner) = &owner {
        let client = owner.client.clone();
        lost.spawn(async move { client.batch("t", &IDS).await });
        fleet.origin.arrived(before + 1).await;
    }
    let mut batches = JoinSet::new();
    for sidecar in &fleet.sidecars {
        let client = sidecar.client.clone();
        batches.spawn(async move {
            let reply = client.batch("t", &IDS).await;
            (reply.status == 200 && reply.ids().len() == IDS.len()).then(|| begin.elapsed())
        });
    }
    if let Some(owner) = &owner {
        sleep(call / 2).await;
        lost.shutdown().await;
        owner.signal("KILL");
    }
    let answers = batches.join_all().await;
    let last =
        answers.iter().flatten().max().map_or_else(|| "none".to_owned(), |last| format!("{:.2}", last.as_secs_f64()));
    let unanswered = answers.iter().filter(|answer| answer.is_none()).count();
    let calls = fleet.origin.batch_calls() - before;
    println!("| {} | {count} | {calls} | {last} | {unanswered} |", call.as_secs_f64());
}

async fn tables_of_misses(dies: bool) {
    println!("| a call takes s | sidecars | calls | last answer after s | unanswered |");
    for call in [60, 600, 3_000, 6_000, 10_000] {
        for count in [3, 20] {
            misses(count, Duration::from_millis(call), dies).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and shows nothing by itself"]
async fn slow_endpoints() {
    tables_of_misses(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and shows nothing by itself"]
async fn deaths_of_owners() {
    tables_of_misses(true).await;
}
