//! Links that one sidecar fetched serve the same caller at another, with the same deadlines, and no other caller.

use std::time::Duration;

use sidelink::demo::origin::link_is_for;

use super::{Fleet, Redis, eventually, shared};

#[tokio::test]
async fn a_link_fetched_by_one_sidecar_serves_the_same_caller_at_another() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 2).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    let first = one.client.batch("t", &["1", "2"]).await;
    assert_eq!(first.header("cache-status"), "sidelink; fwd=miss; stored");
    eventually("both links and the acceptance are shared", async || {
        redis.keys("l").await.len() == 2 && redis.keys("c").await.len() == 1
    })
    .await;

    let second = other.client.batch("t", &["2", "1"]).await;
    assert_eq!(second.header("cache-status"), "sidelink; hit; detail=shared");
    let mut links = second.links();
    links.reverse();
    assert_eq!(links, first.links());
    assert_eq!(fleet.origin.batch_calls(), 1);
    assert_eq!((other.ids("shared").await, other.metric("sidelink_shared_hits_total").await), (2.0, 2.0));

    // Now in memory.
    assert_eq!(other.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit");
    let partial = other.client.batch("t", &["1", "3"]).await;
    assert_eq!(partial.header("cache-status"), "sidelink; fwd=partial; stored; detail=\"hit=1 fetched=1\"");
    assert_eq!(fleet.origin.batch_calls(), 2);
}

#[tokio::test]
async fn links_never_cross_callers_groups_or_scope_headers() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 2).await;
    let scopes = [("t", None, None), ("u", None, None), ("t", Some("g"), None), ("t", Some("g"), Some("en-us"))];
    for sidecar in &fleet.sidecars {
        for (token, group, language) in scopes {
            let group_id = group.map(|group| format!("&group_id={group}")).unwrap_or_default();
            let target = format!("{}?accessory_ids=1{group_id}", sidelink::demo::origin::interface::PATH);
            let mut headers = vec![("x-auth-token", token)];
            headers.extend(language.map(|language| ("x-language", language)));
            let reply = sidecar.client.get(&target, &headers).await;
            let [(_, link)] = &reply.links()[..] else { panic!() };
            assert!(link_is_for(link, "1", group, token, language, None), "{link}");
        }
        eventually("all are shared", async || redis.keys("l").await.len() == scopes.len()).await;
    }
    assert_eq!(fleet.origin.batch_calls(), scopes.len());
}

#[tokio::test]
async fn a_shared_link_keeps_its_deadlines() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 3).await;
    let [one, other, third] = &fleet.sidecars[..] else { panic!() };
    let link = one.client.batch("t", &["1"]).await.links();
    eventually("it is shared", async || redis.keys("c").await.len() == 1).await;
    // Fresh for ten minutes, usable for fourteen of fifteen.
    let [key] = &redis.keys("l").await[..] else { panic!() };
    let left = redis.number(&["PTTL", key]).await;
    assert!((800_000..=840_000).contains(&left), "{left}");

    fleet.clock.step(290_000);
    assert_eq!(other.client.batch("t", &["1"]).await.links(), link);
    fleet.clock.step(8_500);
    // Accepted within five minutes, by any clock of a fleet's that agree within two seconds.
    assert_eq!(third.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; fwd=miss; stored");
    assert_eq!(fleet.origin.batch_calls(), 2);
}

#[tokio::test]
async fn an_absence_is_shared_until_it_expires() {
    let redis = Redis::start().await;
    let endpoint = |options: &mut sidelink::demo::origin::Options| options.missing = vec!["9".into()];
    let absent = |config: &mut sidelink::config::Config| config.freshness.absent = Duration::from_secs(60);
    let fleet = Fleet::with(shared(vec![redis.address()]), 2, endpoint, absent).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    assert!(one.client.batch("t", &["9"]).await.ids().is_empty());
    eventually("it is shared", async || redis.keys("c").await.len() == 1).await;
    assert!(other.client.batch("t", &["9"]).await.ids().is_empty());
    assert_eq!((fleet.origin.batch_calls(), other.ids("absent").await), (1, 1.0));
}

#[tokio::test]
async fn no_store_and_no_cache_of_a_client_are_honoured() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 2).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    let ask = async |sidecar: &super::Sidecar, control| {
        let headers = [("x-auth-token", "t"), ("cache-control", control)];
        sidecar.client.get(&crate::support::query(&["1"]), &headers).await
    };
    ask(one, "no-store").await;
    ask(one, "no-cache").await;
    eventually("the second is shared", async || redis.keys("l").await.len() == 1).await;
    assert_eq!(ask(other, "no-cache").await.header("cache-status"), "sidelink; fwd=miss; stored");
    assert_eq!(fleet.origin.batch_calls(), 3);
    assert_eq!(ask(other, "max-age=600").await.header("cache-status"), "sidelink; hit");
}

#[tokio::test]
async fn a_stale_link_from_the_tier_answers_for_an_endpoint_that_is_down() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 2).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    let links = one.client.batch("t", &["1"]).await.links();
    eventually("it is shared", async || redis.keys("l").await.len() == 1).await;
    fleet.origin.stop().await;
    fleet.clock.step(660_000);
    let stale = other.client.batch("t", &["1"]).await;
    assert_eq!(stale.header("cache-status"), "sidelink; fwd=stale; detail=stale");
    assert_eq!(stale.links(), links);
}

/// Regression: it was answered with what the tier had for another batch.
#[tokio::test]
async fn a_no_cache_batch_takes_no_shared_link_from_a_joined_flight() {
    for control in ["no-cache", "max-age=0", "min-fresh=590"] {
        let redis = Redis::start().await;
        let mut tier = shared(vec![redis.address()]);
        tier.timeout = Duration::from_secs(10);
        let fleet = Fleet::with(tier, 2, |_| {}, |_| {}).await;
        let [one, other] = &fleet.sidecars[..] else { panic!() };
        one.client.batch("t", &["1", "2"]).await;
        eventually("all is shared", async || redis.keys("l").await.len() == 2 && redis.keys("c").await.len() == 1)
            .await;
        fleet.clock.step(20_000);
        // While it does not answer, batches gather.
        redis.signal("-STOP");
        let waiting = async |count| {
            let series = "sidelink_limit_used{limit=\"waiters\"}";
            eventually("a batch waits", async || other.metric(series).await == count).await;
        };
        let ask = |control: Option<&'static str>| {
            let client = other.client.clone();
            let headers = [Some(("x-auth-token", "t")), control.map(|control| ("cache-control", control))];
            let headers: Vec<_> = headers.into_iter().flatten().collect();
            tokio::spawn(async move { client.get(&crate::support::query(&["1", "2"]), &headers).await })
        };
        let plain = ask(None);
        waiting(1.0).await;
        let anew = [ask(Some(control)), ask(Some(control))];
        waiting(3.0).await;
        redis.signal("-CONT");
        assert_eq!(plain.await.unwrap().header("cache-status"), "sidelink; hit; detail=shared", "{control}");
        let [first, second] = anew.map(async |anew| anew.await.unwrap());
        let (first, second) = (first.await, second.await);
        assert_eq!(fleet.origin.batch_calls(), 2, "{control}: one call for both");
        assert_eq!(first.links(), second.links());
        for anew in [first, second] {
            assert!(!anew.header("cache-status").contains("shared"), "{control}: {}", anew.header("cache-status"));
        }
    }
}

#[tokio::test]
async fn an_idle_sidecar_sends_one_command_a_synchronization() {
    const TRIPS: f64 = 20.0;
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 1).await;
    let sidecar = &fleet.sidecars[0];
    let trips = async || {
        let of =
            async |name| sidecar.metric(&format!("sidelink_shared_operations_total{{operation=\"{name}\"}}")).await;
        assert_eq!(of("get").await + of("lease").await + of("put").await + of("revoke").await, 0.0);
        of("sync").await
    };
    let before = trips().await;
    redis.ask(&["CONFIG", "RESETSTAT"]).await;
    eventually("so many round trips are made", async || trips().await >= before + TRIPS).await;
    let text = redis.text(&["INFO", "commandstats"]).await;
    let counts = text.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
    let counts = counts.map(|(name, rest)| (name, rest.split(',').next().unwrap().parse::<f64>().unwrap()));
    // Of the test: what resets and reads these counts.
    let counts: std::collections::BTreeMap<&str, f64> = counts
        .filter(|(name, _)| !name.starts_with("config") && !name.starts_with("client") && *name != "info")
        .collect();
    // Every three seconds the life of the journal is extended, in one round trip with the look at which fleets there are, and
    // its first record is read.
    let looks = counts.get("expire").copied().unwrap_or_default();
    let trips = trips().await - before;
    assert!(
        counts.values().sum::<f64>() <= trips + 2.0 * (looks + 1.0) && looks < trips / 4.0,
        "{counts:?} in {trips} round trips"
    );
}
