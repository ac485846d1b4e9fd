//! A complete answer with status 200 that is no JSON is passed on as the endpoint sent it, whatever type it claims: only the client may
//! know how to read it. Nothing of it is kept. For a call for a part of a batch, the batch is asked for as its client wrote it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::endpoint::*;

/// An API that also speaks JSONP, as many that are asked by a query do.
const JSONP: &str = r#"
[[batch]]
name = "jsonp"
path = "/links"
ids = { query = "id", styles = ["comma"] }
items = { at = "", key = "/id", link = "/url" }
ids_per_call = 2
"#;

fn jsonp(asked: &Asked) -> Answer {
    let query = asked.target.split_once('?').unwrap().1;
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
    let item = |id: &str| json!({"id": id, "url": "https://cdn.test/"});
    let list = json!(value("id=").unwrap().split(',').map(item).collect::<Vec<_>>());
    match value("callback=") {
        Some(callback) => {
            Answer::new(200, format!("{callback}({list})")).of_type("text/javascript").with("x-from", "it")
        }
        None => Answer::new(200, list),
    }
}

#[tokio::test]
async fn an_answer_in_another_language_is_passed_on_as_it_came() {
    let stack = Stack::start(JSONP, jsonp).await;
    for (times, ids) in [(1, "1"), (2, "1,2"), (3, "1,2")] {
        let target = format!("/links?callback=show&id={ids}");
        let reply = stack.client.get(&target, &[("authorization", "t")]).await;
        let direct = jsonp(&stack.endpoint.last());
        assert_eq!((reply.status.as_u16(), status(&reply)), (200, "fwd=bypass; detail=not-json"));
        assert_eq!(String::from_utf8_lossy(&reply.body), direct.body());
        assert_eq!((reply.header("content-type"), reply.header("x-from")), ("text/javascript", "it"));
        assert_eq!(
            (stack.endpoint.count(), stack.endpoint.last().target),
            (times, target),
            "one call, and nothing is kept"
        );
    }
    assert_eq!(
        (stack.forwarded("not-json").await, stack.ids("fetched").await, stack.ids("failed").await),
        (3.0, 5.0, 0.0)
    );
    let plain = stack.client.get("/links?id=1", &[("authorization", "t")]).await;
    assert_eq!((status(&plain), plain.json()[0]["id"].as_str()), (MISS, Some("1")));
}

#[tokio::test]
async fn a_batch_of_several_calls_in_another_language_is_asked_for_as_it_was_written() {
    let stack = Stack::start(JSONP, jsonp).await;
    let target = "/links?id=1,2,3&callback=show";
    let reply = stack.client.get(target, &[("authorization", "t")]).await;
    assert_eq!((reply.status.as_u16(), status(&reply)), (200, "fwd=bypass; detail=not-json"));
    assert_eq!(stack.endpoint.last().target, target);
    assert_eq!(String::from_utf8_lossy(&reply.body), jsonp(&stack.endpoint.last()).body());
    assert_eq!((stack.endpoint.count(), stack.ids("fetched").await), (3, 3.0));
}

/// A gateway's page, and JSON that is none, both complete.
#[tokio::test]
async fn a_page_for_a_part_of_a_batch_is_no_answer_to_the_batch() {
    for (media_type, page) in [("text/html", "<html>"), (LFS_TYPE, "{\"objects\":["), (LFS_TYPE, ""), (LFS_TYPE, "{}}")]
    {
        let stack = Stack::start(GIT_LFS, move |asked: &Asked| match asked.oids().as_slice() {
            [oid] if oid == "b" => Answer::new(200, page).of_type(media_type),
            _ => has_all(asked),
        })
        .await;
        let whole = stack.lfs("t", &["b"]).await;
        assert_eq!((whole.status.as_u16(), status(&whole)), (200, "fwd=bypass; detail=not-json"), "{page}");
        assert_eq!((String::from_utf8_lossy(&whole.body), whole.header("content-type")), (page.into(), media_type));
        assert_eq!(stack.endpoint.count(), 1);
        stack.lfs("t", &["a"]).await;
        let reply = stack.lfs("t", &["a", "b"]).await;
        assert_eq!((reply.status.as_u16(), status(&reply)), (200, "fwd=bypass; detail=not-json"), "{page}");
        assert_eq!(reply.json()["objects"].as_array().unwrap().len(), 2);
        assert_eq!((stack.endpoint.count(), &stack.endpoint.last().body), (4, &lfs_body(&["a", "b"])));
        assert_eq!(status(&stack.lfs("t", &["a"]).await), HIT);
        assert_eq!(stack.sum("sidelink_breaker_state", "state=\"closed\"").await, 1.0);
    }
}

#[tokio::test]
async fn a_stale_link_is_served_rather_than_a_page() {
    let is_down = Arc::new(AtomicBool::new(false));
    let down = Arc::clone(&is_down);
    let stack = Stack::start(GIT_LFS, move |asked: &Asked| {
        if down.load(Ordering::SeqCst) { Answer::new(200, "<html>").of_type("text/html") } else { has_all(asked) }
    })
    .await;
    stack.lfs("t", &["a"]).await;
    is_down.store(true, Ordering::SeqCst);
    stack.clock.step(65_000);
    let reply = stack.lfs("t", &["a"]).await;
    assert_eq!((reply.json()["objects"][0]["oid"].as_str(), stack.ids("stale").await), (Some("a"), 1.0));
}
