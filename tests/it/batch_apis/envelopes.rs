//! The envelope of an answer, the text around its items, is the endpoint's byte for byte, and so are its media type and its items. Items
//! of different envelopes are not mixed: the batch is fetched whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use super::endpoint::*;
use crate::support::TestClient;

const KEYED: &str = "[[batch]]\npreset = \"autodesk-oss\"";
const OSS_PATH: &str = "/oss/v2/buckets/b/objects/batchsigneds3download";

fn raw(asked: &Asked, before: &str, after: &str) -> Answer {
    let items: Vec<String> = asked
        .oids()
        .iter()
        .map(|oid| {
            format!(r#"{{ "actions":{{"download":{{"href":"https:\/\/cdn.test\/{oid}"}}}}, "oid":"{oid}","n":1.50 }}"#)
        })
        .collect();
    Answer::new(200, format!("{before}{}{after}", items.join(" , "))).of_type(LFS_TYPE)
}

const BEFORE: &str = "{\n \"transfer\":\"basic\", \"objects\" : [";
const AFTER: &str = "],\t\"hash_algo\":\"sha\\u0032\"}\n";

#[tokio::test]
async fn an_answer_from_memory_is_in_the_endpoints_envelope_and_media_type() {
    let stack = Stack::start(GIT_LFS, |asked: &Asked| raw(asked, BEFORE, AFTER)).await;
    let direct = lfs_batch(&stack.direct, "t", &["a", "b"]).await;
    for (at, oids) in [["a", "c"], ["b", "a"], ["a", "b"], ["a", "b"], ["a", "b"]].iter().enumerate() {
        let reply = stack.lfs("t", oids).await;
        assert_eq!(reply.header("content-type"), LFS_TYPE);
        assert_eq!(reply.header("cache-control"), "no-store", "the URL does not name the batch");
        assert_eq!(status(&reply) == HIT, at > 1);
        if at > 1 {
            let text = String::from_utf8(direct.body.to_vec()).unwrap().replace("} , {", "},{");
            assert_eq!(reply.body, text.trim_end(), "as the endpoint's own, but for space between items");
        }
    }
    assert_eq!(stack.endpoint.count(), 3);
    assert_eq!(stack.sum("sidelink_answers_used_total", "").await, 1.0);
}

#[tokio::test]
async fn items_that_came_in_different_envelopes_are_fetched_together() {
    let (number, is_steady) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let steady = Arc::clone(&is_steady);
    let stack = Stack::start(GIT_LFS, move |asked: &Asked| {
        let number = number.fetch_add(1 - steady.load(Ordering::SeqCst), Ordering::SeqCst);
        raw(asked, &format!(r#"{{"transfer":"t{number}","objects":["#), "]}")
    })
    .await;
    let transfer = |reply: &crate::support::Reply| reply.json()["transfer"].as_str().unwrap().to_owned();
    assert_eq!(transfer(&stack.lfs("t", &["a"]).await), "t0");
    assert_eq!(transfer(&stack.lfs("t", &["b"]).await), "t1");
    // All in memory, in two envelopes.
    let both = stack.lfs("t", &["a", "b"]).await;
    assert_eq!(
        (transfer(&both), stack.endpoint.last().oids()),
        ("t2".to_owned(), vec!["a".to_owned(), "b".to_owned()])
    );
    assert_eq!(stack.refetched("envelope").await, 2.0);
    assert_eq!((transfer(&stack.lfs("t", &["b", "a"]).await), stack.endpoint.count()), ("t2".to_owned(), 3));
    // One in memory, and the other comes in another envelope.
    let mixed = stack.lfs("t", &["a", "c"]).await;
    assert_eq!((transfer(&mixed), stack.endpoint.count()), ("t4".to_owned(), 5));
    assert_eq!(stack.endpoint.last().oids(), ["a", "c"]);
    // From here on all is as before.
    is_steady.store(1, Ordering::SeqCst);
    assert_eq!(stack.lfs("t", &["d"]).await.status, 200);
    let asked = ["a", "b", "c", "d"];
    assert_eq!(stack.lfs("t", &asked).await.status, 200);
    assert_eq!(status(&stack.lfs("t", &asked).await), HIT);
    let total = ["hit", "fetched", "joined", "absent", "stale", "shared", "failed"];
    let mut sum = 0.0;
    for result in total {
        sum += stack.ids(result).await;
    }
    assert_eq!((sum, stack.ids("failed").await), (17.0, 0.0), "each id of each batch is counted once");
}

#[tokio::test]
async fn an_envelope_that_fails_to_come_again_is_the_endpoints_answer() {
    let number = AtomicUsize::new(0);
    let stack = Stack::start(GIT_LFS, move |asked: &Asked| match number.fetch_add(1, Ordering::SeqCst) {
        number @ 0..2 => raw(asked, &format!(r#"{{"transfer":"t{number}","objects":["#), "]}"),
        _ => Answer::new(422, r#"{"message":"too much"}"#).of_type(LFS_TYPE),
    })
    .await;
    stack.lfs("t", &["a"]).await;
    stack.lfs("t", &["b"]).await;
    let both = stack.lfs("t", &["a", "b"]).await;
    assert_eq!((both.status.as_u16(), &*both.body), (422, &br#"{"message":"too much"}"#[..]));
    assert_eq!(both.header("content-type"), LFS_TYPE);
}

#[tokio::test]
async fn items_that_are_members_of_an_object_are_kept_with_their_names() {
    let stack = Stack::start(KEYED, |asked: &Asked| {
        let item = |key: &String| {
            let name = serde_json::to_string(key).unwrap().replace('é', "\\u00e9");
            format!("{name} : {{\"status\":\"complete\",\"url\":\"https://cdn.test/{}\"}}", key.len())
        };
        let items: Vec<String> = asked.ids("/requests", "/objectKey").iter().map(item).collect();
        Answer::new(200, format!("{{\"results\":{{{}}}, \"x\":1}}", items.join(", ")))
    })
    .await;
    let body = |keys: &[&str]| {
        let elements: Vec<_> = keys.iter().map(|key| json!({"objectKey": key})).collect();
        json!({"requests": elements}).to_string()
    };
    let headers = [("authorization", "Bearer t"), ("content-type", "application/json")];
    let keys = ["a \"quoted\".rvt", "é/b.rvt", "{}", ":,"];
    assert_eq!(status(&stack.post(OSS_PATH, &headers, body(&keys[..3])).await), MISS);
    let partial = stack.post(OSS_PATH, &headers, body(&keys)).await;
    assert_eq!(stack.endpoint.last().ids("/requests", "/objectKey"), [keys[3]]);
    let direct = stack.direct.send(http::Method::POST, OSS_PATH, &headers, body(&keys)).await;
    assert_eq!(
        partial.body,
        String::from_utf8(direct.body.to_vec()).unwrap().replace("}, \"", "},\"").replace("},\"x", "}, \"x")
    );
    let again = stack.post(OSS_PATH, &headers, body(&keys)).await;
    assert_eq!((status(&again), &again.body), (HIT, &partial.body));
    // An answer that names one key twice is no answer for either.
    let left_out = stack.post(OSS_PATH, &headers, json!({"requests": [{"objectKey": "new", "x": 1}]})).await;
    assert_eq!(left_out.json()["results"]["new"]["status"], "complete");
}

#[tokio::test]
async fn another_content_type_is_kept_and_none_is_json() {
    let stack = Stack::start(GIT_LFS, |asked: &Asked| {
        let kind = if asked.oids()[0] == "a" { "application/json; charset=UTF-8" } else { "text/plain" };
        raw(asked, "{\"objects\":[", "]}").of_type(kind)
    })
    .await;
    for (oid, kind) in [("a", "application/json; charset=UTF-8"), ("b", "text/plain")] {
        for _ in 0..3 {
            assert_eq!(stack.lfs("t", &[oid]).await.header("content-type"), kind);
        }
    }
    assert_eq!(stack.endpoint.count(), 2);
}

/// The endpoint counts its answers in their envelopes.
async fn counting(configure: impl FnOnce(&mut sidelink::config::Config)) -> Stack {
    let number = AtomicUsize::new(0);
    Stack::with(GIT_LFS, configure, move |asked: &Asked| {
        let number = number.fetch_add(1, Ordering::SeqCst);
        raw(asked, &format!(r#"{{"transfer":"t{number}","objects":["#), "]}")
    })
    .await
}

#[tokio::test]
async fn a_batch_whose_envelopes_differ_is_not_fetched_for_only_if_cached() {
    let stack = counting(|_| {}).await;
    stack.lfs("t", &["a"]).await;
    stack.lfs("t", &["b"]).await;
    let headers = [&lfs_headers("t")[..], &[("cache-control", "only-if-cached")]].concat();
    assert_eq!(stack.post(LFS_PATH, &headers, lfs_body(&["a", "b"])).await.status, 504);
    assert_eq!(stack.post(LFS_PATH, &headers, lfs_body(&["a"])).await.status, 200);
    assert_eq!(stack.endpoint.count(), 2);
}

#[tokio::test]
async fn a_batch_that_wants_nothing_stored_is_fetched_again_without_being_stored() {
    let stack = counting(|config| config.upstream.ids_per_call = 1).await;
    stack.lfs("t", &["other"]).await;
    let headers = [&lfs_headers("t")[..], &[("cache-control", "no-store")]].concat();
    assert_eq!(stack.post(LFS_PATH, &headers, lfs_body(&["a", "b"])).await.status, 200);
    assert_eq!(stack.refetched("envelope").await, 2.0, "the envelopes of its two calls differ");
    assert_eq!(status(&stack.lfs("t", &["a"]).await), MISS);
}

/// A server that counts its answers in their envelopes, until it fails. An id that begins with "gone" is left out.
async fn failing(configure: impl FnOnce(&mut sidelink::config::Config), failure: Answer) -> (Stack, Arc<AtomicBool>) {
    let (number, fails) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let failing = Arc::clone(&fails);
    let configure = |config: &mut sidelink::config::Config| {
        config.upstream.retry.attempts = 0;
        configure(config);
    };
    let stack = Stack::with(GIT_LFS, configure, move |asked: &Asked| {
        if failing.load(Ordering::SeqCst) {
            return failure.clone();
        }
        let number = number.fetch_add(1, Ordering::SeqCst);
        let oids = asked.oids().into_iter().filter(|oid| !oid.starts_with("gone"));
        let objects: Vec<_> = oids.map(|oid| object(asked, &oid)).collect();
        Answer::new(200, json!({"transfer": format!("t{number}"), "objects": objects})).of_type(LFS_TYPE)
    })
    .await;
    (stack, fails)
}

fn objects(reply: &crate::support::Reply) -> Vec<String> {
    let objects = reply.json()["objects"].as_array().unwrap().clone();
    objects.iter().map(|object| object["oid"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_is_in_memory_is_served_in_one_envelope_where_the_endpoint_fails_to_send_another() {
    let (stack, fails) = failing(|_| {}, Answer::new(503, "{}").with("retry-after", 60)).await;
    for oid in ["a", "b", "gone"] {
        stack.lfs("t", &[oid]).await;
    }
    fails.store(true, Ordering::SeqCst);
    // The first time the endpoint is asked, and then it has asked for a pause.
    for how in ["fwd=stale; fwd-status=503; detail=stale", "hit; detail=stale"] {
        let reply = stack.lfs("t", &["b", "a", "gone"]).await;
        assert_eq!((reply.status.as_u16(), status(&reply)), (200, how));
        assert_eq!((objects(&reply), &reply.json()["transfer"]), (vec!["b".to_owned(), "a".to_owned()], &json!("t1")));
        assert_eq!((reply.header("content-type"), reply.header("cache-control")), (LFS_TYPE, "no-store"));
    }
    assert_eq!(stack.endpoint.count(), 4);
    assert_eq!((stack.ids("stale").await, stack.ids("absent").await, stack.ids("failed").await), (4.0, 2.0, 0.0));
    // Its links are fresh still.
    assert_eq!(status(&stack.lfs("t", &["a"]).await), HIT);
}

#[tokio::test]
async fn what_was_just_fetched_is_served_with_what_is_in_memory_where_fetching_both_fails() {
    let (stack, fails) = failing(|_| {}, Answer::new(500, "{}")).await;
    stack.lfs("t", &["a"]).await;
    stack.endpoint.set_open(false);
    let fail = async {
        stack.endpoint.was_asked(2).await;
        stack.endpoint.answer_one();
        stack.endpoint.was_asked(3).await;
        fails.store(true, Ordering::SeqCst);
        stack.endpoint.set_open(true);
    };
    let reply = tokio::join!(stack.lfs("t", &["a", "c"]), fail).0;
    assert_eq!(
        (status(&reply), objects(&reply)),
        ("fwd=stale; fwd-status=500; detail=stale", vec!["a".to_owned(), "c".to_owned()])
    );
    assert_eq!(stack.endpoint.last().oids(), ["a", "c"]);
    assert_eq!((stack.ids("stale").await, stack.ids("fetched").await, stack.ids("failed").await), (1.0, 2.0, 0.0));
}

#[tokio::test]
async fn stale_links_are_served_in_one_envelope_with_fresh_ones() {
    let (stack, fails) = failing(|_| {}, Answer::new(500, "{}")).await;
    stack.lfs("t", &["a"]).await;
    stack.clock.step(65_000);
    stack.lfs("t", &["b"]).await;
    fails.store(true, Ordering::SeqCst);
    let reply = stack.lfs("t", &["a", "b"]).await;
    assert_eq!(
        (status(&reply), objects(&reply)),
        ("fwd=stale; fwd-status=500; detail=stale", vec!["a".to_owned(), "b".to_owned()])
    );
    assert_eq!(stack.endpoint.last().oids(), ["a"], "the endpoint has failed once already");
    assert_eq!((stack.ids("stale").await, stack.ids("hit").await), (1.0, 1.0));
}

#[tokio::test]
async fn what_is_in_memory_in_different_envelopes_is_not_shed() {
    let (stack, _) = failing(|config| config.limits.in_flight = 1, Answer::new(500, "{}")).await;
    stack.lfs("t", &["a"]).await;
    stack.lfs("t", &["b"]).await;
    let reply = stack.lfs("t", &["a", "b"]).await;
    assert_eq!((status(&reply), objects(&reply)), ("hit; detail=stale", vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!((stack.ids("stale").await, stack.ids("failed").await), (2.0, 0.0));
}

#[tokio::test]
async fn a_link_that_ends_while_another_envelope_is_waited_for_is_not_served() {
    let (stack, fails) = failing(|_| {}, Answer::new(500, "{}")).await;
    stack.lfs("t", &["a"]).await;
    stack.lfs("t", &["b"]).await;
    fails.store(true, Ordering::SeqCst);
    stack.endpoint.set_open(false);
    let wait = async {
        stack.endpoint.was_asked(3).await;
        stack.clock.step(24 * 3_600_000);
        stack.endpoint.set_open(true);
    };
    let reply = tokio::join!(stack.lfs("t", &["a", "b"]), wait).0;
    assert_eq!((reply.status.as_u16(), stack.ids("failed").await), (500, 2.0));
}

/// As in the answer to one id alone, whose envelope no other item shares.
#[tokio::test]
async fn an_envelope_counts_in_the_capacity_of_the_cache() {
    let around = "e".repeat(10_000);
    let stack = Stack::start(GIT_LFS, move |asked: &Asked| {
        let objects: Vec<_> = asked.oids().iter().map(|oid| object(asked, oid)).collect();
        Answer::new(200, json!({"around": around, "objects": objects})).of_type(LFS_TYPE)
    })
    .await;
    let cached = async || {
        let page = TestClient::new(stack.app.admin_address()).get("/metrics", &[]).await;
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix("sidelink_cache_bytes ")).unwrap();
        value.parse::<f64>().unwrap()
    };
    for oid in ["a", "b"] {
        stack.lfs("t", &[oid]).await;
    }
    let of_two = cached().await;
    assert!(of_two > 20_000.0, "{of_two}");
    stack.lfs("t", &["c", "d"]).await;
    let of_one_answer = cached().await - of_two;
    assert!((10_000.0..15_000.0).contains(&of_one_answer), "{of_one_answer}");
}

#[tokio::test]
async fn a_large_envelope_around_no_items_is_answered_whole() {
    let around = "e".repeat(100_000);
    let stack = Stack::start(GIT_LFS, move |_: &Asked| {
        Answer::new(200, json!({"around": around, "objects": []})).of_type(LFS_TYPE)
    })
    .await;
    for expected in [MISS, HIT, HIT, HIT] {
        let reply = stack.lfs("t", &["a", "b"]).await;
        assert_eq!((status(&reply), reply.json()["objects"].as_array().map(Vec::len)), (expected, Some(0)));
    }
}
