//! Takes spans over and brings them to a collector, as OTLP over HTTP (protobuf).
//!
//! A bounded queue stands between requests and the one task that exports: where it is full, a span is dropped and counted,
//! and nobody waits. What a collector does, or does not, concerns that task alone.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message;
use rustls::ClientConfig;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::Record;
use super::otlp::{self, Resource};
use crate::clock::Clock;
use crate::config;
use crate::log::{Seldom, chain};
use crate::metrics::{Metrics, SpanResult};
use crate::pause::retry_after;

/// Spans that wait to be exported.
const QUEUE: usize = 2048;
/// Spans that are exported at a time.
const BATCH: usize = 512;
/// The longest that a span waits for others to go with.
const EVERY: Duration = Duration::from_secs(1);
/// Bytes of a collector's answer that are read.
const ANSWER_BYTES: usize = 64 << 10;
/// Between one attempt to export and the next, where the collector does not say.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_secs(1))
    .with_max_delay(Duration::from_secs(8))
    .with_factor(2.0)
    .with_max_times(3)
    .with_jitter();

/// Where spans are handed over.
#[derive(Clone)]
pub(super) struct Exporter {
    queue: Sender<Record>,
    metrics: Arc<Metrics>,
}

/// What only a build with the feature has.
#[derive(Clone)]
pub(super) struct Built<T>(T);

impl<T> Deref for Built<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Built<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl Exporter {
    /// Begins to export; ends when `stop` says so, or when every handle is gone, with what is queued by then.
    #[expect(clippy::unnecessary_wraps, reason = "a build without the feature has none")]
    pub(super) fn start(
        config: &config::Trace,
        tls: Option<ClientConfig>,
        metrics: &Arc<Metrics>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Option<Self> {
        let (queue, spans) = channel(QUEUE);
        let task = Task {
            collector: Collector::new(config, tls),
            resource: Resource::of(&config.service_name, &hex::encode(rand::random::<[u8; 16]>())),
            metrics: Arc::clone(metrics),
            clock: Clock::system(),
            stop,
            failed: Seldom::default(),
            rejected: Seldom::default(),
        };
        tasks.spawn(task.run(spans));
        Some(Self { queue, metrics: Arc::clone(metrics) })
    }

    /// A value, as only a build with the feature has it.
    #[expect(clippy::unused_self, reason = "that there is an exporter is what it shows")]
    pub(super) fn built<T>(&self, value: T) -> Built<T> {
        Built(value)
    }

    /// Takes a span over, if there is room for it.
    pub(super) fn take(&self, record: Record) {
        if self.queue.try_send(record).is_err() {
            self.metrics.spans.count(SpanResult::Dropped, 1);
        }
    }
}

struct Task {
    collector: Collector,
    resource: Resource,
    metrics: Arc<Metrics>,
    clock: Clock,
    stop: CancellationToken,
    failed: Seldom,
    rejected: Seldom,
}

impl Task {
    async fn run(self, mut queue: Receiver<Record>) {
        let mut batch = Vec::new();
        loop {
            let open = tokio::select! {
                open = gather(&mut queue, &mut batch) => open,
                () = self.stop.cancelled() => false,
            };
            if !open {
                break;
            }
            self.export(&mut batch).await;
        }
        // From here on nothing is tried twice: whoever waits for the end has little time.
        queue.close();
        while !batch.is_empty() || queue.recv_many(&mut batch, BATCH).await > 0 {
            if !self.export(&mut batch).await {
                let left = std::iter::from_fn(|| queue.try_recv().ok()).count();
                self.metrics.spans.count(SpanResult::Failed, left);
                return;
            }
        }
    }

    /// Brings a batch to the collector and empties it. Whether it was taken.
    async fn export(&self, batch: &mut Vec<Record>) -> bool {
        let spans = batch.len();
        let body = Bytes::from(otlp::Request::of(&self.resource, batch.drain(..)).encode_to_vec());
        let mut pauses = PAUSES.build();
        let failure = loop {
            let failure = match self.collector.take(body.clone(), &self.clock).await {
                Ok(rejected) => {
                    self.count_taken(spans, usize::try_from(rejected).unwrap_or(spans).min(spans));
                    return true;
                }
                Err(failure) => failure,
            };
            let Some(pause) = pauses.next().filter(|_| failure.may_pass && !self.stop.is_cancelled()) else {
                break failure;
            };
            tokio::select! {
                () = sleep(failure.pause.unwrap_or(pause)) => {}
                () = self.stop.cancelled() => break failure,
            }
        };
        self.metrics.spans.count(SpanResult::Failed, spans);
        if let Some(unsaid) = self.failed.is_due() {
            warn!(reason = failure.reason, spans, unsaid, "spans could not be exported");
        }
        false
    }

    fn count_taken(&self, spans: usize, rejected: usize) {
        self.metrics.spans.count(SpanResult::Exported, spans - rejected);
        self.metrics.spans.count(SpanResult::Rejected, rejected);
        if rejected > 0
            && let Some(unsaid) = self.rejected.is_due()
        {
            warn!(spans = rejected, unsaid, "the collector has rejected spans");
        }
    }
}

/// Waits for spans, and for those that come soon after. `false`: no more will come.
async fn gather(queue: &mut Receiver<Record>, batch: &mut Vec<Record>) -> bool {
    if queue.recv_many(batch, BATCH).await == 0 {
        return false;
    }
    let until = Instant::now() + EVERY;
    while batch.len() < BATCH {
        let room = BATCH - batch.len();
        tokio::select! {
            received = queue.recv_many(batch, room) => if received == 0 { break },
            () = sleep_until(until) => break,
        }
    }
    true
}

/// Why a batch was not taken.
struct Failure {
    reason: String,
    may_pass: bool,
    /// How long the collector asks to be left alone.
    pause: Option<Duration>,
}

impl Failure {
    fn passing(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), may_pass: true, pause: None }
    }
}

/// Who is brought spans.
struct Collector {
    client: Way,
    uri: Uri,
    headers: HeaderMap,
    timeout: Duration,
}

enum Way {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Way {
    fn request(&self, request: Request<Full<Bytes>>) -> ResponseFuture {
        match self {
            Way::Plain(client) => client.request(request),
            Way::Tls(client) => client.request(request),
        }
    }
}

impl Collector {
    fn new(config: &config::Trace, tls: Option<ClientConfig>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new());
        let client = match tls {
            None => Way::Plain(builder.build(tcp)),
            Some(tls) => {
                let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1();
                Way::Tls(builder.build(connector.wrap_connector(tcp)))
            }
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("sidelink/", env!("CARGO_PKG_VERSION"))));
        headers.extend(config.headers.iter().map(|header| (header.name.clone(), header.value())));
        Self { client, uri: config.uri(), headers, timeout: config.timeout }
    }

    /// One attempt. How many spans the collector has rejected.
    async fn take(&self, body: Bytes, clock: &Clock) -> Result<u64, Failure> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().clone_from(&self.headers);
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| Failure::passing(chain(&error)))?;
            let (head, body) = answer.into_parts();
            if !head.status.is_success() {
                let may_pass = matches!(
                    head.status,
                    StatusCode::TOO_MANY_REQUESTS
                        | StatusCode::BAD_GATEWAY
                        | StatusCode::SERVICE_UNAVAILABLE
                        | StatusCode::GATEWAY_TIMEOUT
                );
                let reason = format!("the collector answered with status {}", head.status.as_u16());
                return Err(Failure { reason, may_pass, pause: retry_after(&head.headers, clock.now()) });
            }
            // Taken it has, by its status; but what answers in another tongue is no collector.
            let strange =
                || Failure { reason: "what answered is no collector".to_owned(), may_pass: false, pause: None };
            let body = Limited::new(body, ANSWER_BYTES).collect().await.map_err(|_| strange())?.to_bytes();
            let response = otlp::Response::decode(body).map_err(|_| strange())?;
            Ok(response.rejected())
        };
        let late = |_| Failure::passing("no answer within trace.timeout");
        timeout(self.timeout, exchange).await.map_err(late)?
    }
}
