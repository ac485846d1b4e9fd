//! An endpoint that loses connections on purpose. A test decides how each request is answered and what happens to its connection.
//! HTTP/1.1 is written by hand; HTTP/2 is in `http2`, a TCP proxy that delays or loses connections in `wire`, nginx in `nginx`.

pub mod http2;
pub mod nginx;
pub mod wire;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::Method;
use serde_json::{Value, json};
use sidelink::app::App;
use sidelink::config::{Config, Endpoint};
use sidelink::demo::origin::interface as api;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{LOOPBACK, Reply, TestClient, config, value_of};

/// A route that is no batch and takes any method.
pub const OTHER_ROUTE: &str = "/v2/servicerequest/echo";

/// A request that has arrived in full.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Counted from 0, in the order of acceptance.
    pub connection: usize,
    /// Requests on this connection before it.
    pub earlier: usize,
    pub is_http2: bool,
    pub method: Method,
    pub token: String,
    /// None for other routes.
    pub ids: Vec<String>,
    pub body_bytes: usize,
}

impl Asked {
    fn new(method: &str, target: &str, token: &str) -> Self {
        let query = target.strip_prefix(api::PATH).and_then(|rest| rest.strip_prefix('?')).unwrap_or("");
        let ids = query.split('&').filter_map(|pair| pair.strip_prefix("accessory_ids=")).map(str::to_owned).collect();
        Self {
            connection: 0,
            earlier: 0,
            is_http2: false,
            method: method.parse().unwrap(),
            token: token.to_owned(),
            ids,
            body_bytes: 0,
        }
    }

    pub fn is_on_a_reused_connection(&self) -> bool {
        self.earlier > 0
    }

    pub fn asks_for(&self, id: &str) -> bool {
        self.ids.iter().any(|asked| asked.starts_with(id))
    }

    /// The links asked for; on another route a short text.
    fn answer(&self) -> Value {
        if self.ids.is_empty() {
            return json!({"served": true});
        }
        let item = |id: &String| json!({"accessory_id": id, "accessory_url": link(&self.token, id)});
        json!({"accessory_urls": self.ids.iter().map(item).collect::<Vec<_>>()})
    }
}

/// What the endpoint does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// The answer that a healthy endpoint gives.
    Answer,
    /// The same, and the connection is closed without `Connection: close`. HTTP/1.1 only.
    AnswerAndClose,
    /// An error of this status with these header lines.
    Fail(u16, Vec<(&'static str, String)>),
    /// As [`Act::Fail`]; the connection is closed. HTTP/1.1 only.
    FailAndClose(u16),
    /// No byte, and the connection is closed: FIN, after TLS's close_notify.
    Close,
    /// No byte, and the connection is reset.
    Reset,
    /// No byte, until the client gives up.
    Hang,
    /// RST_STREAM with this code. HTTP/2 only.
    ResetStream(h2::Reason),
}

impl Act {
    pub fn fail(status: u16) -> Self {
        Act::Fail(status, Vec::new())
    }

    pub fn fail_with_retry_after(status: u16, seconds: u32) -> Self {
        Act::Fail(status, vec![("retry-after", seconds.to_string())])
    }
}

/// The link of `id` for `token`.
pub fn link(token: &str, id: &str) -> String {
    format!("https://bucket.test/{token}/{id}")
}

/// Whether `reply` has exactly these links for `token`.
pub fn serves(reply: &Reply, token: &str, ids: &[&str]) -> bool {
    let expected: Vec<_> = ids.iter().map(|id| ((*id).to_owned(), link(token, id))).collect();
    reply.status == 200 && reply.json().get("accessory_urls").is_some() && reply.links() == expected
}

pub fn error_body(status: u16) -> String {
    json!({"error_code": format!("FLAKY.{status}"), "error_msg": "on purpose"}).to_string()
}

type Deciding = Pin<Box<dyn Future<Output = Act> + Send>>;

/// State that all connections of an endpoint share.
pub struct Shared {
    decide: Box<dyn Fn(Asked) -> Deciding + Send + Sync>,
    connections: AtomicUsize,
    asked: Mutex<Vec<Asked>>,
    arrived: watch::Sender<usize>,
}

impl Shared {
    fn new<F>(decide: impl Fn(Asked) -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = Act> + Send + 'static,
    {
        Arc::new(Self {
            decide: Box::new(move |asked| Box::pin(decide(asked))),
            connections: AtomicUsize::new(0),
            asked: Mutex::default(),
            arrived: watch::Sender::new(0),
        })
    }

    async fn act(&self, asked: &Asked) -> Act {
        self.asked.lock().unwrap().push(asked.clone());
        self.arrived.send_modify(|arrived| *arrived += 1);
        (self.decide)(asked.clone()).await
    }
}

/// A running endpoint. The test decides on each request.
#[derive(Clone)]
pub struct Flaky {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Flaky {
    /// Over TCP, HTTP/1.1.
    pub async fn start<F>(decide: impl Fn(Asked) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Act> + Send + 'static,
    {
        Self::on(TcpListener::bind(LOOPBACK).await.unwrap(), decide)
    }

    pub fn on<F>(listener: TcpListener, decide: impl Fn(Asked) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Act> + Send + 'static,
    {
        let endpoint = Self { address: listener.local_addr().unwrap(), shared: Shared::new(decide) };
        let shared = Arc::clone(&endpoint.shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = shared.connections.fetch_add(1, Ordering::SeqCst);
                let (stream, twin) = twin(stream);
                tokio::spawn(serve_http1(stream, twin, connection, Arc::clone(&shared)));
            }
        });
        endpoint
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    pub fn count(&self, of: impl Fn(&Asked) -> bool) -> usize {
        self.shared.asked.lock().unwrap().iter().filter(|asked| of(asked)).count()
    }

    /// Waits until so many requests have arrived.
    pub async fn arrived(&self, count: usize) {
        self.shared.arrived.subscribe().wait_for(|arrived| *arrived >= count).await.unwrap();
    }
}

/// A second handle on the same socket: it can reset a connection whose stream is wrapped in TLS.
fn twin(stream: TcpStream) -> (TcpStream, TcpStream) {
    stream.set_nodelay(true).unwrap();
    let stream = stream.into_std().unwrap();
    let twin = TcpStream::from_std(stream.try_clone().unwrap()).unwrap();
    (TcpStream::from_std(stream).unwrap(), twin)
}

/// Serves one connection over any stream; `twin` is its socket.
async fn serve_http1(io: impl AsyncRead + AsyncWrite + Unpin, twin: TcpStream, connection: usize, shared: Arc<Shared>) {
    let mut io = BufReader::new(io);
    for earlier in 0.. {
        let Some(mut asked) = read_request(&mut io).await else { return };
        (asked.connection, asked.earlier) = (connection, earlier);
        let act = shared.act(&asked).await;
        let sent = match &act {
            Act::Answer | Act::AnswerAndClose => write_answer(&mut io, &asked, 200, &[]).await,
            Act::Fail(status, headers) => write_answer(&mut io, &asked, *status, headers).await,
            Act::FailAndClose(status) => {
                write_answer(&mut io, &asked, *status, &[("connection", "close".to_owned())]).await
            }
            Act::Hang => io.read_to_end(&mut Vec::new()).await.map(|_| ()),
            Act::Close => Ok(()),
            Act::Reset => twin.set_zero_linger(),
            Act::ResetStream(_) => panic!("HTTP/1.1 has no streams"),
        };
        match act {
            Act::Answer | Act::Fail(..) if sent.is_ok() => {}
            Act::AnswerAndClose | Act::FailAndClose(_) | Act::Close => {
                let _ = io.shutdown().await;
                return;
            }
            _ => return,
        }
    }
}

/// `None` at the end of the connection.
async fn read_request(io: &mut BufReader<impl AsyncRead + AsyncWrite + Unpin>) -> Option<Asked> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if io.read_line(&mut head).await.unwrap_or(0) == 0 {
            return None;
        }
    }
    let mut lines = head.lines();
    let mut parts = lines.next()?.split(' ');
    let (method, target) = (parts.next()?, parts.next()?);
    let headers: Vec<(String, &str)> =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value)).collect();
    let header = |name: &str| headers.iter().find(|(other, _)| other == name).map_or("", |(_, value)| *value);
    let mut asked = Asked::new(method, target, header("x-auth-token"));
    asked.body_bytes = header("content-length").parse().unwrap_or(0);
    io.read_exact(&mut vec![0; asked.body_bytes]).await.ok()?;
    assert!(header("transfer-encoding").is_empty(), "this endpoint reads no chunks: {head}");
    Some(asked)
}

async fn write_answer(
    io: &mut (impl AsyncWrite + Unpin),
    asked: &Asked,
    status: u16,
    headers: &[(&'static str, String)],
) -> std::io::Result<()> {
    let body = if status == 200 { asked.answer().to_string() } else { error_body(status) };
    let length = body.len();
    let mut text =
        format!("HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    if asked.method != Method::HEAD {
        text.push_str(&body);
    }
    io.write_all(text.as_bytes()).await?;
    io.flush().await
}

/// A sidelink before an endpoint.
pub struct Sidelink {
    pub app: App,
    pub client: TestClient,
}

impl Sidelink {
    pub async fn before(endpoint: SocketAddr, configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(endpoint);
        configure(&mut config);
        Self::start(config).await
    }

    /// Before `https://localhost:PORT`.
    pub async fn before_https(port: u16, ca_file: &std::path::Path, configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(SocketAddr::from(([127, 0, 0, 1], port)));
        config.upstream.endpoint = Endpoint::parse(&format!("https://localhost:{port}")).unwrap();
        config.upstream.ca_file = Some(ca_file.to_owned());
        configure(&mut config);
        Self::start(config).await
    }

    async fn start(config: Config) -> Self {
        let app = App::start(config).await.unwrap();
        let client = TestClient::new(app.addresses()[0]);
        Self { app, client }
    }

    /// Sends a batch of one id, and asserts that it gets its link.
    pub async fn gets(&self, token: &str, id: &str) {
        let reply = self.client.batch(token, &[id]).await;
        assert!(serves(&reply, token, &[id]), "{token} {id}: {reply:?}");
    }

    /// Sends batches of one id each, all at once. Returns their statuses.
    pub async fn burst(&self, batches: impl IntoIterator<Item = (String, String)>) -> Vec<u16> {
        let mut running = tokio::task::JoinSet::new();
        for (token, id) in batches {
            let client = self.client.clone();
            running.spawn(async move {
                let reply = client.batch(&token, &[&id]).await;
                assert!(reply.status != 200 || serves(&reply, &token, &[&id]), "a wrong link: {reply:?}");
                reply.status.as_u16()
            });
        }
        running.join_all().await
    }

    pub async fn metric(&self, series: &str) -> f64 {
        let page = TestClient::new(self.app.admin_address()).get("/metrics", &[]).await;
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        value_of(series, &text)
    }

    /// The breaker is closed, and has refused no call.
    pub async fn breaker_stayed_closed(&self) {
        assert_eq!(self.metric(r#"sidelink_breaker_state{state="closed"}"#).await, 1.0);
        assert_eq!(self.metric(r#"sidelink_upstream_calls_total{result="refused"}"#).await, 0.0);
    }
}

/// How many of `statuses` are not 200, by status.
pub fn failed(statuses: &[u16]) -> std::collections::BTreeMap<u16, usize> {
    let mut failed = std::collections::BTreeMap::new();
    for status in statuses.iter().filter(|status| **status != 200) {
        *failed.entry(*status).or_default() += 1;
    }
    failed
}
