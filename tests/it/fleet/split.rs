//! Two fleets at one server under one prefix see that they are two, and those of one fleet, or with a prefix each, see nothing.

use serde_json::{Value, json};
use sidelink::clock::Clock;
use sidelink::config::{Config, Endpoint, Secret, Shared};
use sidelink::demo::origin::Origin;

use super::cluster::cluster;
use super::{Redis, SECRET, Sidecar, eventually, shared, sidecar};
use crate::process::{Files, Process};
use crate::support::{TestClient, origin_options};

pub const OTHER_SECRET: &str = "another-secret-of-forty-characters-or-so";

/// A tier at `redis` with these secrets.
fn tier(redis: &Redis, secrets: &[&str]) -> Shared {
    let mut shared = shared(vec![redis.address()]);
    shared.secret_file.secret = secrets.iter().map(|secret| Secret::new(secret.as_bytes().to_vec())).collect();
    shared
}

async fn start(origin: &Origin, shared: &Shared, configure: impl FnOnce(&mut Config)) -> Sidecar {
    let mut config = sidecar(origin.address(), shared);
    configure(&mut config);
    let sidecar = Sidecar::start(config, Clock::system()).await;
    sidecar.tier_is(true).await;
    sidecar
}

async fn origin() -> Origin {
    Origin::start(origin_options()).await.unwrap()
}

async fn status(sidecar: &Sidecar) -> Value {
    TestClient::new(sidecar.app.admin_address()).get("/status.json", &[]).await.json()
}

/// The fingerprint of its fleet.
async fn fingerprint(sidecar: &Sidecar) -> String {
    let fingerprint = status(sidecar).await["shared"]["fleet"].as_str().unwrap().to_owned();
    let series = format!("sidelink_shared_fleet_info{{fingerprint=\"{fingerprint}\"}}");
    assert_eq!(sidecar.metric(&series).await, 1.0);
    fingerprint
}

async fn others(sidecar: &Sidecar) -> f64 {
    sidecar.metric("sidelink_shared_other_fleets").await
}

/// The alert about another fleet.
async fn alert(sidecar: &Sidecar) -> Option<Value> {
    let alerts = status(sidecar).await["alerts"].take();
    alerts.as_array().unwrap().iter().find(|alert| alert["kind"] == "shared_tier_split").cloned()
}

/// Waits until each sees the other's fleet, and no more; returns the fingerprints.
async fn see_each_other(sidecars: [&Sidecar; 2]) -> [String; 2] {
    let prints = [fingerprint(sidecars[0]).await, fingerprint(sidecars[1]).await];
    assert_ne!(prints[0], prints[1]);
    for (sidecar, other) in sidecars.into_iter().zip(prints.iter().rev()) {
        eventually("the other fleet is seen", async || others(sidecar).await == 1.0).await;
        assert_eq!(status(sidecar).await["shared"]["other_fleets"], json!([other]));
    }
    prints
}

#[tokio::test]
async fn sidecars_with_different_secrets_see_the_other_fleet_until_it_stops() {
    let (redis, origin) = (Redis::start().await, origin().await);
    // Something else has that name.
    redis.ask(&["RPUSH", "sidelink:v", "no fingerprint"]).await;
    let one = start(&origin, &tier(&redis, &[SECRET]), |_| {}).await;
    let same = start(&origin, &tier(&redis, &[SECRET]), |_| {}).await;
    let other = start(&origin, &tier(&redis, &[OTHER_SECRET]), |_| {}).await;
    let [print, other_print] = see_each_other([&one, &other]).await;
    assert_eq!(fingerprint(&same).await, print);
    eventually("all of a fleet see it", async || others(&same).await == 1.0).await;

    let alert_of_one = alert(&one).await.unwrap();
    assert_eq!((&alert_of_one["severity"], &alert_of_one["fault"]), (&json!("warning"), &json!("operator")));
    assert!(alert_of_one["since"].is_u64());
    let text = alert_of_one["text"].as_str().unwrap();
    for word in [&*print, &*other_print, "secret_file", "upstream.endpoint", "scope_headers", "prefix", "\"sidelink:\""]
    {
        assert!(text.contains(word), "no {word} in {text}");
    }

    drop(other);
    eventually("it is over", async || others(&one).await == 0.0 && others(&same).await == 0.0).await;
    assert_eq!((alert(&one).await, &status(&one).await["shared"]["other_fleets"]), (None, &json!([])));
}

#[tokio::test]
async fn one_endpoint_under_two_names_makes_two_fleets_and_so_do_other_scope_headers() {
    let (redis, origin) = (Redis::start().await, origin().await);
    let shared = tier(&redis, &[SECRET]);
    // No fingerprints, and longer than any reply may be.
    redis.ask(&["SET", "sidelink:v", &"00000002.00000001,".repeat(100_000)]).await;
    let by_address = start(&origin, &shared, |_| {}).await;
    let by_name = |config: &mut Config| {
        let endpoint = format!("http://localhost:{}", origin.address().port());
        config.upstream.endpoint = Endpoint::parse(&endpoint).unwrap();
    };
    let by_name = start(&origin, &shared, by_name).await;
    see_each_other([&by_address, &by_name]).await;
    assert_eq!((by_address.failures("broken").await, by_name.failures("broken").await), (0.0, 0.0));

    let mut elsewhere = shared.clone();
    elsewhere.prefix = "elsewhere:".to_owned();
    let plain = start(&origin, &elsewhere, |_| {}).await;
    let scoped = |config: &mut Config| config.callers.scope_headers = vec!["x-tenant".parse().unwrap()];
    let scoped = start(&origin, &elsewhere, scoped).await;
    see_each_other([&plain, &scoped]).await;
    assert_eq!(others(&by_address).await, 1.0, "fleets with prefixes of their own do not see each other");
}

/// The control: a sidecar that skips a step.
#[tokio::test]
async fn in_a_change_of_the_secret_only_those_who_cannot_open_the_others_values_see_another_fleet() {
    let (redis, origin) = (Redis::start().await, origin().await);
    let old_first = start(&origin, &tier(&redis, &[SECRET, OTHER_SECRET]), |_| {}).await;
    let new_first = start(&origin, &tier(&redis, &[OTHER_SECRET, SECRET]), |_| {}).await;
    let only_old = start(&origin, &tier(&redis, &[SECRET]), |_| {}).await;
    eventually("who knows only the old secret sees the new one's fleet", async || others(&only_old).await == 1.0).await;
    let entries = async || redis.text(&["GET", "sidelink:v"]).await;
    let before = entries().await;
    eventually("both have written again", async || {
        let (now, before) = (entries().await, before.split(',').collect::<Vec<_>>());
        now.split(',').count() == 2 && now.split(',').all(|entry| !before.contains(&entry))
    })
    .await;
    for sidecar in [&old_first, &new_first] {
        assert_eq!((others(sidecar).await, alert(sidecar).await), (0.0, None));
    }

    // A reload changes the fleet, and the metric with it.
    let old = fingerprint(&only_old).await;
    let mut config = Config::clone(&only_old.app.config());
    config.shared = Some(tier(&redis, &[OTHER_SECRET, SECRET]));
    only_old.app.apply(config).unwrap();
    let new = fingerprint(&new_first).await;
    assert_eq!(fingerprint(&only_old).await, new);
    let page = TestClient::new(only_old.app.admin_address()).get("/metrics", &[]).await;
    assert!(!String::from_utf8_lossy(&page.body).contains(&old), "one series a process");
    let mut config = Config::clone(&only_old.app.config());
    config.shared = None;
    only_old.app.apply(config).unwrap();
    assert_eq!(only_old.metric("sidelink_shared_fleet_info{fingerprint=\"none\"}").await, 0.0);
    assert_eq!(others(&only_old).await, 0.0);
}

#[tokio::test]
async fn the_log_says_once_that_there_is_another_fleet_and_when_it_is_gone() {
    let (redis, origin) = (Redis::start().await, origin().await);
    let files = Files::new(origin.address());
    let secret = files.directory.path().join("fleet-secret");
    std::fs::write(&secret, SECRET).unwrap();
    let server = redis.port.number();
    let config = format!(
        "[shared]\nurl = \"redis://127.0.0.1:{server}\"\nsecret_file = {secret:?}\ntimeout = \"5s\"\nlease_wait = \"10s\""
    );
    let mut process = Process::start(&files.write(&config)).await;
    process.says("the shared tier is in use").await;
    let other = start(&origin, &tier(&redis, &[OTHER_SECRET]), |_| {}).await;
    let split = "another fleet uses the shared tier under the same prefix; neither sees the other's links and purges";
    let line = process.says(split).await;
    assert_eq!((&line["level"], line["others"].as_str()), (&json!("WARN"), Some(&*fingerprint(&other).await)));
    let series = format!("sidelink_shared_fleet_info{{fingerprint={}}}", line["fleet"]);
    assert_eq!(process.metric(&series).await, 1.0);
    drop(other);
    process.says("no other fleet uses the shared tier under the same prefix any more").await;
    assert_eq!(process.log.iter().filter(|line| line["message"] == split).count(), 1);
}

#[tokio::test]
async fn a_split_fleet_is_seen_in_a_cluster() {
    let (nodes, origin) = (cluster().await, origin().await);
    let tier = |secret| {
        let mut tier = tier(&nodes[0], &[secret]);
        tier.cluster = true;
        tier
    };
    let one = start(&origin, &tier(SECRET), |_| {}).await;
    let other = start(&origin, &tier(OTHER_SECRET), |_| {}).await;
    see_each_other([&one, &other]).await;
}
