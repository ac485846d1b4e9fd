//! A purge names ids of an API, in every scope.

use http::Method;
use serde_json::{Value, json};

use super::endpoint::*;
use crate::support::{Reply, TestClient};

async fn purge(stack: &Stack, what: &Value) -> Reply {
    let admin = TestClient::new(stack.app.admin_address());
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
