//! A sampled trace has a span for each request, call and exchange, with its parent and links, and nothing but closed sets in it.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::{Origin, ScriptedReply};

use super::{ECHO, PARENT, SAMPLED, TRACE, Traced, UNSAMPLED, links, pairs, parent_of, traceparent};
use crate::collector::{Collector, words};
use crate::process::{Files, Process};
use crate::support::query;

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
            ("sidelink.api", "huawei-osm"),
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
        ("sidelink.api", "huawei-osm"),
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
