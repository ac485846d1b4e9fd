//! A sampled trace has a span for each request, call and exchange, with its parent, and a collector has them all after a drain;
//! a slow or failing collector delays no request.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use sidelink::api;
use sidelink::config::{Config, Endpoint, Secret, StoredSecret, Trace, TraceHeader};
use sidelink::demo::origin::{self, Origin, RecordedCall, ScriptedReply};

use crate::collector::{Collector, Manner, words};
use crate::process::{Files, Process};
use crate::support::{Stack, query};
use crate::tls;

const ECHO: &str = "/v2/servicerequest/echo";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

struct Traced {
    stack: Stack,
    collector: Collector,
}

impl Traced {
    async fn start(configure: impl FnOnce(&mut Config)) -> Self {
        Self::before(|_| {}, configure).await
    }

    async fn before(endpoint: impl FnOnce(&mut origin::Options), configure: impl FnOnce(&mut Config)) -> Self {
        let collector = Collector::start().await;
        let trace = Trace::at(Endpoint::parse(&format!("http://{}", collector.address)).unwrap());
        let stack = Stack::with(endpoint, |config| {
            config.trace = Some(trace);
            configure(config);
        });
        Self { stack: stack.await, collector }
    }

    fn trace(config: &mut Config) -> &mut Trace {
        config.trace.as_mut().unwrap()
    }

    async fn batch(&self, ids: &[&str], parent: &str) -> u16 {
        let headers = [("x-auth-token", "t"), ("traceparent", parent), ("tracestate", "a=1")];
        self.stack.client.get(&query(ids), &headers).await.status.as_u16()
    }

    /// Drains sidelink and returns all spans, in the order of their start.
    async fn end(self) -> (Vec<Span>, Origin) {
        self.stack.app.drain().await;
        (self.collector.spans(), self.stack.origin)
    }

    async fn count(&self, result: &str) -> f64 {
        self.stack.metric(&format!("sidelink_spans_total{{result=\"{result}\"}}")).await
    }

    /// Waits until `result` has been counted for so many spans.
    async fn counted(&self, result: &str, spans: f64) {
        while self.count(result).await < spans {
            tokio::task::yield_now().await;
        }
        assert_eq!(self.count(result).await, spans, "{result}");
    }
}

fn parent_of(call: &RecordedCall) -> &str {
    call.headers["traceparent"].to_str().unwrap()
}

fn traceparent(span: &Span) -> String {
    format!("00-{}-{}-01", hex::encode(&span.trace_id), hex::encode(&span.span_id))
}

fn pairs(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn links(span: &Span) -> Vec<String> {
    span.links.iter().map(|link| hex::encode(&link.span_id)).collect()
}

#[tokio::test]
async fn a_batch_and_its_call_are_spans_of_the_clients_trace() {
    let traced = Traced::start(|_| {}).await;
    assert_eq!(traced.batch(&["1"], SAMPLED).await, 200);
    assert_eq!(traced.batch(&["1", "2"], SAMPLED).await, 200);
    assert_eq!(traced.batch(&["1", "2"], SAMPLED).await, 200);
    let exports = traced.collector.clone();
    let (spans, origin) = traced.end().await;
    let [first, first_call, second, second_call, third] = &spans[..] else { panic!("{spans:#?}") };

    for span in &spans {
        assert_eq!(hex::encode(&span.trace_id), TRACE);
        assert!(
            span.end_time_unix_nano > span.start_time_unix_nano
                && span.status.as_ref().is_none_or(|status| status.code == 0)
                && span.links.is_empty()
        );
        assert!(span.trace_state.is_empty() && span.events.is_empty());
    }
    for batch in [first, second, third] {
        assert_eq!((batch.kind(), hex::encode(&batch.parent_span_id)), (SpanKind::Server, PARENT.to_owned()));
        assert_eq!(batch.name, format!("GET {}", api::PATH));
        // The parent is remote (bits 8 and 9), and the trace is sampled.
        assert_eq!(batch.flags, 0x301);
    }
    for (call, batch) in [(first_call, first), (second_call, second)] {
        assert_eq!((call.kind(), &call.parent_span_id, call.flags), (SpanKind::Client, &batch.span_id, 0x101));
        assert!(call.start_time_unix_nano >= batch.start_time_unix_nano);
        assert!(call.end_time_unix_nano <= batch.end_time_unix_nano);
    }
    // All attributes, and no more.
    let batch = |outcome, [hit, fetched, ids]: [&str; 3]| {
        let mut words = pairs(&[
            ("http.request.method", "GET"),
            ("http.route", api::PATH),
            ("http.response.status_code", "200"),
            ("network.protocol.version", "1.1"),
            ("sidelink.route", "batch"),
            ("sidelink.outcome", outcome),
            ("sidelink.ids", ids),
            ("sidelink.ids.hit", hit),
            ("sidelink.ids.fetched", fetched),
        ]);
        let none = ["stale", "joined", "shared", "absent", "failed"];
        words.extend(none.map(|result| (format!("sidelink.ids.{result}"), "0".to_owned())));
        words
    };
    assert_eq!(words(&first.attributes), batch("miss", ["0", "1", "1"]));
    assert_eq!(words(&second.attributes), batch("partial", ["1", "1", "2"]));
    assert_eq!(words(&third.attributes), batch("hit", ["2", "0", "2"]));
    let port = origin.address().port().to_string();
    let call = pairs(&[
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("server.address", "127.0.0.1"),
        ("server.port", &port),
        ("url.template", api::PATH),
        ("sidelink.ids", "1"),
        ("sidelink.result", "ok"),
    ]);
    assert_eq!([words(&first_call.attributes), words(&second_call.attributes)], [call.clone(), call]);

    let calls = origin.calls();
    assert_eq!(calls.iter().map(parent_of).collect::<Vec<_>>(), [traceparent(first_call), traceparent(second_call)]);
    assert!(calls.iter().all(|call| call.headers["tracestate"] == "a=1"));

    let export = &exports.exports()[0];
    assert_eq!(
        (export.target.as_str(), &export.headers["content-type"]),
        ("/v1/traces", &"application/x-protobuf".parse().unwrap())
    );
    let request = export.request();
    let resource = words(&request.resource_spans[0].resource.as_ref().unwrap().attributes);
    assert_eq!(
        (resource["service.name"].as_str(), resource["service.version"].as_str()),
        ("sidelink", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!((resource["service.instance.id"].len(), resource.len()), (32, 3));
}

#[tokio::test]
async fn other_routes_are_spans_without_their_paths() {
    let traced = Traced::start(|_| {}).await;
    let client = &traced.stack.client;
    let target = format!("{ECHO}?marked=1");
    let echo = client.send(Method::POST, &target, &[("traceparent", SAMPLED)], "marked").await.json().to_string();
    let made_up: Method = "MARKED".parse().unwrap();
    client.send(made_up, &target, &[], "").await;
    // A signature may cover the headers.
    let signed = [("authorization", "Other scheme"), ("traceparent", SAMPLED)];
    assert!(client.send(Method::POST, ECHO, &signed, "").await.json().to_string().contains(SAMPLED));
    let deleted = client.send(Method::DELETE, &format!("{}/marked", api::ACCESSORIES), &[], "").await;
    assert!(deleted.status.is_success());
    let collector = traced.collector.clone();
    let (spans, _) = traced.end().await;
    let names: Vec<_> = spans.iter().map(|span| (span.name.as_str(), span.kind())).collect();
    let both = |name| [(name, SpanKind::Server), (name, SpanKind::Client)];
    assert_eq!(names, [both("POST"), both("HTTP"), both("POST"), both("DELETE")].concat());
    let [post, exchange, other, ..] = &spans[..] else { panic!("{spans:#?}") };
    assert!(echo.contains(&traceparent(exchange)) && !echo.contains(SAMPLED), "{echo}");
    assert_eq!(exchange.parent_span_id, post.span_id);
    assert_eq!(
        words(&post.attributes),
        pairs(&[
            ("http.request.method", "POST"),
            ("http.response.status_code", "200"),
            ("network.protocol.version", "1.1"),
            ("sidelink.route", "passthrough"),
            ("sidelink.outcome", "bypass"),
        ])
    );
    let keys: Vec<String> = words(&exchange.attributes).into_keys().collect();
    let expected =
        ["http.request.method", "http.response.status_code", "server.address", "server.port", "sidelink.result"];
    assert_eq!(keys, expected);
    assert_eq!(words(&other.attributes)["http.request.method"], "_OTHER");
    for export in collector.exports() {
        assert!(!String::from_utf8_lossy(&export.body).to_lowercase().contains("marked"));
    }
}

#[tokio::test]
async fn the_client_decides_whether_its_trace_is_sampled() {
    let traced = Traced::start(|config| Traced::trace(config).sample = 0.0).await;
    assert_eq!(traced.batch(&["1"], SAMPLED).await, 200);
    assert_eq!(traced.batch(&["2"], "").await, 200);
    let (spans, origin) = traced.end().await;
    assert_eq!(spans.len(), 2, "{spans:#?}");
    let calls = origin.calls();
    assert_eq!(parent_of(&calls[0]), traceparent(&spans[1]));
    // For a trace that begins here and is not sampled, the endpoint gets an unsampled `traceparent` and no `tracestate`.
    let parent = parent_of(&calls[1]);
    assert!(parent.starts_with("00-") && parent.ends_with("-00") && parent.len() == 55, "{parent}");
    assert!(!calls[1].headers.contains_key("tracestate"));

    let traced = Traced::start(|_| {}).await;
    assert_eq!(traced.batch(&["1"], UNSAMPLED).await, 200);
    assert_eq!(traced.batch(&["2"], "").await, 200);
    let (spans, origin) = traced.end().await;
    let [batch, call] = &spans[..] else { panic!("{spans:#?}") };
    assert!(batch.parent_span_id.is_empty() && call.parent_span_id == batch.span_id);
    assert_eq!(origin.calls().iter().map(parent_of).collect::<Vec<_>>(), [UNSAMPLED, &traceparent(call)]);
}

#[tokio::test]
async fn new_traces_are_sampled_by_their_ids() {
    let traced = Traced::start(|config| Traced::trace(config).sample = 0.5).await;
    for _ in 0..400 {
        assert_eq!(traced.batch(&["1"], "").await, 200);
    }
    let (spans, _) = traced.end().await;
    let batches: Vec<&Span> = spans.iter().filter(|span| span.kind() == SpanKind::Server).collect();
    // More than nine standard deviations on either side.
    assert!((100..300).contains(&batches.len()), "{}", batches.len());
    for span in batches {
        let decides = u64::from_be_bytes(span.trace_id[8..].try_into().unwrap());
        assert!(decides >> 1 < 1 << 62, "{span:?}");
    }
}

#[tokio::test]
async fn a_call_for_several_batches_is_a_child_of_the_first_sampled_one_and_linked_with_the_others() {
    let traced = Traced::start(|config| config.upstream.calls_per_scope = 1).await;
    let parent = |number: u8| format!("00-{number:032x}-{number:016x}-01");
    let mut batches = Vec::new();
    let mut ask = async |id: &'static str, parent: String, in_flight: f64| {
        let client = traced.stack.client.clone();
        batches.push(tokio::spawn(async move {
            client.get(&query(&[id]), &[("x-auth-token", "t"), ("traceparent", &parent)]).await.status
        }));
        while traced.stack.metric("sidelink_limit_used{limit=\"in_flight\"}").await < in_flight {
            tokio::task::yield_now().await;
        }
    };
    traced.stack.origin.hold();
    ask("1", parent(1), 1.0).await;
    traced.stack.origin.arrived(1).await;
    // These ids gather meanwhile; the first batch is not sampled.
    for (number, id, parent) in [(2.0, "2", UNSAMPLED.to_owned()), (3.0, "3", parent(3)), (4.0, "4", parent(4))] {
        ask(id, parent, number).await;
    }
    // This batch joins.
    ask("3", parent(5), 4.0).await;
    while traced.stack.metric("sidelink_limit_used{limit=\"waiters\"}").await < 5.0 {
        tokio::task::yield_now().await;
    }
    traced.stack.origin.release();
    for batch in batches {
        assert_eq!(batch.await.unwrap(), 200);
    }
    let (spans, origin) = traced.end().await;
    let of = |number: u8, kind| {
        let trace = u128::from(number).to_be_bytes();
        let mut found = spans.iter().filter(|span| span.trace_id == trace && span.kind() == kind);
        (found.next(), found.next())
    };
    let (Some(call), None) = of(3, SpanKind::Client) else { panic!("{spans:#?}") };
    let [third, fourth, fifth] = [3, 4, 5].map(|number| of(number, SpanKind::Server).0.unwrap());
    assert_eq!(spans.len(), 6, "the others have no call of their own: {spans:#?}");
    assert_eq!((&call.parent_span_id, links(call)), (&third.span_id, vec![hex::encode(&fourth.span_id)]));
    assert_eq!(call.links[0].trace_id, fourth.trace_id);
    assert_eq!(words(&call.attributes)["sidelink.ids"], "3");
    let call_id = vec![hex::encode(&call.span_id)];
    assert_eq!([links(third), links(fourth), links(fifth)], [vec![], call_id.clone(), call_id]);
    assert_eq!(words(&fifth.attributes)["sidelink.ids.joined"], "1");
    assert_eq!(parent_of(&origin.calls()[1]), traceparent(call));
}

#[tokio::test]
async fn spans_record_failures() {
    let traced = Traced::start(|config| config.upstream.retry.attempts = 1).await;
    traced.stack.origin.script(ScriptedReply::json(500, "{}"));
    assert_eq!(traced.batch(&["1"], SAMPLED).await, 500);
    traced.stack.origin.script(ScriptedReply::json(404, "{}"));
    assert_eq!(traced.batch(&["2"], SAMPLED).await, 404);
    // The first attempt fails on a reused connection, so the call is sent again at once.
    for _ in 0..3 {
        traced.stack.origin.script(ScriptedReply::Reset);
    }
    assert_eq!(traced.batch(&["3"], SAMPLED).await, 502);
    let (spans, _) = traced.end().await;
    let seen: Vec<_> = spans
        .iter()
        .map(|span| {
            let words = words(&span.attributes);
            let word = |key: &str| words.get(key).cloned().unwrap_or_default();
            let failed = span.status.as_ref().is_some_and(|status| status.code == 2);
            let [status, error] = [word("http.response.status_code"), word("error.type")];
            let said = word(if span.kind() == SpanKind::Client { "sidelink.result" } else { "sidelink.detail" });
            (status, error, said, word("http.request.resend_count"), failed)
        })
        .collect();
    let row = |status: &str, error: &str, said: &str, resent: &str, failed| {
        (status.to_owned(), error.to_owned(), said.to_owned(), resent.to_owned(), failed)
    };
    let expected = [
        row("500", "500", "", "", true),
        row("500", "500", "server_error", "", true),
        // A 404 is an error of a client span, but not of a server span (OpenTelemetry's conventions for HTTP).
        row("404", "", "", "", false),
        row("404", "404", "client_error", "", true),
        row("502", "502", "SIDELINK.1001", "", true),
        row("", "no_answer", "no_answer", "1", true),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_request_whose_client_disconnects_has_a_span() {
    let traced = Traced::start(|_| {}).await;
    traced.stack.origin.hold();
    // Over HTTP/1, a disconnect looks like the end of the request.
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build(HttpConnector::new());
    let request = Request::builder().uri(format!("http://{}{}", traced.stack.client.address, query(&["1"])));
    let request = request.header("x-auth-token", "t").body(Full::<Bytes>::default()).unwrap();
    let left = tokio::spawn(client.request(request));
    traced.stack.origin.arrived(1).await;
    left.abort();
    let spans = traced.collector.has(1).await;
    let said = words(&spans[0].attributes);
    assert_eq!((said["sidelink.detail"].as_str(), said.get("http.response.status_code")), ("client-left", None));
    traced.stack.origin.release();
    assert_eq!(traced.collector.has(2).await.len(), 2, "its call goes on");
}

#[tokio::test]
async fn a_frozen_collector_delays_no_request_and_dropped_spans_are_counted() {
    let traced = Traced::start(|config| {
        config.limits.drain = Duration::from_millis(300);
        Traced::trace(config).timeout = Duration::from_secs(60);
    })
    .await;
    traced.collector.does(vec![Manner::Freeze]);
    assert_eq!(traced.batch(&["1"], "").await, 200);
    traced.collector.exported(1).await;
    // Two spans are being exported; these fill the queue, and 300 more.
    for _ in 0..2348 {
        assert_eq!(traced.batch(&["1"], "").await, 200);
    }
    traced.counted("dropped", 300.0).await;
    assert_eq!(traced.stack.metric("sidelink_ids_total{result=\"hit\"}").await, 2348.0);
    let began = Instant::now();
    traced.stack.app.drain().await;
    assert!(began.elapsed() < Duration::from_secs(20), "it waits for the collector: {:?}", began.elapsed());
}

#[tokio::test]
async fn spans_are_counted_by_result() {
    let traced = Traced::start(|_| {}).await;
    let spans = async |manners: Vec<Manner>, exports: usize| {
        traced.collector.does(manners);
        let before = traced.collector.exports().len();
        // Both spans are exported together, after a second.
        let ids = traced.collector.exports().len().to_string();
        assert_eq!(traced.batch(&[&ids], "").await, 200);
        traced.collector.exported(before + exports).await;
    };
    spans(vec![Manner::Take], 1).await;
    traced.counted("exported", 2.0).await;
    spans(vec![Manner::Reject(1)], 1).await;
    traced.counted("rejected", 1.0).await;
    traced.counted("exported", 3.0).await;
    spans(vec![Manner::Refuse(400, None)], 1).await;
    traced.counted("failed", 2.0).await;
    spans(vec![Manner::Page], 1).await;
    traced.counted("failed", 4.0).await;
    // Temporary failures are tried again, after `Retry-After`.
    spans(vec![Manner::Refuse(503, Some("0")), Manner::Refuse(429, Some("0")), Manner::Take], 3).await;
    traced.counted("exported", 5.0).await;
    assert_eq!((traced.count("dropped").await, traced.count("failed").await), (0.0, 4.0));
}

#[tokio::test]
async fn a_collector_that_is_down_is_logged_once_and_does_not_delay_the_shutdown() {
    let origin = Origin::start(crate::support::origin_options()).await.unwrap();
    let collector = Collector::start().await;
    let files = Files::new(origin.address());
    let key = tls::write(&files.directory, "key", "Bearer marked-secret");
    let config = format!(
        "[trace]\nendpoint = \"http://{}/marked-path\"\nservice_name = \"of a test\"\n\
         [[trace.headers]]\nname = \"authorization\"\nvalue_file = {key:?}",
        collector.address
    );
    let mut process = Process::start(&files.write(&config)).await;
    collector.does(vec![Manner::Refuse(403, None)]);
    process.client.batch("t", &["1"]).await;
    let line = process.says("spans could not be exported").await;
    assert_eq!(
        (line["reason"].as_str(), line["spans"].as_u64()),
        (Some("the collector answered with status 403"), Some(2))
    );
    let export = &collector.exports()[0];
    assert_eq!(
        (export.target.as_str(), &export.headers["authorization"]),
        ("/marked-path", &"Bearer marked-secret".parse().unwrap())
    );
    let resource = export.request().resource_spans[0].resource.clone().unwrap();
    assert_eq!(words(&resource.attributes)["service.name"], "of a test");
    for id in ["2", "3"] {
        process.client.batch("t", &[id]).await;
        collector.exported(collector.exports().len() + 1).await;
    }
    collector.does(vec![Manner::Freeze]);
    process.client.batch("t", &["4"]).await;
    process.signal("TERM");
    assert_eq!(process.exit().await, Some(0));
    let said = process.log.iter().filter(|line| line["message"] == "spans could not be exported").count();
    // At most once in ten seconds, of which freezing takes five.
    assert!((1..=2).contains(&said), "{:#?}", process.log);
    assert!(process.log.iter().all(|line| !line.to_string().contains("marked-secret")));
}

#[tokio::test]
async fn a_reload_changes_collector_and_sampling() {
    let traced = Traced::start(|config| Traced::trace(config).sample = 0.0).await;
    let reload = |change: &dyn Fn(&mut Config)| {
        let mut config = Config::clone(&traced.stack.app.config());
        change(&mut config);
        traced.stack.app.reload(config).unwrap();
    };
    assert_eq!(traced.batch(&["1"], "").await, 200);
    reload(&|config| Traced::trace(config).sample = 1.0);
    assert_eq!(traced.batch(&["1"], "").await, 200);
    let other = Collector::start().await;
    // The spans queued before the reload still go to the first collector.
    reload(&|config| {
        Traced::trace(config).endpoint = Endpoint::parse(&format!("http://{}", other.address)).unwrap().into();
    });
    assert_eq!(traced.batch(&["1"], "").await, 200);
    reload(&|config| config.trace = None);
    assert_eq!(traced.batch(&["1"], "").await, 200);
    let (spans, _) = traced.end().await;
    assert_eq!((spans.len(), other.spans().len()), (1, 1));
    assert_ne!(spans[0].trace_id, other.spans()[0].trace_id);
}

#[tokio::test]
async fn the_access_line_has_the_trace_that_began_here() {
    let origin = Origin::start(crate::support::origin_options()).await.unwrap();
    let collector = Collector::start().await;
    let files = Files::new(origin.address());
    let mut process = Process::start(&files.write(&format!("trace.endpoint = \"http://{}\"", collector.address))).await;
    process.client.batch("t", &["1"]).await;
    let line = process.says("request").await;
    let spans = collector.has(2).await;
    assert_eq!(line["trace_id"].as_str(), Some(hex::encode(&spans[0].trace_id).as_str()));
}

#[tokio::test]
async fn environment_variables_are_ignored() {
    let origin = Origin::start(crate::support::origin_options()).await.unwrap();
    let collector = Collector::start().await;
    let files = Files::new(origin.address());
    let path = files.write(&format!("trace.endpoint = \"http://{}\"", collector.address));
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidelink"));
    command.args(["serve", "--config"]).arg(&path).envs([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "not a URL"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-marked=1"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=marked,marked=1"),
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ]);
    let process = Process::spawn(&mut command).await;
    process.client.batch("t", &["1"]).await;
    let spans = collector.has(2).await;
    assert!(spans.iter().all(|span| span.attributes.len() > 1 && span.dropped_attributes_count == 0), "{spans:#?}");
    let export = &collector.exports()[0];
    let resource = export.request().resource_spans[0].resource.clone().unwrap();
    assert_eq!((words(&resource.attributes)["service.name"].as_str(), resource.attributes.len()), ("sidelink", 3));
    let names: Vec<&str> = export.headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["content-type", "user-agent", "host", "content-length"]);
}

#[tokio::test]
async fn a_collector_behind_tls_is_trusted_by_its_authority_alone() {
    let authority = tls::Authority::new();
    let issued = authority.issue("localhost");
    let directory = tempfile::tempdir().unwrap();
    let (right, wrong) = (
        tls::write(&directory, "right", &authority.pem()),
        tls::write(&directory, "wrong", &tls::Authority::new().pem()),
    );
    let collector = Collector::start().await;
    let port = collector.behind_tls(&issued).await;
    let traced = Traced::start(|config| {
        let trace = Traced::trace(config);
        trace.endpoint = Endpoint::parse(&format!("https://localhost:{port}")).unwrap().into();
        trace.ca_file = Some(right);
        let secret = Secret::new(b"Bearer x".to_vec());
        trace.headers = vec![TraceHeader {
            name: "authorization".parse().unwrap(),
            value_file: StoredSecret { secret, source: "x".into() },
        }];
    })
    .await;
    assert_eq!(traced.batch(&["1"], "").await, 200);
    assert_eq!(collector.has(2).await.len(), 2);
    let mut config = Config::clone(&traced.stack.app.config());
    Traced::trace(&mut config).ca_file = Some(wrong);
    traced.stack.app.reload(config).unwrap();
    assert_eq!(traced.batch(&["1"], "").await, 200);
    traced.stack.app.drain().await;
    assert_eq!(collector.exports().len(), 1);
}
