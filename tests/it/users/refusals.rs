//! A token that is refused loses access at once, and it alone; what concerns a token is never said of another.

use http::StatusCode;
use sidelink::demo::origin::ScriptedReply;

use super::{HOUR, ROLES, World};
use crate::support::Reply;

fn error(status: u16) -> ScriptedReply {
    ScriptedReply::json(status, r#"{"error_code":"SVCSTG.0001","error_msg":"no"}"#)
}

#[tokio::test]
async fn a_token_that_the_endpoint_refuses_loses_access_and_its_users_other_tokens_do_not() {
    let world = World::start().await;
    let [refused, other] = world.tokens("alice");
    world.batch(&refused, &["1", "2"]).await;
    world.batch(&other, &["1", "2"]).await;
    world.stack.origin.script(error(401));
    assert_eq!(world.stack.client.batch(&refused, &["3"]).await.status, StatusCode::UNAUTHORIZED);
    world.iam.revoke(&refused);
    assert_eq!(world.stack.client.batch(&refused, &["1"]).await.status, StatusCode::UNAUTHORIZED, "not from memory");
    let before = world.asked().len();
    world.batch(&other, &["1", "2"]).await;
    assert_eq!(world.asked().len(), before, "still from memory");
}

#[tokio::test]
async fn nobody_vouches_for_a_refused_token_until_the_endpoint_takes_it_again() {
    let world = World::start().await;
    let [refused, other] = world.tokens("alice");
    world.batch(&other, &["1"]).await;
    world.batch(&refused, &["1"]).await;
    world.stack.origin.script(error(401));
    assert_eq!(world.stack.client.batch(&refused, &["3"]).await.status, StatusCode::UNAUTHORIZED);
    // The IAM knows nothing of it.
    let asked = world.iam.requests_for(&refused);
    world.batch(&refused, &["1"]).await;
    assert_eq!(world.asked().last().unwrap(), &(refused.clone(), vec!["1".to_owned()]));
    assert_eq!(world.iam.requests_for(&refused), asked);
    let before = world.asked().len();
    world.batch(&refused, &["1"]).await;
    assert_eq!(world.iam.requests_for(&refused), asked + 1, "the endpoint has taken it");
    assert_eq!(world.asked().len(), before, "and it is its user again");
}

#[tokio::test]
async fn a_token_that_the_identity_provider_refuses_is_judged_by_the_endpoint_alone() {
    let world = World::start().await;
    let [refused, other] = world.tokens("alice");
    world.batch(&refused, &["1"]).await;
    world.batch(&other, &["1"]).await;
    world.iam.revoke(&refused);
    world.clock.step(300_000);
    assert_eq!(world.stack.client.batch(&refused, &["1"]).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.asked().last().unwrap().0, refused);
    world.batch(&other, &["1"]).await;
}

#[tokio::test]
async fn a_token_has_its_users_links_no_longer_than_it_lives() {
    let world = World::start().await;
    let short = world.iam.issue("alice", "portal", ROLES, HOUR / 60);
    world.batch(&world.token("alice"), &["1"]).await;
    world.batch(&short, &["1"]).await;
    assert_eq!(world.asked().len(), 1);
    // By sidelink's clock alone: the IAM and the endpoint still take it.
    world.clock.step(61_000);
    world.batch(&short, &["1"]).await;
    assert_eq!(world.asked().last().unwrap(), &(short, vec!["1".to_owned()]));
}

#[tokio::test]
async fn a_batch_that_joined_a_call_that_is_refused_asks_with_its_own_token() {
    for status in [401, 403, 429] {
        let world = World::start().await;
        let [first, second] = world.tokens("alice");
        // Both are known before.
        world.batch(&first, &["0"]).await;
        world.batch(&second, &["0"]).await;
        world.stack.origin.hold();
        world.stack.origin.script(error(status));
        let batch = |token: &String| {
            let (client, token) = (world.stack.client.clone(), token.clone());
            tokio::spawn(async move { client.batch(&token, &["1"]).await })
        };
        let owner = batch(&first);
        world.stack.origin.arrived(2).await;
        let joiner = batch(&second);
        crate::support::eventually("the second waits", async || {
            world.stack.metric(r#"sidelink_limit_used{limit="waiters"}"#).await == 2.0
        })
        .await;
        world.stack.origin.release();
        assert_eq!(owner.await.unwrap().status.as_u16(), status);
        world.assert_of(&second, &joiner.await.unwrap());
        assert_eq!(world.asked().last().unwrap(), &(second.clone(), vec!["1".to_owned()]), "{status}");
    }
}

#[tokio::test]
async fn a_429_holds_back_its_token_and_not_its_user() {
    let world = World::start().await;
    let [first, second] = world.tokens("alice");
    world.batch(&first, &["0"]).await;
    world.batch(&second, &["0"]).await;
    world.stack.origin.script(error(429));
    assert_eq!(world.stack.client.batch(&first, &["1"]).await.status, StatusCode::TOO_MANY_REQUESTS);
    let before = world.asked().len();
    assert_eq!(world.stack.client.batch(&first, &["2"]).await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(world.asked().len(), before, "it is held back");
    world.batch(&second, &["2"]).await;
    assert_eq!(world.asked().len(), before + 1);
    world.batch(&first, &["2"]).await;
    assert_eq!(world.asked().len(), before + 1, "what the other brought is there for both");
}

#[tokio::test]
async fn a_remembered_refusal_is_given_to_its_token_alone() {
    let world = World::start().await;
    let [first, second] = world.tokens("alice");
    world.batch(&first, &["0"]).await;
    world.batch(&second, &["0"]).await;
    world.stack.origin.script(error(403));
    let status = async |token: &str| -> Reply { world.stack.client.batch(token, &["1"]).await };
    assert_eq!(status(&first).await.status, StatusCode::FORBIDDEN);
    let before = world.asked().len();
    assert_eq!(status(&first).await.status, StatusCode::FORBIDDEN);
    assert_eq!(world.asked().len(), before, "it is remembered");
    world.assert_of(&second, &status(&second).await);
    assert_eq!(world.asked().len(), before + 1);
}

#[tokio::test]
async fn a_withdrawn_link_is_gone_for_every_token_of_its_user() {
    let world = World::start().await;
    let [first, second] = world.tokens("alice");
    // Twice each, so that whole answers are kept.
    for token in [&first, &second, &first, &second, &second] {
        world.batch(token, &["1"]).await;
    }
    world.stack.origin.script(error(403));
    let no_cache = [("x-auth-token", &*first), ("cache-control", "no-cache")];
    let reply = world.stack.client.get(&crate::support::query(&["1"]), &no_cache).await;
    assert_eq!(reply.status, StatusCode::FORBIDDEN);
    let before = world.asked().len();
    world.batch(&second, &["1"]).await;
    assert_eq!(world.asked().len(), before + 1, "not by a whole answer either");
}

/// Regression: a batch that waited for a call that another token of its user had begun got its link after its own token was refused.
#[tokio::test]
async fn a_token_that_is_refused_while_its_batch_waits_for_anothers_call_gets_nothing_of_it() {
    let world = World::start().await;
    let [first, second] = world.tokens("alice");
    world.batch(&first, &["0"]).await;
    world.batch(&second, &["0"]).await;
    world.stack.origin.hold();
    let batch = |token: &String, id: &'static str| {
        let (client, token) = (world.stack.client.clone(), token.clone());
        tokio::spawn(async move { client.batch(&token, &[id]).await })
    };
    let owner = batch(&first, "1");
    world.stack.origin.arrived(2).await;
    let joiner = batch(&second, "1");
    crate::support::eventually("the second waits", async || {
        world.stack.metric(r#"sidelink_limit_used{limit="waiters"}"#).await == 2.0
    })
    .await;
    world.iam.revoke(&second);
    world.clock.step(300_000);
    let refused = batch(&second, "0");
    world.stack.origin.arrived(3).await;
    world.stack.origin.release();
    assert_eq!(refused.await.unwrap().status, StatusCode::UNAUTHORIZED);
    world.assert_of(&first, &owner.await.unwrap());
    assert_eq!(joiner.await.unwrap().status, StatusCode::UNAUTHORIZED);
}

/// Regression: all tokens of its user had to be accepted again.
#[tokio::test]
async fn a_401_to_a_batch_with_cookies_concerns_its_token_alone_whatever_the_forwarded_batch_gets() {
    for is_refused in [false, true] {
        let world = World::start().await;
        let [refused, other] = world.tokens("alice");
        world.batch(&refused, &["1"]).await;
        world.batch(&other, &["1"]).await;
        world.stack.origin.script(error(401));
        if is_refused {
            world.stack.origin.script(error(401));
        }
        let headers = [("x-auth-token", &*refused), ("cookie", "a=b")];
        let reply = world.stack.client.get(&crate::support::query(&["2"]), &headers).await;
        assert_eq!(reply.status.as_u16(), if is_refused { 401 } else { 200 });
        let before = world.asked().len();
        world.batch(&other, &["1"]).await;
        assert_eq!(world.asked().len(), before, "from memory");
        world.batch(&refused, &["1"]).await;
        assert_eq!(world.asked().last().unwrap(), &(refused.clone(), vec!["1".to_owned()]), "nobody vouches for it");
        world.batch(&refused, &["1"]).await;
        assert_eq!(world.asked().len(), before + 1, "the endpoint has taken it");
    }
}
