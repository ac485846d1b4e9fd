//! Requests as the official Go, Java and Node SDKs sign them are verified, answered from the cache, and signed again so that
//! an endpoint that takes only one order of the query, and wants Host signed, accepts them.

use std::collections::BTreeMap;

use http::Method;
use serde::Deserialize;
use sidelink::clock::{Clock, read_basic_date};
use sidelink::config::Config;
use sidelink::demo::origin::RecordedCall;
use sidelink::demo::origin::interface as api;

use crate::signing::{ACCESS_KEY, SECRET_KEY, Unsigned, knows, pair};
use crate::support::{Reply, Stack, TestClient, query};

const ECHO: &str = "/v2/servicerequest/echo";

/// A request of an official SDK.
#[derive(Deserialize)]
struct Variant {
    name: String,
    method: String,
    uri: String,
    headers: BTreeMap<String, String>,
    body: String,
    access_key: String,
    secret_key: String,
    authorization: String,
}

fn variants() -> Vec<Variant> {
    let variants: Vec<Variant> = serde_json::from_str(include_str!("../data/sdk-variants.json")).unwrap();
    assert_eq!(variants.len(), 9);
    variants
}

impl Variant {
    fn date(&self) -> u64 {
        read_basic_date(&self.headers["X-Sdk-Date"]).unwrap()
    }

    async fn send(&self, client: &TestClient) -> Reply {
        let mut headers: Vec<(&str, &str)> = self.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        headers.push(("authorization", &self.authorization));
        let method: Method = self.method.parse().unwrap();
        client.send(method, &self.uri, &headers, self.body.clone()).await
    }
}

/// An endpoint and a sidelink that know the key, both at `now`.
async fn stack(now: u64, access_key: &str, secret_key: &str) -> Stack {
    let machine = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let endpoint = |options: &mut sidelink::demo::origin::Options| {
        options.keys = vec![pair(access_key, secret_key)];
        options.clock_offset = i64::try_from(now).unwrap() - i64::try_from(machine).unwrap();
    };
    let clock = Clock::simulated(i64::try_from(now).unwrap() * 1000);
    Stack::on(clock, endpoint, |config| knows(config, access_key, secret_key)).await
}

/// Whether a call is signed over its Host, with the query sorted by code point: computed by the tests' own signer.
fn is_signed_strictly(call: &RecordedCall, access_key: &str, secret_key: &str) -> bool {
    let text = |name: &str| call.headers[name].to_str().unwrap().to_owned();
    let authorization = text("authorization");
    let names = authorization.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let signed: Vec<&'static str> = names.split(';').map(|name| &*name.to_owned().leak()).collect();
    let unsigned = Unsigned {
        method: call.method.clone(),
        host: text("host"),
        target: call.target.clone(),
        headers: signed
            .iter()
            .filter(|name| !["host", "x-sdk-date"].contains(name))
            .map(|name| (*name, text(name)))
            .collect(),
        body: &call.body,
        access_key,
        secret_key,
        now: read_basic_date(&text("x-sdk-date")).unwrap(),
    };
    let expected = unsigned.sign().into_iter().find(|(name, _)| *name == "authorization").unwrap().1;
    signed.contains(&"host") && expected == authorization
}

#[tokio::test]
async fn requests_of_the_go_java_and_node_sdks_verify_hit_and_are_signed_again_strictly() {
    for variant in variants() {
        let stack = stack(variant.date(), &variant.access_key, &variant.secret_key).await;
        if !variant.uri.starts_with(api::PATH) {
            let reply = variant.send(&stack.client).await;
            assert_eq!(reply.json()["error_code"], "APIGW.0101", "{}: the endpoint has verified it", variant.name);
            continue;
        }
        for expected in ["sidelink; fwd=miss; stored", "sidelink; hit"] {
            let reply = variant.send(&stack.client).await;
            assert_eq!(reply.header("cache-status"), expected, "{}: {:?}", variant.name, reply.body);
            let asked = variant.uri.split('&').filter(|pair| pair.contains("accessory_ids=")).count();
            assert_eq!(reply.ids().len(), asked, "{}", variant.name);
        }
        let calls = stack.origin.calls();
        assert_eq!(calls.len(), 1);
        assert!(is_signed_strictly(&calls[0], &variant.access_key, &variant.secret_key), "{}", variant.name);
    }
}

#[tokio::test]
async fn no_part_of_a_variant_can_be_changed_unnoticed() {
    for mut variant in variants() {
        let stack = stack(variant.date(), &variant.access_key, &variant.secret_key).await;
        variant.send(&stack.client).await;
        variant.headers.insert("X-Domain-Id".into(), "d2".into());
        let reply = variant.send(&stack.client).await;
        assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (401, Some("APIGW.0301")));
        if variant.uri.starts_with(api::PATH) {
            assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=signature", "{}", variant.name);
        }
    }
}

async fn now(configure: impl FnOnce(&mut Config)) -> (Stack, Clock) {
    let clock = Clock::simulated(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis().try_into().unwrap());
    let keys = |options: &mut sidelink::demo::origin::Options| options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)];
    let stack = Stack::on(clock.clone(), keys, |config| {
        knows(config, ACCESS_KEY, SECRET_KEY);
        configure(config);
    });
    (stack.await, clock)
}

async fn send(stack: &Stack, request: &Unsigned<'_>, extra: &[(&str, &str)]) -> Reply {
    let signed = request.sign();
    let mut headers: Vec<(&str, &str)> = signed.iter().map(|(name, value)| (*name, value.as_str())).collect();
    headers.extend(extra);
    stack.client.send(request.method.clone(), &request.target, &headers, request.body.to_vec()).await
}

#[tokio::test]
async fn a_signature_that_does_not_verify_is_left_to_the_endpoint() {
    let (stack, clock) = now(|_| {}).await;
    send(&stack, &Unsigned::get(stack.client.address, &query(&["1"]), &clock), &[]).await;
    // The clock of this machine is wrong: the endpoint, whose clock is right, accepts what is signed for its host.
    let right = clock.now().unix_seconds();
    clock.step(20 * 60 * 1000);
    let endpoint = stack.origin.address();
    let request = Unsigned { now: right, ..Unsigned::get(endpoint, &query(&["1"]), &clock) };
    for _ in 0..2 {
        let reply = send(&stack, &request, &[]).await;
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=signature");
        assert_eq!(reply.ids(), ["1"]);
    }
    let other = Unsigned { method: Method::POST, body: b"b", now: right, ..Unsigned::get(endpoint, ECHO, &clock) };
    assert_eq!(send(&stack, &other, &[]).await.json()["body"], "b");
    clock.step(-20 * 60 * 1000);
    // Forged: the endpoint's own 401, on either route, and nothing from the cache.
    for target in [query(&["1"]), ECHO.to_owned()] {
        let forged = Unsigned { secret_key: "other", ..Unsigned::get(stack.client.address, &target, &clock) };
        let reply = send(&stack, &forged, &[]).await;
        assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (401, Some("APIGW.0301")), "{target}");
    }
    assert_eq!(stack.metric(r#"sidelink_bypass_total{reason="signature"}"#).await, 3.0);
}

#[tokio::test]
async fn unsigned_identity_headers_are_neither_used_nor_sent_on() {
    let (stack, clock) = now(|config| config.callers.scope_headers = vec!["x-tenant".parse().unwrap()]).await;
    let names = ["x-project-id", "x-domain-id", "x-security-token", "x-language", "x-tenant"];
    let batch = Unsigned::get(stack.client.address, &query(&["1"]), &clock);
    assert_eq!(send(&stack, &batch, &[]).await.header("cache-status"), "sidelink; fwd=miss; stored");
    for name in names {
        let reply = send(&stack, &batch, &[(name, "other")]).await;
        assert_eq!(reply.header("cache-status"), "sidelink; hit", "{name}");
        let more = Unsigned::get(stack.client.address, &query(&["1", name]), &clock);
        assert_eq!(send(&stack, &more, &[(name, "other")]).await.ids(), ["1", name]);
        let call = stack.origin.calls().pop().unwrap();
        assert!(call.ids == [name] && !call.headers.contains_key(name), "{name}");
        // Other routes, and a batch that is forwarded.
        let other = Unsigned::get(stack.client.address, ECHO, &clock);
        let echo = send(&stack, &other, &[(name, "other"), ("x-more", "1")]).await.json().to_string();
        assert!(!echo.contains(&format!("\"{name}\"")) && echo.contains("x-more"), "{echo}");
        send(&stack, &batch, &[(name, "other"), ("range", "bytes=0-1")]).await;
        assert!(!stack.origin.calls().pop().unwrap().headers.contains_key(name), "{name}");
        // Signed, they say who asks.
        let signed = Unsigned::get(stack.client.address, &query(&["1"]), &clock).header(name, "other");
        assert_eq!(send(&stack, &signed, &[]).await.header("cache-status"), "sidelink; fwd=miss; stored", "{name}");
    }
}

#[tokio::test]
async fn an_empty_token_beside_a_signature_counts_as_absent() {
    let (stack, clock) = now(|_| {}).await;
    for expected in ["sidelink; fwd=miss; stored", "sidelink; hit"] {
        let batch = Unsigned::get(stack.client.address, &query(&["1"]), &clock);
        assert_eq!(send(&stack, &batch, &[("x-auth-token", "")]).await.header("cache-status"), expected);
    }
    let batch = Unsigned::get(stack.client.address, &query(&["1"]), &clock);
    let reply = send(&stack, &batch, &[("x-auth-token", "t")]).await;
    assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=credentials");
}

#[tokio::test]
async fn a_connection_header_that_names_a_signed_header_is_refused_on_both_routes() {
    let (stack, clock) = now(|_| {}).await;
    let batch = Unsigned::get(stack.client.address, &query(&["1"]), &clock);
    send(&stack, &batch, &[]).await;
    for named in ["authorization", "x-sdk-date", "host", "content-type"] {
        for target in [query(&["1"]), ECHO.to_owned()] {
            let request = Unsigned::get(stack.client.address, &target, &clock);
            let reply = send(&stack, &request, &[("connection", named)]).await;
            assert_eq!(
                (reply.status.as_u16(), reply.json()["error_code"].as_str()),
                (401, Some("SIDELINK.0003")),
                "{named} {target}"
            );
        }
    }
    assert_eq!(stack.asked().len(), 1);
}
