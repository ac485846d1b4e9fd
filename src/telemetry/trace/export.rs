//! Exports spans over OTLP/HTTP (protobuf): a bounded queue, and a task that hands batches from it to the SDK's exporter.
//!
//! The SDK's batch processors keep the number of dropped spans private, and block the thread that drops the last span.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use prometheus::IntCounter;
use prost::Message as _;
use rustls::ClientConfig;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::ExportTasks;
use crate::config;
use crate::telemetry::log::{LogThrottle, chain, events};
use crate::telemetry::metrics::{Metrics, SpanResult};

/// Spans that wait to be exported.
const QUEUE: usize = 2048;
/// Spans that are exported at a time.
const BATCH: usize = 512;
/// The longest that a span waits for others to be exported with.
const INTERVAL: Duration = Duration::from_secs(1);
/// No attempt to export a batch starts later than this after the first one.
const RETRY_WINDOW: Duration = Duration::from_secs(60);

/// Starts the export task, which ends once every span and tracer is gone, or with `exports`.
pub(super) fn start(
    config: &config::Trace,
    tls: Option<ClientConfig>,
    metrics: &Arc<Metrics>,
    exports: &ExportTasks,
) -> Result<SpanQueue, ExporterBuildError> {
    let client = Arc::new(CollectorClient::new(config, tls));
    let retries =
        RetryPolicy::recommended().with_initial_delay(Duration::from_secs(1)).with_max_delay(Duration::from_secs(8));
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(config.endpoint.to_string())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(RETRY_WINDOW)
        .with_retry_policy(retries)
        .with_shared_http_client(Arc::clone(&client) as Arc<dyn HttpClient>)
        .build()?;
    let resource = Resource::builder_empty().with_attributes([
        KeyValue::new("service.name", config.service_name.clone()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", hex::encode(rand::random::<[u8; 16]>())),
    ]);
    exporter.set_resource(&resource.build());
    let (sender, spans) = channel(QUEUE);
    let task = ExportTask {
        exporter,
        client,
        timeout: config.timeout,
        metrics: Arc::clone(metrics),
        stop: exports.stop.child_token(),
        failed: LogThrottle::default(),
        rejected: LogThrottle::default(),
    };
    exports.tasks.spawn(task.run(spans));
    Ok(SpanQueue { sender, dropped: metrics.spans.of(SpanResult::Dropped).clone() })
}

/// Queues ended spans. A span that does not fit is dropped and counted; no request waits.
#[derive(Debug)]
pub(super) struct SpanQueue {
    sender: Sender<SpanData>,
    dropped: IntCounter,
}

impl SpanProcessor for SpanQueue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.sender.try_send(span).is_err() {
            self.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

struct ExportTask {
    exporter: SpanExporter,
    client: Arc<CollectorClient>,
    timeout: Duration,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    failed: LogThrottle,
    rejected: LogThrottle,
}

impl ExportTask {
    async fn run(self, mut queue: Receiver<SpanData>) {
        let mut batch = Vec::new();
        while self.stop.run_until_cancelled(gather(&mut queue, &mut batch)).await == Some(true) {
            self.export(&mut batch).await;
        }
        // At the end there is little time: the first failure is the last attempt.
        queue.close();
        while !batch.is_empty() || queue.recv_many(&mut batch, BATCH).await > 0 {
            if !self.export(&mut batch).await {
                return self.metrics.spans.of(SpanResult::Failed).inc_by(queue.len() as u64);
            }
        }
    }

    /// Exports a batch and empties it. Returns whether the collector accepted it.
    async fn export(&self, batch: &mut Vec<SpanData>) -> bool {
        let spans = batch.len() as u64;
        // Once stopped, an export that is waiting to be tried again has as long as one attempt.
        let stopped = async {
            self.stop.cancelled().await;
            sleep(self.timeout).await;
        };
        tokio::select! {
            _ = self.exporter.export(std::mem::take(batch)) => {}
            () = stopped => {}
        }
        let last = self.client.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        match last.unwrap_or_else(|| Err("no attempt was completed".to_owned())) {
            Ok(rejected) => {
                let rejected = rejected.min(spans);
                self.metrics.spans.of(SpanResult::Exported).inc_by(spans - rejected);
                self.metrics.spans.of(SpanResult::Rejected).inc_by(rejected);
                if rejected > 0 {
                    self.rejected.when_due(|suppressed| events::SpansRejected { spans: rejected, suppressed }.log());
                }
                true
            }
            Err(reason) => {
                self.metrics.spans.of(SpanResult::Failed).inc_by(spans);
                self.failed.when_due(|suppressed| events::SpansFailed { reason: &reason, spans, suppressed }.log());
                false
            }
        }
    }
}

/// Waits for spans, and for those that follow within [`INTERVAL`]. `false`: the queue is closed and empty.
async fn gather(queue: &mut Receiver<SpanData>, batch: &mut Vec<SpanData>) -> bool {
    let mut received = queue.recv_many(batch, BATCH).await;
    let until = Instant::now() + INTERVAL;
    while received > 0 && batch.len() < BATCH {
        let room = BATCH - batch.len();
        received = timeout_at(until, queue.recv_many(batch, room)).await.unwrap_or_default();
    }
    !batch.is_empty()
}

/// Sends exports with the configured headers only, and records the result of the last attempt, which the exporter does not
/// return: the number of rejected spans, or why the attempt failed.
#[derive(Debug)]
struct CollectorClient {
    http: Box<dyn HttpClient>,
    headers: HeaderMap,
    last: Mutex<Option<Result<u64, String>>>,
}

impl CollectorClient {
    fn new(config: &config::Trace, tls: Option<ClientConfig>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let http: Box<dyn HttpClient> = match tls {
            None => Box::new(HyperClient::new(tcp, config.timeout, None)),
            Some(tls) => {
                let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1();
                Box::new(HyperClient::new(connector.wrap_connector(tcp), config.timeout, None))
            }
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("sidelink/", env!("CARGO_PKG_VERSION"))));
        headers.extend(config.headers.iter().map(|header| (header.name.clone(), header.value())));
        Self { http, headers, last: Mutex::default() }
    }
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // In place of the exporter's, which has those of `OTEL_EXPORTER_OTLP_HEADERS`.
        request.headers_mut().clone_from(&self.headers);
        let sent = self.http.send_bytes(request).await;
        let result = match &sent {
            Ok(response) => rejected(response),
            Err(error) if error.is::<Elapsed>() => Err("no answer within trace.timeout".to_owned()),
            Err(error) => Err(chain(error.as_ref())),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        sent
    }
}

/// The number of rejected spans, or why the export failed. The collector's message is not repeated.
fn rejected(response: &Response<Bytes>) -> Result<u64, String> {
    if !response.status().is_success() {
        return Err(format!("the collector answered with status {}", response.status().as_u16()));
    }
    let answer = ExportTraceServiceResponse::decode(response.body().clone());
    let partial = answer.map_err(|_| "the answer is not a collector's".to_owned())?.partial_success;
    Ok(partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0)))
}
