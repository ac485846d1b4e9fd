//! Never worse than without: the same traffic goes to one misbehaving endpoint directly and through sidelink, in one run. sidelink
//! answers at least as many requests as a direct client that sends an idempotent request once more on a new connection, and serves no
//! caller another caller's link.
//!
//! A seed decides how connections end: after some requests, closed with or without notice, reset or answered with 408 at
//! their next use, all at once, by GOAWAY, with streams refused. `SIDELINK_SEED=n` runs one seed, `SIDELINK_SEEDS=n` runs n.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::task::JoinSet;

use crate::flaky_endpoint::http2::{Farewell, Secure};
use crate::flaky_endpoint::{Act, Asked, Flaky, OTHER_ROUTE, Sidelink, link};
use crate::load::{Stream, tls};
use crate::support::{Reply, query};

const SEEDS: u64 = 24;
const SEEDS_AT_A_TIME: usize = 4;
const CALLERS: usize = 6;
const REQUESTS: usize = 25;

/// How the connections of one run end.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    is_http2: bool,
    /// Every so many requests, all connections so far are lost at their next use.
    all_lost_every: Option<usize>,
    /// Streams that are refused once.
    refused: f64,
    delay: Duration,
    retries: usize,
}

impl Plan {
    fn draw(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        Self {
            seed,
            is_http2: random.random_bool(0.5),
            all_lost_every: *[None, Some(37), Some(90)].choose(&mut random).unwrap(),
            refused: *[0.0, 0.0, 0.2].choose(&mut random).unwrap(),
            delay: Duration::from_millis(random.random_range(0..4)),
            retries: *[0, 2].choose(&mut random).unwrap(),
        }
    }

    /// What one connection does.
    fn of_connection(&self, number: usize) -> StdRng {
        StdRng::seed_from_u64(self.seed << 20 | number as u64)
    }

    fn farewell(&self, number: usize) -> Option<Farewell> {
        let mut random = self.of_connection(number);
        // At least as many as may be in flight, so that a request that is sent again on a new connection is served.
        let after = random.random_range(3 * CALLERS..60);
        let warns = random.random_bool(0.3);
        let code = *[Reason::NO_ERROR, Reason::NO_ERROR, Reason::ENHANCE_YOUR_CALM].choose(&mut random).unwrap();
        random.random_bool(0.7).then_some(Farewell { after, warns, code })
    }
}

/// What the endpoint remembers.
struct Misbehaviour {
    plan: Plan,
    requests: AtomicUsize,
    /// Connections below this number are lost at their next use.
    lost_below: AtomicUsize,
    newest: AtomicUsize,
    refused: Mutex<HashSet<(String, String)>>,
}

impl Misbehaviour {
    fn act(&self, asked: &Asked) -> Act {
        let newest = self.newest.fetch_max(asked.connection + 1, Ordering::SeqCst).max(asked.connection + 1);
        let request = self.requests.fetch_add(1, Ordering::SeqCst);
        if self.plan.all_lost_every.is_some_and(|every| request % every == every - 1) {
            self.lost_below.store(newest, Ordering::SeqCst);
        }
        if !asked.is_on_a_reused_connection() {
            return Act::Answer;
        }
        let mut random = self.plan.of_connection(asked.connection);
        let is_lost = asked.connection < self.lost_below.load(Ordering::SeqCst);
        if asked.is_http2 {
            let key = (asked.token.clone(), asked.ids.concat());
            let mut chance = StdRng::seed_from_u64(self.plan.seed << 30 | request as u64);
            return match is_lost {
                true if random.random_bool(0.5) => Act::Reset,
                true => Act::Close,
                // Once: a second refusal of the same request would be no misbehaviour that a client survives.
                false if chance.random_bool(self.plan.refused) && self.refused.lock().unwrap().insert(key) => {
                    Act::ResetStream(Reason::REFUSED_STREAM)
                }
                false => Act::Answer,
            };
        }
        let most = random.random_range(1..12);
        let ends = [Act::AnswerAndClose, Act::Close, Act::Reset, Act::FailAndClose(408)];
        if is_lost || asked.earlier >= most { ends.choose(&mut random).unwrap().clone() } else { Act::Answer }
    }
}

/// A client that keeps one connection, and sends a request once more on a new one.
struct Direct {
    address: SocketAddr,
    tls: Option<ClientConfig>,
    idle: Option<Sender>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Direct {
    async fn get(&mut self, target: &str, token: &str) -> Option<Reply> {
        let idle = self.idle.take();
        let was_reused = idle.is_some();
        if let Some(sender) = idle
            && let Some(reply) = self.attempt(sender, target, token).await
            && reply.status != 408
        {
            return Some(reply);
        }
        let attempts = if was_reused { 1 } else { 2 };
        for _ in 0..attempts {
            let sender = self.connect().await;
            if let Some(reply) = self.attempt(sender, target, token).await {
                return Some(reply);
            }
        }
        None
    }

    async fn connect(&self) -> Sender {
        let io: Box<dyn Stream> = match &self.tls {
            Some(config) => Box::new(tls(self.address, config.clone()).await.unwrap()),
            None => {
                let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                Box::new(stream)
            }
        };
        if self.tls.is_some() {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
            tokio::spawn(connection);
            return Sender::Http2(sender);
        }
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection);
        Sender::Http1(sender)
    }

    /// Keeps the connection after an answer.
    async fn attempt(&mut self, mut sender: Sender, target: &str, token: &str) -> Option<Reply> {
        let request = Request::get(format!("https://localhost{target}")).header("x-auth-token", token);
        let response = match &mut sender {
            Sender::Http1(sender) => {
                let request = request.uri(target).header("host", "localhost").body(Full::default()).unwrap();
                sender.ready().await.ok()?;
                sender.send_request(request).await.ok()?
            }
            Sender::Http2(sender) => {
                sender.ready().await.ok()?;
                sender.send_request(request.version(Version::HTTP_2).body(Full::default()).unwrap()).await.ok()?
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        self.idle = Some(sender);
        Some(Reply { status: head.status, headers: head.headers, body })
    }
}

/// The target of a caller's request number `at`, and its ids.
fn request(at: usize) -> (String, Vec<String>) {
    if at % 6 == 5 {
        return (OTHER_ROUTE.to_owned(), Vec::new());
    }
    let ids: Vec<String> = (0..=at % 3).map(|id| format!("id-{at}-{id}")).collect();
    (query(&ids.iter().map(String::as_str).collect::<Vec<_>>()), ids)
}

/// Whether it is a success; a wrong link is none that anyone may have.
fn is_served(reply: &Reply, token: &str, ids: &[String]) -> bool {
    if reply.status == 200 && !ids.is_empty() {
        let expected: Vec<_> = ids.iter().map(|id| (id.clone(), link(token, id))).collect();
        assert_eq!(reply.links(), expected, "a wrong link for {token}");
    }
    reply.status == 200
}

#[derive(Debug, Default)]
struct Totals {
    requests: usize,
    direct: usize,
    through: usize,
    /// What came through in place of a 200.
    failures: Vec<String>,
}

async fn run(seed: u64) -> Totals {
    let plan = Plan::draw(seed);
    let misbehaviour = Arc::new(Misbehaviour {
        plan: plan.clone(),
        requests: AtomicUsize::new(0),
        lost_below: AtomicUsize::new(0),
        newest: AtomicUsize::new(0),
        refused: Mutex::default(),
    });
    let decide = move |asked: Asked| {
        let misbehaviour = Arc::clone(&misbehaviour);
        async move {
            tokio::time::sleep(misbehaviour.plan.delay).await;
            misbehaviour.act(&asked)
        }
    };
    let configure = |config: &mut sidelink::config::Config| config.upstream.retry.attempts = plan.retries;
    if plan.is_http2 {
        let goodbyes = plan.clone();
        // Other routes go over HTTP/1.1.
        let alpn: &[&[u8]] = &[b"h2", b"http/1.1"];
        let secure = Secure::start(alpn, move |number| goodbyes.farewell(number), decide).await;
        let sidelink = Sidelink::before_https(secure.port, secure.ca_file(), configure).await;
        compare(secure.endpoint.address, Some(trusting(secure.ca_file())), &sidelink).await
    } else {
        let endpoint = Flaky::start(decide).await;
        let sidelink = Sidelink::before(endpoint.address, configure).await;
        compare(endpoint.address, None, &sidelink).await
    }
}

fn trusting(ca_file: &Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let mut config =
        builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// The same requests by as many callers, direct and through.
async fn compare(address: SocketAddr, tls: Option<ClientConfig>, sidelink: &Sidelink) -> Totals {
    let (mut direct, mut through) = (JoinSet::new(), JoinSet::new());
    for caller in 0..CALLERS {
        let mut client = Direct { address, tls: tls.clone(), idle: None };
        direct.spawn(async move {
            let (token, mut served) = (format!("direct-{caller}"), 0);
            for at in 0..REQUESTS {
                let (target, ids) = request(at);
                let reply = client.get(&target, &token).await;
                served += usize::from(reply.is_some_and(|reply| is_served(&reply, &token, &ids)));
            }
            served
        });
        let client = sidelink.client.clone();
        through.spawn(async move {
            let (token, mut failures) = (format!("through-{caller}"), Vec::new());
            for at in 0..REQUESTS {
                let (target, ids) = request(at);
                let reply = client.get(&target, &[("x-auth-token", &token)]).await;
                if !is_served(&reply, &token, &ids) {
                    failures.push(format!("{target} {token}: {} {:?}", reply.status, reply.body));
                }
            }
            failures
        });
    }
    let (direct, failures) = tokio::join!(direct.join_all(), through.join_all());
    let (requests, failures) = (CALLERS * REQUESTS, failures.concat());
    Totals { requests, direct: direct.iter().sum(), through: requests - failures.len(), failures }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn sidelink_answers_at_least_what_a_direct_client_gets() {
    let seeds = match from_environment("SIDELINK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("SIDELINK_SEEDS").unwrap_or(SEEDS),
    };
    let (sum, worse) = (Mutex::new(Totals::default()), Mutex::new(Vec::new()));
    let next = AtomicU64::new(seeds.start);
    // Most of a seed is waiting.
    std::thread::scope(|scope| {
        for _ in 0..SEEDS_AT_A_TIME {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds.end {
                        break;
                    }
                    let totals = runtime.block_on(run(seed));
                    let mut sum = sum.lock().unwrap();
                    sum.requests += totals.requests;
                    sum.direct += totals.direct;
                    sum.through += totals.through;
                    if totals.through < totals.direct {
                        worse.lock().unwrap().push((seed, totals));
                    }
                }
            });
        }
    });
    let (sum, worse) = (sum.into_inner().unwrap(), worse.into_inner().unwrap());
    println!(
        "differential: {} seeds, {} requests each way: {} answered direct, {} through sidelink",
        seeds.end - seeds.start,
        sum.requests,
        sum.direct,
        sum.through
    );
    if let Some((seed, totals)) = worse.first() {
        let (count, plan, first) = (worse.len(), Plan::draw(*seed), totals.failures.first());
        panic!(
            "worse in {count} seeds; SIDELINK_SEED={seed}: {} direct, {} through, {plan:?}, first {first:?}",
            totals.direct, totals.through
        );
    }
}
