//! A purge names ids of an API, in every scope.

use http::Method;
use serde_json::{Value, json};
use sidelink::app::App;
use sidelink::clock::Clock;

use super::endpoint::*;
use crate::fleet::{Redis, Sidecar, shared, sidecar};
use crate::support::{Reply, TestClient, eventually};

/// Two APIs whose ids are the same, and whose objects a DELETE of one path removes from the first alone.
const PHOTOS_AND_VIDEOS: &str = r#"
[[batch]]
name = "photos"
path = "/photos"
ids = { query = "ids", styles = ["comma"] }
items = { at = "/items", key = "/id", link = "/url" }
delete = "/photos/{id}"
[[batch]]
name = "videos"
path = "/videos"
ids = { query = "ids", styles = ["comma"] }
items = { at = "/items", key = "/id", link = "/url" }
delete = "/{kind}/{id}"
"#;

/// An endpoint that has all photos and videos, and deletes whatever it is told to.
fn has_photos_and_videos(asked: &Asked) -> Answer {
    let Some((_, ids)) = asked.target.split_once("?ids=") else { return Answer::new(200, "{}") };
    let items: Vec<Value> =
        ids.split(',').map(|id| json!({"id": id, "url": format!("https://cdn.test/{id}")})).collect();
    Answer::new(200, json!({ "items": items }))
}

async fn ask(client: &TestClient, target: &str) -> String {
    status(&client.get(target, &[("authorization", "Bearer t")]).await).to_owned()
}

async fn purge(stack: &Stack, what: &Value) -> Reply {
    purge_at(&stack.app, what).await
}

async fn purge_at(app: &App, what: &Value) -> Reply {
    let admin = TestClient::new(app.admin_address());
    admin.send(Method::POST, "/purge", &[("content-type", "application/json")], what.to_string()).await
}

#[tokio::test]
async fn the_objects_of_a_purge_are_fetched_again_by_everyone_and_no_others_are() {
    let stack = Stack::start(GIT_LFS, has_all).await;
    let users = ["t", "u"];
    for user in users {
        stack.lfs(user, &["a", "b"]).await;
        assert_eq!(status(&stack.lfs(user, &["a", "b"]).await), HIT);
    }
    let purged = purge(&stack, &json!({"api": "git-lfs", "ids": ["a", "never"]})).await;
    assert_eq!((purged.status.as_u16(), &purged.json()["ids"]), (200, &json!(2)), "{:?}", purged.body);
    for user in users {
        let partial = stack.lfs(user, &["a", "b"]).await;
        assert_eq!(status(&partial), "fwd=partial; stored; detail=\"hit=1 fetched=1\"");
        assert_eq!(stack.endpoint.last().oids(), ["a"]);
    }
    purge(&stack, &json!({"all": true})).await;
    assert_eq!(status(&stack.lfs("t", &["a", "b"]).await), MISS);
}

#[tokio::test]
async fn a_purge_of_an_api_that_is_not_configured_is_refused() {
    let stack = Stack::start(GIT_LFS, has_all).await;
    for what in
        [json!({"api": "huawei-osm", "ids": ["a"]}), json!({"api": "git-lfs", "ids": []}), json!({"api": "git-lfs"})]
    {
        assert_eq!(purge(&stack, &what).await.status, 400, "{what}");
    }
}

/// What an object's element says besides is part of its key, and not of its name.
#[tokio::test]
async fn an_object_is_purged_whatever_its_size_and_in_every_repository() {
    let stack = Stack::start(GIT_LFS, has_all).await;
    let ask = async |path: &str, size: u8| {
        let body = lfs_body(&["a"]).replace("\"size\":1", &format!("\"size\":{size}"));
        stack.post(path, &lfs_headers("t"), body).await
    };
    let batches = [(LFS_PATH, 1), (LFS_PATH, 2), ("/other/info/lfs/objects/batch", 1)];
    for expected in [MISS, HIT] {
        for (path, size) in batches {
            assert_eq!(status(&ask(path, size).await), expected);
        }
    }
    purge(&stack, &json!({"api": "git-lfs", "ids": ["a"]})).await;
    for (path, size) in batches {
        assert_eq!(status(&ask(path, size).await), MISS);
    }
}

#[tokio::test]
async fn a_purge_that_names_an_api_drops_no_other_apis_id_of_the_same_text_and_one_that_names_none_drops_all() {
    let stack = Stack::start(PHOTOS_AND_VIDEOS, has_photos_and_videos).await;
    let targets = ["/photos?ids=1,2", "/videos?ids=1,2"];
    for expected in [MISS, HIT] {
        for target in targets {
            assert_eq!(ask(&stack.client, target).await, expected);
        }
    }
    let purged = purge(&stack, &json!({"api": "videos", "ids": ["1"]})).await;
    assert_eq!(purged.json(), json!({"purged": "ids", "api": "videos", "ids": 1, "fleet": "none"}));
    assert_eq!(ask(&stack.client, "/photos?ids=1,2").await, HIT);
    assert_eq!(ask(&stack.client, "/videos?ids=1,2").await, "fwd=partial; stored; detail=\"hit=1 fetched=1\"");

    purge(&stack, &json!({"accessory_ids": ["1", "2"]})).await;
    for target in targets {
        assert_eq!(ask(&stack.client, target).await, MISS);
    }
}

#[tokio::test]
async fn a_deletion_drops_the_id_of_each_api_that_has_its_path_and_of_no_other() {
    let stack = Stack::start(PHOTOS_AND_VIDEOS, has_photos_and_videos).await;
    let ask_all = async || {
        let mut all = Vec::new();
        for target in ["/photos?ids=1", "/videos?ids=1"] {
            all.push(ask(&stack.client, target).await);
        }
        all
    };
    assert_eq!(ask_all().await, [MISS, MISS]);
    for (path, expected) in [("/videos/1", [HIT, MISS]), ("/photos/1", [MISS, MISS]), ("/other/x/1", [HIT, HIT])] {
        stack.client.send(Method::DELETE, path, &[("authorization", "Bearer t")], "").await;
        assert_eq!(ask_all().await, expected, "{path}");
    }
}

#[tokio::test]
async fn a_purge_that_names_an_api_means_the_same_at_every_sidecar_of_a_fleet() {
    let redis = Redis::start().await;
    let endpoint = Endpoint::start(has_photos_and_videos).await;
    let mut sidecars = Vec::new();
    for _ in 0..3 {
        let mut config = sidecar(endpoint.address, &shared(vec![redis.address()]));
        config.batch = apis(PHOTOS_AND_VIDEOS);
        let sidecar = Sidecar::start(config, Clock::system()).await;
        sidecar.tier_is(true).await;
        sidecars.push(sidecar);
    }
    let [one, other, third] = &sidecars[..] else { panic!() };
    for target in ["/photos?ids=1", "/videos?ids=1"] {
        assert_eq!(ask(&one.client, target).await, MISS);
    }
    eventually("both are shared", async || redis.keys("l").await.len() == 2 && redis.keys("c").await.len() == 2).await;
    for target in ["/photos?ids=1", "/videos?ids=1"] {
        assert_eq!(ask(&other.client, target).await, "hit; detail=shared");
    }
    assert_eq!(purge_at(&one.app, &json!({"api": "videos", "ids": ["1"]})).await.status, 200);
    let in_memory = async |target: &str| {
        let headers = [("authorization", "Bearer t"), ("cache-control", "only-if-cached")];
        other.client.get(target, &headers).await.status == 200
    };
    eventually("the other sidecar has read the purge", async || !in_memory("/videos?ids=1").await).await;
    assert!(in_memory("/photos?ids=1").await);
    // Of what is in the tier, too.
    assert_eq!(ask(&third.client, "/videos?ids=1").await, MISS);
    assert_eq!(ask(&third.client, "/photos?ids=1").await, "hit; detail=shared");
    for (api, hits, misses) in [("photos", 1.0, 0.0), ("videos", 0.0, 1.0)] {
        assert_eq!(third.metric(&format!("sidelink_shared_hits_total{{api=\"{api}\"}}")).await, hits, "{api}");
        assert_eq!(third.metric(&format!("sidelink_shared_misses_total{{api=\"{api}\"}}")).await, misses, "{api}");
    }
}
