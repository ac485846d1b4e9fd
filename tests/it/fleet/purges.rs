//! What is purged or revoked at one sidecar is gone at all within a second, and no loss of data brings it back.

use std::time::Duration;

use http::Method;

use super::{Fleet, Redis, Sidecar, eventually, shared};
use crate::support::TestClient;

/// Three sidecars that all have `1` and `2` of two callers in memory, and the tier has them too.
async fn warm(redis: &Redis) -> Fleet {
    let fleet = Fleet::start(redis, 3).await;
    for sidecar in &fleet.sidecars {
        for token in ["t", "u"] {
            sidecar.client.batch(token, &["1", "2"]).await;
        }
        eventually("all is shared", async || redis.keys("l").await.len() == 4 && redis.keys("c").await.len() == 2)
            .await;
    }
    assert_eq!(fleet.origin.ids_asked(), 4);
    fleet
}

async fn status(sidecar: &Sidecar, token: &str, id: &str) -> String {
    let headers = [("x-auth-token", token), ("cache-control", "only-if-cached")];
    sidecar.client.get(&crate::support::query(&[id]), &headers).await.status.as_u16().to_string()
}

/// Whether memory has the link.
async fn has(sidecar: &Sidecar, token: &str, id: &str) -> bool {
    status(sidecar, token, id).await == "200"
}

#[tokio::test]
async fn a_delete_through_one_sidecar_drops_the_link_in_all() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let target = "/v2/servicerequest/accessorys/1";
    let reply = fleet.sidecars[0].client.send(Method::DELETE, target, &[("x-auth-token", "t")], "").await;
    assert!(reply.status.is_success(), "{reply:?}");
    for sidecar in &fleet.sidecars {
        eventually("it is gone from memory", async || !has(sidecar, "t", "1").await && !has(sidecar, "u", "1").await)
            .await;
        assert!(has(sidecar, "t", "2").await);
    }
    // And from the tier: of two that ask anew, each caller's is fetched once.
    for sidecar in &fleet.sidecars {
        sidecar.client.batch("t", &["1"]).await;
        eventually("it is written back", async || redis.keys("f").await.is_empty()).await;
    }
    assert_eq!(fleet.origin.ids_asked(), 5);
}

#[tokio::test]
async fn a_purge_at_one_sidecar_reaches_all() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let admin = TestClient::new(fleet.sidecars[0].app.admin_address());
    let json = [("content-type", "application/json")];
    let reply = admin.send(Method::POST, "/purge", &json, r#"{"all":true}"#).await;
    assert_eq!(reply.status, 200);
    for sidecar in &fleet.sidecars {
        for (token, id) in [("t", "1"), ("t", "2"), ("u", "1"), ("u", "2")] {
            eventually("it is gone", async || !has(sidecar, token, id).await).await;
        }
    }
    fleet.sidecars[2].client.batch("t", &["1", "2"]).await;
    assert_eq!(fleet.origin.ids_asked(), 6, "nor is it in the tier");
}

#[tokio::test]
async fn a_401_at_one_sidecar_drops_that_caller_in_all() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    fleet.origin.update(|options| options.refuse = vec!["t".into()]);
    assert_eq!(fleet.sidecars[0].client.batch("t", &["3"]).await.status, 401);
    for sidecar in &fleet.sidecars {
        eventually("the caller is dropped", async || !has(sidecar, "t", "1").await).await;
        assert_eq!(sidecar.client.batch("t", &["1"]).await.status, 401);
        assert!(has(sidecar, "u", "1").await, "no other caller is affected");
    }
}

#[tokio::test]
async fn a_403_withdraws_the_ids_and_the_acceptance() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let refusal = r#"{"error_code":"OSM.0003","error_msg":"forbidden"}"#;
    fleet.origin.script(sidelink::demo::origin::ScriptedReply::json(403, refusal));
    let anew = [("x-auth-token", "t"), ("cache-control", "no-cache")];
    let reply = fleet.sidecars[0].client.get(&crate::support::query(&["1"]), &anew).await;
    assert_eq!(reply.status, 403);
    eventually("the link is gone", async || redis.keys("l").await.len() == 3).await;
    let config = super::sidecar(fleet.origin.address(), &shared(vec![redis.address()]));
    let fresh = Sidecar::start(config, fleet.clock.clone()).await;
    fresh.tier_is(true).await;
    let asked = fleet.origin.ids_asked();
    assert_eq!(fresh.client.batch("u", &["2"]).await.ids(), ["2"]);
    assert_eq!(fleet.origin.ids_asked(), asked, "no other caller is affected");
    assert_eq!(fresh.client.batch("t", &["2"]).await.ids(), ["2"]);
    assert_eq!(fleet.origin.ids_asked(), asked + 1, "the caller has to be accepted again");
}

/// The tier's acceptances, with their names.
async fn acceptances(redis: &Redis) -> Vec<(String, Vec<u8>)> {
    let mut acceptances = Vec::new();
    for key in redis.keys("c").await {
        let value = redis.value(&key).await;
        acceptances.push((key, value));
    }
    acceptances
}

/// Regression: a 403 took the acceptance out of the tier, and a later 401 found nothing there to revoke.
#[tokio::test]
async fn a_401_after_a_403_drops_the_caller_in_all() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let [one, other, ..] = &fleet.sidecars[..] else { panic!() };
    let refusal = r#"{"error_code":"OSM.0003","error_msg":"forbidden"}"#;
    fleet.origin.script(sidelink::demo::origin::ScriptedReply::json(403, refusal));
    let anew = [("x-auth-token", "t"), ("cache-control", "no-cache")];
    assert_eq!(one.client.get(&crate::support::query(&["1"]), &anew).await.status, 403);
    eventually("its link is withdrawn", async || redis.keys("l").await.len() == 3).await;
    assert!(has(other, "t", "2").await, "a 403 concerns its ids alone");
    fleet.origin.update(|options| options.refuse = vec!["t".into()]);
    assert_eq!(one.client.batch("t", &["3"]).await.status, 401);
    eventually("the caller is dropped", async || !has(other, "t", "2").await).await;
}

/// Regression: an older copy of the data brought withdrawn links back.
#[tokio::test]
async fn an_older_copy_of_the_data_brings_no_withdrawn_link_back() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let mut before = Vec::new();
    for kind in ["l", "c"] {
        for key in redis.keys(kind).await {
            before.push((redis.value(&key).await, key));
        }
    }
    let [journal] = &redis.keys("j").await[..] else { panic!() };
    let older = redis.text(&["GET", journal]).await;
    let refusal = r#"{"error_code":"OSM.0003","error_msg":"forbidden"}"#;
    let withdraw = async |id: &str| {
        fleet.origin.script(sidelink::demo::origin::ScriptedReply::json(403, refusal));
        let anew = [("x-auth-token", "t"), ("cache-control", "no-cache")];
        assert_eq!(fleet.sidecars[0].client.get(&crate::support::query(&[id]), &anew).await.status, 403);
    };
    withdraw("1").await;
    eventually("it is announced", async || redis.number(&["STRLEN", journal]).await == 200).await;
    // An id of which there was nothing.
    withdraw("9").await;

    // The links alone, and then with the journal of before.
    for journal_too in [false, true] {
        for (value, key) in &before {
            redis.put(key, value, 600_000).await;
        }
        if journal_too {
            redis.ask(&["SET", journal, &older]).await;
            let begun = async || !redis.text(&["GETRANGE", journal, "0", "99"]).await.starts_with(&older);
            eventually("the journal begins anew", begun).await;
            eventually("it is announced again", async || redis.number(&["STRLEN", journal]).await == 200).await;
        }
        let config = super::sidecar(fleet.origin.address(), &shared(vec![redis.address()]));
        let fresh = Sidecar::start(config, fleet.clock.clone()).await;
        fresh.tier_is(true).await;
        let asked = fleet.origin.ids_asked();
        let reply = fresh.client.batch("t", &["1", "2"]).await;
        assert_eq!(reply.ids(), ["1", "2"]);
        let anew = if journal_too { 2 } else { 1 };
        assert_eq!(fleet.origin.ids_asked(), asked + anew, "the withdrawn link does not count");
    }
}

/// Regression: a call that had left before a 403 shared the acceptance again that the 403 had taken away.
#[tokio::test]
async fn a_call_sent_before_a_403_restores_no_acceptance() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let [one, ..] = &fleet.sidecars[..] else { panic!() };
    // Long enough for what follows; were it not, there would be nothing to see here.
    fleet.origin.update(|options| options.delay = Duration::from_secs(1));
    let (client, calls) = (one.client.clone(), fleet.origin.batch_calls());
    let before = tokio::spawn(async move { client.batch("t", &["3"]).await });
    fleet.origin.arrived(calls + 1).await;
    fleet.origin.update(|options| options.delay = Duration::ZERO);
    let refusal = r#"{"error_code":"OSM.0003","error_msg":"forbidden"}"#;
    fleet.origin.script(sidelink::demo::origin::ScriptedReply::json(403, refusal));
    let accepted = acceptances(&redis).await;
    // A link that the caller had is refused alone.
    let anew = [("x-auth-token", "t"), ("cache-control", "no-cache")];
    assert_eq!(one.client.get(&crate::support::query(&["1"]), &anew).await.status, 403);
    let ended = async || acceptances(&redis).await.into_iter().find(|acceptance| !accepted.contains(acceptance));
    eventually("the acceptance has ended", async || ended().await.is_some()).await;
    let (key, ended) = ended().await.unwrap();
    assert_eq!(before.await.unwrap().ids(), ["3"]);
    // What is written afterwards is there: so would be what was written before.
    one.client.batch("u", &["5"]).await;
    eventually("it is shared", async || redis.keys("l").await.len() == 4).await;
    assert_eq!(redis.value(&key).await, ended);
}

/// Regression: each of twenty sidecars announced one made-up token a second, which filled the journal within minutes.
#[tokio::test]
async fn made_up_tokens_leave_no_record_in_the_journal() {
    const TOKENS: usize = 50;
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let tokens: Vec<String> = (0..TOKENS).map(|token| format!("made-up-{token}")).collect();
    fleet.origin.update(|options| options.refuse = tokens.clone());
    for sidecar in &fleet.sidecars {
        let asked = async || sidecar.metric("sidelink_shared_operations_total{operation=\"revoke\"}").await;
        for token in &tokens {
            assert_eq!(sidecar.client.batch(token, &["1"]).await.status, 401);
        }
        eventually("the tier has said that it does not know them", async || asked().await >= 50.0).await;
    }
    // One that is announced after all of them.
    let [journal] = &redis.keys("j").await[..] else { panic!() };
    super::journal::purge(&fleet.sidecars[0], &serde_json::json!({ "all": true })).await;
    eventually("it is announced", async || redis.number(&["STRLEN", journal]).await > 100).await;
    assert_eq!(redis.number(&["STRLEN", journal]).await, 200, "the first record, and the purge");
}

#[tokio::test]
async fn a_401_at_a_sidecar_that_does_not_know_the_caller_drops_it_where_it_was_accepted() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 2).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    one.client.batch("t", &["1"]).await;
    eventually("it is shared", async || redis.keys("c").await.len() == 1).await;
    fleet.origin.update(|options| options.refuse = vec!["t".into()]);
    // This batch does not look into the tier.
    let anew = [("x-auth-token", "t"), ("cache-control", "no-cache")];
    let refused = async || assert_eq!(other.client.get(&crate::support::query(&["2"]), &anew).await.status, 401);
    refused().await;
    eventually("the caller is dropped", async || !has(one, "t", "1").await).await;

    // What is void is not revoked once more.
    let asked = async || other.metric("sidelink_shared_operations_total{operation=\"revoke\"}").await;
    let before = asked().await;
    refused().await;
    eventually("the tier is asked again", async || asked().await > before).await;
    super::journal::purge(other, &serde_json::json!({ "all": true })).await;
    let [journal] = &redis.keys("j").await[..] else { panic!() };
    eventually("it is announced", async || redis.number(&["STRLEN", journal]).await > 200).await;
    assert_eq!(redis.number(&["STRLEN", journal]).await, 300, "the first record, the revocation, the purge");
}

#[tokio::test]
async fn a_401_after_the_acceptance_has_ended_voids_the_links_that_live_on() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 2).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    one.client.batch("t", &["1"]).await;
    eventually("it is shared", async || redis.keys("c").await.len() == 1).await;
    let [acceptance] = &redis.keys("c").await[..] else { panic!() };
    assert!(redis.number(&["PTTL", acceptance]).await > 301_000, "it lives as long as a link may");
    fleet.clock.step(301_000);
    fleet.origin.update(|options| options.refuse = vec!["t".into()]);
    assert_eq!(other.client.batch("t", &["1"]).await.status, 401);
    let [journal] = &redis.keys("j").await[..] else { panic!() };
    eventually("it is announced", async || redis.number(&["STRLEN", journal]).await == 200).await;
}

#[tokio::test]
async fn losing_all_data_restores_no_purged_link() {
    let redis = Redis::start().await;
    let fleet = warm(&redis).await;
    let mut before = Vec::new();
    for kind in ["l", "c", "j"] {
        for key in redis.keys(kind).await {
            let value = redis.value(&key).await;
            before.push((key, value));
        }
    }
    let target = "/v2/servicerequest/accessorys/1";
    fleet.sidecars[0].client.send(Method::DELETE, target, &[("x-auth-token", "t")], "").await;
    eventually("it is announced", async || !has(&fleet.sidecars[1], "t", "1").await).await;

    // The state of an old replica: everything but the announced events.
    redis.ask(&["FLUSHALL"]).await;
    for (key, value) in &before {
        redis.put(key, value, 600_000).await;
    }
    let [(journal, old)] = &before.iter().filter(|(key, _)| key.contains(":j.")).collect::<Vec<_>>()[..] else {
        panic!()
    };
    eventually("the journal begins anew", async || !redis.value(journal).await.starts_with(old)).await;
    eventually("and the purge is announced again", async || redis.number(&["STRLEN", journal]).await == 200).await;
    let config = super::sidecar(fleet.origin.address(), &shared(vec![redis.address()]));
    let fresh = Sidecar::start(config, fleet.clock.clone()).await;
    fresh.tier_is(true).await;
    let asked = fleet.origin.ids_asked();
    fresh.client.batch("t", &["1", "2"]).await;
    assert_eq!(fleet.origin.ids_asked(), asked + 2, "nothing of what was there counts");
    assert!(fresh.failures("revoked").await > 0.0);

    // All at once gone: the same.
    redis.ask(&["FLUSHALL"]).await;
    eventually("the journal is there again", async || redis.keys("j").await.len() == 1).await;
}

#[tokio::test]
async fn a_secret_is_changed_in_three_steps_without_a_miss() {
    let redis = Redis::start().await;
    let secret = |text: &str| sidelink::config::Secret::new(text.repeat(20).into_bytes());
    let (old, new) = (secret("old-"), secret("new-"));
    let steps = [vec![old.clone()], vec![old.clone(), new.clone()], vec![new.clone(), old.clone()], vec![new.clone()]];
    for (number, pair) in steps.windows(2).enumerate() {
        let mut tier = shared(vec![redis.address()]);
        tier.secret_file.secret = pair[0].clone();
        let fleet = Fleet::with(tier.clone(), 1, |_| {}, |_| {}).await;
        tier.secret_file.secret = pair[1].clone();
        // The same fleet: the same endpoint.
        let next = Sidecar::start(super::sidecar(fleet.origin.address(), &tier), fleet.clock.clone()).await;
        next.tier_is(true).await;
        for (at, (from, to)) in [(&fleet.sidecars[0], &next), (&next, &fleet.sidecars[0])].into_iter().enumerate() {
            let id = format!("{number}{at}");
            let before = redis.keys("l").await.len();
            from.client.batch("t", &[&id]).await;
            eventually("it is shared", async || redis.keys("l").await.len() > before).await;
            let reply = to.client.batch("t", &[&id]).await;
            assert_eq!(reply.header("cache-status"), "sidelink; hit; detail=shared", "step {number}, way {at}");
            let target = format!("/v2/servicerequest/accessorys/{id}");
            from.client.send(Method::DELETE, &target, &[("x-auth-token", "t")], "").await;
            eventually("purges are heard too", async || !has(to, "t", &id).await).await;
        }
    }
}
