//! A link is served only to the scope it was fetched for: same caller, same group, same values of every header that may
//! change an answer.

use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::link_is_for;

use crate::support::{Stack, query};

struct Asker {
    token: &'static str,
    group: Option<&'static str>,
    language: Option<&'static str>,
    site: Option<&'static str>,
}

const PLAIN: Asker = Asker { token: "token", group: None, language: None, site: None };

#[tokio::test]
async fn tokens_groups_languages_and_sites_never_share_a_link() {
    let askers = [
        PLAIN,
        Asker { token: "token2", ..PLAIN },
        Asker { token: "toke", ..PLAIN }, // A prefix of another.
        Asker { token: "Token", ..PLAIN },
        Asker { group: Some("g"), ..PLAIN },
        Asker { group: Some("g2"), ..PLAIN },
        Asker { language: Some("en-us"), ..PLAIN },
        Asker { language: Some("zh-cn"), ..PLAIN },
        Asker { site: Some("0"), ..PLAIN },
        Asker { site: Some("1"), ..PLAIN },
        Asker { group: Some("g"), language: Some("en-us"), site: Some("1"), ..PLAIN },
    ];
    let stack = Stack::start().await;
    for round in 0..2 {
        for asker in &askers {
            let mut target = query(&["1", "2"]);
            if let Some(group) = asker.group {
                target.push_str(&format!("&{}={group}", api::GROUP));
            }
            let mut headers = vec![("x-auth-token", asker.token)];
            headers.extend(asker.language.map(|language| ("x-language", language)));
            headers.extend(asker.site.map(|site| ("x-site", site)));
            let reply = stack.client.get(&target, &headers).await;
            for (id, link) in reply.links() {
                assert!(link_is_for(&link, &id, asker.group, asker.token, asker.language, asker.site), "{link}");
            }
            let expected = if round == 0 { "sidelink; fwd=miss; stored" } else { "sidelink; hit" };
            assert_eq!(reply.header("cache-status"), expected);
        }
    }
    assert_eq!(stack.asked().len(), askers.len());
}

#[tokio::test]
async fn time_zones_domains_projects_and_configured_headers_are_part_of_a_scope() {
    let configure = |config: &mut sidelink::config::Config| {
        config.callers.scope_headers = vec!["x-tenant".parse().unwrap()];
    };
    let stack = Stack::with(|_| {}, configure).await;
    let headers = ["x-time-zone", "x-domain-id", "x-project-id", "x-enterprise-project-id", "x-tenant"];
    for name in headers {
        for value in ["a", "b"] {
            let reply = stack.client.get(&query(&["1"]), &[("x-auth-token", "t"), (name, value)]).await;
            assert_eq!(reply.header("cache-status"), "sidelink; fwd=miss; stored", "{name}: {value}");
            assert_eq!(stack.origin.calls().last().unwrap().headers[name], value);
        }
    }
}

#[tokio::test]
async fn an_answer_that_varies_by_something_outside_of_the_scope_is_not_stored() {
    for (vary, stored) in [("X-Language, Accept-Encoding", true), ("X-Other", false), ("*", false)] {
        let stack = Stack::start().await;
        let body = r#"{"accessory_urls":[{"accessory_id":"1","accessory_url":"u"}]}"#;
        for _ in 0..2 {
            let headers = http::HeaderMap::from_iter([(http::header::VARY, vary.parse().unwrap())]);
            stack.origin.script(sidelink::demo::origin::ScriptedReply::Whole(
                http::StatusCode::OK,
                headers,
                body.into(),
            ));
        }
        stack.client.batch("t", &["1"]).await;
        let again = stack.client.batch("t", &["1"]).await;
        assert_eq!(again.header("cache-status") == "sidelink; hit", stored, "{vary}");
    }
}
