//! Who purges learns whether the fleet was told, and what it was not told yet is told as soon as the server takes it.

use std::time::Duration;

use serde_json::json;
use sidelink::config::{Secret, StoredSecret};
use sidelink::demo::origin::Origin;

use super::journal::purge_ids;
use super::{Fleet, Redis, SECRET, Sidecar, eventually, shared};
use crate::process::{Files, Process};
use crate::support::{TestClient, origin_options, query};

const UNTOLD: &str = "sidelink_shared_untold_records";
const MERGED: &str = "sidelink_shared_purges_merged_total";

async fn has(sidecar: &Sidecar, id: &str) -> bool {
    let headers = [("x-auth-token", "t"), ("cache-control", "only-if-cached")];
    sidecar.client.get(&query(&[id]), &headers).await.status == 200
}

/// Two sidecars that have `1` and `2` in memory.
async fn warm(redis: &Redis) -> Fleet {
    let fleet = Fleet::start(redis, 2).await;
    fleet.comes_to_share(redis).await;
    for sidecar in &fleet.sidecars {
        sidecar.client.batch("t", &["1", "2"]).await;
    }
    fleet
}

async fn alert_kinds(sidecar: &Sidecar) -> Vec<String> {
    let status = TestClient::new(sidecar.app.admin_address()).get("/status.json", &[]).await.json();
    let alerts = status["alerts"].as_array().unwrap().iter();
    alerts.map(|alert| alert["kind"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_answer_to_a_purge_says_that_the_fleet_was_told() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    // On a busy machine the answer may come before the server's.
    eventually("the fleet is told", async || purge_ids(one, 1, 1).await["fleet"] == "told").await;
    assert_eq!(one.metric(UNTOLD).await, 0.0);
    eventually("the other hears it", async || !has(other, "1").await).await;
    assert!(has(other, "2").await);
}

/// Regression: the answer was the same whether the fleet was told or not.
#[tokio::test]
async fn while_the_server_is_frozen_a_purge_is_pending_and_told_later() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    redis.signal("-STOP");
    assert_eq!(purge_ids(one, 1, 1).await, json!({ "purged": "ids", "ids": 1, "fleet": "pending" }));
    assert_eq!(one.metric(UNTOLD).await, 1.0);
    assert!(!has(one, "1").await, "it holds where it was made");
    assert!(has(other, "1").await);
    let untold = async || {
        let status = TestClient::new(one.app.admin_address()).get("/status.json", &[]).await.json();
        status["shared"]["untold_records"].as_u64().unwrap()
    };
    let is_alerted = async || alert_kinds(one).await.contains(&"purges_untold".to_owned());
    assert!(untold().await == 1 && !is_alerted().await, "it may still be told soon");
    fleet.clock.step(30_000);
    assert!(is_alerted().await);
    redis.signal("-CONT");
    eventually("the other hears it", async || !has(other, "1").await).await;
    eventually("the fleet is told", async || one.metric(UNTOLD).await == 0.0).await;
    assert!(untold().await == 0 && !is_alerted().await);
}

/// Regression: the command ended with 0 and said nothing.
#[tokio::test]
async fn the_command_that_purges_says_that_the_fleet_is_not_told_yet() {
    let redis = Redis::start().await;
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let secret = files.directory.path().join("fleet-secret");
    std::fs::write(&secret, SECRET).unwrap();
    let port = redis.port.number();
    let tier = format!("[shared]\nurl = \"redis://127.0.0.1:{port}\"\nsecret_file = {secret:?}\ntimeout = \"500ms\"");
    let mut process = Process::start(&files.write(&tier)).await;
    process.says("the shared tier is in use").await;
    let own = format!("admin.address = \"{}\"", process.admin.address);
    let config = files.directory.path().join("ask.toml");
    std::fs::write(&config, files.text(&tier).replace("admin.address = \"127.0.0.1:0\"", &own)).unwrap();
    let purge = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sidelink"));
        let output = command.args(["purge", "1", "--config"]).arg(&config).output().unwrap();
        let [done, told] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), done, told)
    };
    // On a busy machine the answer may come before the server's.
    eventually("the fleet is told", async || {
        let (code, done, told) = purge();
        code == 0 && done.contains("\"told\"") && told.is_empty()
    })
    .await;
    redis.signal("-STOP");
    let (code, done, told) = purge();
    assert_eq!(code, 3);
    assert!(done.contains("\"pending\"") && told.contains("its fleet is not told yet"), "{done} {told}");
}

#[tokio::test]
async fn a_process_that_ends_tries_a_last_time_and_says_what_is_lost() {
    let redis = Redis::start().await;
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let secret = files.directory.path().join("fleet-secret");
    std::fs::write(&secret, SECRET).unwrap();
    let port = redis.port.number();
    let config = format!("[shared]\nurl = \"redis://127.0.0.1:{port}\"\nsecret_file = {secret:?}\ntimeout = \"500ms\"");
    let lost = "purges and revocations were not told to the fleet, and are lost";
    for comes_back in [true, false] {
        let mut process = Process::start(&files.write(&config)).await;
        process.says("the shared tier is in use").await;
        let [journal] = &redis.keys("j").await[..] else { panic!() };
        let before = redis.number(&["STRLEN", journal]).await;
        redis.signal("-STOP");
        let json = [("content-type", "application/json")];
        let body = r#"{"accessory_ids":["1","2"]}"#;
        let reply = process.admin.send(http::Method::POST, "/purge", &json, body).await;
        assert_eq!(reply.json()["fleet"], "pending");
        // From here on it tries again only after a pause.
        process.says("the shared tier is down; sidelink continues without it and reconnects").await;
        if comes_back {
            redis.signal("-CONT");
        }
        process.signal("TERM");
        if !comes_back {
            let line = process.says(lost).await;
            assert_eq!((&line["level"], &line["records"]), (&json!("WARN"), &json!(2)));
        }
        assert_eq!(process.exit().await, Some(0));
        if comes_back {
            assert!(!process.logged(lost));
            assert_eq!(redis.number(&["STRLEN", journal]).await, before + 200);
        }
    }
}

/// Regression: a full server lost its journal in place of the purge, and could not begin another one.
#[tokio::test]
async fn a_full_server_still_takes_purges() {
    let redis = Redis::with(&["--maxmemory-policy", "noeviction"]).await;
    let fleet = warm(&redis).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    one.client.batch("t", &["3"]).await;
    eventually("links are refused", async || one.failures("reply").await > 0.0).await;
    // Also over connections that were made since.
    redis.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    purge_ids(one, 1, 1).await;
    eventually("the other hears it", async || !has(other, "1").await).await;
    eventually("the fleet is told", async || one.metric(UNTOLD).await == 0.0).await;
    assert!(has(other, "2").await);
    for sidecar in &fleet.sidecars {
        sidecar.tier_is(true).await;
        assert_eq!(sidecar.failures("journal").await, 0.0, "the journal goes on");
    }
}

#[tokio::test]
async fn a_server_that_refuses_purges_is_down_where_they_were_made_and_told_once_it_takes_them() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    redis.ask(&["ACL", "SETUSER", "default", "-eval"]).await;
    assert_eq!(purge_ids(one, 1, 1).await["fleet"], "pending");
    one.tier_is(false).await;
    assert!(alert_kinds(one).await.contains(&"shared_tier".to_owned()));
    assert!(!has(one, "1").await, "it holds where it was made");
    assert_eq!(purge_ids(one, 2, 1).await["fleet"], "pending");
    assert_eq!(one.metric(UNTOLD).await, 2.0);
    redis.ask(&["ACL", "SETUSER", "default", "+eval"]).await;
    eventually("the other hears both", async || !has(other, "1").await && !has(other, "2").await).await;
    one.tier_is(true).await;
    assert_eq!(one.failures("journal").await, 0.0, "nothing was deleted");
}

/// Regression: whoever mended the configuration lost the purges that waited for it.
#[tokio::test]
async fn a_reload_that_changes_the_tier_takes_over_what_waits_to_be_told() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    redis.ask(&["ACL", "SETUSER", "default", "-append"]).await;
    assert_eq!(purge_ids(one, 1, 1).await["fleet"], "pending");
    eventually("the right is named", async || one.alerts().await.contains("lacks +append")).await;
    let mut tier = shared(vec![redis.address()]);
    tier.lease_wait = Duration::ZERO;
    one.app.apply(super::sidecar(fleet.origin.address(), &tier)).unwrap();
    eventually("it waits here", async || one.metric(UNTOLD).await == 1.0).await;
    redis.ask(&["ACL", "SETUSER", "default", "+append"]).await;
    eventually("the other hears it", async || !has(other, "1").await).await;
    eventually("the fleet is told", async || one.metric(UNTOLD).await == 0.0).await;
}

#[tokio::test]
async fn more_purges_than_can_wait_are_merged_into_one_of_everything_and_that_is_told() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    redis.signal("-STOP");
    purge_ids(one, 1000, 4096).await;
    assert_eq!((one.metric(UNTOLD).await, one.metric(MERGED).await), (4096.0, 0.0));
    let done = purge_ids(one, 6000, 100).await;
    assert_eq!(done, json!({ "purged": "ids", "ids": 100, "fleet": "pending", "merged": true }));
    assert_eq!((one.metric(UNTOLD).await, one.metric(MERGED).await), (1.0, 1.0));
    redis.signal("-CONT");
    eventually("all is purged", async || !has(other, "1").await && !has(other, "2").await).await;
    one.tier_is(true).await;
    eventually("links are shared again", async || {
        let id = rand::random::<u32>().to_string();
        let before = redis.keys("l").await.len();
        one.client.batch("t", &[&id]).await;
        eventually("it is written", async || redis.keys("l").await.len() > before).await;
        other.client.batch("t", &[&id]).await.header("cache-status").ends_with("detail=shared")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_missed_a_whole_journal_purges_what_it_has_and_says_so() {
    let redis = Redis::start().await;
    redis.ask(&["ACL", "SETUSER", "cut-off", "on", ">PASSWORD", "~*", "+@all"]).await;
    let fleet = Fleet::start(&redis, 1).await;
    let mut tier = shared(vec![redis.address()]);
    tier.username = Some("cut-off".into());
    tier.password_file = Some(StoredSecret { secret: Secret::new(b"PASSWORD".to_vec()), source: "password".into() });
    let behind = Sidecar::start(super::sidecar(fleet.origin.address(), &tier), fleet.clock.clone()).await;
    behind.tier_is(true).await;
    behind.client.batch("t", &["1"]).await;
    redis.ask(&["ACL", "SETUSER", "cut-off", "off"]).await;
    redis.ask(&["CLIENT", "KILL", "USER", "cut-off"]).await;
    behind.tier_is(false).await;

    let one = &fleet.sidecars[0];
    purge_ids(one, 1, 1).await;
    for round in 1..=6 {
        purge_ids(one, round * 4000, 3500).await;
        eventually("the fleet is told", async || one.metric(UNTOLD).await == 0.0).await;
    }
    assert_eq!(one.metric("sidelink_shared_journals_full_total").await, 2.0);
    assert!(has(&behind, "1").await);
    redis.ask(&["ACL", "SETUSER", "cut-off", "on"]).await;
    behind.tier_is(true).await;
    assert!(!has(&behind, "1").await);
    assert_eq!((behind.metric(MERGED).await, one.metric(MERGED).await), (1.0, 0.0));
    assert!(alert_kinds(&behind).await.contains(&"purges_merged".to_owned()));
    // What it had missed is no loss: it announces nothing, and its links count.
    assert_eq!(behind.failures("journal").await, 0.0);
    behind.client.batch("t", &["2"]).await;
    eventually("it is shared", async || !redis.keys("l").await.is_empty()).await;
    assert_eq!(one.client.batch("t", &["2"]).await.header("cache-status"), "sidelink; hit; detail=shared");
}
