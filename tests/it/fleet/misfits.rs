//! A server that does not fit the configuration, or a user without a right: it is told once, with what to change, and batches go on.

use sidelink::config::Shared;

use super::cluster::{a_link_is_shared, cluster};
use super::servers::password;
use super::{Fleet, Redis, SECRET, eventually, shared};
use crate::process::{Files, Process};
use crate::support::origin_options;

/// A sidecar with this tier does without it, and says why.
async fn is_told(tier: Shared, words: &str) -> Fleet {
    let fleet = Fleet::without_waiting(tier, 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    eventually(words, async || {
        let alerts = one.alerts().await;
        assert!(!alerts.contains("MARKED"), "{alerts}");
        alerts.contains(words)
    })
    .await;
    for sidecar in [one, other] {
        sidecar.tier_is(false).await;
        assert_eq!(sidecar.client.batch("t", &["1"]).await.ids(), ["1"]);
    }
    fleet
}

#[tokio::test]
async fn a_cluster_that_is_not_configured_as_one_is_told_and_so_is_the_reverse() {
    let nodes = cluster().await;
    for node in &nodes {
        is_told(shared(vec![node.address()]), "the server is a node of a Cluster: set shared.cluster = true").await;
    }
    let one = Redis::start().await;
    let mut tier = shared(vec![one.address()]);
    tier.cluster = true;
    is_told(tier.clone(), "the server is no node of a Cluster: remove shared.cluster").await;
    let empty = Redis::with(&["--cluster-enabled", "yes"]).await;
    tier.url[0].address = empty.address();
    is_told(tier, "the Cluster is down, or does not serve all slots").await;
}

#[tokio::test]
async fn a_login_that_is_missing_or_wrong_is_told_with_its_keys() {
    let redis = Redis::with(&["--requirepass", "right"]).await;
    let mut tier = shared(vec![redis.address()]);
    let keys = "shared.username and shared.password_file";
    is_told(tier.clone(), &format!("the server wants a login: set {keys}")).await;
    tier.password_file = Some(password(b"MARKED"));
    is_told(tier.clone(), &format!("the server refuses the login: check {keys}")).await;
    // A server that repeats what it does not know.
    let repeating = Redis::with(&["--rename-command", "AUTH", ""]).await;
    tier.url[0].address = repeating.address();
    is_told(tier.clone(), &format!("the server refuses the login: check {keys}")).await;
    tier.password_file = None;
    tier.url[0].database = 99;
    is_told(tier, "the server refuses the database of shared.url").await;
}

#[tokio::test]
async fn rights_that_are_missing_are_told_together_and_the_tier_is_used_once_they_are_given() {
    let redis = Redis::start().await;
    let user = ["ACL", "SETUSER", "narrow", "on", ">right", "~sidelink:*", "+@all"];
    redis.ask(&user).await;
    redis
        .ask(&["ACL", "SETUSER", "narrow", "-append", "-expire", "-eval", "-pexpire", "-rename", "-cluster|slots"])
        .await;
    let mut tier = shared(vec![redis.address()]);
    tier.username = Some("narrow".into());
    tier.password_file = Some(password(b"right"));
    let fleet = is_told(tier.clone(), "the server's user lacks +expire +append +rename +pexpire +eval: ").await;
    redis.ask(&["ACL", "SETUSER", "narrow", "+append", "+expire", "+eval", "+pexpire", "+rename"]).await;
    for sidecar in &fleet.sidecars {
        sidecar.tier_is(true).await;
    }
    a_link_is_shared(&fleet.sidecars[0], &fleet.sidecars[1]).await;
    // Taken away from a connection in use.
    redis.ask(&["ACL", "SETUSER", "narrow", "-getrange"]).await;
    let one = &fleet.sidecars[0];
    one.tier_is(false).await;
    eventually("it is told", async || one.alerts().await.contains("lacks +getrange: ")).await;
    redis.ask(&["ACL", "SETUSER", "narrow", "+getrange", "resetkeys", "~another:*"]).await;
    is_told(tier.clone(), "the server's user lacks the right to keys that begin with shared.prefix").await;

    let nodes = cluster().await;
    for node in &nodes {
        node.ask(&user).await;
        node.ask(&["ACL", "SETUSER", "narrow", "-cluster|slots"]).await;
    }
    tier.url[0].address = nodes[0].address();
    tier.cluster = true;
    is_told(tier, "the server's user lacks +cluster|slots: ").await;
}

#[tokio::test]
async fn the_log_says_once_why_the_tier_is_down_however_many_batches_come() {
    let (redis, origin) =
        (Redis::start().await, sidelink::demo::origin::Origin::start(origin_options()).await.unwrap());
    redis.ask(&["ACL", "SETUSER", "default", "-set"]).await;
    let files = Files::new(origin.address());
    let secret = files.directory.path().join("fleet-secret");
    std::fs::write(&secret, SECRET).unwrap();
    let server = redis.port.number();
    let config = format!("[shared]\nurl = \"redis://127.0.0.1:{server}\"\nsecret_file = {secret:?}\ntimeout = \"5s\"");
    let mut process = Process::start(&files.write(&config)).await;
    let down = "the shared tier is down; sidelink continues without it and reconnects";
    let line = process.says(down).await;
    let reason = line["reason"].as_str().unwrap();
    assert!(reason.starts_with(&format!("127.0.0.1:{server}: the server's user lacks +set: ")), "{reason}");
    let checks = r#"sidelink_shared_failures_total{kind="connect"}"#;
    eventually("it is tried again and again", async || {
        process.client.batch("t", &[&rand::random::<u32>().to_string()]).await;
        process.metric(checks).await >= 5.0
    })
    .await;
    redis.ask(&["ACL", "SETUSER", "default", "+set"]).await;
    process.says("the shared tier is in use").await;
    let told = process.log.iter().filter(|line| line["target"] == "sidelink::shared").count();
    assert_eq!(told, 2, "down, and up again");
}
