//! A token whose signature verifies is who its claims say, once the endpoint has accepted it.

use std::time::Duration;

use http::StatusCode;
use sidelink::demo::origin::ScriptedReply;
use sidelink::demo::origin::iam::{Grant, JwtAlgorithm};

use super::{HOUR, ROLES, World, identity};

async fn by_claims() -> World {
    World::with(
        |_| {},
        |iam, config| {
            let claims = "claims = [\"iss\", \"sub\", \"aud\", \"scope\"]";
            config.callers.identity = Some(identity(&format!("{claims}\njwks_url = \"{}\"", iam.keys_url())));
        },
    )
    .await
}

fn token(world: &World, user: &str, algorithm: JwtAlgorithm) -> String {
    world.iam.issue_jwt(Grant::new(user, "portal", ROLES), HOUR, algorithm)
}

#[tokio::test]
async fn tokens_with_the_same_claims_share_once_the_endpoint_has_accepted_each() {
    let world = by_claims().await;
    let tokens = [JwtAlgorithm::Es256, JwtAlgorithm::EdDsa].map(|algorithm| token(&world, "alice", algorithm));
    world.batch(&tokens[0], &["1", "2"]).await;
    world.batch(&tokens[1], &["1"]).await;
    assert_eq!(world.asked().len(), 2, "the endpoint judges each");
    world.batch(&tokens[1], &["1", "2"]).await;
    assert_eq!(world.asked().len(), 2);
    world.batch(&token(&world, "bob", JwtAlgorithm::Es256), &["1"]).await;
    assert_eq!(world.asked().len(), 3);
}

#[tokio::test]
async fn a_token_that_the_endpoint_has_not_accepted_joins_no_call_of_another() {
    let world = by_claims().await;
    let [accepted, revoked] = [(); 2].map(|()| token(&world, "alice", JwtAlgorithm::Es256));
    world.batch(&accepted, &["0"]).await;
    world.iam.revoke(&revoked);
    world.stack.origin.hold();
    let batch = |token: &String| {
        let (client, token) = (world.stack.client.clone(), token.clone());
        tokio::spawn(async move { client.batch(&token, &["1"]).await })
    };
    let first = batch(&accepted);
    world.stack.origin.arrived(2).await;
    let second = batch(&revoked);
    world.stack.origin.arrived(3).await;
    world.stack.origin.release();
    world.assert_of(&accepted, &first.await.unwrap());
    assert_eq!(second.await.unwrap().status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_token_that_was_never_accepted_gets_no_stale_link_of_its_user() {
    let world = by_claims().await;
    let [accepted, other] = [(); 2].map(|()| token(&world, "alice", JwtAlgorithm::Es256));
    world.batch(&accepted, &["1"]).await;
    for _ in 0..8 {
        world.stack.origin.script(ScriptedReply::json(503, "{}"));
    }
    assert_eq!(world.stack.client.batch(&other, &["1"]).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn forged_tokens_and_tokens_of_other_keys_are_callers_by_themselves() {
    let world = by_claims().await;
    let good = token(&world, "alice", JwtAlgorithm::Es256);
    world.batch(&good, &["1"]).await;
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let none = "eyJhbGciOiJub25lIn0";
    let other = claims.replacen('J', "K", 1);
    for forged in [format!("{none}.{claims}."), format!("{head}.{other}.{signature}"), format!("{head}.{claims}.")] {
        let reply = world.stack.client.batch(&forged, &["1"]).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert_eq!(world.asked().last().unwrap().0, forged, "the endpoint was asked");
    }
    assert_eq!(world.stack.metric("sidelink_identity_callers").await, 1.0);
}

#[tokio::test]
async fn a_set_of_keys_that_changes_is_fetched_again() {
    let world = by_claims().await;
    world.batch(&token(&world, "alice", JwtAlgorithm::Es256), &["1"]).await;
    world.iam.rotate_keys().unwrap();
    let new = token(&world, "alice", JwtAlgorithm::Es256);
    // Less than the age at which the set is fetched in any case.
    world.clock.step(31_000);
    world.batch(&new, &["1"]).await;
    assert_eq!(world.iam.key_requests(), 2);
    assert_eq!(world.stack.metric("sidelink_identity_callers").await, 2.0);
}

/// Regression: a token that the endpoint answers with a 403 took its user's links from the other tokens, batch by batch.
#[tokio::test]
async fn what_is_refused_to_a_token_that_the_endpoint_has_not_accepted_stays_for_the_others() {
    let world = by_claims().await;
    let [accepted, other] = [(); 2].map(|()| token(&world, "alice", JwtAlgorithm::Es256));
    world.batch(&accepted, &["1"]).await;
    world.stack.origin.script(ScriptedReply::json(403, r#"{"error_code":"APIGW.0301","error_msg":"no"}"#));
    assert_eq!(world.stack.client.batch(&other, &["1"]).await.status, StatusCode::FORBIDDEN);
    let before = world.asked().len();
    world.batch(&accepted, &["1"]).await;
    assert_eq!(world.asked().len(), before);
}

/// Regression: calls of tokens that the endpoint has not accepted wait among those of made-up ones, and who joined waited as well.
#[tokio::test]
async fn an_accepted_token_joins_no_call_of_one_that_the_endpoint_has_not_accepted() {
    let world = by_claims().await;
    let [accepted, other] = [(); 2].map(|()| token(&world, "alice", JwtAlgorithm::Es256));
    world.batch(&accepted, &["0"]).await;
    world.stack.origin.script(ScriptedReply::Hang);
    let (client, hangs) = (world.stack.client.clone(), other.clone());
    let hanging = tokio::spawn(async move { client.batch(&hangs, &["1"]).await });
    world.stack.origin.arrived(2).await;
    tokio::time::timeout(Duration::from_secs(2), world.batch(&accepted, &["1"])).await.expect("its own call");
    hanging.abort();
}
