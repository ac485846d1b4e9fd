//! A simulated endpoint, a sidelink before it, and a client.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use sidelink::app::App;
use sidelink::clock::Clock;
use sidelink::config::{Config, Endpoint};
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::{self, Origin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

pub const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub fn origin_options() -> origin::Options {
    origin::Options { address: LOOPBACK, record: true, ..origin::Options::default() }
}

/// A configuration in front of `endpoint`, on free ports, quiet.
pub fn config(endpoint: SocketAddr) -> Config {
    let mut config = Config::for_endpoint(Endpoint::parse(&format!("http://{endpoint}")).unwrap());
    config.listen.address = vec![LOOPBACK.into()];
    config.admin.address = LOOPBACK;
    config.log.access = sidelink::config::AccessLines::Off;
    config
}

/// A sidelink before a simulated endpoint.
pub struct Stack {
    pub origin: Origin,
    pub app: App,
    pub client: TestClient,
}

impl Stack {
    pub async fn start() -> Self {
        Self::with(|_| {}, |_| {}).await
    }

    pub async fn with(endpoint: impl FnOnce(&mut origin::Options), configure: impl FnOnce(&mut Config)) -> Self {
        Self::on(Clock::system(), endpoint, configure).await
    }

    pub async fn on(
        clock: Clock,
        endpoint: impl FnOnce(&mut origin::Options),
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let mut options = origin_options();
        endpoint(&mut options);
        let origin = Origin::start(options).await.unwrap();
        let mut config = config(origin.address());
        configure(&mut config);
        let app = App::start_with(config, clock).await.unwrap();
        let client = TestClient::new(app.addresses()[0]);
        Self { origin, app, client }
    }

    /// The ids of every call so far.
    pub fn asked(&self) -> Vec<Vec<String>> {
        self.origin.calls().into_iter().map(|call| call.ids).collect()
    }

    /// `/metrics`, as it stands now.
    pub async fn metrics(&self) -> String {
        let page = TestClient::new(self.app.admin_address()).get("/metrics", &[]).await;
        String::from_utf8(page.body.to_vec()).unwrap()
    }

    /// The value of a series of `/metrics`. Where `series` names no `api`, the sum over all of them.
    pub async fn metric(&self, series: &str) -> f64 {
        value_of(series, &self.metrics().await)
    }
}

/// The value of a series on a page of metrics. Where `series` names no `api`, the sum over all of them.
pub fn value_of(series: &str, page: &str) -> f64 {
    let without_api = |labels: &str| {
        let labels = labels.split(',').filter(|label| !label.is_empty());
        let other = |label: &&str| series.contains("api=") || !label.starts_with("api=");
        labels.filter(other).collect::<Vec<_>>().join(",")
    };
    let parts = |series: &str| {
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        (name.to_owned(), without_api(labels.trim_end_matches('}')))
    };
    let lines = page.lines().filter_map(|line| line.rsplit_once(' ')).filter(|(one, _)| !one.starts_with('#'));
    let values: Vec<f64> =
        lines.filter(|(one, _)| parts(one) == parts(series)).map(|(_, value)| value.parse().unwrap()).collect();
    assert!(!values.is_empty(), "no series {series} in\n{page}");
    values.iter().sum()
}

#[derive(Clone)]
pub struct TestClient {
    pub address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The code of an error in the API's shape; empty where there is none.
    pub fn code(&self) -> String {
        self.json()["error_code"].as_str().unwrap_or("").to_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// (id, link) of each item.
    pub fn links(&self) -> Vec<(String, String)> {
        assert_eq!(self.status, StatusCode::OK, "{:?}", self.body);
        let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
        let answer = self.json();
        let items = answer["accessory_urls"].as_array().unwrap();
        items.iter().map(|item| (text(item, "accessory_id"), text(item, "accessory_url"))).collect()
    }

    pub fn ids(&self) -> Vec<String> {
        self.links().into_iter().map(|(id, _)| id).collect()
    }
}

impl TestClient {
    pub fn new(address: SocketAddr) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self { address, client }
    }

    pub async fn send(&self, method: Method, target: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        let mut request = Request::builder().method(method).uri(format!("http://{}{target}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.client.request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        Reply { status: head.status, headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    pub async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Reply {
        self.send(Method::GET, target, headers, "").await
    }

    /// As [`TestClient::get`]; `None` where nobody answers.
    pub async fn try_get(&self, target: &str) -> Option<Reply> {
        let request = Request::builder().uri(format!("http://{}{target}", self.address));
        let response = self.client.request(request.body(Full::default()).unwrap()).await.ok()?;
        let (head, body) = response.into_parts();
        Some(Reply { status: head.status, headers: head.headers, body: body.collect().await.ok()?.to_bytes() })
    }

    /// The batch `ids`, by query, as the caller `token`.
    pub async fn batch(&self, token: &str, ids: &[&str]) -> Reply {
        self.get(&query(ids), &[("x-auth-token", token)]).await
    }
}

/// The target of a batch in the repeated form.
pub fn query(ids: &[&str]) -> String {
    let pairs: Vec<String> = ids.iter().map(|id| format!("accessory_ids={id}")).collect();
    format!("{}?{}", api::PATH, pairs.join("&"))
}

/// Sends raw bytes and reads until the other side closes.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    // A reset after the answer is an end as well.
    let _ = read.expect("the connection stays open");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Far longer than any step takes, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `is_so`.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !is_so().await {
        assert!(begin.elapsed() < PATIENCE, "not so after a long while: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
