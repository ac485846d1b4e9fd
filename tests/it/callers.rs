//! A caller sees from memory only what the endpoint lets it see: a refusal drops links at once, an acceptance counts for
//! `callers.revalidate`, and who is no caller gets nothing from memory.

use std::time::Duration;

use http::Method;
use sidelink::clock::Clock;
use sidelink::demo::origin::ScriptedReply;
use tokio::time::sleep;

use crate::simulated::World;
use crate::support::{Stack, query};

#[tokio::test]
async fn a_401_drops_all_links_of_that_caller_and_of_no_other() {
    let stack = Stack::start().await;
    for token in ["revoked", "good"] {
        stack.client.batch(token, &["1", "2"]).await;
    }
    stack.origin.update(|options| options.refuse = vec!["revoked".into()]);
    let refused = stack.client.batch("revoked", &["3"]).await;
    assert_eq!((refused.status.as_u16(), refused.json()["error_code"].as_str()), (401, Some("APIGW.0301")));

    let old = stack.client.batch("revoked", &["1"]).await;
    assert_eq!(old.status, 401, "the cached links are gone");
    assert_eq!(stack.client.batch("good", &["1", "2"]).await.header("cache-status"), "sidelink; hit");

    // Accepted again, the caller finds none of its earlier links.
    stack.origin.update(|options| options.refuse.clear());
    stack.client.batch("revoked", &["3"]).await;
    let anew = stack.client.batch("revoked", &["1"]).await;
    assert_eq!(anew.header("cache-status"), "sidelink; fwd=miss; stored");
}

const FORBIDDEN: &str = r#"{"error_code":"OSM.01010002","error_msg":"no permission"}"#;
const REMEMBERED: &str = "sidelink; hit; detail=refused";

#[tokio::test]
async fn a_403_or_an_error_in_a_200_forgets_the_ids_of_its_call_and_no_others() {
    for status in [403, 200] {
        let stack = Stack::start().await;
        stack.client.batch("t", &["1", "2", "3"]).await;
        stack.origin.script(ScriptedReply::json(status, FORBIDDEN));
        let anew = [("x-auth-token", "t"), ("cache-control", "no-cache")];
        let refused = stack.client.get(&query(&["1", "3"]), &anew).await;
        assert_eq!((refused.status.as_u16(), refused.json()["error_code"].as_str()), (status, Some("OSM.01010002")));
        assert_eq!(stack.client.batch("t", &["2"]).await.header("cache-status"), "sidelink; hit");
        let again = stack.client.batch("t", &["1"]).await;
        assert_eq!(again.header("cache-status"), "sidelink; fwd=miss; stored", "it is not known whose fault it was");
        assert_eq!(stack.asked().last().unwrap(), &["1"]);
    }
}

#[tokio::test]
async fn a_caller_revalidates_when_a_cached_link_is_refused_alone() {
    for status in [403, 200] {
        let stack = Stack::start().await;
        stack.client.batch("t", &["1", "2"]).await;
        stack.origin.script(ScriptedReply::json(status, FORBIDDEN));
        let anew = [("x-auth-token", "t"), ("cache-control", "no-cache")];
        assert_eq!(stack.client.get(&query(&["1"]), &anew).await.json()["error_code"], "OSM.01010002");
        let calls = stack.asked().len();
        assert_eq!(stack.client.batch("t", &["2"]).await.header("cache-status"), "sidelink; fwd=miss; stored");
        assert_eq!(stack.asked().len(), calls + 1, "asked though it was fresh");
        assert_eq!(stack.client.batch("t", &["2"]).await.header("cache-status"), "sidelink; hit");
    }
}

/// Regression: one id that is answered with a 403, polled, set aside all that the caller had: 947 hits became 395.
#[tokio::test(start_paused = true)]
async fn polling_a_refused_id_costs_a_warm_batch_no_hit_and_one_call_per_freshness_absent() {
    let world = World::new(|_| {}, |_| {});
    let mut client = world.client().await;
    let warm = ["1", "2", "3"];
    client.batch("t", &warm).await;
    world.update(|options| {
        options.poison = vec!["poison".into()];
        options.poison_status = 403;
    });
    let (begin, mut first) = (world.origin.batch_calls(), None);
    // Four times `freshness.absent`, which is 5 s.
    for _ in 0..100 {
        let refused = client.batch("t", &["poison"]).await;
        let first = first.get_or_insert_with(|| refused.body.clone());
        assert_eq!(refused.status, 403);
        let from_memory = refused.header("cache-status") == REMEMBERED;
        assert!(from_memory || refused.header("cache-status") == "sidelink; fwd=miss; fwd-status=403");
        assert!(!from_memory || refused.body.len() == first.len());
        assert_eq!(client.batch("t", &warm).await.header("cache-status"), "sidelink; hit");
        sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(world.origin.batch_calls() - begin, 4);
    assert_eq!(world.metric(r#"sidelink_ids_total{result="failed"}"#), 100.0);
    assert_eq!(world.metric(r#"sidelink_ids_total{result="hit"}"#), 300.0);
}

#[tokio::test(start_paused = true)]
async fn a_remembered_refusal_is_given_again_as_it_came_to_a_batch_of_exactly_that_id_and_caller() {
    for status in [403, 200] {
        let world = World::new(|_| {}, |_| {});
        let mut client = world.client().await;
        let headers = [("content-type", "application/json"), ("x-endpoints-own", "kept"), ("x-request-id", "r1")];
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let code = http::StatusCode::from_u16(status).unwrap();
        world.origin.script(ScriptedReply::Whole(code, headers.into_iter().collect(), FORBIDDEN.into()));
        let first = client.batch("t", &["1"]).await;
        let again = client.batch("t", &["1"]).await;
        assert_eq!(again.header("cache-status"), REMEMBERED);
        assert_eq!((first.status, &first.body), (again.status, &again.body));
        for name in ["content-type", "x-endpoints-own", "x-request-id", "via", "content-length"] {
            assert!(first.headers.contains_key(name), "{name}");
            assert_eq!(first.headers.get(name), again.headers.get(name), "{name}");
        }
        assert_eq!(world.origin.batch_calls(), 1);
        assert_eq!(client.batch("t", &["1", "2"]).await.ids(), ["1", "2"], "another batch");
        world.origin.script(ScriptedReply::Whole(code, http::HeaderMap::new(), FORBIDDEN.into()));
        client.batch("t", &["3"]).await;
        assert_eq!(client.batch("u", &["3"]).await.ids(), ["3"], "another caller");
        let group = format!("{}&group_id=g", query(&["3"]));
        assert_eq!(client.get(&group, &[("x-auth-token", "t")]).await.unwrap().ids(), ["3"], "another group");
    }
}

#[tokio::test(start_paused = true)]
async fn a_remembered_refusal_ends_by_either_clock_a_purge_a_401_or_a_later_answer() {
    for end in ["time", "suspend", "purge", "401", "answer"] {
        let world = World::new(|_| {}, |config| config.freshness.honour_no_store = true);
        let mut client = world.client().await;
        world.origin.script(ScriptedReply::json(403, FORBIDDEN));
        client.batch("t", &["1"]).await;
        sleep(Duration::from_millis(4_900)).await;
        assert_eq!(client.batch("t", &["1"]).await.header("cache-status"), REMEMBERED);
        match end {
            "time" => sleep(Duration::from_millis(101)).await,
            "suspend" => world.suspend(Duration::from_millis(101)),
            "purge" => {
                let request = http::Request::post("/purge").header("content-type", "application/json");
                let request = request.header("host", "localhost").body(r#"{"accessory_ids":["1"]}"#.to_owned());
                let purged = world.proxy.current().admin.answer(sidelink::server::Peer::Local, request.unwrap()).await;
                assert!(purged.status().is_success());
            }
            "401" => {
                world.origin.script(ScriptedReply::json(401, FORBIDDEN));
                assert_eq!(client.batch("t", &["2"]).await.status, 401);
            }
            _ => {
                // Not stored, so that memory has only the refusal.
                let headers =
                    http::HeaderMap::from_iter([("cache-control".parse().unwrap(), "no-store".parse().unwrap())]);
                let body = r#"{"accessory_urls":[{"accessory_id":"1","accessory_url":"u"}]}"#;
                world.origin.script(ScriptedReply::Whole(http::StatusCode::OK, headers, body.into()));
                let anew = [("x-auth-token", "t"), ("cache-control", "no-cache")];
                assert_eq!(client.get(&query(&["1"]), &anew).await.unwrap().ids(), ["1"]);
            }
        }
        assert_eq!(client.batch("t", &["1"]).await.ids(), ["1"], "{end}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_wants_no_answer_from_memory_gets_no_remembered_refusal() {
    let world = World::new(|_| {}, |_| {});
    let mut client = world.client().await;
    world.update(|options| {
        options.poison = vec!["1".into()];
        options.poison_status = 403;
    });
    let mut ask = async |directive: &str| {
        let headers = [("x-auth-token", "t"), ("cache-control", directive)];
        let reply = client.get(&query(&["1"]), &headers).await.unwrap();
        (reply.status.as_u16(), reply.header("cache-status") == REMEMBERED)
    };
    assert_eq!(ask("no-store").await, (403, false));
    assert_eq!(ask("only-if-cached").await, (504, false), "a no-store call leaves nothing behind");
    assert_eq!(ask("max-age=60").await, (403, false));
    for directive in ["max-age=60", "only-if-cached", "min-fresh=5"] {
        assert_eq!(ask(directive).await, (403, true), "{directive}");
    }
    sleep(Duration::from_millis(10)).await;
    for directive in ["no-cache", "no-store", "max-age=0", "min-fresh=6"] {
        assert_eq!(ask(directive).await, (403, false), "{directive}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_remembered_without_freshness_absent_or_where_it_may_not_be_stored() {
    let no_store = http::HeaderMap::from_iter([("cache-control".parse().unwrap(), "no-store".parse().unwrap())]);
    let varies = http::HeaderMap::from_iter([("vary".parse().unwrap(), "cookie".parse().unwrap())]);
    let none = http::HeaderMap::new();
    let long = format!(r#"{{"error_code":"OSM.0003","error_msg":"{}"}}"#, "x".repeat(16 << 10));
    for (absent, status, headers, body) in [
        (0, 403, &none, FORBIDDEN),
        (5, 403, &no_store, FORBIDDEN),
        (5, 403, &varies, FORBIDDEN),
        (5, 403, &none, &long),
        (5, 200, &none, r#"{"error_code":"OSM.01010001","error_msg":"parameters"}"#),
        (5, 200, &none, "{}"),
        (5, 404, &none, FORBIDDEN),
        (5, 500, &none, FORBIDDEN),
    ] {
        let world = World::new(|_| {}, |config| config.freshness.absent = Duration::from_secs(absent));
        let mut client = world.client().await;
        let status = http::StatusCode::from_u16(status).unwrap();
        world.origin.script(ScriptedReply::Whole(status, headers.clone(), body.to_owned().into()));
        assert_eq!(client.batch("t", &["1"]).await.status, status);
        assert_eq!(client.batch("t", &["1"]).await.ids(), ["1"], "{status} {headers:?} {body:.60}");
    }
}

#[tokio::test(start_paused = true)]
async fn batches_that_wait_for_one_refused_id_share_one_call() {
    let world = World::new(|options| options.delay = Duration::from_millis(50), |_| {});
    world.update(|options| {
        options.poison = vec!["1".into()];
        options.poison_status = 403;
    });
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let mut client = world.client().await;
        waiting.push(tokio::spawn(async move { client.batch("t", &["1"]).await }));
    }
    for client in waiting {
        assert_eq!(client.await.unwrap().status, 403);
    }
    assert_eq!(world.origin.batch_calls(), 1);
}

/// A call that was sent first is answered last: its link is the older word.
#[tokio::test(start_paused = true)]
async fn a_call_sent_before_a_403_for_its_id_fills_no_cache() {
    let world = World::new(|options| options.delay = Duration::from_secs(1), |_| {});
    let mut slow = world.client().await;
    let first = tokio::spawn(async move { slow.batch("t", &["1", "2"]).await });
    world.origin.arrived(1).await;
    sleep(Duration::from_millis(10)).await;
    world.update(|options| options.delay = Duration::ZERO);
    world.origin.script(ScriptedReply::json(403, FORBIDDEN));
    let mut client = world.client().await;
    let alone = [("x-auth-token", "t"), ("cache-control", "no-store")];
    assert_eq!(client.get(&query(&["1"]), &alone).await.unwrap().status, 403);
    assert_eq!(first.await.unwrap().ids(), ["1", "2"]);
    assert_eq!(client.batch("t", &["2"]).await.header("cache-status"), "sidelink; hit");
    assert_eq!(client.batch("t", &["1"]).await.header("cache-status"), "sidelink; fwd=miss; stored");
}

#[tokio::test]
async fn explain_shows_a_remembered_refusal() {
    let stack = Stack::start().await;
    stack.origin.script(ScriptedReply::json(403, FORBIDDEN));
    stack.client.batch("t", &["1"]).await;
    let admin = crate::support::TestClient::new(stack.app.admin_address());
    let ask = async |ids: &[&str]| {
        let pairs: Vec<String> = ids.iter().map(|id| format!("accessory_ids={id}")).collect();
        let explained = admin.get(&format!("/explain?{}", pairs.join("&")), &[("x-auth-token", "t")]).await.json();
        let field = |at: usize, name: &str| explained["ids"][at][name].as_str().unwrap().to_owned();
        (explained["outcome"].as_str().unwrap().to_owned(), field(0, "state"), field(0, "result"))
    };
    assert_eq!(ask(&["1"]).await, ("error".into(), "refused".into(), "failed".into()));
    assert_eq!(ask(&["1", "2"]).await, ("miss".into(), "unknown".into(), "fetched".into()));
}

#[tokio::test]
async fn an_acceptance_runs_out_and_the_next_batch_is_fetched_whole() {
    let clock = Clock::simulated(unix_millis());
    let stack = Stack::on(clock.clone(), |_| {}, |_| {}).await;
    stack.client.batch("t", &["1", "2"]).await;
    clock.step(299_000);
    assert_eq!(stack.client.batch("t", &["1", "2"]).await.header("cache-status"), "sidelink; hit");
    clock.step(2_000);
    let again = stack.client.batch("t", &["1", "2"]).await;
    assert_eq!(again.header("cache-status"), "sidelink; fwd=miss; stored");
    assert_eq!(stack.asked().len(), 2);
    assert_eq!(stack.metric(r#"sidelink_refetched_total{cause="revalidate"}"#).await, 2.0);

    stack.origin.update(|options| options.refuse = vec!["t".into()]);
    clock.step(301_000);
    assert_eq!(stack.client.batch("t", &["1", "2"]).await.status, 401, "a revoked token loses access in time");
}

#[tokio::test]
async fn with_the_endpoint_down_a_caller_that_cannot_be_revalidated_is_served_stale() {
    let clock = Clock::simulated(unix_millis());
    let stack = Stack::on(clock.clone(), |_| {}, |_| {}).await;
    let first = stack.client.batch("t", &["1", "2"]).await;
    stack.origin.stop().await;
    clock.step(301_000);
    let stale = stack.client.batch("t", &["1", "2"]).await;
    assert_eq!(stale.header("cache-status"), "sidelink; fwd=stale; detail=stale");
    assert_eq!(stale.header("cache-control"), "no-store");
    assert_eq!(stale.links(), first.links());
}

#[tokio::test]
async fn a_call_sent_before_a_401_fills_no_cache() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let client = stack.client.clone();
    let slow = tokio::spawn(async move { client.batch("t", &["1"]).await });
    stack.origin.arrived(1).await;
    stack.origin.script(ScriptedReply::json(401, r#"{"error_code":"OSM.0002","error_msg":"failed"}"#));
    let client = stack.client.clone();
    let refused = tokio::spawn(async move { client.batch("t", &["2"]).await });
    stack.origin.arrived(2).await;
    // Both go on at once; whichever is read first, the link must not be there afterwards without a new call.
    stack.origin.release();
    assert_eq!(refused.await.unwrap().status, 401);
    assert_eq!(slow.await.unwrap().ids(), ["1"]);
    let calls = stack.asked().len();
    stack.client.batch("t", &["1"]).await;
    assert_eq!(stack.asked().len(), calls + 1);
}

#[tokio::test]
async fn a_request_without_a_caller_is_forwarded_untouched_and_not_stored() {
    let token = ("x-auth-token", "t");
    for (headers, reason) in [
        (vec![("authorization", "SDK-HMAC-SHA256 Access=a, SignedHeaders=host, Signature=00")], "unknown-key"),
        (vec![("authorization", "V11-HMAC-SHA256 x")], "algorithm"),
        (vec![("authorization", "x"), token], "credentials"),
        (vec![token, ("x-security-token", "s")], "credentials"),
        (vec![token, ("origin", "https://h")], "origin"),
        (vec![token, ("range", "bytes=0-1")], "range"),
        (vec![], "no-credential"),
    ] {
        let stack = Stack::start().await;
        let mut sent = headers.clone();
        sent.push(("x-other", "kept"));
        for _ in 0..2 {
            let reply = stack.client.get(&query(&["1", "1"]), &sent).await;
            assert_eq!(reply.header("cache-status"), format!("sidelink; fwd=bypass; detail={reason}"));
        }
        let calls = stack.origin.calls();
        assert_eq!(calls.len(), 2, "{reason}");
        assert_eq!(calls[0].target, query(&["1", "1"]));
        for (name, value) in &sent {
            assert_eq!(calls[0].headers[*name], *value);
        }
        assert_eq!(stack.metric(&format!("sidelink_bypass_total{{reason=\"{reason}\"}}")).await, 2.0);
        assert_eq!(stack.metric("sidelink_cache_links").await, 0.0);
    }
}

#[tokio::test]
async fn a_credential_or_scope_header_beyond_the_apis_bounds_goes_upstream_unchanged() {
    let stack = Stack::with(|_| {}, |config| config.callers.scope_headers = vec!["x-tenant".parse().unwrap()]).await;
    let bounds = [
        ("x-auth-token", 5000),
        ("x-tenant", 5000),
        ("x-language", 32),
        ("x-time-zone", 32),
        ("x-site", 32),
        ("x-domain-id", 64),
        ("x-project-id", 64),
        ("x-enterprise-project-id", 64),
    ];
    for (name, most) in bounds {
        let (within, beyond) = ("x".repeat(most), "x".repeat(most + 1));
        for (value, is_beyond) in [(&within, false), (&beyond, true)] {
            let mut headers = vec![(name, value.as_str())];
            headers.extend((name != "x-auth-token").then_some(("x-auth-token", "t")));
            for is_first in [true, false] {
                let calls = stack.origin.calls().len();
                let reply = stack.client.get(&query(&["1"]), &headers).await;
                let expected = match (is_beyond, is_first) {
                    (true, _) => "sidelink; fwd=bypass; detail=header-too-long",
                    (false, true) => "sidelink; fwd=miss; stored",
                    (false, false) => "sidelink; hit",
                };
                assert_eq!((reply.header("cache-status"), reply.ids()), (expected, vec!["1".to_owned()]), "{name}");
                if expected != "sidelink; hit" {
                    assert_eq!(stack.origin.calls()[calls].headers[name], *value, "{name}");
                }
            }
        }
    }
    let counted = stack.metric(r#"sidelink_bypass_total{reason="header-too-long"}"#).await;
    assert_eq!(counted, 2.0 * bounds.len() as f64);
    let two = [("x-auth-token", "t"), ("x-language", "0123456789abcdef"), ("x-language", "0123456789abcdef")];
    let reply = stack.client.get(&query(&["1"]), &two).await;
    assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=header-too-long", "as one list");
}

#[tokio::test]
async fn an_unreadable_batch_goes_upstream_unchanged() {
    let stack = Stack::start().await;
    let token = ("x-auth-token", "t");
    let targets =
        ["accessory_ids=1&x=2", "accessory_ids=a+%f", "accessory_ids=1&group_id=a&group_id=b", "accessory_ids=%ff"];
    for (at, query) in targets.iter().enumerate() {
        let target = format!("{}?{query}", sidelink::demo::origin::interface::PATH);
        let reply = stack.client.get(&target, &[token]).await;
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=unreadable");
        assert_eq!(stack.origin.calls()[at].target, target);
    }
    let bodies = [r#"{"accessory_ids":[1]}"#, "not json", r#"{"accessory_ids":["1"],"more":true}"#];
    for body in bodies {
        let reply = stack.client.send(Method::GET, sidelink::demo::origin::interface::PATH, &[token], body).await;
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=unreadable");
        assert_eq!(stack.origin.calls().last().unwrap().body, body);
    }
}

fn unix_millis() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_millis()).unwrap()
}
