//! Items of any API go through the shared tier with their envelope, their absence, and what is left of their expiry.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use sidelink::clock::Clock;

use super::endpoint::*;
use crate::fleet::{Redis, Sidecar, shared, sidecar};
use crate::support::{Reply, TestClient, eventually};

#[tokio::test]
async fn objects_that_one_sidecar_fetched_serve_the_same_user_at_another() {
    let redis = Redis::start().await;
    let endpoint = Endpoint::start(|asked: &Asked| {
        let objects = asked.oids();
        let object = |oid: &String| match &**oid {
            "gone" => missing(oid).to_string(),
            _ => format!(
                r#"{{ "oid":"{oid}","actions":{{"download":{{"expires_in":3600,"href":"https://cdn.test/{oid}","header":{{"Authorization":"secret-of-the-object"}}}}}} }}"#
            ),
        };
        let objects: Vec<String> = objects.iter().map(object).collect();
        Answer::new(200, format!("{{\"transfer\":\"basic\" , \"objects\":[{}]}}\n", objects.join(","))).of_type(LFS_TYPE)
    })
    .await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let clock = Clock::simulated(i64::try_from(now.as_millis()).unwrap());
    let mut sidecars = Vec::new();
    // The last one reads items by another description.
    for tables in [GIT_LFS.to_owned(), GIT_LFS.to_owned(), format!("{GIT_LFS}\nexpires = [\"link\"]")] {
        let mut config = sidecar(endpoint.address, &shared(vec![redis.address()]));
        config.batch = apis(&tables);
        config.freshness.absent = Duration::from_secs(60);
        let sidecar = Sidecar::start(config, clock.clone()).await;
        sidecar.tier_is(true).await;
        sidecars.push(sidecar);
    }
    let [one, other, third] = &sidecars[..] else { panic!() };
    let oids = ["a", "gone", "b"];
    let first = lfs_batch(&one.client, "Basic dDpw", &oids).await;
    assert_eq!(status(&first), MISS);
    eventually("objects and acceptance are shared", async || {
        redis.keys("l").await.len() == 3 && redis.keys("c").await.len() == 1
    })
    .await;

    clock.step(2000);
    let second = lfs_batch(&other.client, "Basic dDpw", &oids).await;
    assert_eq!(status(&second), "hit; detail=shared", "{}", endpoint.last().body);
    assert_eq!((second.header("content-type"), second.header("cache-control")), (LFS_TYPE, "no-store"));
    let left = |reply: &Reply, at: usize| reply.json()["objects"][at]["actions"]["download"]["expires_in"].as_u64();
    let (left_of_a, left_of_b) = (left(&second, 0).unwrap(), left(&second, 2).unwrap());
    assert!((3560..=3598).contains(&left_of_a) && left_of_a == left_of_b, "{left_of_a} {left_of_b}");
    let expected = String::from_utf8(first.body.to_vec()).unwrap().replace("3600", &left_of_a.to_string());
    assert_eq!(second.body, expected.trim_end(), "byte for byte but for what is left");
    assert_eq!(endpoint.count(), 1);

    // Now in its memory, and it goes on to count.
    clock.step(1000);
    let again = lfs_batch(&other.client, "Basic dDpw", &["b"]).await;
    assert_eq!((status(&again), left(&again, 0) < Some(left_of_b)), (HIT, true));
    // Nobody else's, nor another API's, and nothing of it in the clear.
    assert_eq!(status(&lfs_batch(&other.client, "Basic dTpw", &["a"]).await), MISS);
    for key in redis.list(&["KEYS", "*"]).await {
        let dump = format!("{key}{:?}", redis.ask(&["DUMP", &key]).await);
        for secret in ["secret-of-the-object", "cdn.test", "dDpw", "basic"] {
            assert!(
                !dump.contains(secret) && !dump.contains(&format!("{:?}", secret.as_bytes()).replace(['[', ']'], ""))
            );
        }
    }
    assert_eq!(endpoint.count(), 2);
    assert_eq!(status(&lfs_batch(&third.client, "Basic dDpw", &["a"]).await), MISS);
    assert_eq!(endpoint.count(), 3);
}

#[tokio::test]
async fn a_credential_that_one_api_refuses_loses_what_every_api_brought_in_the_fleet() {
    let redis = Redis::start().await;
    let endpoint = Endpoint::start(|asked: &Asked| match asked.target.split_once("?id=") {
        Some((_, "out")) => Answer::new(401, "{}"),
        _ => Answer::new(200, json!([{"id": "1", "url": "https://cdn.test/1"}])),
    })
    .await;
    let table = |name: &str| {
        let rest = "ids = { query = \"id\" }\nitems = { at = \"\", key = \"/id\", link = \"/url\" }";
        format!("[[batch]]\nname = \"{name}\"\npath = \"/{name}\"\n{rest}\n")
    };
    let mut sidecars = Vec::new();
    for _ in 0..2 {
        let mut config = sidecar(endpoint.address, &shared(vec![redis.address()]));
        config.batch = apis(&[table("photos"), table("videos")].concat());
        let sidecar = Sidecar::start(config, Clock::system()).await;
        sidecar.tier_is(true).await;
        sidecars.push(sidecar);
    }
    let [one, other] = &sidecars[..] else { panic!() };
    let ask = async |client: &TestClient, target: &str| {
        status(&client.get(target, &[("authorization", "Bearer t")]).await).to_owned()
    };
    let both = ["/photos?id=1", "/videos?id=1"];
    for target in both {
        assert_eq!(ask(&one.client, target).await, MISS);
    }
    eventually("both are shared", async || redis.keys("l").await.len() == 2 && redis.keys("c").await.len() == 2).await;
    for target in both {
        assert_eq!(ask(&other.client, target).await, "hit; detail=shared");
    }
    assert_eq!(ask(&one.client, "/photos?id=out").await, "fwd=miss; fwd-status=401");
    for target in both {
        let headers = [("authorization", "Bearer t"), ("cache-control", "only-if-cached")];
        eventually("the other sidecar has heard of it", async || {
            other.client.get(target, &headers).await.status.as_u16() == 504
        })
        .await;
        assert_eq!(ask(&one.client, target).await, MISS, "what is in the tier is void, too");
    }
}
