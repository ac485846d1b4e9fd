//! An error that the endpoint answers to a call for a part of a batch is no error of the batch: the batch is asked for once more, as its
//! client wrote it, and the answer to that is passed on. An error that is about the caller, and one for the whole batch, is passed on as it
//! came.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::json;

use super::endpoint::*;

/// As giftless: an error where all objects of a call are missing.
fn giftless(status: u16) -> impl Fn(&Asked) -> Answer + Send + Sync + 'static {
    move |asked: &Asked| {
        let oids = asked.oids();
        if oids.iter().all(|oid| oid.starts_with("gone")) {
            return Answer::new(status, json!({"message": "cannot find any"})).of_type(LFS_TYPE);
        }
        lfs(oids.iter().map(|oid| if oid.starts_with("gone") { missing(oid) } else { object(asked, oid) }))
    }
}

#[tokio::test]
async fn an_error_for_a_part_of_a_batch_is_followed_by_one_call_for_the_batch_as_it_was_written() {
    for code in [207, 302, 400, 403, 404, 410, 422] {
        let stack = Stack::start(GIT_LFS, giftless(code)).await;
        assert_eq!(status(&stack.lfs("t", &["a", "b"]).await), MISS);
        let body = lfs_body(&["a", "gone", "b"]).replace("\"transfers\":", " \"transfers\"\t: ");
        let reply = stack.post(LFS_PATH, &lfs_headers("t"), &body).await;
        assert_eq!(status(&reply), "fwd=bypass; detail=part", "{code}");
        assert_eq!((reply.status.as_u16(), &reply.json()["objects"][1]), (200, &missing("gone")));
        let asked = stack.endpoint.asked();
        assert_eq!((asked.len(), asked[1].oids(), &asked[2].body), (3, vec!["gone".to_owned()], &body));
        assert_eq!((stack.refetched("part").await, stack.forwarded("part").await), (3.0, 1.0));
        assert_eq!((stack.ids("hit").await, stack.ids("fetched").await), (2.0, 3.0));
        assert_eq!(status(&stack.lfs("t", &["a", "b"]).await), HIT, "{code}: nothing is forgotten");
    }
}

#[tokio::test]
async fn an_error_for_a_whole_batch_is_passed_on() {
    let stack = Stack::start(GIT_LFS, giftless(404)).await;
    for (times, oids) in [(1, &["gone"][..]), (2, &["gone1", "gone2"]), (3, &["gone", "gone"])] {
        let reply = stack.lfs("t", oids).await;
        assert_eq!((status(&reply), stack.endpoint.count()), ("fwd=miss; fwd-status=404", times));
        assert_eq!((&*reply.body, reply.header("content-type")), (&br#"{"message":"cannot find any"}"#[..], LFS_TYPE));
    }
    assert_eq!(stack.refetched("part").await, 0.0);
}

#[tokio::test]
async fn an_error_about_the_caller_or_the_endpoint_is_no_error_for_a_part() {
    for code in [401, 408, 429, 500, 503] {
        let stack = Stack::with(GIT_LFS, |config| config.upstream.retry.attempts = 0, giftless(code)).await;
        stack.lfs("t", &["a"]).await;
        let reply = stack.lfs("t", &["a", "gone"]).await;
        // A 408 is the first answer on a connection that the endpoint was about to close: sent again on another.
        let calls = if code == 408 { 3 } else { 2 };
        assert_eq!((reply.status.as_u16(), stack.endpoint.count(), stack.refetched("part").await), (code, calls, 0.0));
        let again = stack.lfs("t", &["a"]).await;
        // A 401 ends all that the credential had.
        assert_eq!(
            (stack.endpoint.count(), again.status.as_u16()),
            (if code == 401 { 3 } else { calls }, 200),
            "{code}"
        );
    }
}

#[tokio::test]
async fn the_answer_to_the_batch_as_it_was_written_is_passed_on_whatever_it_is() {
    let code = Arc::new(AtomicU16::new(0));
    let answered = Arc::clone(&code);
    let stack =
        Stack::start(GIT_LFS, move |asked: &Asked| match (asked.oids().len(), answered.load(Ordering::SeqCst)) {
            (1, _) if asked.oids()[0] == "gone" => Answer::new(404, "{}"),
            (2, code) if code > 0 => Answer::new(code, json!({"message": "as written"})).with("x-from", "the endpoint"),
            _ => has_all(asked),
        })
        .await;
    stack.lfs("t", &["a"]).await;
    for status in [403, 404, 422, 503] {
        code.store(status, Ordering::SeqCst);
        let reply = stack.lfs("t", &["a", "gone"]).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-from")), (status, "the endpoint"));
        assert_eq!(reply.json()["message"], "as written");
    }
    assert_eq!(status(&stack.lfs("t", &["a"]).await), HIT);
}

/// An API whose errors come with status 200 as well.
#[tokio::test]
async fn an_error_with_status_200_for_a_part_is_no_error_of_the_batch_either() {
    let table = r#"
[[batch]]
name = "soft"
path = "/links"
ids = { body = "/ids" }
items = { at = "/links", key = "/id", link = "/url" }
errors = { code = "/error/code", of_request = ["BadIds"] }
"#;
    let stack = Stack::start(table, |asked: &Asked| {
        let ids = asked.ids("/ids", "");
        if ids == ["gone"] {
            return Answer::new(200, json!({"links": [], "error": {"code": "BadIds"}}));
        }
        let item = |id: &String| json!({"id": id, "url": "https://cdn.test/"});
        Answer::new(200, json!({"error": null, "links": ids.iter().map(item).collect::<Vec<_>>()}))
    })
    .await;
    let headers = [("authorization", "t")];
    stack.post("/links", &headers, json!({"ids": ["a"]})).await;
    let reply = stack.post("/links", &headers, json!({"ids": ["a", "gone"]})).await;
    assert_eq!((status(&reply), reply.json()["links"].as_array().unwrap().len()), ("fwd=bypass; detail=part", 2));
    let whole = stack.post("/links", &headers, json!({"ids": ["gone"]})).await;
    assert_eq!((status(&whole), &whole.json()["error"]["code"]), ("fwd=miss; fwd-status=200", &json!("BadIds")));
}

/// Whoever runs the endpoint, or wrote the description, has to know: the clients have done nothing wrong.
#[tokio::test]
async fn an_answer_without_a_list_for_a_part_is_told_apart_from_an_error() {
    let stack = Stack::start(GIT_LFS, |asked: &Asked| match asked.oids().as_slice() {
        [oid] if oid == "a" => lfs([object(asked, oid)].into_iter()),
        _ => Answer::new(200, json!({"other": []})),
    })
    .await;
    stack.lfs("t", &["a"]).await;
    let reply = stack.lfs("t", &["a", "b"]).await;
    assert_eq!((status(&reply), reply.json()), ("fwd=bypass; detail=no-list", json!({"other": []})));
    assert_eq!((stack.forwarded("no-list").await, stack.forwarded("part").await), (1.0, 0.0));
    // An error by a flag, which has the list as well.
    let table = r#"
[[batch]]
name = "flag"
method = "POST"
path = "/links"
ids = { body = "/ids" }
items = { at = "/links", key = "/id", link = "/url" }
errors = { unless = { "/ok" = true } }
"#;
    let stack = Stack::start(table, |asked: &Asked| match asked.ids("/ids", "").as_slice() {
        [id] if id == "a" => Answer::new(200, json!({"ok": true, "links": [{"id": "a", "url": "https://cdn.test/"}]})),
        _ => Answer::new(200, json!({"ok": false, "links": []})),
    })
    .await;
    stack.post("/links", &[("authorization", "t")], json!({"ids": ["a"]})).await;
    let reply = stack.post("/links", &[("authorization", "t")], json!({"ids": ["a", "b"]})).await;
    assert_eq!((status(&reply), stack.forwarded("no-list").await), ("fwd=bypass; detail=part", 0.0));
}

/// git-lfs with a larger `lfs.transfer.batchSize` than `ids_per_call`: its server takes batches of any size.
#[tokio::test]
async fn a_batch_that_was_split_is_asked_for_as_it_was_written_where_one_of_its_calls_gets_an_error() {
    let stack = Stack::start(&format!("{GIT_LFS}\nids_per_call = 2"), giftless(404)).await;
    let oids = ["a", "b", "gone1", "gone2", "c"];
    let reply = stack.lfs("t", &oids).await;
    assert_eq!((reply.status.as_u16(), status(&reply)), (200, "fwd=bypass; detail=part"));
    assert_eq!((stack.endpoint.count(), &stack.endpoint.last().body), (4, &lfs_body(&oids)));
}

/// Where the endpoint's own limit forbids that, the error of the part says more.
#[tokio::test]
async fn a_batch_that_the_endpoint_takes_in_parts_alone_gets_the_error_of_the_part() {
    let server = giftless(404);
    let stack = Stack::start(&format!("{GIT_LFS}\nids_per_call = 2"), move |asked: &Asked| {
        if asked.oids().len() > 2 { Answer::new(413, "{}") } else { server(asked) }
    })
    .await;
    let reply = stack.lfs("t", &["a", "b", "gone1", "gone2", "c"]).await;
    assert_eq!((reply.status.as_u16(), reply.json()), (404, json!({"message": "cannot find any"})));
    assert_eq!(status(&stack.lfs("t", &["a", "b"]).await), HIT);
}

/// However many other batches have to be asked for once more at the same time.
#[tokio::test]
async fn an_error_for_a_part_is_never_passed_on_as_one_for_the_batch() {
    const BATCHES: usize = 250;
    let stack = Stack::start(GIT_LFS, giftless(404)).await;
    stack.lfs("t", &["a"]).await;
    stack.endpoint.set_open(false);
    let replies = futures_util::future::join_all((0..BATCHES).map(|_| stack.lfs("t", &["a", "gone"])));
    let open = async {
        stack.uses("waiters", BATCHES as f64).await;
        stack.endpoint.set_open(true);
    };
    for reply in tokio::join!(replies, open).0 {
        assert_eq!((reply.status.as_u16(), status(&reply)), (200, "fwd=bypass; detail=part"), "{:?}", reply.body);
        assert_eq!(reply.json()["objects"][1], missing("gone"));
    }
}
