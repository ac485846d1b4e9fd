//! What was purged is served to nobody who asks afterwards: not from memory, not by a call that had left before, not as
//! stale or absent. What was not purged stays.

use http::{Method, StatusCode};
use sidelink::origin::link_is_for;

use crate::support::Stack;

const HIT: &str = "sidelink; hit";

fn path(id: &str) -> String {
    format!("/v2/servicerequest/accessorys/{id}")
}

async fn delete(stack: &Stack, id: &str, headers: &[(&str, &str)]) -> StatusCode {
    stack.client.send(Method::DELETE, &path(id), headers, "").await.status
}

#[tokio::test]
async fn a_deletion_that_passes_through_drops_its_link_in_every_scope() {
    let stack = Stack::start().await;
    let in_group = "/v2/servicerequest/accessorys/access-urls?accessory_ids=1&accessory_ids=2&group_id=g";
    for token in ["t", "u"] {
        stack.client.batch(token, &["1", "2"]).await;
        stack.client.get(in_group, &[("x-auth-token", token)]).await;
    }
    assert_eq!(delete(&stack, "1", &[("x-auth-token", "t")]).await, 204);
    stack.origin.forget_calls();
    for token in ["t", "u"] {
        assert_eq!(stack.client.batch(token, &["2"]).await.header("cache-status"), HIT, "only that id");
        for reply in
            [stack.client.batch(token, &["1", "2"]).await, stack.client.get(in_group, &[("x-auth-token", token)]).await]
        {
            assert_eq!(reply.header("cache-status"), "sidelink; fwd=partial; stored; detail=\"hit=1 fetched=1\"");
        }
    }
    assert_eq!(stack.asked(), [["1"]; 4]);
    assert_eq!(stack.client.batch("t", &["1", "2"]).await.header("cache-status"), HIT, "and once only");
    assert_eq!(stack.metric(r#"sidelink_purges_total{target="delete"}"#).await, 1.0);
    assert_eq!(stack.metric("sidelink_purge_marks").await, 1.0);
}

#[tokio::test]
async fn a_deletion_that_the_endpoint_refuses_drops_nothing() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1"]).await;
    let forged = "SDK-HMAC-SHA256 Access=AK, SignedHeaders=host;x-sdk-date, Signature=00";
    assert_eq!(delete(&stack, "1", &[("authorization", forged)]).await, 401);
    assert_eq!(stack.client.send(Method::POST, &path("1"), &[], "").await.status, 404);
    stack.origin.stop().await;
    assert_eq!(delete(&stack, "1", &[]).await, 502);
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), HIT);
    assert_eq!(stack.metric(r#"sidelink_purges_total{target="delete"}"#).await, 0.0);
}

#[tokio::test]
async fn a_call_that_left_before_a_purge_fills_nothing_and_nobody_joins_it() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let client = stack.client.clone();
    let before = tokio::spawn(async move { client.batch("t", &["1", "2"]).await });
    stack.origin.arrived(1).await;
    delete(&stack, "1", &[]).await;
    let client = stack.client.clone();
    let after = tokio::spawn(async move { client.batch("t", &["1", "2"]).await });
    stack.origin.arrived(2).await;
    stack.origin.release();
    let (before, after) = (before.await.unwrap(), after.await.unwrap());
    assert_eq!((before.ids(), after.ids()), (vec!["1".into(), "2".into()], vec!["1".into(), "2".into()]));
    assert_eq!(before.header("cache-control"), "no-store", "an answer that holds a purged link is kept nowhere");
    assert_eq!(stack.asked(), [vec!["1", "2"], vec!["1"]], "of the two, 2 was joined");
    let again = stack.client.batch("t", &["1", "2"]).await;
    assert_eq!(again.header("cache-status"), HIT);
    let link = |reply: &crate::support::Reply| reply.links()[0].1.clone();
    assert_eq!(link(&again), link(&after));
    assert!(link_is_for(&link(&again), "1", None, "t", None, None));
}

#[tokio::test]
async fn an_id_that_waits_for_its_call_is_asked_once_whatever_is_purged() {
    let stack = Stack::with(|_| {}, |config| config.upstream.calls_per_scope = 1).await;
    stack.origin.hold();
    let client = stack.client.clone();
    let first = tokio::spawn(async move { client.batch("t", &["1"]).await });
    stack.origin.arrived(1).await;
    let client = stack.client.clone();
    let queued = tokio::spawn(async move { client.batch("t", &["2"]).await });
    while stack.metric("sidelink_batch_ids_count").await < 2.0 {}
    delete(&stack, "2", &[]).await;
    let client = stack.client.clone();
    let joiner = tokio::spawn(async move { client.batch("t", &["2"]).await });
    while stack.metric("sidelink_batch_ids_count").await < 3.0 {}
    stack.origin.release();
    for batch in [first, queued, joiner] {
        assert_eq!(batch.await.unwrap().links().len(), 1);
    }
    assert_eq!(stack.asked(), [["1"], ["2"]]);
    assert_eq!(stack.client.batch("t", &["2"]).await.header("cache-status"), HIT);
}

#[tokio::test]
async fn what_was_purged_is_no_stale_link_either() {
    let configure = |config: &mut sidelink::config::Config| config.freshness.max = std::time::Duration::from_secs(1);
    let stack = Stack::with(|_| {}, configure).await;
    stack.client.batch("t", &["1", "2"]).await;
    delete(&stack, "1", &[]).await;
    stack.origin.update(|endpoint| endpoint.fail_ratio = 1.0);
    assert_eq!(stack.client.batch("t", &["1"]).await.status, 503);
}

#[tokio::test]
async fn a_remembered_absence_is_purged_too() {
    let stack = Stack::with(
        |endpoint| endpoint.missing = vec!["1".into()],
        |config| config.freshness.absent = std::time::Duration::from_secs(60),
    )
    .await;
    assert!(stack.client.batch("t", &["1"]).await.ids().is_empty());
    stack.origin.update(|endpoint| endpoint.missing.clear());
    assert!(stack.client.batch("t", &["1"]).await.ids().is_empty());
    delete(&stack, "1", &[]).await;
    assert_eq!(stack.client.batch("t", &["1"]).await.ids(), ["1"]);
}
