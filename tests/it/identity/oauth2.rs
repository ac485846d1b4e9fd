//! As RFC 7662 has it: subject, client and scope make the user, with issuer and audience where they are there.

use serde_json::{Value, json};
use sidelink::auth::TokenStatus;
use sidelink::demo::origin::ScriptedReply;
use sidelink::demo::origin::iam::Grant;
use sidelink::telemetry::metrics::IdentityResult;

use super::{APART, CREDENTIALS, FAILED, HOUR, REFUSED, World, reply, secret};

#[tokio::test]
async fn tokens_of_one_subject_client_scope_and_audience_are_one_user() {
    let world = World::oauth2(|_, _| {}).await;
    let grant = |user, roles: &[&str]| Grant::new(user, "p", roles);
    world
        .tells_apart(&[
            grant("anna", &["read", "write"]),
            grant("anna", &["read"]),
            grant("anna", &[]),
            grant("bert", &["read", "write"]),
            Grant::new("anna", "q", &["read", "write"]),
            grant("anna", &["read", "write"]).with("act", json!({"sub": "bert"})),
            grant("anna", &["read", "write"]).with("authorization_details", json!([{"type": "folder"}])),
            grant("anna", &["read", "write"]).with("cnf", json!({"jkt": "x"})),
        ])
        .await;
    let one = world.asker.user(&world.iam.issue_grant(grant("carl", &["read", "write"]), HOUR)).await;
    let other = world.asker.user(&world.iam.issue_grant(grant("carl", &["write", "read"]), HOUR)).await;
    assert_eq!(one, other, "scopes have no order");
}

#[tokio::test]
async fn sidelink_may_ask_with_a_token_of_its_own() {
    let world = World::oauth2(|iam, config| {
        config.client_file = None;
        config.token_file = Some(secret(&iam.issue("sidelink", "p", &[], HOUR)));
    })
    .await;
    assert_eq!(world.asker.user(&world.token("anna")).await, world.asker.user(&world.token("anna")).await);
}

#[tokio::test]
async fn a_token_that_is_not_active_is_refused() {
    let world = World::oauth2(|_, _| {}).await;
    let token = world.token("anna");
    let TokenStatus::User { expires: Some(expires), is_active: true, .. } = world.asker.ask(&token).await else {
        panic!()
    };
    assert!(expires > world.clock.now().unix_millis());
    world.iam.revoke(&token);
    assert_eq!(world.asker.ask(&token).await, REFUSED);
    world.iam.script(answer(&json!({"active": true, "sub": "1", "client_id": "2", "scope": "", "exp": 1_700_000_000})));
    assert_eq!(world.asker.ask(&token).await, REFUSED, "it is over");
    assert_eq!(world.asker.counts(), [("user", 1), ("refused", 2)]);
}

#[tokio::test]
async fn where_sidelinks_own_credentials_are_refused_nobody_elses_are() {
    let world = World::oauth2(|_, config| config.client_file = Some(secret("sidelink:wrong"))).await;
    assert_eq!(world.asker.ask(&world.token("anna")).await, CREDENTIALS);
    assert_eq!(world.asker.counts(), [("credentials", 1)]);
}

fn answer(value: &Value) -> ScriptedReply {
    ScriptedReply::json(200, value.to_string())
}

#[tokio::test]
async fn an_answer_that_lacks_a_field_or_is_none_keeps_the_token_apart() {
    let world = World::oauth2(|_, _| {}).await;
    let token = world.token("anna");
    let text = |body: &str| ScriptedReply::json(200, body.to_owned());
    let with = |name: &str, value: Value| {
        let mut whole = json!({"active": true, "sub": "1", "client_id": "2", "scope": "a"});
        whole[name] = value;
        answer(&whole)
    };
    let lacks: Vec<_> = ["sub", "client_id", "scope"]
        .into_iter()
        .flat_map(|name| [with(name, Value::Null), with(name, json!(1)), with(name, json!({}))])
        .chain([with("sub", json!("")), with("client_id", json!(""))])
        .collect();
    let count = lacks.len() as u64;
    for script in lacks {
        world.iam.script(script);
        assert_eq!(world.asker.ask(&token).await, APART);
    }
    assert_eq!(world.asker.counts(), [("apart", count)]);
    for (case, script) in [
        ("not said", with("active", Value::Null)),
        ("said otherwise", with("active", json!("true"))),
        ("an end that is none", with("exp", json!("soon"))),
        ("an end before all times", with("exp", json!(-1))),
        (
            "an end after all times",
            text(r#"{"active":true,"sub":"1","client_id":"2","scope":"a","exp":99999999999999999999}"#),
        ),
        ("a name twice", text(r#"{"active":true,"sub":"1","sub":"2","client_id":"2","scope":"a"}"#)),
        ("activity twice", text(r#"{"active":false,"active":true,"sub":"1","client_id":"2","scope":"a"}"#)),
        ("a list", text("[true]")),
        ("a page", reply(200, &[("content-type", "text/html")], "<html>")),
        ("400", ScriptedReply::json(400, r#"{"active":false}"#)),
        ("404", ScriptedReply::json(404, r#"{"active":false}"#)),
        ("500", ScriptedReply::json(500, r#"{"active":false}"#)),
        ("a JWT", text("eyJhbGciOiJub25lIn0.e30.")),
    ] {
        world.iam.script(script);
        assert_eq!(world.asker.ask(&token).await, FAILED, "{case}");
        world.asker.user(&token).await;
    }
    world.iam.script(with("exp", json!(4_102_444_800.75)));
    let TokenStatus::User { expires, .. } = world.asker.ask(&token).await else { panic!() };
    assert_eq!(expires, Some(4_102_444_800_000), "a fraction of a second is no reason");
    world.iam.script(with("exp", Value::Null));
    assert!(matches!(world.asker.ask(&token).await, TokenStatus::User { expires: None, .. }));
}

#[tokio::test]
async fn chosen_fields_make_the_user_and_each_has_to_be_there() {
    let world = World::oauth2(|_, config| {
        config.identity = ["/username", "/scope", "/tenant"].map(|text| text.parse().unwrap()).into();
    })
    .await;
    let grant = Grant::new("anna", "p", &["a", "b"]).with("tenant", json!("x"));
    let token = |grant: Grant| world.iam.issue_grant(grant, HOUR);
    let user = world.asker.user(&token(grant.clone())).await;
    let elsewhere = Grant { project: Some("q".into()), roles: vec!["b".into(), "a".into()], ..grant.clone() };
    assert_eq!(world.asker.user(&token(elsewhere)).await, user, "what is not chosen does not count");
    let other = Grant::new("anna", "p", &["a", "b"]).with("tenant", json!("y"));
    assert_ne!(world.asker.user(&token(other)).await, user);
    assert_eq!(world.asker.ask(&token(Grant::new("anna", "p", &["a", "b"]))).await, APART);
    assert_eq!(world.asker.count(IdentityResult::Apart), 1);
}
