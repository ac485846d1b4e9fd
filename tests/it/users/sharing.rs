//! Who shares with whom.

use std::time::Duration;

use serde_json::json;
use sidelink::config::Config;
use sidelink::demo::origin::iam::{CLIENT, Grant, Iam};

use super::{HOUR, ROLES, World, identity};
use crate::config::secret_file;

#[tokio::test]
async fn a_new_token_of_a_user_finds_what_another_has_brought_without_a_call() {
    let world = World::start().await;
    let [first, second] = world.tokens("alice");
    world.batch(&first, &["1", "2"]).await;
    let reply = world.batch(&second, &["2", "1"]).await;
    assert_eq!(reply.ids(), ["2", "1"]);
    assert_eq!(world.asked(), [(first, vec!["1".to_owned(), "2".to_owned()])]);
    assert_eq!(world.hits().await, 2.0);
}

#[tokio::test]
async fn another_user_project_or_set_of_roles_shares_nothing() {
    let world = World::start().await;
    let issue = |user, project, roles: &[&str]| world.iam.issue(user, project, roles, HOUR);
    let grant = |name: &str, value| world.iam.issue_grant(Grant::new("alice", "portal", ROLES).with(name, value), HOUR);
    let tokens = [
        issue("alice", "portal", ROLES),
        issue("bob", "portal", ROLES),
        issue("alice", "other", ROLES),
        issue("alice", "portal", &ROLES[..1]),
        issue("alice", "portal", &[ROLES[0], ROLES[1], "more"]),
        // An assumed role, and an application credential.
        grant("assumed_by", json!({"user": {"name": "carol"}})),
        grant("application_credential", json!({"id": "a", "restricted": true})),
        grant("application_credential", json!({"id": "a", "restricted": false})),
    ];
    for (at, token) in tokens.iter().enumerate() {
        world.batch(token, &["1"]).await;
        assert_eq!(world.asked().len(), at + 1, "token {at} asked for itself");
    }
    for token in &tokens {
        world.batch(token, &["1"]).await;
    }
    assert_eq!(world.hits().await, tokens.len() as f64);
}

#[tokio::test]
async fn the_order_of_roles_makes_no_other_user() {
    let world = World::start().await;
    let [first, second] = world.tokens("alice");
    world.batch(&first, &["1"]).await;
    world.iam.update(|behaviour| behaviour.roles_reversed = true);
    world.batch(&second, &["1"]).await;
    assert_eq!(world.asked().len(), 1);
}

#[tokio::test]
async fn an_oauth2_server_says_whose_a_token_is_as_well() {
    let mut client = None;
    let by_oauth2 = |iam: &Iam, config: &mut Config| {
        let file = client.insert(secret_file(&format!("{CLIENT}:{}", iam.client_secret()), 0o600));
        let (url, file) = (iam.introspection_url(), file.path().display());
        config.callers.identity =
            Some(identity(&format!("introspect = \"{url}\"\nstyle = \"oauth2\"\nclient_file = \"{file}\"")));
    };
    let world = World::with(|_| {}, by_oauth2).await;
    let [first, second] = world.tokens("alice");
    world.batch(&first, &["1"]).await;
    world.batch(&second, &["1"]).await;
    world.batch(&world.token("bob"), &["1"]).await;
    assert_eq!(world.asked().len(), 2);
}

#[tokio::test]
async fn a_bearer_token_is_asked_about_without_its_scheme() {
    let world = World::with(
        |options| options.api = sidelink::demo::origin::shapes::Shape::of("git-lfs").unwrap(),
        |_, config| config.batch = vec![sidelink::api::BatchApi::preset("git-lfs").unwrap()],
    )
    .await;
    let body = r#"{"operation":"download","objects":[{"oid":"6f","size":1}]}"#;
    let batch = async |authorization: String| {
        let media_type = "application/vnd.git-lfs+json";
        let headers = [("authorization", &*authorization), ("accept", media_type), ("content-type", media_type)];
        let reply =
            world.stack.client.send(http::Method::POST, "/team/repo/info/lfs/objects/batch", &headers, body).await;
        assert_eq!(reply.status, 200, "{:?}", reply.body);
    };
    for token in world.tokens::<2>("alice") {
        batch(format!("Bearer {token}")).await;
        assert_eq!(world.iam.requests_for(&token), 1);
    }
    assert_eq!(world.stack.origin.calls().len(), 1);
}

#[tokio::test]
async fn many_first_requests_of_a_token_are_one_introspection_and_one_call() {
    let world = World::start().await;
    let token = world.token("alice");
    world.iam.hold();
    let batches: Vec<_> = (0..8)
        .map(|_| {
            let (client, token) = (world.stack.client.clone(), token.clone());
            tokio::spawn(async move { client.batch(&token, &["1"]).await })
        })
        .collect();
    world.iam.arrived(1).await;
    world.iam.release();
    for batch in batches {
        world.assert_of(&token, &batch.await.unwrap());
    }
    assert_eq!(world.iam.requests(), 1);
    assert_eq!(world.asked().len(), 1);
}

#[tokio::test]
async fn what_is_known_of_a_token_is_renewed_in_the_background_before_it_ends() {
    let world = World::start().await;
    let [first, second] = world.tokens("alice");
    world.batch(&first, &["1"]).await;
    world.batch(&second, &["1"]).await;
    let revalidate = Duration::from_secs(300);
    world.clock.step(i64::try_from(revalidate.as_millis()).unwrap() * 9 / 10);
    world.iam.hold();
    world.batch(&second, &["1"]).await;
    world.iam.arrived(3).await;
    world.iam.release();
    crate::support::eventually("it is known again", async || {
        let page = world.stack.metrics().await;
        crate::support::value_of(r#"sidelink_identity_requests_total{result="user"}"#, &page) == 3.0
    })
    .await;
    world.clock.step(i64::try_from(revalidate.as_millis()).unwrap() / 2);
    world.batch(&second, &["1"]).await;
    assert_eq!(world.iam.requests_for(&second), 2, "and it is good for as long again");
    assert_eq!(world.asked().len(), 2, "while the endpoint has to take the user again");
    world.batch(&first, &["1"]).await;
    assert_eq!(world.asked().len(), 2, "once, for all tokens");
}
