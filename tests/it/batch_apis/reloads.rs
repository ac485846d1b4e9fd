//! What was read by one description is not served by another: an operator who corrects one is rid of the links that it let in.

use sidelink::config::Config;

use super::endpoint::*;

fn describe(stack: &Stack, tables: &str) {
    let mut config = Config::clone(&stack.app.config());
    config.batch = apis(tables);
    stack.app.apply(config).unwrap();
}

#[tokio::test]
async fn links_that_were_read_by_a_description_that_has_changed_are_fetched_again() {
    let stack = Stack::start(GIT_LFS, has_all).await;
    stack.lfs("t", &["a"]).await;
    let mut calls = 1;
    for change in [
        "expires = [\"/actions/download/expires_at\"]",
        "absent = \"/actions/error\"",
        "unordered = []",
        "items = { envelope = '{\"objects\":[]}' }",
        "path = \"/{a}/{b}/info/lfs/objects/batch\"",
    ] {
        describe(&stack, &format!("{GIT_LFS}\n{change}"));
        calls += 1;
        for _ in 0..2 {
            let reply = stack.lfs("t", &["a"]).await;
            assert_eq!((reply.status.as_u16(), stack.endpoint.count()), (200, calls), "{change}");
        }
    }
}

#[tokio::test]
async fn links_stay_where_only_limits_or_errors_of_a_description_have_changed() {
    let stack = Stack::start(GIT_LFS, has_all).await;
    stack.lfs("t", &["a", "b"]).await;
    for change in ["ids_per_call = 1", "errors = { body = '{}' }", "header_bytes = { authorization = 100 }", ""] {
        describe(&stack, &format!("{GIT_LFS}\n{change}"));
        assert_eq!(status(&stack.lfs("t", &["a", "b"]).await), HIT, "{change}");
    }
}

#[tokio::test]
async fn an_object_late_in_its_freshness_is_fetched_again_in_the_background() {
    let stack = Stack::start(GIT_LFS, has_all).await;
    stack.lfs("t", &["a"]).await;
    stack.clock.step(58_000);
    assert_eq!(status(&stack.lfs("t", &["a"]).await), HIT);
    stack.endpoint.was_asked(2).await;
    let asked = stack.endpoint.asked();
    assert_eq!(
        (&asked[0].method, &asked[0].target, &asked[0].body),
        (&asked[1].method, &asked[1].target, &asked[1].body)
    );
    assert_eq!(stack.refetched("refresh").await, 1.0);
}
