//! An item that says that there is no link, with its text, and an id that was left out, are kept for `freshness.absent`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::endpoint::*;

#[tokio::test]
async fn an_object_that_is_missing_is_answered_with_the_endpoints_words_for_a_while() {
    let is_there = Arc::new(AtomicBool::new(false));
    let there = Arc::clone(&is_there);
    let stack = Stack::start(GIT_LFS, move |asked: &Asked| {
        let is_there = there.load(Ordering::SeqCst);
        lfs(asked.oids().iter().map(|oid| if oid == "gone" && !is_there { missing(oid) } else { object(asked, oid) }))
    })
    .await;
    let first = stack.lfs("t", &["a", "gone"]).await;
    assert_eq!(first.json()["objects"][1], missing("gone"));
    let again = stack.lfs("t", &["gone", "a"]).await;
    assert_eq!((status(&again), &again.json()["objects"][0]), (HIT, &missing("gone")));
    assert_eq!((stack.ids("absent").await, stack.ids("hit").await, stack.ids("fetched").await), (1.0, 1.0, 2.0));
    is_there.store(true, Ordering::SeqCst);
    stack.clock.step(30_100);
    let later = stack.lfs("t", &["a", "gone"]).await;
    assert_eq!((stack.endpoint.count(), stack.endpoint.last().oids()), (2, vec!["gone".to_owned()]));
    assert!(later.json()["objects"][1].get("error").is_none(), "{:?}", later.body);
}

#[tokio::test]
async fn a_null_in_place_of_an_item_is_remembered_as_an_absence() {
    let table = r#"
[[batch]]
name = "sign"
method = "POST"
path = "/sign"
ids = { body = "" }
items = { at = "/signed", key = "*", link = "/u" }
"#;
    let stack = Stack::start(table, |asked: &Asked| {
        let item = |id: &String| if id == "gone" { json!(null) } else { json!({"u": "https://cdn.test/"}) };
        let ids: Vec<String> = serde_json::from_str(&asked.body).unwrap();
        Answer::new(
            200,
            json!({"signed": ids.iter().map(|id| (id.clone(), item(id))).collect::<serde_json::Map<_, _>>()}),
        )
    })
    .await;
    let headers = [("authorization", "t")];
    for expected in [MISS, HIT] {
        let reply = stack.post("/sign", &headers, json!(["a", "gone"])).await;
        assert_eq!((status(&reply), &reply.json()["signed"]["gone"]), (expected, &json!(null)));
    }
    assert_eq!((stack.endpoint.count(), stack.ids("absent").await), (1, 1.0));
}

#[tokio::test]
async fn an_object_that_is_left_out_is_left_out_of_the_next_answer_too() {
    let stack = Stack::start(GIT_LFS, |asked: &Asked| {
        lfs(asked.oids().iter().filter(|oid| *oid != "gone").map(|oid| object(asked, oid)))
    })
    .await;
    for times in [1, 1] {
        let reply = stack.lfs("t", &["gone", "a"]).await;
        let found = reply.json()["objects"].as_array().unwrap().len();
        assert_eq!((stack.endpoint.count(), found), (times, 1));
    }
    // An answer without any object still has the envelope of its call.
    for (times, oids) in [(2, ["gone", "x"]), (2, ["x", "gone"])] {
        let reply = stack.lfs("t", &oids).await;
        assert_eq!((stack.endpoint.count(), &reply.json()["transfer"]), (times, &json!("basic")));
    }
    let alone = stack.lfs("t", &["gone"]).await;
    assert_eq!((status(&alone), alone.json()), (HIT, json!({"transfer": "basic", "objects": []})));
    assert_eq!(alone.header("content-type"), LFS_TYPE);
}

/// A failing endpoint is no reason to say that an object is missing still.
#[tokio::test]
async fn an_absence_is_never_served_stale() {
    let fails = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fails);
    let stack = Stack::with(
        GIT_LFS,
        |config| config.upstream.retry.attempts = 0,
        move |asked: &Asked| {
            if failing.load(Ordering::SeqCst) {
                return Answer::new(500, "{}");
            }
            lfs(asked.oids().iter().map(|oid| if oid == "gone" { missing(oid) } else { object(asked, oid) }))
        },
    )
    .await;
    stack.lfs("t", &["a", "gone"]).await;
    fails.store(true, Ordering::SeqCst);
    stack.clock.step(65_000);
    assert_eq!(stack.lfs("t", &["gone"]).await.status, 500);
    let stale = stack.lfs("t", &["a"]).await;
    assert_eq!((stale.status.as_u16(), stack.ids("stale").await), (200, 1.0));
}
