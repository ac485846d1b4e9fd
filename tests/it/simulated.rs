//! A whole sidelink and its endpoint in one process, on one paused clock, over connections in memory.

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use sidelink::app::Generations;
use sidelink::clock::Clock;
use sidelink::config::Config;
use sidelink::demo::origin::iam::Iam;
use sidelink::demo::origin::{self, Origin};
use sidelink::server::{self, ConnLimits, Protocol};
use sidelink::upstream::{MemoryEndpoint, MemoryNetwork};
use tokio::io::duplex;
use tokio::sync::mpsc;

use crate::support::{LOOPBACK, Reply, config, origin_options, query, value_of};

/// 2026-11-24, midnight.
const EPOCH: i64 = 1_795_478_400_000;

pub struct World {
    pub origin: Origin,
    /// The proxy's.
    pub clock: Clock,
    pub endpoint_clock: Clock,
    pub proxy: std::sync::Arc<Generations>,
    limits: ConnLimits,
}

impl World {
    /// Must be called in a runtime whose clock is paused.
    pub fn new(endpoint: impl FnOnce(&mut origin::Options), configure: impl FnOnce(&mut Config)) -> Self {
        Self::over(false, endpoint, configure)
    }

    /// As [`World::new`]; with `http2`, calls use HTTP/2.
    pub fn over(http2: bool, endpoint: impl FnOnce(&mut origin::Options), configure: impl FnOnce(&mut Config)) -> Self {
        Self::with(http2, None, Clock::simulated(EPOCH), endpoint, configure)
    }

    /// As [`World::new`], with an IAM whose tokens the endpoint takes.
    pub fn with_iam(
        endpoint: impl FnOnce(&mut origin::Options),
        configure: impl FnOnce(&mut Config, &Iam),
    ) -> (Self, Iam) {
        let (accept, connections) = mpsc::unbounded_channel();
        let endpoint_clock = Clock::simulated(EPOCH);
        let address = LOOPBACK.to_string().replace(":0", ":81").parse().unwrap();
        let iam = Iam::in_memory(address, endpoint_clock.clone(), connections).unwrap();
        let endpoint = |options: &mut origin::Options| {
            options.iam = Some(iam.clone());
            endpoint(options);
        };
        let provider = Some(MemoryEndpoint::from(accept));
        let world = Self::with(false, provider, endpoint_clock, endpoint, |config| configure(config, &iam));
        (world, iam)
    }

    fn with(
        http2: bool,
        identity_provider: Option<MemoryEndpoint>,
        endpoint_clock: Clock,
        endpoint: impl FnOnce(&mut origin::Options),
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let clock = Clock::simulated(EPOCH);
        let mut options = origin_options();
        endpoint(&mut options);
        let mut config = config(LOOPBACK.to_string().replace(":0", ":80").parse().unwrap());
        // Simulated clients keep their connections through hours that pass in no time.
        config.limits.idle_timeout = std::time::Duration::from_secs(24 * 3600);
        config.limits.max_connection_age = std::time::Duration::from_secs(365 * 24 * 3600);
        configure(&mut config);
        let limits = ConnLimits::from(&config.limits);
        let (accept, connections) = mpsc::unbounded_channel();
        let origin = Origin::in_memory(options, endpoint_clock.clone(), connections);
        let network = MemoryNetwork { endpoint: MemoryEndpoint { accept, http2 }, identity_provider };
        let proxy = std::sync::Arc::new(Generations::in_memory(config, clock.clone(), network).unwrap());
        Self { origin, clock, endpoint_clock, proxy, limits }
    }

    pub fn update(&self, change: impl FnOnce(&mut origin::Options)) {
        self.origin.update(change);
    }

    /// The proxy's machine sleeps for `span`: its monotonic clock stands still, everyone's wall clock goes on.
    pub fn suspend(&self, span: std::time::Duration) {
        let millis = i64::try_from(span.as_millis()).unwrap();
        self.clock.step(millis);
        self.endpoint_clock.step(millis);
    }

    pub async fn client(&self) -> Client {
        // Less than an answer, so that a slow reader is felt.
        let (near, far) = duplex(1 << 10);
        let (proxy, limits) = (self.proxy.clone(), self.limits);
        let connection = std::sync::Arc::default();
        tokio::spawn(server::serve_connection(Protocol::Any, far, limits, Default::default(), move |request| {
            proxy.answer(request, &connection)
        }));
        let (sender, connection) = handshake(TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection);
        Client { sender, pause: std::time::Duration::ZERO }
    }

    /// An operator's purge; returns once it is in force.
    pub async fn purge(&self, targets: &str) {
        let request = Request::post("/purge").header("host", "localhost").header("content-type", "application/json");
        let request = request.body(Full::new(Bytes::from(targets.to_owned()))).unwrap();
        let answer = self.proxy.current().admin.answer(server::Peer::Local, request).await;
        assert_eq!(answer.status(), 200);
    }

    pub fn metric(&self, series: &str) -> f64 {
        let (current, request) = (self.proxy.current(), Request::get("/metrics").body(Full::<Bytes>::default()));
        let page = async {
            let page = current.admin.answer(server::Peer::Local, request.unwrap()).await;
            page.into_body().collect().await.unwrap().to_bytes()
        };
        let body = page.now_or_never().unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        value_of(series, &text)
    }
}

/// One connection of a client.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    /// Between an answer's head and its body.
    pub pause: std::time::Duration,
}

impl Client {
    pub async fn batch(&mut self, token: &str, ids: &[&str]) -> Reply {
        self.get(&query(ids), &[("x-auth-token", token)]).await.unwrap()
    }

    pub async fn get(&mut self, target: &str, headers: &[(&str, &str)]) -> hyper::Result<Reply> {
        self.send(Method::GET, target, headers, "").await
    }

    pub async fn send(
        &mut self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> hyper::Result<Reply> {
        let mut request = Request::builder().method(method).uri(target).header("host", "sidelink");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request.body(Full::new(body.into())).unwrap()).await?.into_parts();
        let bypass =
            head.headers.get("cache-status").is_some_and(|status| status.to_str().unwrap().contains("fwd=bypass"));
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            // It streams through, and so does its breaking off.
            Err(_) if bypass => Bytes::new(),
            Err(error) => return Err(error),
        };
        Ok(Reply { status: head.status, headers: head.headers, body })
    }
}
