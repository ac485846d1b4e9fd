//! In the shared tier links lie under their user: sidecars whose tokens differ share, and each token is still judged by itself.

use std::collections::HashSet;
use std::sync::Arc;

use http::Method;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use sidelink::clock::Clock;
use sidelink::demo::origin::iam::Iam;
use sidelink::demo::origin::{Origin, ScriptedReply, link_is_for};

use super::{HOUR, ROLES, by_keystone};
use crate::fleet::{Redis, Sidecar, shared, sidecar};
use crate::support::{LOOPBACK, TestClient, eventually, origin_options};

struct Fleet {
    iam: Iam,
    origin: Origin,
    redis: Redis,
    sidecars: Vec<Sidecar>,
}

impl Fleet {
    async fn start(sidecars: usize, has_identity: bool) -> Self {
        let redis = Redis::start().await;
        let iam = Iam::start(LOOPBACK).await.unwrap();
        let mut options = origin_options();
        options.iam = Some(iam.clone());
        let origin = Origin::start(options).await.unwrap();
        let mut fleet = Vec::new();
        for _ in 0..sidecars {
            let mut config = sidecar(origin.address(), &shared(vec![redis.address()]));
            config.callers.identity = has_identity.then(|| by_keystone(&iam));
            let sidecar = Sidecar::start(config, Clock::system()).await;
            sidecar.tier_is(true).await;
            fleet.push(sidecar);
        }
        Self { iam, origin, redis, sidecars: fleet }
    }

    fn token(&self, user: &str) -> String {
        self.iam.issue(user, "portal", ROLES, HOUR)
    }

    /// Has `sidecar` answer a batch of one id, and waits until the tier has its link.
    async fn bring(&self, sidecar: usize, token: &str, id: &str) {
        let before = self.redis.keys("l").await.len();
        assert_eq!(self.sidecars[sidecar].client.batch(token, &[id]).await.ids(), [id]);
        eventually("the link is shared", async || self.redis.keys("l").await.len() > before).await;
    }
}

#[tokio::test]
async fn sidecars_with_a_token_each_of_one_user_share_and_without_identity_they_do_not() {
    for (has_identity, calls) in [(true, 1), (false, 2)] {
        let fleet = Fleet::start(2, has_identity).await;
        let [one, other] = ["alice", "alice"].map(|user| fleet.token(user));
        fleet.bring(0, &one, "1").await;
        assert_eq!(fleet.sidecars[1].client.batch(&other, &["1"]).await.ids(), ["1"]);
        assert_eq!(fleet.origin.calls().len(), calls);
        fleet.sidecars[1].client.batch(&fleet.token("bob"), &["1"]).await;
        assert_eq!(fleet.origin.calls().len(), calls + 1, "nothing of another user's");
    }
}

#[tokio::test]
async fn a_refused_token_is_told_to_the_fleet_and_its_users_links_stay() {
    let fleet = Fleet::start(2, true).await;
    let [refused, other] = ["alice", "alice"].map(|user| fleet.token(user));
    fleet.bring(0, &refused, "1").await;
    for token in [&refused, &other] {
        assert_eq!(fleet.sidecars[1].client.batch(token, &["1"]).await.ids(), ["1"]);
    }
    assert_eq!(fleet.origin.calls().len(), 1);
    fleet.origin.script(ScriptedReply::json(401, r#"{"error_code":"APIGW.0301","error_msg":"no"}"#));
    assert_eq!(fleet.sidecars[0].client.batch(&refused, &["2"]).await.status, 401);
    fleet.iam.revoke(&refused);
    eventually("the other sidecar knows", async || {
        fleet.sidecars[1].client.batch(&refused, &["1"]).await.status == 401
    })
    .await;
    let before = fleet.origin.calls().len();
    for sidecar in &fleet.sidecars {
        assert_eq!(sidecar.client.batch(&other, &["1"]).await.ids(), ["1"]);
    }
    let third = Sidecar::start(
        {
            let mut config = sidecar(fleet.origin.address(), &shared(vec![fleet.redis.address()]));
            config.callers.identity = Some(by_keystone(&fleet.iam));
            config
        },
        Clock::system(),
    )
    .await;
    third.tier_is(true).await;
    assert_eq!(third.client.batch(&other, &["1"]).await.ids(), ["1"]);
    assert_eq!(fleet.origin.calls().len(), before, "in the tier as well");
}

/// Regression: a sidecar that had served a token from memory alone did not know it in the fleet's journal.
#[tokio::test]
async fn a_refused_token_is_told_to_sidecars_that_served_it_from_memory_alone() {
    let fleet = Fleet::start(2, true).await;
    let [refused, other] = ["alice", "alice"].map(|user| fleet.token(user));
    fleet.bring(0, &refused, "1").await;
    for token in [&other, &refused] {
        assert_eq!(fleet.sidecars[1].client.batch(token, &["1"]).await.ids(), ["1"]);
    }
    refuse(&fleet, &refused).await;
    // The IAM knows nothing of it.
    eventually("the other sidecar asks the endpoint", async || {
        fleet.sidecars[1].client.batch(&refused, &["1"]).await;
        fleet.origin.calls().iter().filter(|call| call.ids == ["1"]).count() == 2
    })
    .await;
}

/// Regression: a token that the fleet had been told of was its user again wherever it came first.
#[tokio::test]
async fn a_refused_token_is_refused_where_it_comes_afterwards_as_well() {
    let fleet = Fleet::start(2, true).await;
    let [refused, other] = ["alice", "alice"].map(|user| fleet.token(user));
    fleet.bring(0, &refused, "1").await;
    refuse(&fleet, &refused).await;
    // It has followed the journal, where the purge stands behind the refusal.
    let operators = TestClient::new(fleet.sidecars[0].app.admin_address());
    let headers = [("content-type", "application/json")];
    let purge = operators.send(Method::POST, "/purge", &headers, r#"{"accessory_ids":["purged"]}"#).await;
    assert_eq!(purge.status, 200, "{:?}", purge.body);
    eventually("the purge is read", async || fleet.sidecars[1].metric("sidelink_purge_marks").await >= 1.0).await;
    assert_eq!(fleet.sidecars[1].client.batch(&other, &["1"]).await.ids(), ["1"]);
    let before = fleet.origin.calls().len();
    assert_eq!(fleet.sidecars[1].client.batch(&refused, &["1"]).await.ids(), ["1"]);
    assert_eq!(fleet.origin.calls().len(), before + 1, "the endpoint judges it");
    fleet.sidecars[1].client.batch(&refused, &["1"]).await;
    fleet.sidecars[1].client.batch(&refused, &["1"]).await;
    assert_eq!(fleet.origin.calls().len(), before + 1, "and takes it again");
}

/// The endpoint refuses `token` at the first sidecar, once.
async fn refuse(fleet: &Fleet, token: &str) {
    fleet.origin.script(ScriptedReply::json(401, r#"{"error_code":"APIGW.0301","error_msg":"no"}"#));
    assert_eq!(fleet.sidecars[0].client.batch(token, &["refused"]).await.status, 401);
}

#[tokio::test]
async fn a_withdrawn_link_is_gone_for_each_token_at_each_sidecar() {
    let fleet = Fleet::start(2, true).await;
    let [one, other] = ["alice", "alice"].map(|user| fleet.token(user));
    fleet.bring(0, &one, "1").await;
    fleet.origin.script(ScriptedReply::json(403, r#"{"error_code":"SVCSTG.0001","error_msg":"no"}"#));
    let no_cache = [("x-auth-token", &*one), ("cache-control", "no-cache")];
    let target = crate::support::query(&["1"]);
    assert_eq!(fleet.sidecars[0].client.get(&target, &no_cache).await.status, 403);
    eventually("it is gone from the tier", async || fleet.redis.keys("l").await.is_empty()).await;
    let before = fleet.origin.calls().len();
    assert_eq!(fleet.sidecars[1].client.batch(&other, &["1"]).await.ids(), ["1"]);
    assert_eq!(fleet.origin.calls().len(), before + 1);
}

#[tokio::test]
async fn the_tiers_data_names_no_token_and_no_user() {
    let fleet = Fleet::start(1, true).await;
    let token = fleet.token("alice-marked");
    fleet.bring(0, &token, "1").await;
    let keys = fleet.redis.list(&["KEYS", "*"]).await;
    assert!(keys.len() >= 3, "{keys:?}");
    for key in keys {
        let dump = format!("{key}{:?}", fleet.redis.ask(&["DUMP", &key]).await);
        for marked in [&*token, "alice-marked", "portal", ROLES[0], "bucket-osm"] {
            let bytes = format!("{:?}", marked.as_bytes());
            assert!(!dump.contains(marked) && !dump.contains(bytes.trim_matches(['[', ']'])), "{marked} in {key}");
        }
    }
}

/// A fleet of three, and three users with eight tokens each: an id of a user is asked for once, whichever token asks where.
#[tokio::test]
async fn a_fleet_asks_once_for_each_id_of_a_user_whichever_of_its_tokens_ask() {
    const USERS: [&str; 3] = ["alice", "bob", "carol"];
    let fleet = Arc::new(Fleet::start(3, true).await);
    let ids: Vec<String> = (0..60).map(|id| id.to_string()).collect();
    let mut clients = Vec::new();
    for client in 0..24_usize {
        let (fleet, ids) = (Arc::clone(&fleet), ids.clone());
        let mut random = StdRng::seed_from_u64(client as u64);
        let token = fleet.token(USERS[client % USERS.len()]);
        clients.push(tokio::spawn(async move {
            let mut asked = HashSet::new();
            let owner = fleet.iam.owner(&token).unwrap();
            for _ in 0..12 {
                let count = random.random_range(1..15);
                let batch: Vec<&str> = ids.sample(&mut random, count).map(String::as_str).collect();
                let sidecar = &fleet.sidecars[random.random_range(0..3)];
                let links = sidecar.client.batch(&token, &batch).await.links();
                assert_eq!(links.len(), batch.len());
                for (id, link) in links {
                    assert!(link_is_for(&link, &id, None, &owner, None, None), "{link} for {owner}");
                    asked.insert((owner.clone(), id));
                }
            }
            asked
        }));
    }
    let mut distinct = HashSet::new();
    for client in clients {
        distinct.extend(client.await.unwrap());
    }
    let asked: usize = fleet.origin.calls().iter().map(|call| call.ids.len()).sum();
    let ratio = asked as f64 / distinct.len() as f64;
    println!("24 tokens of 3 users at 3 sidecars: {asked} ids asked of {} distinct: {ratio:.3}", distinct.len());
    assert_eq!(asked, distinct.len(), "each is asked for once");
}
