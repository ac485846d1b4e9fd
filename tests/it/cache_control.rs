//! A client's Cache-Control is honoured: it can require a fetch and forbid storage. Each such fetch is counted.

use crate::support::{Reply, Stack, query};

async fn ask(stack: &Stack, directive: &str) -> Reply {
    stack.client.get(&query(&["1", "2"]), &[("x-auth-token", "t"), ("cache-control", directive)]).await
}

#[tokio::test]
async fn no_cache_fetches_every_id_and_stores_the_links() {
    let stack = Stack::start().await;
    let first = stack.client.batch("t", &["1", "2"]).await;
    let anew = ask(&stack, "no-cache").await;
    assert_ne!(first.links(), anew.links());
    assert_eq!(stack.client.batch("t", &["1", "2"]).await.links(), anew.links(), "the new links are stored");
    assert_eq!(stack.asked().len(), 2);
    assert_eq!(stack.metric(r#"sidelink_refetched_total{cause="client"}"#).await, 2.0);
}

#[tokio::test]
async fn no_store_fetches_every_id_and_stores_nothing() {
    let stack = Stack::start().await;
    let reply = ask(&stack, "no-store").await;
    assert_eq!(reply.header("cache-control"), "no-store");
    assert_eq!(reply.ids(), ["1", "2"]);
    assert_eq!(stack.client.batch("t", &["1", "2"]).await.header("cache-status"), "sidelink; fwd=miss; stored");
    ask(&stack, "no-store").await;
    assert_eq!(stack.asked().len(), 3);
}

#[tokio::test]
async fn only_if_cached_never_calls_upstream() {
    let stack = Stack::start().await;
    let reply = ask(&stack, "only-if-cached").await;
    assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (504, Some("SIDELINK.0004")));
    stack.client.batch("t", &["1", "2"]).await;
    assert_eq!(ask(&stack, "only-if-cached").await.header("cache-status"), "sidelink; hit");
    assert_eq!(stack.asked().len(), 1);
}

#[tokio::test]
async fn max_age_and_min_fresh_limit_hits() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1", "2"]).await;
    for (directive, hit) in
        [("max-age=60", true), ("min-fresh=60", true), ("min-fresh=100000", false), ("max-age=60, min-fresh=1", true)]
    {
        let reply = ask(&stack, directive).await;
        assert_eq!(reply.header("cache-status") == "sidelink; hit", hit, "{directive}");
    }
    assert_eq!(stack.asked().len(), 2);
}

#[tokio::test]
async fn client_directives_can_be_disabled() {
    let stack = Stack::with(|_| {}, |config| config.callers.cache_control = false).await;
    stack.client.batch("t", &["1", "2"]).await;
    for directive in ["no-cache", "no-store", "max-age=0"] {
        assert_eq!(ask(&stack, directive).await.header("cache-status"), "sidelink; hit");
    }
}
