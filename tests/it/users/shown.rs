//! Operators see who is one user, by short hashes, and how the identity provider does; no token and no answer is shown.

use serde_json::Value;
use sidelink::demo::origin::ScriptedReply;

use super::{World, identity};
use crate::process::{Files, Process};
use crate::support::TestClient;

impl World {
    fn admin(&self) -> TestClient {
        TestClient::new(self.stack.app.admin_address())
    }
}

#[tokio::test]
async fn explain_names_the_user_of_a_token_and_how_many_callers_it_has() {
    let world = World::start().await;
    let [first, second] = world.tokens("alice");
    world.batch(&first, &["1"]).await;
    let explain = async |token: &str| {
        let reply = world.admin().get("/explain?accessory_ids=1", &[("x-auth-token", token)]).await;
        reply.json()["caller"].clone()
    };
    assert_eq!(explain(&second).await["user"], Value::Null, "nobody was asked of it");
    world.batch(&second, &["1"]).await;
    let [first, second] = [explain(&first).await, explain(&second).await];
    assert_eq!(first["user"]["hash"], second["user"]["hash"]);
    assert_ne!(first["hash"], second["hash"]);
    assert_eq!(first["user"]["callers"], 2);
    assert!(first["user"]["known_seconds"].as_f64().unwrap() <= 300.0);
}

#[tokio::test]
async fn explain_tells_why_a_token_has_no_user() {
    let world = World::start().await;
    let token = world.token("alice");
    let no_user = async |token: &str| {
        let reply = world.admin().get("/explain?accessory_ids=1", &[("x-auth-token", token)]).await;
        reply.json()["caller"]["no_user"].clone()
    };
    assert_eq!(no_user(&token).await["reason"], "not_asked");
    for (status, body, reason) in [
        (404, "{}", "refused"),
        (200, r#"{"token":{"user":{},"expires_at":"2099-01-01T00:00:00Z"}}"#, "apart"),
        (500, "{}", "failed"),
    ] {
        let token = world.token("alice");
        world.iam.script(ScriptedReply::json(status, body));
        world.batch(&token, &["1"]).await;
        let said = no_user(&token).await;
        assert_eq!(said["reason"], reason, "{said}");
        assert!(said["why"].as_str().is_some_and(|why| !why.is_empty()), "{said}");
        assert!(said["looked_up_again_seconds"].as_f64().is_some_and(|left| left > 0.0), "{said}");
        // It is said for as long as nothing else is known.
        world.clock.step(301_000);
        assert_eq!(no_user(&token).await["reason"], reason);
    }
    world.batch(&token, &["1"]).await;
    assert_eq!(no_user(&token).await, Value::Null, "it has one");
    world.stack.origin.script(ScriptedReply::json(401, "{}"));
    world.stack.client.batch(&token, &["2"]).await;
    assert_eq!(no_user(&token).await["reason"], "unauthorized");
}

#[tokio::test]
async fn a_page_says_that_the_identity_provider_refuses_sidelinks_own_credentials_and_not_that_it_refuses_tokens() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "sidelink:wrong").unwrap();
    let world = World::with(
        |_| {},
        |iam, config| {
            let (url, file) = (iam.introspection_url(), file.path().display());
            let lines = format!("introspect = \"{url}\"\nstyle = \"oauth2\"\nclient_file = \"{file}\"");
            config.callers.identity = Some(identity(&lines));
        },
    )
    .await;
    let kinds = async || {
        let alerts = world.admin().get("/status.json", &[]).await.json()["alerts"].clone();
        alerts.as_array().unwrap().iter().map(|alert| alert["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for token in world.tokens::<4>("alice") {
        world.batch(&token, &["1"]).await;
    }
    assert_eq!(kinds().await, [""; 0], "it may be those tokens");
    world.batch(&world.token("alice"), &["1"]).await;
    assert_eq!(kinds().await, ["identity_credentials"]);
    let refused = world.stack.metric(r#"sidelink_identity_requests_total{result="credentials"}"#).await;
    assert_eq!(refused, 5.0);
    // It answers, that a token is not active.
    world.iam.script(ScriptedReply::json(200, r#"{"active":false}"#));
    world.batch(&world.token("alice"), &["1"]).await;
    assert_eq!(kinds().await, [""; 0]);
}

#[tokio::test]
async fn the_status_and_the_metrics_tell_users_callers_and_requests() {
    let world = World::start().await;
    let tokens = [world.tokens::<2>("alice"), world.tokens("bob")].concat();
    for token in &tokens[..3] {
        world.batch(token, &["1"]).await;
    }
    let status = world.admin().get("/status.json", &[]).await.json()["identity"].clone();
    assert_eq!((status["users"].as_u64(), status["callers"].as_u64()), (Some(2), Some(3)), "{status}");
    assert_eq!(status["requests"]["user"], 3);
    assert_eq!(status["breaker"], "closed");
    let most = status["most_callers"].as_array().unwrap();
    assert_eq!(most.iter().map(|user| user["callers"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(world.stack.metric("sidelink_identity_users").await, 2.0);
    assert_eq!(world.stack.metric("sidelink_identity_callers").await, 3.0);
    assert_eq!(world.stack.metric(r#"sidelink_identity_requests_total{result="user"}"#).await, 3.0);
    let shown = format!("{status}{}", world.stack.metrics().await);
    assert!(tokens.iter().all(|token| !shown.contains(token.as_str())) && !shown.contains("alice"));
}

#[tokio::test]
async fn a_page_says_that_the_identity_provider_fails_and_why() {
    let world = World::start().await;
    let tokens = world.tokens::<6>("alice");
    world.iam.stop().await;
    // Connections that cannot be made count whatever the token.
    for token in &tokens {
        world.batch(token, &["1"]).await;
    }
    let alerts = async || world.admin().get("/status.json", &[]).await.json()["alerts"].clone();
    let alert = alerts().await[0].clone();
    assert_eq!((&alert["kind"], &alert["severity"]), (&"identity_provider".into(), &"warning".into()), "{alert}");
    let text = alert["text"].as_str().unwrap();
    assert!(text.contains("onnect") && text.contains(&world.iam.address().to_string()), "{text}");
    assert!(tokens.iter().all(|token| !text.contains(token.as_str())));
}

#[tokio::test]
async fn an_access_line_has_the_short_hash_of_the_user() {
    let world = World::start().await;
    let files = Files::new(world.stack.origin.address());
    let introspect = format!("callers.identity.introspect = {:?}", world.iam.keystone_url());
    let mut process = Process::start(&files.write(&introspect)).await;
    let mut lines = Vec::new();
    for token in [world.tokens::<2>("alice"), world.tokens("bob")].concat() {
        process.client.batch(&token, &["1"]).await;
        lines.push(process.says("request").await);
    }
    let user = |at: usize| lines[at]["user"].as_str().unwrap();
    assert_eq!(user(0), user(1));
    assert_ne!(user(0), user(2));
    assert!(user(0).len() == 8 && lines[0]["caller"] != lines[1]["caller"], "{lines:#?}");
}
