//! A caller sees from memory only what the endpoint lets it see: a refusal drops links at once, an acceptance counts for
//! `callers.revalidate`, and who is no caller gets nothing from memory.

use std::time::Duration;

use http::Method;
use sidelink::clock::Clock;
use sidelink::origin::Reply;

use crate::support::{Stack, query};

#[tokio::test]
async fn a_401_drops_everything_kept_for_that_caller_and_nobody_elses() {
    let stack = Stack::start().await;
    for token in ["revoked", "good"] {
        stack.client.batch(token, &["1", "2"]).await;
    }
    stack.origin.update(|options| options.refuse = vec!["revoked".into()]);
    let refused = stack.client.batch("revoked", &["3"]).await;
    assert_eq!((refused.status.as_u16(), refused.json()["error_code"].as_str()), (401, Some("APIGW.0301")));

    let old = stack.client.batch("revoked", &["1"]).await;
    assert_eq!(old.status, 401, "what was kept is gone");
    assert_eq!(stack.client.batch("good", &["1", "2"]).await.header("cache-status"), "sidelink; hit");

    // Gone for good: accepted again, the caller finds nothing of what was kept before.
    stack.origin.update(|options| options.refuse.clear());
    stack.client.batch("revoked", &["3"]).await;
    let anew = stack.client.batch("revoked", &["1"]).await;
    assert_eq!(anew.header("cache-status"), "sidelink; fwd=miss; stored");
}

#[tokio::test]
async fn a_403_or_an_error_in_a_200_makes_the_caller_ask_anew() {
    for status in [403, 200] {
        let stack = Stack::start().await;
        stack.client.batch("t", &["1", "2"]).await;
        stack.origin.script(Reply::json(status, r#"{"error_code":"OSM.01010002","error_msg":"no permission"}"#));
        let refused = stack.client.batch("t", &["1", "3"]).await;
        assert_eq!(refused.json()["error_code"], "OSM.01010002");
        let calls = stack.asked().len();
        assert_eq!(stack.client.batch("t", &["2"]).await.header("cache-status"), "sidelink; fwd=miss; stored");
        assert_eq!(stack.asked().len(), calls + 1, "asked though it was fresh");
        assert_eq!(stack.client.batch("t", &["2"]).await.header("cache-status"), "sidelink; hit");
    }
}

#[tokio::test]
async fn an_acceptance_runs_out_and_the_next_batch_is_fetched_whole() {
    let clock = Clock::simulated(unix_millis());
    let stack = Stack::on(clock.clone(), |_| {}, |_| {}).await;
    stack.client.batch("t", &["1", "2"]).await;
    clock.step(299_000);
    assert_eq!(stack.client.batch("t", &["1", "2"]).await.header("cache-status"), "sidelink; hit");
    clock.step(2_000);
    let again = stack.client.batch("t", &["1", "2"]).await;
    assert_eq!(again.header("cache-status"), "sidelink; fwd=miss; stored");
    assert_eq!(stack.asked().len(), 2);
    assert_eq!(stack.metric(r#"sidelink_refetched_total{cause="revalidate"}"#).await, 2.0);

    stack.origin.update(|options| options.refuse = vec!["t".into()]);
    clock.step(301_000);
    assert_eq!(stack.client.batch("t", &["1", "2"]).await.status, 401, "a revoked token loses access in time");
}

#[tokio::test]
async fn with_the_endpoint_down_a_caller_that_cannot_be_revalidated_is_served_stale() {
    let clock = Clock::simulated(unix_millis());
    let stack = Stack::on(clock.clone(), |_| {}, |_| {}).await;
    let first = stack.client.batch("t", &["1", "2"]).await;
    stack.origin.stop().await;
    clock.step(301_000);
    let stale = stack.client.batch("t", &["1", "2"]).await;
    assert_eq!(stale.header("cache-status"), "sidelink; fwd=stale; detail=stale");
    assert_eq!(stale.header("cache-control"), "no-store");
    assert_eq!(stale.links(), first.links());
}

#[tokio::test]
async fn what_a_call_brings_that_left_before_a_401_fills_nothing() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let client = stack.client.clone();
    let slow = tokio::spawn(async move { client.batch("t", &["1"]).await });
    stack.origin.arrived(1).await;
    stack.origin.script(Reply::json(401, r#"{"error_code":"OSM.0002","error_msg":"failed"}"#));
    let client = stack.client.clone();
    let refused = tokio::spawn(async move { client.batch("t", &["2"]).await });
    stack.origin.arrived(2).await;
    // Both go on at once; whichever is read first, the link must not be there afterwards without a new call.
    stack.origin.release();
    assert_eq!(refused.await.unwrap().status, 401);
    assert_eq!(slow.await.unwrap().ids(), ["1"]);
    let calls = stack.asked().len();
    stack.client.batch("t", &["1"]).await;
    assert_eq!(stack.asked().len(), calls + 1);
}

#[tokio::test]
async fn who_is_no_caller_is_forwarded_untouched_and_nothing_is_stored() {
    let token = ("x-auth-token", "t");
    for (headers, reason) in [
        (vec![("authorization", "SDK-HMAC-SHA256 Access=a, SignedHeaders=host, Signature=00")], "unknown-key"),
        (vec![("authorization", "V11-HMAC-SHA256 x")], "algorithm"),
        (vec![("authorization", "x"), token], "credentials"),
        (vec![token, ("x-security-token", "s")], "credentials"),
        (vec![token, ("cookie", "a=b")], "cookie"),
        (vec![token, ("range", "bytes=0-1")], "range"),
        (vec![], "no-credential"),
    ] {
        let stack = Stack::start().await;
        let mut sent = headers.clone();
        sent.push(("x-other", "kept"));
        for _ in 0..2 {
            let reply = stack.client.get(&query(&["1", "1"]), &sent).await;
            assert_eq!(reply.header("cache-status"), format!("sidelink; fwd=bypass; detail={reason}"));
        }
        let calls = stack.origin.calls();
        assert_eq!(calls.len(), 2, "{reason}");
        assert_eq!(calls[0].target, query(&["1", "1"]));
        for (name, value) in &sent {
            assert_eq!(calls[0].headers[*name], *value);
        }
        assert_eq!(stack.metric(&format!("sidelink_bypass_total{{reason=\"{reason}\"}}")).await, 2.0);
        assert_eq!(stack.metric("sidelink_cache_links").await, 0.0);
    }
}

#[tokio::test]
async fn what_cannot_be_read_as_a_batch_goes_upstream_as_it_came() {
    let stack = Stack::start().await;
    let token = ("x-auth-token", "t");
    let targets =
        ["accessory_ids=1&x=2", "accessory_ids=a+b", "accessory_ids=1&group_id=a&group_id=b", "accessory_ids=%ff"];
    for (at, query) in targets.iter().enumerate() {
        let target = format!("{}?{query}", sidelink::api::PATH);
        let reply = stack.client.get(&target, &[token]).await;
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=unreadable");
        assert_eq!(stack.origin.calls()[at].target, target);
    }
    let bodies = [r#"{"accessory_ids":[1]}"#, "not json", r#"{"accessory_ids":["1"],"more":true}"#];
    for body in bodies {
        let reply = stack.client.send(Method::GET, sidelink::api::PATH, &[token], body).await;
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=unreadable");
        assert_eq!(stack.origin.calls().last().unwrap().body, body);
    }
}

fn unix_millis() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_millis()).unwrap()
}
