//! A client that works with the endpoint directly works through sidelink: HTTP clients with cookie jars, browsers, form
//! encoders. A header that cannot change the answer does not prevent a hit.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use sidelink::demo::origin::ScriptedReply as Scripted;
use sidelink::demo::origin::interface as api;

use crate::process::{Files, Process};
use crate::support::{Reply, Stack, origin_options, query, raw};

const T: (&str, &str) = ("x-auth-token", "t");
const COOKIE: (&str, &str) = ("cookie", "HWWAFSESID=1; HWWAFSESTIME=2");
const MISS: &str = "sidelink; fwd=miss; stored";
const HIT: &str = "sidelink; hit";
const ECHO: &str = "/v2/servicerequest/echo";

/// The endpoint's answer with one item for each of `ids`.
fn items(ids: &[&str]) -> String {
    let items: Vec<Value> = ids
        .iter()
        .map(|id| serde_json::json!({"accessory_id": id, "accessory_url": format!("https://h/{id}")}))
        .collect();
    serde_json::json!({ "accessory_urls": items }).to_string()
}

fn forbidden(status: u16) -> Scripted {
    Scripted::json(status, r#"{"error_code":"OSM.0003","error_msg":"forbidden"}"#)
}

async fn ask(stack: &Stack, query: &str, headers: &[(&str, &str)]) -> Reply {
    stack.client.get(&format!("{}?{query}", api::PATH), headers).await
}

fn status(reply: &Reply) -> &str {
    reply.header("cache-status")
}

#[tokio::test]
async fn a_batch_with_cookies_hits_and_its_calls_carry_no_cookies() {
    let stack = Stack::start().await;
    assert_eq!(status(&stack.client.get(&query(&["1", "2"]), &[T, COOKIE]).await), MISS);
    assert!(!stack.origin.calls()[0].headers.contains_key("cookie"));
    for headers in [&[T, COOKIE][..], &[T, ("cookie", "other=1")], &[T]] {
        assert_eq!(status(&stack.client.get(&query(&["1", "2"]), headers).await), HIT, "{headers:?}");
    }
    assert_eq!(stack.asked().len(), 1);
}

#[tokio::test]
async fn a_refused_batch_with_cookies_is_forwarded_once_unchanged() {
    for code in [401, 403] {
        let stack = Stack::start().await;
        // Two ids: a refused call for a single id takes another path.
        let target = query(&["2", "1", "2"]);
        stack.origin.script(forbidden(code));
        let reply = stack.client.get(&target, &[T, COOKIE]).await;
        assert_eq!(status(&reply), "sidelink; fwd=bypass; detail=cookie");
        assert_eq!(reply.ids(), ["2", "1", "2"], "the endpoint's answer, unchanged");
        let calls = stack.origin.calls();
        assert_eq!(calls.len(), 2);
        assert_eq!(
            (calls[1].target.as_str(), &calls[1].headers["cookie"]),
            (target.as_str(), &COOKIE.1.parse().unwrap())
        );
        assert_eq!(stack.metric(r#"sidelink_bypass_total{reason="cookie"}"#).await, 1.0);
        assert_eq!(stack.metric(r#"sidelink_ids_total{result="fetched"}"#).await, 2.0);
        assert_eq!(stack.metric("sidelink_cache_links").await, 0.0);
        // Without cookies the client gets the refusal.
        stack.origin.script(forbidden(code));
        assert_eq!(stack.client.get(&target, &[T]).await.status, code);
        assert_eq!(stack.origin.calls().len(), 3);
    }
}

#[tokio::test]
async fn a_forwarded_refusal_is_passed_on_and_its_ids_count_as_failed() {
    let stack = Stack::start().await;
    stack.origin.script(forbidden(403));
    stack.origin.script(forbidden(403));
    let reply = stack.client.get(&query(&["1", "2"]), &[T, COOKIE]).await;
    assert_eq!((reply.status.as_u16(), status(&reply)), (403, "sidelink; fwd=bypass; detail=cookie"));
    assert_eq!(stack.metric(r#"sidelink_ids_total{result="failed"}"#).await, 2.0);
    assert_eq!(stack.asked().len(), 2);
}

#[tokio::test]
async fn a_401_without_cookies_drops_entries_only_if_the_forwarded_batch_gets_a_401_too() {
    for is_refused in [false, true] {
        let stack = Stack::start().await;
        stack.client.batch("t", &["1", "2"]).await;
        stack.origin.script(forbidden(401));
        if is_refused {
            stack.origin.script(forbidden(401));
        }
        let reply = stack.client.get(&query(&["3", "4"]), &[T, COOKIE]).await;
        assert_eq!(reply.status.as_u16(), if is_refused { 401 } else { 200 });
        // In both cases the endpoint must accept the caller again before a hit is served.
        let calls = stack.asked().len();
        assert_eq!(status(&stack.client.batch("t", &["1"]).await), MISS);
        assert_eq!(stack.asked().len(), calls + 1);
        let other = stack.client.batch("t", &["2"]).await;
        assert_eq!(status(&other), if is_refused { MISS } else { HIT });
    }
}

#[tokio::test]
async fn a_remembered_refusal_is_not_served_to_a_batch_with_cookies() {
    let stack = Stack::start().await;
    stack.origin.script(forbidden(403));
    assert_eq!(stack.client.batch("t", &["1"]).await.status, 403);
    assert_eq!(status(&stack.client.batch("t", &["1"]).await), "sidelink; hit; detail=refused");
    let reply = stack.client.get(&query(&["1"]), &[T, COOKIE]).await;
    assert_eq!((status(&reply), reply.ids()), ("sidelink; fwd=bypass; detail=cookie", vec!["1".to_owned()]));
    assert_eq!(stack.asked().len(), 2, "one request to the endpoint, as without sidelink");
}

#[tokio::test]
async fn an_answer_that_varies_by_cookie_is_not_cached() {
    for (vary, is_kept) in [
        ("Cookie", false),
        ("Origin, cookie", false),
        ("*", false),
        ("X-Other", false),
        ("Origin", true),
        ("Accept, User-Agent", true),
        ("Origin, Access-Control-Request-Method, Access-Control-Request-Headers", true),
        ("Accept-Encoding, X-Language", true),
        ("Access-Control-Requested", false),
    ] {
        let stack = Stack::start().await;
        let headers = HeaderMap::from_iter([(http::header::VARY, vary.parse().unwrap())]);
        for _ in 0..2 {
            stack.origin.script(Scripted::Whole(StatusCode::OK, headers.clone(), items(&["1"]).into()));
        }
        stack.client.get(&query(&["1"]), &[T, COOKIE]).await;
        let again = stack.client.get(&query(&["1"]), &[T, COOKIE]).await;
        assert_eq!(status(&again) == HIT, is_kept, "Vary: {vary}");
    }
}

#[tokio::test]
async fn a_batch_with_an_origin_header_is_forwarded_unchanged() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1"]).await;
    let headers = [T, ("origin", "https://app.example")];
    for _ in 0..2 {
        let allow = HeaderMap::from_iter([(
            "access-control-allow-origin".parse().unwrap(),
            "https://app.example".parse().unwrap(),
        )]);
        stack.origin.script(Scripted::Whole(StatusCode::OK, allow, items(&["1"]).into()));
        let reply = stack.client.get(&query(&["1"]), &headers).await;
        assert_eq!(status(&reply), "sidelink; fwd=bypass; detail=origin");
        assert_eq!(reply.header("access-control-allow-origin"), "https://app.example");
    }
    assert_eq!(stack.origin.calls().last().unwrap().headers["origin"], "https://app.example");
    assert_eq!(stack.metric(r#"sidelink_bypass_total{reason="origin"}"#).await, 2.0);
}

#[tokio::test]
async fn null_empty_and_absent_groups_are_three_scopes_and_sent_as_written() {
    let stack = Stack::start().await;
    let bodies = [
        r#"{"accessory_ids":["1"]}"#,
        r#"{"accessory_ids":["1"],"group_id":null}"#,
        r#"{"accessory_ids":["1"],"group_id":""}"#,
        r#"{"accessory_ids":["1"],"group_id":"null"}"#,
    ];
    for body in bodies {
        stack.origin.script(Scripted::json(200, items(&["1"])));
        let reply = stack.client.send(Method::GET, api::PATH, &[T], body).await;
        assert_eq!(status(&reply), MISS, "{body}");
        let sent: Value = serde_json::from_slice(&stack.origin.calls().last().unwrap().body).unwrap();
        assert_eq!(sent, serde_json::from_str::<Value>(body).unwrap());
        let reply = stack.client.send(Method::GET, api::PATH, &[T], body).await;
        assert_eq!(status(&reply), HIT, "{body}");
    }
    let by_query = ask(&stack, "accessory_ids=1&group_id=", &[T]).await;
    assert_eq!(status(&by_query), HIT, "an empty group is the same in a query and in a body");
    stack.origin.script(Scripted::json(200, items(&["2"])));
    ask(&stack, "accessory_ids=2&group_id=", &[T]).await;
    assert!(stack.origin.calls().last().unwrap().target.ends_with("&group_id="));
    for unreadable in ["group_id=&group_id=".to_owned(), format!("group_id={}", "x".repeat(33))] {
        let reply = ask(&stack, &format!("accessory_ids=1&{unreadable}"), &[T]).await;
        assert_eq!(status(&reply), "sidelink; fwd=bypass; detail=unreadable");
    }
}

#[tokio::test]
async fn an_unencoded_plus_is_cached_as_spelled_however_the_endpoint_decodes_it() {
    for reading in ["a b", "a+b"] {
        let stack = Stack::start().await;
        stack.origin.script(Scripted::json(200, items(&["1", reading])));
        let reply = ask(&stack, "accessory_ids=a+b&accessory_ids=1", &[T]).await;
        assert_eq!((status(&reply), reply.ids()), (MISS, vec![reading.to_owned(), "1".to_owned()]));
        assert!(stack.origin.calls()[0].target.contains("accessory_ids=a+b&"), "{}", stack.origin.calls()[0].target);
        for query in ["accessory_ids=a+b", "accessory_ids=1,a+b"] {
            let reply = ask(&stack, query, &[T]).await;
            assert_eq!(status(&reply), HIT, "{query}");
            assert!(reply.ids().contains(&reading.to_owned()));
        }
        // The encoded spellings are other ids.
        for encoded in ["a%20b", "a%2Bb"] {
            assert_eq!(status(&ask(&stack, &format!("accessory_ids={encoded}"), &[T]).await), MISS, "{encoded}");
        }
        assert_eq!(stack.asked().len(), 3);
    }
}

#[tokio::test]
async fn an_item_that_matches_two_spellings_is_unmatched() {
    for (other, text) in [("a%20b", "a b"), ("a%2Bb", "a+b")] {
        let stack = Stack::start().await;
        let batch = format!("accessory_ids=a+b&accessory_ids={other}");
        for _ in 0..2 {
            stack.origin.script(Scripted::json(200, items(&[text])));
        }
        let reply = ask(&stack, &batch, &[T]).await;
        assert_eq!((status(&reply), reply.ids()), ("sidelink; fwd=bypass; detail=unmatched", vec![text.to_owned()]));
        assert_eq!(stack.metric("sidelink_cache_links").await, 0.0);
    }
    // With one spelling in the batch the item is matched.
    let stack = Stack::start().await;
    stack.origin.script(Scripted::json(200, items(&["c+d", "1"])));
    assert_eq!(ask(&stack, "accessory_ids=1&accessory_ids=c+d", &[T]).await.ids(), ["1", "c+d"]);
}

#[tokio::test]
async fn a_purge_of_either_decoding_of_a_plus_covers_it() {
    for (spelled, purged) in [("a+b", "a b"), ("a+b", "a+b"), ("c+d%2Fe", "c d/e")] {
        let stack = Stack::start().await;
        let batch = format!("accessory_ids={spelled}");
        assert_eq!(status(&ask(&stack, &batch, &[T]).await), MISS);
        assert_eq!(status(&ask(&stack, &batch, &[T]).await), HIT);
        let admin = crate::support::TestClient::new(stack.app.admin_address());
        let body = serde_json::json!({ "accessory_ids": [purged] }).to_string();
        assert_eq!(admin.send(Method::POST, "/purge", &[("content-type", "application/json")], body).await.status, 200);
        assert_eq!(status(&ask(&stack, &batch, &[T]).await), MISS, "{spelled} {purged}");
    }
    let stack = Stack::start().await;
    let batch = "accessory_ids=1&group_id=g+h";
    assert_eq!((status(&ask(&stack, batch, &[T]).await), status(&ask(&stack, batch, &[T]).await)), (MISS, HIT));
    assert!(stack.origin.calls()[0].target.ends_with("&group_id=g+h"));
    let admin = crate::support::TestClient::new(stack.app.admin_address());
    let body = r#"{"group_id":"g h"}"#;
    assert_eq!(admin.send(Method::POST, "/purge", &[("content-type", "application/json")], body).await.status, 200);
    assert_eq!(status(&ask(&stack, batch, &[T]).await), MISS);
}

#[tokio::test]
async fn an_empty_credential_header_counts_as_absent() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1"]).await;
    for empty in ["authorization", "x-security-token", "x-auth-token"] {
        let reply = stack.client.get(&query(&["1"]), &[(empty, ""), T]).await;
        assert_eq!(status(&reply), HIT, "{empty}");
    }
    let none = stack.client.get(&query(&["1"]), &[("authorization", ""), ("x-auth-token", "")]).await;
    assert_eq!(status(&none), "sidelink; fwd=bypass; detail=no-credential");
    let two = stack.client.get(&query(&["1"]), &[("authorization", "Basic x"), T]).await;
    assert_eq!(status(&two), "sidelink; fwd=bypass; detail=credentials");
    let twice = stack.client.get(&query(&["1"]), &[T, ("x-auth-token", "u")]).await;
    assert_eq!(status(&twice), "sidelink; fwd=bypass; detail=credentials");
    // A call carries no empty credential header.
    stack.client.get(&query(&["2"]), &[T, ("x-security-token", ""), ("authorization", "")]).await;
    let call = stack.origin.calls().pop().unwrap();
    assert_eq!(call.ids, ["2"]);
    assert!(!call.headers.contains_key("authorization") && !call.headers.contains_key("x-security-token"));
}

#[tokio::test]
async fn a_connection_header_that_names_a_credential_scope_header_or_host_is_refused() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1"]).await;
    for named in
        ["authorization", "X-Sdk-Date", "host", "x-auth-token", "x-language", "x-security-token", "close, x-project-id"]
    {
        let mut answers = Vec::new();
        for target in [query(&["1"]), ECHO.to_owned()] {
            let request = format!(
                "GET {target} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\nx-language: l\r\nx-request-id: one\r\nconnection: {named}\r\nconnection: close\r\n\r\n"
            );
            let answer = raw(stack.client.address, request.as_bytes()).await;
            assert!(
                answer.starts_with("HTTP/1.1 401") && answer.contains("SIDELINK.0003"),
                "{named} {target}: {answer}"
            );
            answers.push(answer.split_once("\r\n\r\n").unwrap().1.to_owned());
        }
        assert_eq!(answers[0], answers[1]);
    }
    for named in ["close", "keep-alive, close", "close, te", "close, x-other"] {
        let request =
            format!("GET {} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\nconnection: {named}\r\n\r\n", query(&["1"]));
        let answer = raw(stack.client.address, request.as_bytes()).await;
        assert!(answer.contains("cache-status: sidelink; hit"), "{named}: {answer}");
    }
    assert_eq!(stack.asked().len(), 1);
}

#[tokio::test]
async fn a_clients_request_id_is_returned_and_sent_with_a_call_for_its_batch_alone() {
    let stack = Stack::start().await;
    let longest = "x".repeat(128);
    let own = |id| [T, ("x-request-id", id)];
    for (at, id) in ["a", "A.b_c-9", longest.as_str()].into_iter().enumerate() {
        let ids = [format!("{at}")];
        for expected in [MISS, HIT] {
            let reply = stack.client.get(&query(&[&ids[0]]), &own(id)).await;
            assert_eq!((status(&reply), reply.header("x-request-id")), (expected, id));
        }
        assert_eq!(stack.origin.calls()[at].headers["x-request-id"], id);
    }
    let too_long = "x".repeat(129);
    for id in ["", "a b", "a/b", "ä", &too_long] {
        let reply = stack.client.get(&query(&["0"]), &own(id)).await;
        assert_ne!(reply.header("x-request-id"), id);
        assert_eq!(reply.header("x-request-id").len(), 32);
    }
    // Errors of sidelink, errors of the endpoint, and other routes.
    let reply =
        stack.client.get(&query(&["9"]), &[T, ("x-request-id", "mine"), ("cache-control", "only-if-cached")]).await;
    assert_eq!((reply.status.as_u16(), reply.header("x-request-id")), (504, "mine"));
    stack.origin.script(forbidden(400));
    assert_eq!(stack.client.get(&query(&["9", "8"]), &own("mine")).await.header("x-request-id"), "mine");
    let echo = stack.client.get(ECHO, &own("mine")).await.json();
    assert!(echo["headers"].as_array().unwrap().contains(&serde_json::json!(["x-request-id", "mine"])));
}

#[tokio::test]
async fn a_call_for_several_batches_carries_no_request_id() {
    let stack = Stack::with(|_| {}, |config| config.upstream.calls_per_scope = 1).await;
    stack.origin.hold();
    let send = |ids: &'static [&'static str], name: &'static str| {
        let client = stack.client.clone();
        tokio::spawn(async move { client.get(&query(ids), &[T, ("x-request-id", name)]).await })
    };
    let first = send(&["1"], "first");
    stack.origin.arrived(1).await;
    let others = [send(&["2"], "second"), send(&["3"], "third")];
    while stack.metric("sidelink_limit_used{limit=\"in_flight\"}").await < 3.0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stack.origin.release();
    assert_eq!(first.await.unwrap().header("x-request-id"), "first");
    for (reply, name) in others.into_iter().zip(["second", "third"]) {
        assert_eq!(reply.await.unwrap().header("x-request-id"), name);
    }
    let calls = stack.origin.calls();
    assert_eq!((calls.len(), calls[0].headers["x-request-id"].to_str().unwrap()), (2, "first"));
    assert!(!calls[1].headers.contains_key("x-request-id"), "{:?}", calls[1].headers);
}

#[tokio::test]
async fn a_clients_request_id_is_logged() {
    let origin = sidelink::demo::origin::Origin::start(origin_options()).await.unwrap();
    let mut process = Process::start(&Files::new(origin.address()).write("")).await;
    for _ in 0..2 {
        process.client.get(&query(&["1"]), &[T, ("x-request-id", "mine")]).await;
        let line = process.says("request").await;
        assert_eq!(line["request_id"], "mine");
        assert!(line.get("client_request_id").is_none(), "{line}");
    }
    // A forwarded answer keeps the endpoint's request id; the log has both.
    process.client.get(&format!("{}?x=1", api::PATH), &[T, ("x-request-id", "mine")]).await;
    let line = process.says("request").await;
    assert_eq!(line["client_request_id"], "mine");
    assert_ne!(line["request_id"], "mine");
}

#[tokio::test]
async fn an_id_that_the_endpoint_splits_at_its_encoded_comma_counts_as_fetched() {
    let stack = Stack::start().await;
    for round in 1..=2 {
        stack.origin.script(Scripted::json(200, items(&["a", "b"])));
        let reply = ask(&stack, "accessory_ids=a%2Cb", &[T]).await;
        assert_eq!(
            (status(&reply), reply.ids()),
            ("sidelink; fwd=bypass; detail=unmatched", vec!["a".into(), "b".into()])
        );
        assert_eq!(stack.metric(r#"sidelink_ids_total{result="fetched"}"#).await, f64::from(round));
        assert_eq!(stack.metric(r#"sidelink_ids_total{result="failed"}"#).await, 0.0);
        assert_eq!(stack.metric(r#"sidelink_uncacheable_total{reason="unmatched"}"#).await, f64::from(round));
    }
    assert_eq!(stack.asked().len(), 2, "the answer is passed on and not fetched again");
}
