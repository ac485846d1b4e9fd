//! As Keystone and Huawei's IAM are asked: all of a token's description but what differs in each token makes the user.

use serde_json::{Value, json};
use sidelink::auth::TokenStatus;
use sidelink::demo::origin::ScriptedReply;
use sidelink::demo::origin::iam::{Dialect, Grant};
use sidelink::telemetry::metrics::IdentityResult;

use super::{APART, CREDENTIALS, FAILED, HOUR, REFUSED, World, reply, secret};

fn grants() -> Vec<Grant> {
    let grant = |user, roles: &[&str]| Grant::new(user, "p", roles);
    vec![
        grant("anna", &["reader", "writer"]),
        grant("anna", &["reader"]),
        grant("anna", &[]),
        grant("bert", &["reader", "writer"]),
        Grant::new("anna", "q", &["reader", "writer"]),
        Grant { project: None, ..grant("anna", &["reader", "writer"]) },
        grant("anna", &["reader", "writer"]).with("assumed_by", json!({"user": {"name": "bert"}})),
        grant("anna", &["reader", "writer"]).with("application_credential", json!({"id": "1", "restricted": true})),
        grant("anna", &["reader", "writer"]).with("application_credential", json!({"id": "2", "restricted": true})),
        grant("anna", &["reader", "writer"]).with("is_admin_project", json!(false)),
        grant("anna", &["reader", "writer"]).with("later_invention", json!(1)),
        grant("anna", &["reader", "writer"]).with("later_invention", json!(1.0)),
    ]
}

#[tokio::test]
async fn tokens_of_one_user_project_and_set_of_roles_are_one_user() {
    for dialect in [Dialect::Huawei, Dialect::OpenStack] {
        let world = World::keystone(|_, _| {}).await;
        world.iam.update(|behaviour| behaviour.dialect = dialect);
        world.tells_apart(&grants()).await;
        let grant = &grants()[0];
        let before = world.asker.user(&world.iam.issue_grant(grant.clone(), HOUR)).await;
        world.iam.update(|behaviour| behaviour.roles_reversed = true);
        assert_eq!(world.asker.user(&world.iam.issue_grant(grant.clone(), HOUR)).await, before, "roles have no order");
    }
}

#[tokio::test]
async fn the_word_is_active_and_ends_with_the_token() {
    let world = World::keystone(|_, _| {}).await;
    let now = world.clock.now().unix_millis();
    let TokenStatus::User { expires: Some(expires), is_active: true, .. } = world.asker.ask(&world.token("anna")).await
    else {
        panic!()
    };
    assert!((now..now + 60_000).contains(&(expires - 3_600_000)), "{expires}");
}

#[tokio::test]
async fn a_token_that_is_revoked_or_over_is_refused_whoever_asks() {
    for own in [false, true] {
        let world = World::keystone(|iam, config| {
            let token = iam.issue("sidelink", "p", &["secu_admin"], 24 * HOUR);
            config.token_file = own.then(|| secret(&token));
        })
        .await;
        let (revoked, over) = (world.token("anna"), world.token("anna"));
        assert_eq!(world.asker.user(&revoked).await, world.asker.user(&over).await);
        world.iam.revoke(&revoked);
        assert_eq!(world.asker.ask(&revoked).await, REFUSED);
        world.asker.user(&over).await;
        world.clock.step(3_601_000);
        assert_eq!(world.asker.ask(&over).await, REFUSED);
        // The provider's clock is behind.
        let token = world.token("anna");
        world.iam.script(described(&json!({"user": {"id": "1"}, "expires_at": "2026-11-24T01:00:00Z"})));
        assert_eq!(world.asker.ask(&token).await, REFUSED);
    }
}

#[tokio::test]
async fn where_sidelinks_own_token_is_refused_nobody_elses_is() {
    // Over, and without the right to ask for others' tokens.
    for roles in [&["secu_admin"][..], &["reader"]] {
        let world = World::keystone(|iam, config| {
            let token = iam.issue("sidelink", "p", roles, HOUR);
            if roles[0] == "secu_admin" {
                iam.revoke(&token);
            }
            config.token_file = Some(secret(&token));
        })
        .await;
        assert_eq!(world.asker.ask(&world.token("anna")).await, CREDENTIALS);
        assert_eq!(world.asker.counts(), [("credentials", 1)]);
    }
}

fn described(token: &Value) -> ScriptedReply {
    ScriptedReply::json(200, json!({"token": token}).to_string())
}

#[tokio::test]
async fn an_answer_that_is_none_keeps_the_token_apart() {
    let world = World::keystone(|_, _| {}).await;
    let token = world.token("anna");
    let good = r#""user":{"id":"1"},"expires_at":"2099-01-01T00:00:00Z""#;
    let text = |body: &str| ScriptedReply::json(200, body.to_owned());
    let html = "<html>sign in</html>";
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    for (case, script) in [
        ("403", ScriptedReply::json(403, "{}")),
        ("500", ScriptedReply::json(500, "{}")),
        ("503", ScriptedReply::json(503, "{}")),
        ("a redirection", reply(302, &[("location", "/v3/auth/tokens")], "")),
        ("another success", ScriptedReply::json(203, format!("{{\"token\":{{{good}}}}}"))),
        ("a gateway's page", reply(200, &[("content-type", "text/html")], html)),
        ("a gateway's page of a 404", reply(404, &[("content-type", "text/html")], html)),
        ("a gateway's page of a 401", reply(401, &[("content-type", "text/html")], html)),
        ("nothing", reply(200, &[], "")),
        ("a list", text("[]")),
        ("no token", text("{}")),
        ("a token that is none", text(r#"{"token":"x"}"#)),
        ("no user", text(r#"{"token":{"expires_at":"2099-01-01T00:00:00Z"}}"#)),
        ("a user that is none", text(r#"{"token":{"user":"anna","expires_at":"2099-01-01T00:00:00Z"}}"#)),
        ("a user without an id", text(r#"{"token":{"user":{},"expires_at":"2099-01-01T00:00:00Z"}}"#)),
        ("no end", text(r#"{"token":{"user":{}}}"#)),
        ("an end that is no time", text(r#"{"token":{"user":{},"expires_at":4070908800}}"#)),
        ("an end without a time zone", text(r#"{"token":{"user":{},"expires_at":"2099-01-01T00:00:00"}}"#)),
        ("a name twice", text(&format!(r#"{{"token":{{{good},"user":{{"id":"2"}}}}}}"#))),
        ("a name twice, further in", text(&format!(r#"{{"token":{{{good},"roles":[{{"id":1,"i\u0064":2}}]}}}}"#))),
        ("a token twice", text(&format!(r#"{{"token":{{{good}}},"token":{{{good}}}}}"#))),
        ("half a character", text(&format!(r#"{{"token":{{{good},"x":"\ud800"}}}}"#))),
        ("nested too deeply", text(&format!(r#"{{"token":{{{good},"x":{deep}}}}}"#))),
        (
            "no UTF-8",
            reply(200, &[], &b"{\"token\":{\"user\":{\"id\":\"\xff\"},\"expires_at\":\"2099-01-01T00:00:00Z\"}}"[..]),
        ),
        ("broken JSON", text(&format!(r#"{{"token":{{{good}}}"#))),
        ("an answer that breaks off", ScriptedReply::Truncated(format!(r#"{{"token":{{{good}}}"#).into())),
        ("too long", text(&format!(r#"{{"token":{{{good}}}}}{}"#, " ".repeat(256 << 10)))),
        ("a coding", reply(200, &[("content-encoding", "gzip")], format!(r#"{{"token":{{{good}}}}}"#))),
        ("another token", reply(200, &[("x-subject-token", "other")], format!(r#"{{"token":{{{good}}}}}"#))),
    ] {
        world.iam.script(script);
        let word = world.asker.ask(&token).await;
        assert!(matches!(word, APART | FAILED), "{case}: {word:?}");
        // The next one is answered: nothing was held back.
        world.asker.user(&token).await;
    }
    // On a connection that was used before, and on a new one.
    world.iam.script(ScriptedReply::Reset);
    world.iam.script(ScriptedReply::Reset);
    assert_eq!(world.asker.ask(&token).await, FAILED);
    world.iam.script(text(&format!(r#"{{"token":{{{good}}}}}"#)));
    world.asker.user(&token).await;
}

#[tokio::test]
async fn an_answer_about_another_token_is_not_believed() {
    let world = World::keystone(|_, _| {}).await;
    let (anna, bert) = (world.token("anna"), world.token("bert"));
    let known = world.asker.user(&bert).await;
    world.iam.script(reply(
        200,
        &[("x-subject-token", &bert)],
        r#"{"token":{"user":{"id":"1"},"expires_at":"2099-01-01T00:00:00Z"}}"#,
    ));
    assert_eq!(world.asker.ask(&anna).await, FAILED);
    assert_ne!(world.asker.user(&anna).await, known);
}

#[tokio::test]
async fn chosen_fields_make_the_user_and_each_has_to_be_there() {
    let world = World::keystone(|_, config| {
        config.identity =
            ["/token/user/id", "/token/roles", "/token/project/id"].map(|text| text.parse().unwrap()).into();
    })
    .await;
    let grants = grants();
    let ask = async |grant: &Grant| world.asker.ask(&world.iam.issue_grant(grant.clone(), HOUR)).await;
    let id = |word| match word {
        TokenStatus::User { id, .. } => id,
        other => panic!("{other:?}"),
    };
    let user = id(ask(&grants[0]).await);
    world.iam.update(|behaviour| behaviour.roles_reversed = true);
    assert_eq!(id(ask(&grants[0]).await), user, "roles have no order");
    assert_eq!(id(ask(&grants[6]).await), user, "what is not chosen does not count");
    for other in [1, 2, 3, 4] {
        assert_ne!(id(ask(&grants[other]).await), user);
    }
    assert_eq!(ask(&grants[5]).await, APART, "it has no project");
    assert_eq!(world.asker.count(IdentityResult::Apart), 1);
}

#[tokio::test]
async fn a_token_that_fits_in_no_header_is_not_asked_for() {
    let world = World::keystone(|_, _| {}).await;
    for token in ["", "a\nb", "a\0"] {
        assert_eq!(world.asker.ask(token).await, APART);
    }
    assert_eq!((world.iam.requests(), world.asker.counts()), (0, vec![("apart", 3)]));
}
