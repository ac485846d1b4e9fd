//! A scripted endpoint, and sidelink before it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sidelink::app::App;
use sidelink::clock::Clock;
use sidelink::config::Config;
use sidelink::config::batch::BatchApi;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::support::{LOOPBACK, Reply, TestClient, config};

/// A request, as the endpoint got it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    pub target: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Asked {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The values at `key` in the elements of the list at `list` in its body.
    pub fn ids(&self, list: &str, key: &str) -> Vec<String> {
        let body = self.json();
        let elements = body.pointer(list).and_then(Value::as_array).cloned().unwrap_or_default();
        elements.iter().map(|element| element.pointer(key).unwrap().as_str().unwrap().to_owned()).collect()
    }

    /// The ids of a git-lfs call.
    pub fn oids(&self) -> Vec<String> {
        self.ids("/objects", "/oid")
    }
}

/// What the endpoint answers.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Answer {
    pub fn new(status: u16, body: impl ToString) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { status, headers, body: body.to_string() }
    }

    pub fn of_type(mut self, media_type: &str) -> Self {
        self.headers[0].1 = media_type.to_owned();
        self
    }

    pub fn body(&self) -> &str {
        &self.body
    }

    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

struct Script {
    answer: Box<dyn Fn(&Asked) -> Answer + Send + Sync>,
    asked: Mutex<Vec<Asked>>,
    /// How many requests have come, and how many of them are answered; the others wait.
    state: watch::Sender<(usize, usize)>,
}

impl Script {
    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let target = head.uri.path_and_query().unwrap().to_string();
        let body = String::from_utf8(body.to_vec()).unwrap();
        let asked = Asked { method: head.method, target, headers: head.headers, body };
        let number = {
            let mut all = self.asked.lock().unwrap();
            all.push(asked.clone());
            all.len()
        };
        self.state.send_modify(|(count, _)| *count += 1);
        let _ = self.state.subscribe().wait_for(|(_, answered)| number <= *answered).await;
        let Answer { status, headers, body } = (self.answer)(&asked);
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(name, value);
        }
        Ok(response.body(Full::from(body)).unwrap())
    }
}

/// The endpoint: answers by a function, and remembers what it was asked.
pub struct Endpoint {
    pub address: SocketAddr,
    script: Arc<Script>,
}

impl Endpoint {
    pub async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Script {
            answer: Box::new(answer),
            asked: Mutex::default(),
            state: watch::Sender::new((0, usize::MAX)),
        });
        let endpoint = Self { address, script: Arc::clone(&script) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = Arc::clone(&script);
                let service = service_fn(move |request| Arc::clone(&script).serve(request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        endpoint
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.script.asked.lock().unwrap().clone()
    }

    pub fn last(&self) -> Asked {
        self.asked().pop().unwrap()
    }

    pub fn count(&self) -> usize {
        self.asked().len()
    }

    /// Whether requests are answered; else they wait.
    pub fn set_open(&self, is_open: bool) {
        self.script.state.send_modify(|(count, answered)| *answered = if is_open { usize::MAX } else { *count });
    }

    /// Answers the first of the requests that wait.
    pub fn answer_one(&self) {
        self.script.state.send_modify(|(_, answered)| *answered += 1);
    }

    /// Waits until it was asked so often.
    pub async fn was_asked(&self, times: usize) {
        self.script.state.subscribe().wait_for(|(count, _)| *count >= times).await.unwrap();
    }
}

/// The batch APIs of these tables.
pub fn apis(tables: &str) -> Vec<BatchApi> {
    let text = format!("{tables}\n[upstream]\nendpoint = \"http://h\"\n");
    Config::parse(&text).unwrap_or_else(|errors| panic!("{text}\n{errors}")).batch
}

/// Sidelink before a scripted endpoint.
pub struct Stack {
    pub endpoint: Endpoint,
    pub app: App,
    pub clock: Clock,
    pub client: TestClient,
    /// Asks the endpoint itself.
    pub direct: TestClient,
}

impl Stack {
    /// With the APIs of these tables.
    pub async fn start(tables: &str, answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::with(tables, |_| {}, answer).await
    }

    pub async fn with(
        tables: &str,
        configure: impl FnOnce(&mut Config),
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let endpoint = Endpoint::start(answer).await;
        let mut config = config(endpoint.address);
        config.batch = apis(tables);
        // Longer than a test takes, also on a busy machine, and shorter than a link that bears no signature is fresh.
        config.freshness.absent = Duration::from_secs(30);
        configure(&mut config);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let clock = Clock::simulated(i64::try_from(now.as_millis()).unwrap());
        let app = App::start_with(config, clock.clone()).await.unwrap();
        let (client, direct) = (TestClient::new(app.addresses()[0]), TestClient::new(endpoint.address));
        Self { endpoint, app, clock, client, direct }
    }

    pub async fn post(&self, target: &str, headers: &[(&str, &str)], body: impl ToString) -> Reply {
        self.client.send(Method::POST, target, headers, body.to_string()).await
    }

    /// A git-lfs batch of `user`.
    pub async fn lfs(&self, user: &str, oids: &[&str]) -> Reply {
        lfs_batch(&self.client, user, oids).await
    }

    /// The sum of a metric's series with this label.
    pub async fn sum(&self, name: &str, label: &str) -> f64 {
        let page = TestClient::new(self.app.admin_address()).get("/metrics", &[]).await;
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        let series = text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// How many batches were forwarded untouched for this reason.
    pub async fn forwarded(&self, reason: &str) -> f64 {
        self.sum("sidelink_bypass_total", &format!("reason=\"{reason}\"")).await
    }

    /// How many ids had this result.
    pub async fn ids(&self, result: &str) -> f64 {
        self.sum("sidelink_ids_total", &format!("result=\"{result}\"")).await
    }

    /// Waits until as much as this of a limit is used.
    pub async fn uses(&self, limit: &str, amount: f64) {
        while self.sum("sidelink_limit_used", &format!("limit=\"{limit}\"")).await != amount {
            tokio::task::yield_now().await;
        }
    }

    pub async fn refetched(&self, cause: &str) -> f64 {
        self.sum("sidelink_refetched_total", &format!("cause=\"{cause}\"")).await
    }
}

pub const GIT_LFS: &str = "[[batch]]\npreset = \"git-lfs\"";
pub const LFS_PATH: &str = "/org/repo.git/info/lfs/objects/batch";
pub const LFS_TYPE: &str = "application/vnd.git-lfs+json";

pub fn lfs_headers(user: &str) -> [(&'static str, &str); 3] {
    [("authorization", user), ("accept", LFS_TYPE), ("content-type", LFS_TYPE)]
}

/// The body of a git-lfs batch.
pub fn lfs_body(oids: &[&str]) -> String {
    let objects: Vec<String> = oids.iter().map(|oid| format!(r#"{{"oid":"{oid}","size":1}}"#)).collect();
    format!(r#"{{"operation":"download","transfers":["basic"],"objects":[{}]}}"#, objects.join(","))
}

pub async fn lfs_batch(client: &TestClient, user: &str, oids: &[&str]) -> Reply {
    client.send(Method::POST, LFS_PATH, &lfs_headers(user), lfs_body(oids)).await
}

/// A git-lfs answer of these objects.
pub fn lfs(objects: impl IntoIterator<Item = Value>) -> Answer {
    let objects: Vec<Value> = objects.into_iter().collect();
    Answer::new(200, json!({"transfer": "basic", "objects": objects})).of_type(LFS_TYPE)
}

/// The object of this id, with a link that says for whom it is and does not expire.
pub fn object(asked: &Asked, oid: &str) -> Value {
    let user: String = asked.header("authorization").bytes().map(|byte| format!("{byte:02x}")).collect();
    json!({"oid": oid, "size": 1, "actions": {"download": {"href": format!("https://cdn.test/{user}/{oid}")}}})
}

/// A git-lfs server that has every object.
pub fn has_all(asked: &Asked) -> Answer {
    lfs(asked.oids().iter().map(|oid| object(asked, oid)))
}

/// The object of this id, which the server does not have.
pub fn missing(oid: &str) -> Value {
    json!({"oid": oid, "size": 1, "error": {"code": 404, "message": format!("{oid} does not exist")}})
}

/// What is left of `Cache-Status` without sidelink's name.
pub fn status(reply: &Reply) -> &str {
    reply.header("cache-status").trim_start_matches("sidelink; ")
}

pub const MISS: &str = "fwd=miss; stored";
pub const HIT: &str = "hit";
