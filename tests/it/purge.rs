//! What was purged is served to nobody who asks afterwards: not from memory, not by a call that had left before, not as
//! stale or absent. What was not purged stays.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use http::{Method, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use sidelink::app::App;
use sidelink::clock::Clock;
use sidelink::demo::origin::link_is_for;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};

use crate::command_line::Running;
use crate::support::{LOOPBACK, Stack, TestClient, config, query};

const HIT: &str = "sidelink; hit";

fn path(id: &str) -> String {
    format!("/v2/servicerequest/accessorys/{id}")
}

async fn delete(stack: &Stack, id: &str, headers: &[(&str, &str)]) -> StatusCode {
    stack.client.send(Method::DELETE, &path(id), headers, "").await.status
}

#[tokio::test]
async fn a_deletion_that_passes_through_drops_its_link_in_every_scope() {
    let stack = Stack::start().await;
    let in_group = "/v2/servicerequest/accessorys/access-urls?accessory_ids=1&accessory_ids=2&group_id=g";
    for token in ["t", "u"] {
        stack.client.batch(token, &["1", "2"]).await;
        stack.client.get(in_group, &[("x-auth-token", token)]).await;
    }
    assert_eq!(delete(&stack, "1", &[("x-auth-token", "t")]).await, 204);
    stack.origin.forget_calls();
    for token in ["t", "u"] {
        assert_eq!(stack.client.batch(token, &["2"]).await.header("cache-status"), HIT, "only that id");
        for reply in
            [stack.client.batch(token, &["1", "2"]).await, stack.client.get(in_group, &[("x-auth-token", token)]).await]
        {
            assert_eq!(reply.header("cache-status"), "sidelink; fwd=partial; stored; detail=\"hit=1 fetched=1\"");
        }
    }
    assert_eq!(stack.asked(), [["1"]; 4]);
    assert_eq!(stack.client.batch("t", &["1", "2"]).await.header("cache-status"), HIT, "and once only");
    assert_eq!(stack.metric(r#"sidelink_purges_total{target="delete"}"#).await, 1.0);
    assert_eq!(stack.metric("sidelink_purge_marks").await, 1.0);
}

/// Older codes of the endpoint come with a 200 (regression: they passed for success).
#[tokio::test]
async fn a_deletion_that_is_refused_with_a_200_drops_nothing_and_one_with_another_body_does() {
    let endpoint = TcpListener::bind(LOOPBACK).await.unwrap();
    let app = App::start(config(endpoint.local_addr().unwrap())).await.unwrap();
    let client = TestClient::new(app.addresses()[0]);
    tokio::spawn(async move {
        loop {
            let mut stream = BufStream::new(endpoint.accept().await.unwrap().0);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                stream.read_line(&mut head).await.unwrap();
            }
            let body = match head.split(' ').take(2).collect::<Vec<_>>()[..] {
                ["GET", _] => r#"{"accessory_urls":[{"accessory_id":"1","accessory_url":"https://h/1"}]}"#.to_owned(),
                ["DELETE", path] if path.ends_with('1') => {
                    r#"{"error_code":"OSM.01010001","error_msg":"no"}"#.to_owned()
                }
                _ => format!(r#"{{"deleted":"{}"}}"#, "x".repeat(10_000)),
            };
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
    });
    assert_eq!(client.batch("t", &["1"]).await.ids(), ["1"]);
    let refused = client.send(Method::DELETE, &path("1"), &[], "").await;
    assert_eq!((refused.status, &refused.json()["error_code"]), (StatusCode::OK, &json!("OSM.01010001")));
    assert_eq!(client.batch("t", &["1"]).await.header("cache-status"), HIT);
    let done = client.send(Method::DELETE, &path("2"), &[], "").await;
    assert_eq!(done.json()["deleted"].as_str().unwrap().len(), 10_000, "handed on whole");
    let page = TestClient::new(app.admin_address()).get("/metrics", &[]).await;
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(text.contains("sidelink_purges_total{target=\"delete\"} 1\n"), "{text}");
}

#[tokio::test]
async fn a_deletion_whose_client_disconnects_still_drops_the_link() {
    let endpoint = TcpListener::bind(LOOPBACK).await.unwrap();
    let app = App::start(config(endpoint.local_addr().unwrap())).await.unwrap();
    let client = TestClient::new(app.addresses()[0]);
    let (arrived, mut deletion) = tokio::sync::mpsc::channel(1);
    let (answer, answered) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        loop {
            let mut stream = BufStream::new(endpoint.accept().await.unwrap().0);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                stream.read_line(&mut head).await.unwrap();
            }
            let (arrived, mut answered) = (arrived.clone(), answered.clone());
            tokio::spawn(async move {
                // Of a link that does not end by itself meanwhile.
                let expires = Clock::system().now().unix_seconds() + 3600;
                let mut body = format!(
                    r#"{{"accessory_urls":[{{"accessory_id":"1","accessory_url":"https://h/1?Expires={expires}&Signature=s"}}]}}"#
                );
                if head.starts_with("DELETE") {
                    arrived.send(()).await.unwrap();
                    answered.wait_for(|answered| *answered).await.unwrap();
                    body.clear();
                }
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
                let _ = stream.flush().await;
            });
        }
    });
    let cached = async || {
        let headers = [("x-auth-token", "t"), ("cache-control", "only-if-cached")];
        client.get(&query(&["1"]), &headers).await.status == StatusCode::OK
    };
    assert_eq!(client.batch("t", &["1"]).await.ids(), ["1"]);
    // Over HTTP/2, where leaving is seen at once: half a connection of HTTP/1.1 may still want its answer.
    let stream = TokioIo::new(TcpStream::connect(client.address).await.unwrap());
    let (mut leaving, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::delete(format!("http://h{}", path("1"))).body(String::new()).unwrap();
    let exchange = tokio::spawn(async move { leaving.send_request(request).await });
    deletion.recv().await.unwrap();
    exchange.abort();
    connection.abort();
    let admin = TestClient::new(app.admin_address());
    let connections = async || {
        let page = String::from_utf8(admin.get("/metrics", &[]).await.body.to_vec()).unwrap();
        page.lines().find_map(|line| line.strip_prefix("sidelink_connections ")).unwrap().parse::<f64>().unwrap()
    };
    while connections().await > 1.0 {}
    assert!(cached().await, "not yet");
    answer.send_replace(true);
    let gone = async { while cached().await {} };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("it is served on");
}

#[tokio::test]
async fn a_deletion_that_the_endpoint_refuses_drops_nothing() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1"]).await;
    let forged = "SDK-HMAC-SHA256 Access=AK, SignedHeaders=host;x-sdk-date, Signature=00";
    assert_eq!(delete(&stack, "1", &[("authorization", forged)]).await, 401);
    assert_eq!(stack.client.send(Method::POST, &path("1"), &[], "").await.status, 404);
    stack.origin.stop().await;
    assert_eq!(delete(&stack, "1", &[]).await, 502);
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), HIT);
    assert_eq!(stack.metric(r#"sidelink_purges_total{target="delete"}"#).await, 0.0);
}

#[tokio::test]
async fn a_call_sent_before_a_purge_fills_no_cache_and_is_not_joined() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let client = stack.client.clone();
    let before = tokio::spawn(async move { client.batch("t", &["1", "2"]).await });
    stack.origin.arrived(1).await;
    delete(&stack, "1", &[]).await;
    let client = stack.client.clone();
    let after = tokio::spawn(async move { client.batch("t", &["1", "2"]).await });
    stack.origin.arrived(2).await;
    stack.origin.release();
    let (before, after) = (before.await.unwrap(), after.await.unwrap());
    assert_eq!((before.ids(), after.ids()), (vec!["1".into(), "2".into()], vec!["1".into(), "2".into()]));
    assert_eq!(before.header("cache-control"), "no-store", "an answer with a purged link must not be stored anywhere");
    assert_eq!(stack.asked(), [vec!["1", "2"], vec!["1"]], "of the two, 2 was joined");
    let again = stack.client.batch("t", &["1", "2"]).await;
    assert_eq!(again.header("cache-status"), HIT);
    let link = |reply: &crate::support::Reply| reply.links()[0].1.clone();
    assert_eq!(link(&again), link(&after));
    assert!(link_is_for(&link(&again), "1", None, "t", None, None));
}

#[tokio::test]
async fn an_id_that_waits_for_its_call_is_asked_once_whatever_is_purged() {
    let stack = Stack::with(|_| {}, |config| config.upstream.calls_per_scope = 1).await;
    stack.origin.hold();
    let client = stack.client.clone();
    let first = tokio::spawn(async move { client.batch("t", &["1"]).await });
    stack.origin.arrived(1).await;
    let client = stack.client.clone();
    let queued = tokio::spawn(async move { client.batch("t", &["2"]).await });
    while stack.metric("sidelink_batch_ids_count").await < 2.0 {}
    delete(&stack, "2", &[]).await;
    let client = stack.client.clone();
    let joiner = tokio::spawn(async move { client.batch("t", &["2"]).await });
    while stack.metric("sidelink_batch_ids_count").await < 3.0 {}
    stack.origin.release();
    for batch in [first, queued, joiner] {
        assert_eq!(batch.await.unwrap().links().len(), 1);
    }
    assert_eq!(stack.asked(), [["1"], ["2"]]);
    assert_eq!(stack.client.batch("t", &["2"]).await.header("cache-status"), HIT);
}

#[tokio::test]
async fn a_purged_link_is_not_served_stale() {
    let configure = |config: &mut sidelink::config::Config| config.freshness.max = Duration::from_secs(1);
    let stack = Stack::with(|_| {}, configure).await;
    stack.client.batch("t", &["1", "2"]).await;
    delete(&stack, "1", &[]).await;
    stack.origin.update(|endpoint| endpoint.fail_ratio = 1.0);
    assert_eq!(stack.client.batch("t", &["1"]).await.status, 503);
}

#[tokio::test]
async fn a_remembered_absence_is_purged_too() {
    let stack = Stack::with(
        |endpoint| endpoint.missing = vec!["1".into()],
        |config| config.freshness.absent = Duration::from_secs(60),
    )
    .await;
    assert!(stack.client.batch("t", &["1"]).await.ids().is_empty());
    stack.origin.update(|endpoint| endpoint.missing.clear());
    assert!(stack.client.batch("t", &["1"]).await.ids().is_empty());
    delete(&stack, "1", &[]).await;
    assert_eq!(stack.client.batch("t", &["1"]).await.ids(), ["1"]);
}

async fn purge(stack: &Stack, body: &str) -> Value {
    let client = TestClient::new(stack.app.admin_address());
    let reply = client.send(Method::POST, "/purge", &[("content-type", "application/json")], body.to_owned()).await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    reply.json()
}

/// What memory has of 1 and 2 for two callers, in no group and in two.
async fn in_memory(stack: &Stack) -> Vec<String> {
    let mut found = Vec::new();
    for token in ["t", "u"] {
        for group in ["", "g", "h"] {
            for id in ["1", "2"] {
                let group_id = if group.is_empty() { String::new() } else { format!("&group_id={group}") };
                let headers = [("x-auth-token", token), ("cache-control", "only-if-cached")];
                let reply = stack.client.get(&format!("{}{group_id}", query(&[id])), &headers).await;
                if reply.status == 200 {
                    found.push(format!("{token}{group}{id}"));
                }
            }
        }
    }
    found
}

async fn fill(stack: &Stack) {
    for token in ["t", "u"] {
        for group in ["", "&group_id=g", "&group_id=h"] {
            stack.client.get(&format!("{}{group}", query(&["1", "2"])), &[("x-auth-token", token)]).await;
        }
    }
    assert_eq!(in_memory(stack).await.len(), 12);
}

#[tokio::test]
async fn a_purge_removes_its_targets_for_all_callers_and_nothing_else() {
    let stack = Stack::start().await;
    fill(&stack).await;
    assert_eq!(
        purge(&stack, r#"{"accessory_ids":["1","3"]}"#).await,
        json!({"purged": "ids", "ids": 2, "fleet": "none"})
    );
    assert_eq!(in_memory(&stack).await, ["t2", "tg2", "th2", "u2", "ug2", "uh2"]);
    assert_eq!(purge(&stack, r#"{"group_id":"g"}"#).await, json!({"purged": "group", "fleet": "none"}));
    assert_eq!(in_memory(&stack).await, ["t2", "th2", "u2", "uh2"]);
    fill(&stack).await;
    assert_eq!(purge(&stack, r#"{"all":true}"#).await, json!({"purged": "all", "links": 12, "fleet": "none"}));
    assert_eq!(in_memory(&stack).await, Vec::<String>::new());
    assert_eq!(stack.metric("sidelink_cache_links").await, 0.0, "removed from memory, not only unreachable");
    assert_eq!(stack.metric("sidelink_cache_bytes").await, 0.0);
    fill(&stack).await;
    for target in ["ids", "group", "all"] {
        assert_eq!(stack.metric(&format!("sidelink_purges_total{{target=\"{target}\"}}")).await, 1.0);
    }
}

#[tokio::test]
async fn every_kind_of_purge_covers_calls_under_way() {
    for body in [r#"{"accessory_ids":["1"]}"#, r#"{"group_id":"g"}"#, r#"{"all":true}"#] {
        let stack = Stack::start().await;
        stack.origin.hold();
        let target = format!("{}&group_id=g", query(&["1"]));
        let ask = || {
            let (client, target) = (stack.client.clone(), target.clone());
            tokio::spawn(async move { client.get(&target, &[("x-auth-token", "t")]).await })
        };
        let before = ask();
        stack.origin.arrived(1).await;
        purge(&stack, body).await;
        let after = ask();
        stack.origin.arrived(2).await;
        stack.origin.release();
        let (before, after) = (before.await.unwrap(), after.await.unwrap());
        assert_eq!(before.header("cache-control"), "no-store", "{body}");
        assert_ne!(after.header("cache-control"), "no-store", "{body}");
        let again = ask().await.unwrap();
        assert_eq!((again.header("cache-status"), again.links()), (HIT, after.links()), "{body}");
    }
}

#[tokio::test]
async fn a_refresh_ahead_sent_before_a_purge_fills_no_cache() {
    let clock = Clock::simulated(1_795_478_400_000);
    let configure = |config: &mut sidelink::config::Config| config.callers.revalidate = Duration::from_secs(3600);
    let stack = Stack::on(clock.clone(), |_| {}, configure).await;
    stack.client.batch("t", &["1"]).await;
    // freshness.max is 10 min, its last fifth begins after 8, or up to a minute later.
    clock.step(570_000);
    stack.origin.hold();
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), HIT);
    stack.origin.arrived(2).await;
    purge(&stack, r#"{"accessory_ids":["1"]}"#).await;
    stack.origin.release();
    while stack.metric("sidelink_upstream_calls_total{result=\"ok\"}").await < 2.0 {}
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; fwd=miss; stored");
}

#[tokio::test]
async fn a_purge_is_logged_without_its_ids() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let listen = "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n";
    std::fs::write(file.path(), format!("[upstream]\nendpoint = \"http://h\"\n{listen}[log]\nlevel = \"trace\"\n"))
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidelink"));
    command.args(["serve", "--config", file.path().to_str().unwrap()]).stdout(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let serving: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let client = TestClient::new(serving["admin"].as_str().unwrap().parse().unwrap());
    for body in [r#"{"accessory_ids":["MARKED"]}"#, r#"{"group_id":"MARKED"}"#, r#"{"all":true}"#] {
        let reply = client.send(Method::POST, "/purge", &[("content-type", "application/json")], body).await;
        assert_eq!(reply.status, 200);
    }
    let mut logged = Vec::new();
    while logged.iter().filter(|line: &&String| line.contains("purged")).count() < 3 {
        logged.push(lines.next().unwrap().unwrap());
    }
    assert!(!logged.join("\n").contains("MARKED"), "{logged:?}");
}
