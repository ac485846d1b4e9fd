//! Every line is a declared event with its declared fields, and a failing endpoint floods no log.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use sidelink::demo::origin::{Origin, ScriptedReply};
use sidelink::telemetry::log::events::EVENTS;

use crate::process::{Files, Process};
use crate::secrets;
use crate::support::{TestClient, eventually, origin_options, query, raw};

/// The fields of every line, as docs/LOGGING.md has them.
const EVERY_LINE: [&str; 4] = ["timestamp", "level", "target", "message"];

#[tokio::test]
async fn every_line_is_a_declared_event_with_its_fields() {
    let (mut access, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for line in secrets::everything().await.log {
        let [level, target, message] =
            ["level", "target", "message"].map(|name| line[name].as_str().unwrap().to_owned());
        let fields = line.as_object().unwrap().keys().map(String::as_str);
        let fields: BTreeSet<String> = fields.filter(|name| !EVERY_LINE.contains(name)).map(str::to_owned).collect();
        assert!(line["timestamp"].is_string(), "{line}");
        if target != "access" && !target.starts_with("sidelink") {
            assert!(["WARN", "ERROR"].contains(&&*level), "a library's: {line}");
            continue;
        }
        let event = EVENTS.iter().find(|event| event.message == message && event.target == target);
        let event = event.unwrap_or_else(|| panic!("not declared: {line}"));
        let is_failure = target == "access" && line["status"].as_u64().unwrap() >= 400 && line["aborted"] != "client";
        assert_eq!(if is_failure { "WARN" } else { event.level.as_str() }, level, "{line}");
        let declared: BTreeSet<String> = event.fields.iter().map(|(name, _)| (*name).to_owned()).collect();
        if target == "access" {
            assert!(fields.is_subset(&declared), "{line}");
            access.extend(fields);
        } else {
            assert_eq!(fields, declared, "{line}");
            seen.insert(message);
        }
    }
    // Results that no id had are left out, no answer was cut short, and no caller is known to be a user.
    access.extend(["aborted", "absent", "joined", "shared", "stale", "user"].map(str::to_owned));
    let declared = EVENTS.iter().filter(|event| event.target == "access").flat_map(|event| event.fields);
    assert_eq!(access, declared.map(|(name, _)| (*name).to_owned()).collect());
    assert!(seen.len() >= 14, "{seen:#?}");
}

/// A line written by a macro of `tracing` elsewhere would not be on docs/LOGGING.md.
#[test]
fn only_the_declared_events_write_lines() {
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(directory) = directories.pop() {
        for path in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                directories.push(path);
            } else if !path.ends_with("telemetry/log.rs") && !path.ends_with("telemetry/log/events.rs") {
                let text = std::fs::read_to_string(&path).unwrap().replace("tracing::level_filters", "");
                assert!(!text.contains("tracing::"), "{}", path.display());
            }
        }
    }
}

#[test]
fn every_event_has_a_message_and_a_meaning_of_its_own() {
    let messages: BTreeSet<&str> = EVENTS.iter().map(|event| event.message).collect();
    assert_eq!(messages.len(), EVENTS.len());
    assert!(EVENTS.iter().all(|event| event.meaning.len() > 3));
}

#[tokio::test]
async fn an_access_line_says_how_long_the_endpoint_was_waited_for() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let mut process = Process::start(&Files::new(origin.address()).write("")).await;
    process.client.batch("t", &["1", "2"]).await;
    process.client.batch("t", &["2"]).await;
    process.client.get("/other", &[]).await;
    let [miss, hit, other] =
        [process.says("request").await, process.says("request").await, process.says("request").await];
    for line in [&miss, &other] {
        let (waited, all) = (&line["waited_milliseconds"], &line["milliseconds"]);
        assert!(waited.as_f64().unwrap() > 0.0 && waited.as_f64() <= all.as_f64(), "{line}");
    }
    assert!(hit.get("waited_milliseconds").is_none() && hit["milliseconds"].as_f64().unwrap() > 0.0, "{hit}");
    assert_eq!((&miss["ids"], &miss["fetched"], &hit["hit"]), (&2.into(), &2.into(), &1.into()));
    assert_eq!(miss["caller"], hit["caller"]);
    assert!(other.get("caller").is_none() && other["route"] == "passthrough");
}

#[tokio::test]
async fn access_lines_are_of_all_requests_of_those_that_fail_or_of_none() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    for (access, expected) in [("all", &["INFO", "WARN", "WARN"][..]), ("errors", &["WARN", "WARN"]), ("off", &[])] {
        let mut process = Process::start(&files.write(&format!("log.access = \"{access}\""))).await;
        assert_eq!(process.client.batch("t", &["1"]).await.status, 200);
        let many: Vec<String> = (0..1001).map(|id| id.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let refused =
            process.client.get(&query(&many), &[("x-auth-token", "t"), ("user-agent", "a client \u{9b}")]).await;
        assert_eq!(refused.status, 400);
        // Its client leaves before the answer.
        origin.update(|options| options.delay = Duration::from_secs(60));
        let left = TestClient::new(process.address);
        let left = tokio::spawn(async move { left.batch("t", &["2"]).await });
        let waiters = "sidelink_limit_used{limit=\"waiters\"}";
        eventually("it waits", async || process.metric(waiters).await == 1.0).await;
        left.abort();
        eventually("its client has left", async || process.metric(waiters).await == 0.0).await;
        origin.update(|options| options.delay = Duration::ZERO);
        process.signal("TERM");
        process.exit().await;
        let lines: Vec<&Value> = process.log.iter().filter(|line| line["target"] == "access").collect();
        assert_eq!(lines.iter().map(|line| line["level"].as_str().unwrap()).collect::<Vec<_>>(), expected, "{access}");
        if let Some(refused) = lines.iter().find(|line| line["status"] == 400) {
            assert_eq!((&refused["client"], &refused["user_agent"]), (&"127.0.0.1".into(), &"a client %C2%9B".into()));
            assert!(refused["bytes"].as_u64().unwrap() > 50 && refused.get("hit").is_none(), "{refused}");
        }
    }
}

/// Regression: a path's characters beyond ASCII, of which some steer a terminal or turn a line around, came into the log raw.
#[tokio::test]
async fn a_logged_path_has_no_control_or_bidi_characters() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let mut process = Process::start(&Files::new(origin.address()).write("")).await;
    let request = "GET /other/\u{9b}31m\u{202e}\u{2028}%0a\"x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    raw(process.address, request.as_bytes()).await;
    let line = process.says("request").await;
    assert_eq!(line["path"], "/other/%C2%9B31m%E2%80%AE%E2%80%A8%0a\"x");
    let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "é".repeat(10_000));
    raw(process.address, long.as_bytes()).await;
    let line = process.says("request").await;
    assert_eq!(line["path"].as_str().map(str::len), Some(1024), "{line}");
}

#[tokio::test]
async fn a_dead_endpoint_does_not_flood_the_log() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let path = files.write("log.access = false\nupstream.retry.attempts = 0\nupstream.breaker.consecutive = 1000000\nupstream.breaker.min_calls = 1000000");
    let mut process = Process::start(&path).await;
    origin.stop().await;
    let began = Instant::now();
    for id in 0..300 {
        assert_eq!(process.client.batch("t", &[&id.to_string()]).await.status, 502);
        assert_eq!(process.client.get("/other", &[]).await.status, 502);
    }
    let spans = began.elapsed().as_secs() / Duration::from_secs(10).as_secs() + 1;
    process.signal("TERM");
    process.exit().await;
    let lines: Vec<&Value> =
        process.log.iter().filter(|line| line["message"] == "no answer from the endpoint").collect();
    assert!((1..=spans).contains(&(lines.len() as u64)), "{spans} spans of ten seconds: {lines:#?}");
    assert!(process.log.len() as u64 <= spans + 5, "{:#?}", process.log);
    assert_eq!(lines[0]["suppressed"], 0);
}

#[tokio::test]
async fn a_link_that_says_nowhere_when_it_ends_is_told_once_where_the_description_names_fields() {
    let origin = Origin::start(origin_options()).await.unwrap();
    for (expires, told) in [("[\"/valid_until\", \"link\"]", 1), ("\"link\"", 0)] {
        let table = format!("log.access = false\n[[batch]]\npreset = \"huawei-osm\"\nexpires = {expires}");
        let mut process = Process::start(&Files::new(origin.address()).write(&table)).await;
        for id in ["1", "2"] {
            let item = format!(r#"{{"accessory_urls":[{{"accessory_id":"{id}","accessory_url":"http://h/{id}"}}]}}"#);
            origin.script(ScriptedReply::json(200, item));
            assert_eq!(process.client.batch("t", &[id]).await.status, 200);
        }
        process.signal("TERM");
        process.exit().await;
        let is_told = |line: &&Value| line["message"].as_str().unwrap().starts_with("a link says nowhere when it ends");
        let lines: Vec<&Value> = process.log.iter().filter(is_told).collect();
        assert_eq!(
            (lines.len(), lines.iter().all(|line| line["api"] == "huawei-osm")),
            (told, true),
            "{expires}: {lines:#?}"
        );
    }
}

#[tokio::test]
async fn the_reason_of_a_failed_call_is_in_the_log_and_the_status() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let path = Files::new(origin.address());
    let path = path.write("log.access = false\nupstream.retry.attempts = 0\nupstream.deadline = \"1s\"\nupstream.answer_bytes = \"64KiB\"\nupstream.breaker.consecutive = 1");
    let mut process = Process::start(&path).await;

    let long = format!(r#"{{"accessory_urls":[],"more":"{}"}}"#, "x".repeat(70 << 10));
    // A complete answer is passed on, whatever it is.
    for (answer, status, reason) in
        [(ScriptedReply::json(200, "{\"acc"), 200, "no JSON"), (ScriptedReply::json(200, long), 502, "answer_bytes")]
    {
        let mut process = Process::start(&path).await;
        origin.script(answer);
        assert_eq!(process.client.batch("t", &["1"]).await.status, status);
        let line = process.says("the endpoint's answer cannot be used").await;
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
        assert_eq!(line["suppressed"], 0);
    }

    origin.script(ScriptedReply::json(500, "{}"));
    assert_eq!(process.client.batch("t", &["1"]).await.status, 500);
    assert_eq!(process.says("the endpoint answers with an error").await["status"], 500);
    let status = process.admin.get("/status.json", &[]).await.json();
    assert_eq!(status["last_failure"]["reason"], "it answers with 500");
    assert!(status["last_failure"]["at"].as_u64().unwrap() > 1_700_000_000_000, "{status}");

    origin.hold();
    assert_eq!(process.client.batch("t", &["1"]).await.status, 504);
    // The call ends by itself, no later than its batch by much.
    let line = process.says("no answer from the endpoint").await;
    assert_eq!(line["reason"], "none within upstream.deadline");
    let line = process.says("the breaker changed state").await;
    assert_eq!((&line["now"], &line["reason"]), (&"open".into(), &"no answer: none within upstream.deadline".into()));
    origin.release();
}
