//! The cloud's official Python SDK gets from sidelink what it gets from the endpoint.
//!
//! `make tools` installs it; without it these tests fail.

use std::process::Command;

use serde_json::Value;
use sidelink::demo::origin::{ScriptedReply as Scripted, link_is_for};

use crate::signing::{ACCESS_KEY, SECRET_KEY, knows, pair};
use crate::support::Stack;

const ODD_IDS: [&str; 6] = ["a/b", "c d", "e+f", "g,h", "i~j", "附件"];

/// (id, link) of each item that the SDK read, sorted by id as the SDK sends them.
async fn batch(address: std::net::SocketAddr, arguments: &[&str]) -> Vec<(String, String)> {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut command = Command::new(format!("{root}/.venv/bin/python"));
    command.arg(format!("{root}/tests/sdk/batch.py")).arg(format!("http://{address}")).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output.expect("the SDK's Python is not there: run `make tools`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
    let items = String::from_utf8(output.stdout).unwrap();
    let items = items.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut items: Vec<_> = items.map(|item| (text(&item, "id"), text(&item, "url"))).collect();
    items.sort();
    items
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_with_a_token_misses_hits_and_asks_for_what_lacks() {
    let stack = Stack::start().await;
    let arguments = [&["--token", "t", "--group", "g", "--language", "en-us"][..], &ODD_IDS].concat();
    let direct = batch(stack.origin.address(), &arguments).await;
    let first = batch(stack.client.address, &arguments).await;
    let strip = |links: &[(String, String)]| links.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    assert_eq!(strip(&first), strip(&direct));
    for (id, link) in &first {
        assert!(link_is_for(link, id, Some("g"), "t", Some("en-us"), None), "{link}");
    }
    assert_eq!(stack.asked().len(), 2);

    assert_eq!(batch(stack.client.address, &arguments).await, first);
    assert_eq!(stack.asked().len(), 2, "all from memory");

    let more = [&arguments[..], &["new"]].concat();
    assert_eq!(batch(stack.client.address, &more).await.len(), first.len() + 1);
    assert_eq!(stack.asked().last().unwrap(), &["new"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_that_signs_misses_hits_and_asks_for_what_lacks() {
    let keys = |options: &mut sidelink::demo::origin::Options| options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)];
    let stack = Stack::with(keys, |config| knows(config, ACCESS_KEY, SECRET_KEY)).await;
    let credential = ["--ak", ACCESS_KEY, "--sk", SECRET_KEY, "--domain-id", "d", "--security-token", "sts=="];
    let arguments = [&credential[..], &["--group", "g", "--language", "en-us"], &ODD_IDS].concat();
    let direct = batch(stack.origin.address(), &arguments).await;
    assert_eq!(direct.len(), ODD_IDS.len(), "the endpoint verifies what the SDK signs");

    let first = batch(stack.client.address, &arguments).await;
    for (id, link) in &first {
        assert!(link_is_for(link, id, Some("g"), ACCESS_KEY, Some("en-us"), None), "{link}");
    }
    assert_eq!(first.len(), ODD_IDS.len());
    assert_eq!(stack.asked().len(), 2);
    assert_eq!(batch(stack.client.address, &arguments).await, first);
    assert_eq!(stack.asked().len(), 2, "all from memory");

    let more = [&arguments[..], &["new", "neu/ö"]].concat();
    assert_eq!(batch(stack.client.address, &more).await.len(), first.len() + 2);
    // The endpoint has verified the signature: it answered.
    assert_eq!(stack.asked().last().unwrap(), &["neu/ö", "new"]);
    let call = stack.origin.calls().pop().unwrap();
    assert!(call.headers["x-domain-id"] == "d" && call.headers["x-security-token"] == "sts==");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_that_signs_for_the_endpoints_host_needs_no_key_here_and_is_not_cached() {
    let keys = |options: &mut sidelink::demo::origin::Options| options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)];
    let stack = Stack::with(keys, |_| {}).await;
    let proxy = stack.client.address.to_string();
    let arguments =
        [&["--ak", ACCESS_KEY, "--sk", SECRET_KEY, "--domain-id", "d", "--proxy", &proxy][..], &ODD_IDS].concat();
    for calls in 1..=2 {
        let links = batch(stack.origin.address(), &arguments).await;
        assert_eq!(links.len(), ODD_IDS.len());
        assert_eq!(stack.asked().len(), calls, "nothing is kept");
        assert_eq!(
            stack.metric(r#"sidelink_bypass_total{reason="unknown-key"}"#).await,
            f64::from(u32::try_from(calls).unwrap())
        );
    }
    assert_eq!(stack.metric("sidelink_cache_links").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_as_the_client_of_an_http_proxy_that_knows_its_key_is_cached() {
    let keys = |options: &mut sidelink::demo::origin::Options| options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)];
    let stack = Stack::with(keys, |config| knows(config, ACCESS_KEY, SECRET_KEY)).await;
    let proxy = stack.client.address.to_string();
    let arguments =
        [&["--ak", ACCESS_KEY, "--sk", SECRET_KEY, "--domain-id", "d", "--proxy", &proxy][..], &ODD_IDS].concat();
    let first = batch(stack.origin.address(), &arguments).await;
    assert_eq!(batch(stack.origin.address(), &arguments).await, first);
    assert_eq!(stack.asked().len(), 1);
}

/// The SDK keeps cookies in a `requests.Session`; this cloud's firewall sets some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_with_cookies_of_the_clouds_firewall_in_its_jar_hits() {
    let keys = |options: &mut sidelink::demo::origin::Options| options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)];
    let signed = ["--ak", ACCESS_KEY, "--sk", SECRET_KEY, "--domain-id", "d"];
    for credential in [&["--token", "t"][..], &signed] {
        let stack = Stack::with(keys, |config| knows(config, ACCESS_KEY, SECRET_KEY)).await;
        // Longer than an id may be: forwarded untouched, so that Set-Cookie reaches the client, and its cookies the endpoint.
        let long = "x".repeat(65);
        let items =
            |id: &str| format!(r#"{{"accessory_urls":[{{"accessory_id":"{id}","accessory_url":"https://h"}}]}}"#);
        let cookie = [("content-type", "application/json"), ("set-cookie", "HWWAFSESID=abc; path=/; HttpOnly")];
        let cookie = cookie.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).into_iter().collect();
        stack.origin.script(Scripted::Whole(http::StatusCode::OK, cookie, items(&long).into()));
        for id in ["1", &long] {
            stack.origin.script(Scripted::json(200, items(id)));
        }
        let arguments = [credential, &[&long, "--then", "1", "--then", "1", "--then", "1", "--then", &long]].concat();
        assert_eq!(batch(stack.client.address, &arguments).await.len(), 5);
        let calls = stack.origin.calls();
        let cookies: Vec<bool> = calls.iter().map(|call| call.headers.contains_key("cookie")).collect();
        assert_eq!(cookies, [false, false, true], "the jar has the cookie, and the call does not");
        assert_eq!(stack.metric(r#"sidelink_ids_total{result="hit"}"#).await, 2.0);
        assert_eq!(stack.metric(r#"sidelink_bypass_total{reason="cookie"}"#).await, 0.0);
    }
}
