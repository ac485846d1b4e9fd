//! What goes wrong with an identity provider is logged, with nothing of a token, of sidelink's own credentials or of an answer.

use std::io;
use std::sync::{Arc, Mutex};

use sidelink::auth::TokenStatus;
use sidelink::config::IdentityConfig;
use sidelink::demo::origin::ScriptedReply;
use sidelink::demo::origin::iam::Iam;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;

use super::{World, reply, secret};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log of what happens with the token `MARKED-token` and these replies.
fn log(configure: fn(&Iam, &mut IdentityConfig), is_oauth2: bool, replies: Vec<ScriptedReply>) -> String {
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
    let all = Targets::new().with_target("sidelink", LevelFilter::TRACE);
    let subscriber = tracing_subscriber::registry().with(all).with(lines);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tracing::subscriber::with_default(subscriber, || {
        runtime.block_on(async {
            let world = if is_oauth2 { World::oauth2(configure).await } else { World::keystone(configure).await };
            for reply in replies {
                world.iam.script(reply);
                assert!(matches!(world.asker.ask("MARKED-token").await, TokenStatus::NoUser(_)));
            }
        });
    });
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn failures_are_logged_with_their_reason_and_without_a_secret() {
    let marked = |status| reply(status, &[("www-authenticate", "MARKED"), ("location", "/MARKED")], "MARKED");
    let own = |_: &Iam, config: &mut IdentityConfig| config.token_file = Some(secret("MARKED-own"));
    let client = |_: &Iam, config: &mut IdentityConfig| config.client_file = Some(secret("MARKED:MARKED"));
    let none = |_: &Iam, _: &mut IdentityConfig| {};
    let failures = [302, 500, 500, 500, 500].map(marked).into();
    for (log, expected) in [
        (
            log(none, false, failures),
            vec![
                "does not say whose a token is",
                "its status is 302",
                "it is not asked for a while",
                "its status is 500",
            ],
        ),
        (log(none, false, vec![marked(200)]), vec!["it is no JSON object"]),
        (
            log(none, false, vec![ScriptedReply::json(200, r#"{"token":{"user":"MARKED","MARKED":1}}"#)]),
            vec!["its token has no object"],
        ),
        (
            log(
                none,
                false,
                vec![ScriptedReply::json(
                    200,
                    r#"{"token":{"user":{"id":"1"},"expires_at":"2099-01-01T00:00:00Z","MARKED":{"MARKED":1,"MARKED":2}}}"#,
                )],
            ),
            vec!["lacks what makes a user", "a member of token is missing or cannot be compared"],
        ),
        (log(own, false, vec![marked(401)]), vec!["refuses sidelink's own credentials", "status=401"]),
        (log(client, true, vec![marked(401)]), vec!["refuses sidelink's own credentials", "status=401"]),
        (
            log(client, true, vec![ScriptedReply::json(200, r#"{"active":true,"sub":"MARKED","scope":"MARKED"}"#)]),
            vec!["/client_id is missing or cannot be compared"],
        ),
        (log(none, false, vec![ScriptedReply::Truncated("MARKED".into())]), vec!["does not say whose a token is"]),
    ] {
        for text in expected {
            assert!(log.contains(text), "{text}: {log}");
        }
        assert!(!log.contains("MARKED"), "{log}");
    }
}
