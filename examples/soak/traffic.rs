//! What clients send, and whether what they get keeps the laws.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rand::RngExt;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Zipf};
use serde_json::{Value, json};
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::link_is_for;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::processes::MIN_REMAINING;

/// Clients at a time, of each kind.
const CLIENTS: [(Kind, usize); 5] =
    [(Kind::Batches, 16), (Kind::Impatient, 4), (Kind::Garbage, 2), (Kind::Others, 2), (Kind::Operator, 1)];
/// So many ids, callers and groups that their links do not fit the cache.
const IDS: f64 = 5_000.0;
const CALLERS: u32 = 12;
const GROUPS: u32 = 2;
/// Between two requests of one client, at most.
const PAUSE: Duration = Duration::from_millis(12);
/// Wall clocks are read at different moments, and links end on whole seconds.
const TOLERANCE: u64 = 2;

#[derive(Clone, Copy)]
enum Kind {
    /// Batches over keep-alive connections, in each form.
    Batches,
    /// Leave before their answer.
    Impatient,
    /// Bytes that are no request.
    Garbage,
    /// Routes that pass through.
    Others,
    /// Purges, pages and probes.
    Operator,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    links: AtomicU64,
    from_memory: AtomicU64,
    /// Errors of the endpoint, or sidelink's own for want of it: what faults come to.
    refused: AtomicU64,
    /// Connections that ended under a request.
    cut: AtomicU64,
    wrong: AtomicU64,
    first_wrong: Mutex<Option<String>>,
}

/// All clients.
pub(crate) struct Traffic {
    counts: Arc<Counts>,
    stop: CancellationToken,
    clients: JoinSet<()>,
}

impl Traffic {
    pub(crate) fn start(address: SocketAddr, admin: SocketAddr) -> Self {
        let (counts, stop) = (Arc::new(Counts::default()), CancellationToken::new());
        let mut clients = JoinSet::new();
        let mut seed = 0;
        for (kind, number) in CLIENTS {
            for _ in 0..number {
                seed += 1;
                let client = Client::new(kind, address, admin, seed, Arc::clone(&counts));
                let stop = stop.clone();
                clients.spawn(async move {
                    stop.run_until_cancelled(client.run()).await;
                });
            }
        }
        Self { counts, stop, clients }
    }

    /// The counts so far.
    pub(crate) fn line(&self) -> String {
        self.counts.line()
    }

    /// Ends all clients.
    pub(crate) async fn stop(mut self) -> Self {
        self.stop.cancel();
        while let Some(client) = self.clients.join_next().await {
            if let Err(error) = client {
                self.counts.wrong(&format!("a client of this program: {error}"));
            }
        }
        self
    }

    pub(crate) fn report(&self) -> String {
        let mut report = self.counts.line();
        if let Some(wrong) = &*self.counts.first_wrong.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = write!(report, "\nthe first wrong one: {wrong}");
        }
        report
    }

    /// No answer was wrong, there were many, and memory answered its share.
    pub(crate) fn held(&self) -> bool {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        count(&self.counts.wrong) == 0 && count(&self.counts.links) > 1000 && count(&self.counts.from_memory) > 0
    }
}

impl Counts {
    fn line(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "{} requests, {} links ({} in batches wholly from memory), {} errors, {} cut off, {} WRONG",
            count(&self.requests),
            count(&self.links),
            count(&self.from_memory),
            count(&self.refused),
            count(&self.cut),
            count(&self.wrong),
        )
    }

    fn wrong(&self, reason: &str) {
        self.wrong.fetch_add(1, Ordering::Relaxed);
        self.first_wrong.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.to_owned());
    }
}

struct Client {
    kind: Kind,
    address: SocketAddr,
    admin: SocketAddr,
    random: StdRng,
    popularity: Option<Zipf<f64>>,
    counts: Arc<Counts>,
}

/// One batch, as it was asked.
struct Asked {
    token: String,
    group: Option<String>,
    language: Option<&'static str>,
    ids: Vec<String>,
}

impl Client {
    fn new(kind: Kind, address: SocketAddr, admin: SocketAddr, seed: u64, counts: Arc<Counts>) -> Self {
        let random = rand::SeedableRng::seed_from_u64(seed);
        Self { kind, address, admin, random, popularity: Zipf::new(IDS, 0.9).ok(), counts }
    }

    async fn run(mut self) {
        loop {
            let done = match self.kind {
                Kind::Batches => self.batches().await,
                Kind::Impatient => self.impatient().await,
                Kind::Garbage => self.garbage().await,
                Kind::Others => self.others().await,
                Kind::Operator => self.operate().await,
            };
            if done.is_err() {
                self.counts.cut.fetch_add(1, Ordering::Relaxed);
            }
            self.pause().await;
        }
    }

    async fn pause(&mut self) {
        tokio::time::sleep(PAUSE.mul_f64(self.random.random())).await;
    }

    /// Some batches over one connection.
    async fn batches(&mut self) -> io::Result<()> {
        let mut connection = connect(self.address).await?;
        for _ in 0..self.random.random_range(1..200) {
            let asked = self.draw();
            let request = self.write(&asked).map_err(io::Error::other)?;
            connection.ready().await.map_err(io::Error::other)?;
            let response = connection.send_request(request).await.map_err(io::Error::other)?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            self.counts.requests.fetch_add(1, Ordering::Relaxed);
            self.judge(&asked, head.status, &head.headers, &body);
            self.pause().await;
        }
        Ok(())
    }

    fn draw(&mut self) -> Asked {
        let token = match self.random.random_range(0..200) {
            0 => "revoked".to_owned(),
            _ => format!("token-{}", self.random.random_range(0..CALLERS)),
        };
        let group = self.random.random_bool(0.7).then(|| format!("group-{}", self.random.random_range(0..GROUPS)));
        let language = self.random.random_bool(0.2).then_some("en-us");
        let number = match self.random.random_range(0..50) {
            0 => 250,
            1..25 => self.random.random_range(5..40),
            _ => self.random.random_range(1..5),
        };
        let mut ids: Vec<String> = Vec::new();
        for _ in 0..number {
            let drawn = self.popularity.map_or(1.0, |popularity| popularity.sample(&mut self.random));
            let id = if self.random.random_bool(0.01) { "lost-1".to_owned() } else { format!("{drawn:.0}") };
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Asked { token, group, language, ids }
    }

    fn write(&mut self, asked: &Asked) -> Result<Request<Full<Bytes>>, http::Error> {
        let form = self.random.random_range(0..3);
        let mut query: Vec<String> = asked.group.iter().map(|group| format!("{}={group}", api::GROUP)).collect();
        match form {
            0 => query.extend(asked.ids.iter().map(|id| format!("{}={id}", api::IDS))),
            1 => query.push(format!("{}={}", api::IDS, asked.ids.join(","))),
            _ => {}
        }
        let target = if form == 2 { api::PATH.to_owned() } else { format!("{}?{}", api::PATH, query.join("&")) };
        let mut request =
            Request::get(target).header(HOST, self.address.to_string()).header(api::TOKEN, asked.token.as_str());
        if let Some(language) = asked.language {
            request = request.header("x-language", language);
        }
        if self.random.random_bool(0.01) {
            request = request.header("cache-control", "no-cache");
        }
        if form != 2 {
            return request.body(Full::default());
        }
        let mut body = json!({ api::IDS: asked.ids });
        if let (Some(group), Some(fields)) = (&asked.group, body.as_object_mut()) {
            fields.insert(api::GROUP.to_owned(), Value::from(group.as_str()));
        }
        request.header(CONTENT_TYPE, "application/json").body(Full::from(body.to_string()))
    }

    /// The laws: its own links alone, in the order asked, none from memory near its end.
    fn judge(&self, asked: &Asked, status: StatusCode, headers: &HeaderMap, body: &Bytes) {
        let how = headers.get("cache-status").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let Ok(answer) = serde_json::from_slice::<Value>(body) else {
            return self.counts.wrong(&format!("{status}: not JSON"));
        };
        let Some(items) = answer.get("accessory_urls").and_then(Value::as_array).filter(|_| status == 200) else {
            if answer.get("error_code").is_none() {
                self.counts.wrong(&format!("{status}: neither links nor an error"));
            }
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let text = |item: &Value, name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let had: Vec<String> = items.iter().map(|item| text(item, "accessory_id")).collect();
        let expected: Vec<&String> = asked.ids.iter().filter(|id| !id.starts_with("lost")).collect();
        if asked.token == "revoked" || !had.iter().eq(expected) {
            return self.counts.wrong(&format!("{} of {} ids, {how}", had.len(), asked.ids.len()));
        }
        let from_memory = how.starts_with("sidelink; hit");
        for (id, url) in had.iter().zip(items.iter().map(|item| text(item, "accessory_url"))) {
            if !link_is_for(&url, id, asked.group.as_deref(), &asked.token, asked.language, None) {
                return self.counts.wrong(&format!("the link of {id} is another's: {how}"));
            }
            if from_memory && life_left(&url) + TOLERANCE < MIN_REMAINING.as_secs() {
                return self.counts.wrong(&format!("the link of {id} has {} s left: {how}", life_left(&url)));
            }
        }
        self.counts.links.fetch_add(had.len() as u64, Ordering::Relaxed);
        if from_memory {
            self.counts.from_memory.fetch_add(had.len() as u64, Ordering::Relaxed);
        }
    }

    /// Sends a batch and goes.
    async fn impatient(&mut self) -> io::Result<()> {
        let asked = self.draw();
        let mut stream = TcpStream::connect(self.address).await?;
        let query: String = asked.ids.iter().map(|id| format!("&{}={id}", api::IDS)).collect();
        let target = format!("{}?{}", api::PATH, query.trim_start_matches('&'));
        let head = format!("GET {target} HTTP/1.1\r\nhost: x\r\nx-auth-token: {}\r\n\r\n", asked.token);
        let sent = self.random.random_range(1..=head.len());
        stream.write_all(head.as_bytes().get(..sent).unwrap_or_default()).await?;
        self.pause().await;
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sends what is no request, or one that nobody should take.
    async fn garbage(&mut self) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.address).await?;
        let bytes: Vec<u8> = match self.random.random_range(0..4) {
            0 => (0..self.random.random_range(1..2000)).map(|_| self.random.random()).collect(),
            1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\xff\xff\xff\xff\xff\xff".to_vec(),
            2 => b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_vec(),
            _ => format!("GET {} HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", api::PATH).into_bytes(),
        };
        stream.write_all(&bytes).await?;
        let mut answer = Vec::new();
        // What is not answered is cut off in time; that is waited for only now and then.
        let patience = Duration::from_millis(self.random.random_range(1..5000));
        let _ = tokio::time::timeout(patience, stream.read_to_end(&mut answer)).await;
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Another route, some with a body.
    async fn others(&mut self) -> io::Result<()> {
        let body = vec![b'x'; self.random.random_range(0..300_000)];
        let request = Request::post("/v2/servicerequest/accessorys")
            .header(HOST, self.address.to_string())
            .header(api::TOKEN, "token-1")
            .body(Full::from(body))
            .map_err(io::Error::other)?;
        let mut connection = connect(self.address).await?;
        let response = connection.send_request(request).await.map_err(io::Error::other)?;
        response.into_body().collect().await.map_err(io::Error::other)?;
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Looks at pages, and purges now and then.
    async fn operate(&mut self) -> io::Result<()> {
        for page in ["/", "/status.json", "/metrics", "/readyz", "/explain?accessory_ids=1"] {
            get(self.admin, page).await?;
        }
        let purge = match self.random.random_range(0..20) {
            0 => r#"{"all":true}"#.to_owned(),
            1..4 => r#"{"group_id":"group-1"}"#.to_owned(),
            _ => format!(r#"{{"accessory_ids":["{}"]}}"#, self.random.random_range(1..100)),
        };
        let head = format!(
            "POST /purge HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.admin,
            purge.len(),
        );
        exchange(self.admin, &(head + &purge)).await?;
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(())
    }
}

/// Seconds until the link's own end.
fn life_left(url: &str) -> u64 {
    let expires = url.split(['?', '&']).find_map(|pair| pair.strip_prefix("Expires=")?.parse::<u64>().ok());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    expires.unwrap_or_default().saturating_sub(now)
}

async fn connect(address: SocketAddr) -> io::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A page of the admin listener.
pub(crate) async fn get(admin: SocketAddr, page: &str) -> io::Result<String> {
    let head = format!("GET {page} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\nx-auth-token: token-1\r\n\r\n");
    exchange(admin, &head).await
}

async fn exchange(address: SocketAddr, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
