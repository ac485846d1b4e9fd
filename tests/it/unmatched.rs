//! An answer with an item that matches no requested id is unmatched: nothing of it is cached. The batch is fetched whole, in
//! several calls if it exceeds `ids_per_call`, and the answers are passed on.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sidelink::app::App;
use sidelink::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{LOOPBACK, TestClient, config, query, value_of};

/// A call with more ids gets a 400, as from the real service.
const IDS_PER_CALL: usize = 100;
const UNMATCHED: &str = "sidelink; fwd=bypass; detail=unmatched";
const SURPLUS: &str = r#"{"accessory_id":"surplus","accessory_url":"u"}"#;

/// An endpoint that adds an item that was not requested to each answer for an id in `surplus`.
#[derive(Clone, Default)]
struct Endpoint {
    surplus: Vec<String>,
    /// Ids whose calls fail with a 500, except the first call for one of them.
    failing: Vec<String>,
    /// The ids of each call.
    calls: Arc<Mutex<Vec<Vec<String>>>>,
    delay: Duration,
}

impl Endpoint {
    async fn start_sidelink(&self, configure: impl FnOnce(&mut Config)) -> (App, TestClient) {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let mut config = config(listener.local_addr().unwrap());
        configure(&mut config);
        let endpoint = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let endpoint = endpoint.clone();
                tokio::spawn(async move { endpoint.serve(stream).await });
            }
        });
        let app = App::start(config).await.unwrap();
        let client = TestClient::new(app.addresses()[0]);
        (app, client)
    }

    async fn serve(&self, mut stream: TcpStream) {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { return };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap();
            let target = head.split(' ').nth(1).unwrap();
            let pairs = target.split_once('?').unwrap().1.split('&');
            let ids: Vec<String> = pairs.map(|pair| pair.split_once('=').unwrap().1.to_owned()).collect();
            tokio::time::sleep(self.delay).await;
            let (status, body) = self.answer(&ids);
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            if stream.write_all(format!("{head}{body}").as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, ids: &[String]) -> (u16, String) {
        let mut calls = self.calls.lock().unwrap();
        let is_known = calls.concat().iter().any(|id| self.failing.contains(id));
        calls.push(ids.to_vec());
        if ids.len() > IDS_PER_CALL {
            return (400, r#"{"error_code":"OSM.0001","error_msg":"too many ids"}"#.to_owned());
        }
        if is_known && ids.iter().any(|id| self.failing.contains(id)) {
            return (500, r#"{"error_code":"OSM.0004","error_msg":"failed"}"#.to_owned());
        }
        let item = |id: &String| format!(r#"{{"accessory_id":"{id}","accessory_url":"https://h/{id}"}}"#);
        let mut items: Vec<String> = ids.iter().map(item).collect();
        if ids.iter().any(|id| self.surplus.contains(id)) {
            items.push(SURPLUS.to_owned());
        }
        (200, format!(r#"{{"accessory_urls":[{}]}}"#, items.join(",")))
    }

    fn calls(&self) -> Vec<usize> {
        let mut sizes: Vec<usize> = self.calls.lock().unwrap().iter().map(Vec::len).collect();
        sizes.sort_unstable();
        sizes
    }
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|id| id.to_string()).collect()
}

fn target(ids: &[String]) -> String {
    query(&ids.iter().map(String::as_str).collect::<Vec<_>>())
}

async fn metric(app: &App, series: &str) -> f64 {
    let page = TestClient::new(app.admin_address()).get("/metrics", &[]).await;
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    value_of(series, &text)
}

/// Regression: the batch was forwarded as one request, and the endpoint refused it because it had too many ids.
#[tokio::test]
async fn an_unmatched_batch_over_ids_per_call_is_fetched_whole_in_several_calls() {
    // The surplus item is in the first call, in the last call, or in both.
    for surplus in [&["10"][..], &["149"], &["10", "149"]] {
        let endpoint = Endpoint { surplus: surplus.iter().map(ToString::to_string).collect(), ..Endpoint::default() };
        let (app, client) = endpoint.start_sidelink(|_| {}).await;
        let ids = numbers(150);
        let reply = client.get(&target(&ids), &[("x-auth-token", "t")]).await;
        assert_eq!(reply.header("cache-status"), UNMATCHED);
        assert_eq!((reply.header("content-type"), reply.header("cache-control")), ("application/json", "no-store"));
        let mut expected = ids.clone();
        if surplus.contains(&"149") {
            expected.push("surplus".to_owned());
        }
        if surplus.contains(&"10") {
            expected.insert(100, "surplus".to_owned());
        }
        assert_eq!(reply.ids(), expected, "in the order of the calls");
        assert_eq!(endpoint.calls(), [50, 50, 100, 100]);
        assert_eq!(metric(&app, r#"sidelink_bypass_total{reason="unmatched"}"#).await, 1.0);
        assert_eq!(metric(&app, r#"sidelink_ids_total{result="fetched"}"#).await, 150.0);
        assert_eq!(metric(&app, r#"sidelink_ids_total{result="failed"}"#).await, 0.0);
    }
}

#[tokio::test]
async fn an_unmatched_batch_that_fits_in_one_call_is_forwarded_unchanged() {
    let endpoint = Endpoint { surplus: vec!["2".into()], ..Endpoint::default() };
    let (_app, client) = endpoint.start_sidelink(|_| {}).await;
    client.batch("t", &["1"]).await;
    let reply = client.batch("t", &["1", "2"]).await;
    assert_eq!(
        (reply.header("cache-status"), reply.ids()),
        (UNMATCHED, vec!["1".into(), "2".into(), "surplus".into()])
    );
    assert_eq!(endpoint.calls(), [1, 1, 2]);
}

#[tokio::test]
async fn repeated_ids_count_toward_ids_per_call() {
    let endpoint = Endpoint { surplus: vec!["99".into()], ..Endpoint::default() };
    let (_app, client) = endpoint.start_sidelink(|_| {}).await;
    client.batch("t", &["0"]).await;
    let ids = numbers(100);
    let twice = [ids.clone(), ids.clone()].concat();
    let reply = client.get(&target(&twice), &[("x-auth-token", "t")]).await;
    assert_eq!(reply.header("cache-status"), UNMATCHED);
    assert_eq!(reply.ids(), [ids, vec!["surplus".into()]].concat());
    assert_eq!(endpoint.calls(), [1, 99, 100]);
}

#[tokio::test]
async fn the_error_of_a_failed_call_is_passed_on() {
    let endpoint = Endpoint { surplus: vec!["10".into()], failing: vec!["149".into()], ..Endpoint::default() };
    let (app, client) = endpoint.start_sidelink(|config| config.upstream.retry.attempts = 0).await;
    let reply = client.get(&target(&numbers(150)), &[("x-auth-token", "t")]).await;
    assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (500, Some("OSM.0004")));
    assert_eq!(endpoint.calls(), [50, 50, 100, 100]);
    let counted = metric(&app, r#"sidelink_ids_total{result="fetched"}"#).await
        + metric(&app, r#"sidelink_ids_total{result="failed"}"#).await;
    assert_eq!(counted, 150.0);
}

#[tokio::test]
async fn one_deadline_covers_all_calls_of_a_batch() {
    let endpoint = Endpoint { surplus: vec!["10".into()], delay: Duration::from_millis(600), ..Endpoint::default() };
    let (_app, client) = endpoint.start_sidelink(|config| config.upstream.deadline = Duration::from_secs(1)).await;
    let began = std::time::Instant::now();
    let reply = client.get(&target(&numbers(150)), &[("x-auth-token", "t")]).await;
    assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (504, Some("SIDELINK.1002")));
    assert!(began.elapsed() < Duration::from_secs(5));
}
