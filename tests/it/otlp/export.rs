//! A collector has all spans after a drain. One that is slow, down or not trusted delays no request and no shutdown, and each span
//! that it does not get is counted.

use std::process::Command;
use std::time::{Duration, Instant};

use sidelink::config::{Config, Secret, StoredSecret, TraceHeader, Url};
use sidelink::demo::origin::Origin;

use super::Traced;
use crate::collector::{Collector, Manner, words};
use crate::process::{Files, Process};
use crate::tls;

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
        traced.stack.app.apply(config).unwrap();
    };
    assert_eq!(traced.batch(&["1"], "").await, 200);
    reload(&|config| Traced::trace(config).sample = 1.0);
    assert_eq!(traced.batch(&["1"], "").await, 200);
    let other = Collector::start().await;
    // The spans queued before the reload still go to the first collector.
    reload(&|config| {
        Traced::trace(config).endpoint = Url::parse(&format!("http://{}/v1/traces", other.address)).unwrap();
    });
    assert_eq!(traced.batch(&["1"], "").await, 200);
    reload(&|config| config.trace = None);
    assert_eq!(traced.batch(&["1"], "").await, 200);
    let (spans, _) = traced.end().await;
    assert_eq!((spans.len(), other.spans().len()), (1, 1));
    assert_ne!(spans[0].trace_id, other.spans()[0].trace_id);
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
        trace.endpoint = Url::parse(&format!("https://localhost:{port}/v1/traces")).unwrap();
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
    traced.stack.app.apply(config).unwrap();
    assert_eq!(traced.batch(&["1"], "").await, 200);
    traced.stack.app.drain().await;
    assert_eq!(collector.exports().len(), 1);
}
