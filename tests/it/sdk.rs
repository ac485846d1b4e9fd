//! The cloud's official Python SDK gets from sidelink what it gets from the endpoint.
//!
//! `make tools` installs it; without it these tests fail.

use std::process::Command;

use serde_json::Value;
use sidelink::origin::link_is_for;

use crate::support::Stack;

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
    let ids = ["--", "a/b", "c d", "e+f", "g,h", "i~j", "附件"];
    let arguments = [&["--token", "t", "--group", "g", "--language", "en-us"][..], &ids].concat();
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
