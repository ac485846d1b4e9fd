//! `/explain` predicts the answer of a batch; it changes nothing and shows no secret.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use sidelink::clock::Clock;
use sidelink::config::Config;
use sidelink::config::batch::BatchApi;
use sidelink::demo::origin::shapes::{SHAPES, Shape};

use crate::admin::token;
use crate::fleet::{Fleet, Redis};
use crate::signing::{ACCESS_KEY, Unsigned, knows, pair};
use crate::support::{Stack, TestClient, query};

const T: (&str, &str) = ("x-auth-token", "t");

async fn explain(stack: &Stack, query: &str, headers: &[(&str, &str)]) -> Value {
    let reply = TestClient::new(stack.app.admin_address()).get(&format!("/explain?{query}"), headers).await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    reply.json()
}

fn ids(explanation: &Value) -> Vec<[&str; 3]> {
    let of = |id: &'_ Value, name: &str| id[name].as_str().map(|text| text.to_owned().leak() as &str).unwrap();
    explanation["ids"].as_array().unwrap().iter().map(|id| [of(id, "id"), of(id, "state"), of(id, "result")]).collect()
}

fn today() -> Clock {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Clock::simulated(i64::try_from(now.as_millis()).unwrap())
}

#[tokio::test]
async fn each_id_has_its_state_and_its_expected_result() {
    let endpoint = |options: &mut sidelink::demo::origin::Options| options.missing = vec!["gone".into()];
    let configure = |config: &mut Config| {
        config.freshness.absent = Duration::from_secs(60);
        config.callers.revalidate = Duration::from_secs(3600);
    };
    let (clock, asked) = (today(), "accessory_ids=1&accessory_ids=2&accessory_ids=gone&accessory_ids=1");
    let stack = Stack::on(clock.clone(), endpoint, configure).await;
    let unknown = explain(&stack, asked, &[T]).await;
    assert_eq!(unknown["caller"]["state"], "unknown");
    assert_eq!(
        ids(&unknown),
        [["1", "unknown", "fetched"], ["2", "unknown", "fetched"], ["gone", "unknown", "fetched"]]
    );
    assert_eq!(unknown["outcome"], "miss");

    stack.client.batch("t", &["1", "gone"]).await;
    let known = explain(&stack, asked, &[T]).await;
    assert_eq!(known["caller"]["state"], "accepted");
    assert!(known["caller"]["accepted_seconds"].as_f64().unwrap() > 3500.0);
    assert_eq!(ids(&known), [["1", "fresh", "hit"], ["2", "unknown", "fetched"], ["gone", "absent", "absent"]]);
    assert_eq!((&known["outcome"], &known["form"]), (&json!("partial"), &json!("repeated")));
    let [one, _, gone] = &known["ids"].as_array().unwrap()[..] else { panic!() };
    assert!((590.0..=600.0).contains(&one["fresh_seconds"].as_f64().unwrap()), "{one}");
    assert!((830.0..=840.0).contains(&one["usable_seconds"].as_f64().unwrap()), "15 min of life but one: {one}");
    assert!((50.0..=60.0).contains(&gone["fresh_seconds"].as_f64().unwrap()), "{gone}");
    for name in ["fresh_until", "usable_until", "expires_at"] {
        assert!(one[name].as_str().unwrap().ends_with('Z'), "{one}");
    }
    assert!(one["link"].as_str().unwrap().ends_with("?…") && gone.get("link").is_none());

    stack.origin.hold();
    let client = stack.client.clone();
    let flying = tokio::spawn(async move { client.batch("t", &["2"]).await });
    stack.origin.arrived(2).await;
    assert_eq!(ids(&explain(&stack, "accessory_ids=2", &[T]).await), [["2", "in_flight", "joined"]]);
    stack.origin.release();
    flying.await.unwrap();

    clock.step(575_000);
    let ageing = explain(&stack, "accessory_ids=1", &[T]).await;
    assert_eq!((&ageing["outcome"], &ageing["ids"][0]["refresh_ahead"]), (&json!("hit"), &json!(true)));
    clock.step(30_000);
    assert_eq!(
        ids(&explain(&stack, asked, &[T]).await),
        [["1", "stale", "fetched"], ["2", "stale", "fetched"], ["gone", "expired", "fetched"]]
    );
    clock.step(240_000);
    let floor = explain(&stack, "accessory_ids=1", &[T]).await;
    assert_eq!(ids(&floor), [["1", "past_floor", "fetched"]]);
    stack.client.batch("t", &["1"]).await;
    stack.client.send(Method::DELETE, "/v2/servicerequest/accessorys/1", &[], "").await;
    assert_eq!(ids(&explain(&stack, "accessory_ids=1", &[T]).await), [["1", "purged", "fetched"]]);
}

#[tokio::test]
async fn the_explanation_matches_the_answer_that_follows() {
    let configure = |config: &mut Config| {
        config.upstream.breaker.consecutive = 1;
        config.upstream.breaker.open = Duration::from_secs(60);
        config.upstream.retry.attempts = 0;
        config.callers.revalidate = Duration::from_secs(3600);
    };
    let (clock, client) = (today(), |stack: &Stack| stack.client.clone());
    let stack = Stack::on(clock.clone(), |_| {}, configure).await;
    let situations: [(&str, &[(&str, &str)]); 9] = [
        ("accessory_ids=1", &[T]),
        ("accessory_ids=1", &[T]),
        ("accessory_ids=1,2&group_id=g", &[T]),
        ("accessory_ids=1,3", &[T]),
        ("accessory_ids=1", &[T, ("cache-control", "no-cache")]),
        ("accessory_ids=1", &[T, ("cache-control", "max-age=0")]),
        ("accessory_ids=9", &[T, ("cache-control", "only-if-cached")]),
        ("accessory_ids=1&cursor=2", &[T]),
        ("accessory_ids=1", &[]),
    ];
    let happens = async |query: &str, headers: &[(&str, &str)]| {
        let explained = explain(&stack, query, headers).await;
        let outcomes = ["hit", "partial", "miss", "stale", "bypass", "error"];
        let mut before = Vec::new();
        for outcome in outcomes {
            before.push(stack.metric(&format!("sidelink_batches_total{{outcome=\"{outcome}\"}}")).await);
        }
        client(&stack).get(&format!("{}?{query}", sidelink::demo::origin::interface::PATH), headers).await;
        let mut happened = 0;
        for (outcome, before) in outcomes.iter().zip(before) {
            if stack.metric(&format!("sidelink_batches_total{{outcome=\"{outcome}\"}}")).await > before {
                assert_eq!(explained["outcome"], **outcome, "{query} {headers:?}: {explained}");
                happened += 1;
            }
        }
        assert_eq!(happened, 1);
    };
    for (query, headers) in situations {
        happens(query, headers).await;
    }
    stack.origin.stop().await;
    stack.client.batch("t", &["7"]).await;
    let down = explain(&stack, "accessory_ids=7", &[T]).await;
    assert_eq!((&down["error_code"], &down["ids"][0]["result"]), (&json!("SIDELINK.1003"), &json!("failed")));
    clock.step(601_000);
    assert_eq!(ids(&explain(&stack, "accessory_ids=1", &[T]).await), [["1", "stale", "stale"]]);
    for query in ["accessory_ids=1", "accessory_ids=1,7", "accessory_ids=7"] {
        happens(query, &[T]).await;
    }
}

#[tokio::test]
async fn a_request_that_is_no_batch_gets_the_reason() {
    let stack = Stack::with(|_| {}, |config| config.limits.batch_ids = 2).await;
    for (query, headers, bypass) in [
        ("accessory_ids=1", &[][..], "no-credential"),
        ("accessory_ids=1", &[T, T], "credentials"),
        ("accessory_ids=1", &[T, ("range", "bytes=0-1")], "range"),
        ("accessory_ids=1", &[("authorization", "Basic x")], "algorithm"),
        ("", &[T], "unreadable"),
        ("accessory_ids=1&x=2", &[T], "unreadable"),
    ] {
        let explained = explain(&stack, query, headers).await;
        assert_eq!(
            (&explained["outcome"], &explained["bypass"]),
            (&json!("bypass"), &json!(bypass)),
            "{query} {headers:?}"
        );
        assert!(!explained["why"].as_str().unwrap().is_empty());
    }
    let many = explain(&stack, "accessory_ids=1,2,3", &[T]).await;
    assert_eq!((&many["outcome"], &many["error_code"]), (&json!("error"), &json!("SIDELINK.0001")));
    let body = r#"{"group_id":"g","accessory_ids":["1"]}"#;
    let admin = TestClient::new(stack.app.admin_address());
    let by_body = admin.send(Method::GET, "/explain", &[T], body).await.json();
    assert_eq!((&by_body["form"], &by_body["group_id"]), (&json!("body"), &json!("g")));
    let body = r#"{"group_id":null,"accessory_ids":["1"]}"#;
    let by_body = admin.send(Method::GET, "/explain", &[T], body).await.json();
    assert_eq!(by_body.get("group_id"), Some(&Value::Null));
    let plus = explain(&stack, "accessory_ids=a+b&group_id=g+h", &[T]).await;
    assert_eq!((&plus["ids"][0]["id"], &plus["group_id"]), (&json!("a+b"), &json!("g+h")));
}

#[tokio::test]
async fn explain_changes_nothing_and_shows_no_secret() {
    let stack = Stack::start().await;
    let links = stack.client.batch("MARKED-token", &["1", "2"]).await.links();
    let counted = |page: String| -> Vec<String> {
        // Metrics of the process and of time.
        let moves = ["process_", "sidelink_tasks", "# "];
        page.lines().filter(|line| !moves.iter().any(|moves| line.starts_with(moves))).map(str::to_owned).collect()
    };
    let before = counted(stack.metrics().await);
    for token in ["MARKED-token", "MARKED-stranger"] {
        for _ in 0..3 {
            let said = explain(&stack, "accessory_ids=1,2,3", &[("x-auth-token", token)]).await;
            let state = if token == "MARKED-token" { "accepted" } else { "unknown" };
            assert_eq!(said["caller"]["state"], state, "to ask makes nobody known");
            assert!(!said.to_string().contains("MARKED"));
            for (_, link) in &links {
                let (bare, secret) = link.split_once('?').unwrap();
                assert!(!said.to_string().contains(secret));
                assert_eq!(said.to_string().contains(bare), token == "MARKED-token");
            }
        }
    }
    assert_eq!(counted(stack.metrics().await), before);
    assert_eq!(stack.asked().len(), 1);
}

#[tokio::test]
async fn a_signed_batch_is_explained_as_signed_for_its_own_path() {
    let stack = Stack::with(
        |endpoint| endpoint.keys = vec![pair(ACCESS_KEY, "SECRET")],
        |config| knows(config, ACCESS_KEY, "SECRET"),
    )
    .await;
    let target = query(&["1"]);
    let address = stack.app.addresses()[0];
    let signed = Unsigned { secret_key: "SECRET", ..Unsigned::get(address, &target, &Clock::system()) }.sign();
    let headers: Vec<(&str, &str)> = signed.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(stack.client.get(&target, &headers).await.ids(), ["1"]);
    // Signed for the endpoint's name, as by a client that uses sidelink as its proxy.
    let own =
        Unsigned { secret_key: "SECRET", ..Unsigned::get(stack.origin.address(), &target, &Clock::system()) }.sign();
    let own: Vec<(&str, &str)> =
        own.iter().map(|(name, value)| (*name, value.as_str())).filter(|(name, _)| *name != "host").collect();
    for headers in [headers, own] {
        let explained = explain(&stack, "accessory_ids=1", &headers).await;
        assert_eq!(ids(&explained), [["1", "fresh", "hit"]], "{explained}");
        let forged = explain(&stack, "accessory_ids=2", &headers).await;
        assert_eq!((&forged["outcome"], &forged["bypass"]), (&json!("bypass"), &json!("signature")));
    }
}

#[tokio::test]
async fn the_admin_token_is_not_taken_for_a_batchs_credential() {
    let stack = Stack::with(|_| {}, token).await;
    let bearer = ("authorization", "Bearer token-of-an-operator");
    assert_eq!(explain(&stack, "accessory_ids=1", &[T, bearer]).await["outcome"], "miss");
    assert_eq!(explain(&stack, "accessory_ids=1", &[bearer]).await["bypass"], "no-credential");
}

/// A batch as it would be recorded.
fn recorded(shape: &Shape, numbers: &[&str]) -> String {
    let ids: Vec<String> = numbers.iter().map(|number| shape.id(number)).collect();
    let (target, body) = shape.batch(&ids);
    let headers: String = shape.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    format!("{} {target} HTTP/1.1\n{headers}\n{body}\n", shape.method)
}

async fn explain_raw(stack: &Stack, request: &str) -> Value {
    let admin = TestClient::new(stack.app.admin_address());
    let headers = [("content-type", "message/http")];
    let reply = admin.send(Method::POST, "/explain", &headers, request.to_owned()).await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    reply.json()
}

#[tokio::test]
async fn a_raw_request_of_any_api_is_explained() {
    for shape in &SHAPES {
        let all = |config: &mut Config| {
            config.batch = BatchApi::presets().map(|name| BatchApi::preset(name).unwrap()).collect();
        };
        let stack = Stack::with(|options| options.api = shape, all).await;
        let unknown = explain_raw(&stack, &recorded(shape, &["1", "2"])).await;
        assert_eq!((&unknown["api"], &unknown["outcome"]), (&json!(shape.name), &json!("miss")), "{unknown}");
        let (target, body) = shape.batch(&[shape.id("1")]);
        stack.client.send(shape.method.clone(), &target, shape.headers, body).await;
        let known = explain_raw(&stack, &recorded(shape, &["1", "2"])).await;
        assert_eq!((&known["outcome"], &known["ids"][0]["result"]), (&json!("partial"), &json!("hit")), "{known}");
        let text = known.to_string();
        let secrets = ["demo-token", "serial=", "Signature", "token="];
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "{text}");
        assert_eq!(stack.asked().len(), 1, "explaining asks for nothing");
    }
}

#[tokio::test]
async fn an_id_that_is_a_link_is_explained_without_its_query() {
    let stack = Stack::with(|_| {}, |config| config.batch = vec![BatchApi::preset("discord-cdn").unwrap()]).await;
    let explained = explain_raw(
        &stack,
        "POST /api/v10/attachments/refresh-urls HTTP/1.1\nauthorization: Bot x\n\n{\"attachment_urls\":[\"https://h/a?ex=1&hm=SECRET\"]}",
    )
    .await;
    assert_eq!(explained["ids"][0]["id"], "https://h/a?…", "{explained}");
}

#[tokio::test]
async fn what_is_no_batch_is_explained_as_such_and_what_is_no_request_is_refused() {
    let stack = Stack::with(|_| {}, |config| config.batch = vec![BatchApi::preset("git-lfs").unwrap()]).await;
    let elsewhere = explain_raw(&stack, "GET /elsewhere HTTP/1.1\n\n").await;
    assert_eq!(elsewhere["outcome"], "passthrough", "{elsewhere}");
    let misfit = recorded(Shape::of("git-lfs").unwrap(), &["1"]).replace("\"objects\"", "\"things\"");
    let misfit = explain_raw(&stack, &misfit).await;
    assert_eq!((&misfit["bypass"], &misfit["why"]), (&json!("unreadable"), &json!("its body has no list at ids.body")));
    let admin = TestClient::new(stack.app.admin_address());
    for (media_type, body, status) in
        [("message/http", "SECRET", 400), ("application/json", "{}", 415), ("text/plain", "GET / HTTP/1.1\n\n", 415)]
    {
        let reply = admin.send(Method::POST, "/explain", &[("content-type", media_type)], body).await;
        assert_eq!(reply.status, status, "{media_type} {body}");
        assert!(!reply.json().to_string().contains("SECRET"), "{:?}", reply.body);
    }
    let query = admin.get("/explain?accessory_ids=1", &[]).await;
    assert_eq!(query.status, 404, "no API has its ids in a query");
}

#[tokio::test]
async fn a_query_is_explained_for_the_first_api_that_has_its_ids_there() {
    let configure = |config: &mut Config| {
        config.batch = ["git-lfs", "google-photos"].map(|name| BatchApi::preset(name).unwrap()).into();
    };
    let stack = Stack::with(|_| {}, configure).await;
    let admin = TestClient::new(stack.app.admin_address());
    let explained = admin.get("/explain?mediaItemIds=1&mediaItemIds=2", &[("authorization", "Bearer x")]).await.json();
    assert_eq!((&explained["api"], &explained["ids"][1]["id"]), (&json!("google-photos"), &json!("2")), "{explained}");
}

#[tokio::test]
async fn an_id_that_is_fetched_says_whether_the_shared_tier_is_asked_and_it_is_not_asked_for_that() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 1).await;
    let sidecar = &fleet.sidecars[0];
    let admin = TestClient::new(sidecar.app.admin_address());
    let of_first = async |headers: &[(&str, &str)]| {
        let explained = admin.get("/explain?accessory_ids=1", headers).await.json();
        explained["ids"][0]["shared_tier"].clone()
    };
    let said = of_first(&[T]).await;
    assert_eq!(said["asked"], true, "{said}");
    for (header, why) in
        [(("cache-control", "no-cache"), "Cache-Control"), (("cache-control", "only-if-cached"), "memory alone")]
    {
        let said = of_first(&[T, header]).await;
        assert!(said["asked"] == false && said["why"].as_str().unwrap().contains(why), "{said}");
    }
    let request = format!("GET {} HTTP/1.1\r\nX-Auth-Token: t\r\nVia: 1.1 sidelink\r\n\r\n", query(&["1"]));
    let raw = [("content-type", "message/http")];
    let explained = admin.send(Method::POST, "/explain", &raw, request).await.json();
    assert_eq!(explained["ids"][0]["shared_tier"]["why"], "another sidelink has sent the request on", "{explained}");
    for operation in ["get", "lease"] {
        let series = format!("sidelink_shared_operations_total{{operation=\"{operation}\"}}");
        assert_eq!(sidecar.metric(&series).await, 0.0, "{operation}");
    }
    sidecar.client.batch("t", &["1"]).await;
    assert_eq!(of_first(&[T]).await, Value::Null, "memory has it");
    drop(redis);
    sidecar.tier_is(false).await;
    let said = of_first(&[("x-auth-token", "u")]).await;
    assert_eq!(said, json!({ "asked": false, "why": "the shared tier is down" }));
    let without = Stack::start().await;
    assert_eq!(explain(&without, "accessory_ids=1", &[T]).await["ids"][0]["shared_tier"], Value::Null);
}
