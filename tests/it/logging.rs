//! docs/LOGGING.md names every line that is logged with its every field, and a failing endpoint floods no log.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use sidelink::demo::origin::{Origin, ScriptedReply};

use crate::process::{Files, Process};
use crate::secrets;
use crate::support::{origin_options, raw};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// Level and message of an event, and its fields.
type Events = BTreeMap<(String, String), BTreeSet<String>>;

fn words(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of a section's table.
fn rows(page: &str, section: &str) -> Vec<Vec<String>> {
    let (_, section) = page.split_once(&format!("\n## {section}\n")).unwrap();
    let lines = section.lines().take_while(|line| !line.starts_with("## "));
    let table =
        lines.filter(|line| line.starts_with("| ") && !line.starts_with("| field") && !line.starts_with("| level"));
    table.map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

struct Documented {
    every_line: BTreeSet<String>,
    access: BTreeSet<String>,
    events: Events,
}

fn documented() -> Documented {
    let page = std::fs::read_to_string(Path::new(REPOSITORY).join("docs/LOGGING.md")).unwrap();
    let fields = |section| rows(&page, section).iter().flat_map(|row| words(&row[0])).collect();
    let events = rows(&page, "Events").into_iter().map(|row| {
        let [level, message, fields, meaning] = &row[..] else { panic!("{row:?}") };
        assert!(meaning.len() > 3, "{row:?}");
        ((level.trim_matches('`').to_owned(), message.clone()), words(fields))
    });
    Documented { every_line: fields("Every line"), access: fields("The access line"), events: events.collect() }
}

/// The arguments of a macro, from behind its opening parenthesis.
fn arguments(text: &str) -> Vec<String> {
    let (mut depth, mut in_string, mut arguments) = (0, false, vec![String::new()]);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let argument = arguments.last_mut().unwrap();
        match character {
            '\\' if in_string => argument.extend([character, characters.next().unwrap()]),
            '"' => {
                in_string = !in_string;
                argument.push(character);
            }
            ')' if !in_string && depth == 0 => break,
            ',' if !in_string && depth == 0 => arguments.push(String::new()),
            _ => {
                if !in_string {
                    depth += i32::from("([{".contains(character)) - i32::from(")]}".contains(character));
                }
                argument.push(character);
            }
        }
    }
    arguments.into_iter().map(|argument| argument.trim().to_owned()).filter(|argument| !argument.is_empty()).collect()
}

/// Every event that the program's text has.
fn written(directory: &Path, events: &mut Events) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            written(&path, events);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = code.join("\n");
        for level in ["error", "warn", "info", "debug", "trace"] {
            for (at, found) in code.match_indices(&format!("{level}!(")) {
                if code[..at].ends_with(|character: char| character.is_alphanumeric() || character == '_') {
                    continue;
                }
                let mut fields = arguments(&code[at + found.len()..]);
                let message = fields.pop().unwrap();
                let message = message.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
                let message = message.unwrap_or_else(|| panic!("{}: no message: {fields:?}", path.display()));
                assert!(!message.contains('{'), "{}: not a fixed text: {message}", path.display());
                let names = fields
                    .iter()
                    .filter(|field| !field.starts_with("target:"))
                    .map(|field| field.split(" = ").next().unwrap().trim_matches(['%', '?']).to_owned());
                events.insert((level.to_uppercase(), message.to_owned()), names.collect());
            }
        }
    }
}

fn fields(line: &Value) -> BTreeSet<String> {
    line.as_object().unwrap().keys().cloned().collect()
}

#[tokio::test]
async fn the_page_on_logging_says_what_the_program_does() {
    let page = documented();
    let mut program = Events::new();
    written(&Path::new(REPOSITORY).join("src"), &mut program);
    assert_eq!(program.remove(&("INFO".into(), "request".into())).as_ref(), Some(&page.access));
    assert_eq!(page.events, program, "left the page, right the program");

    let (mut access, mut said) = (BTreeSet::new(), BTreeSet::new());
    for line in secrets::everything().await.log {
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        let fields = fields(&line);
        assert!(fields.is_superset(&page.every_line), "{line}");
        let own: BTreeSet<String> = fields.difference(&page.every_line).cloned().collect();
        if line["target"] == "access" {
            access.extend(own);
        } else if text("target").starts_with("sidelink") {
            let event = (text("level"), text("message"));
            let known = page.events.get(&event).unwrap_or_else(|| panic!("not on the page: {line}"));
            assert_eq!(&own, known, "{line}");
            said.insert(event.1);
        } else {
            assert!(["WARN", "ERROR"].contains(&text("level").as_str()), "a library's: {line}");
        }
    }
    assert_eq!(access, page.access);
    assert!(said.len() >= 14, "{said:#?}");
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

/// Regression: a path's characters beyond ASCII, of which some steer a terminal or turn a line around, came into the log raw.
#[tokio::test]
async fn a_path_in_the_log_steers_no_terminal() {
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
async fn a_dead_endpoint_floods_no_log() {
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
    assert_eq!(lines[0]["unsaid"], 0);
}

#[tokio::test]
async fn whatever_a_call_fails_by_is_in_the_log_and_in_the_status() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let path = Files::new(origin.address());
    let path = path.write("log.access = false\nupstream.retry.attempts = 0\nupstream.deadline = \"1s\"\nupstream.answer_bytes = \"64KiB\"\nupstream.breaker.consecutive = 1");
    let mut process = Process::start(&path).await;

    let long = format!(r#"{{"accessory_urls":[],"more":"{}"}}"#, "x".repeat(70 << 10));
    for (answer, reason) in
        [(ScriptedReply::json(200, "{\"acc"), "no JSON"), (ScriptedReply::json(200, long), "answer_bytes")]
    {
        let mut process = Process::start(&path).await;
        origin.script(answer);
        assert_eq!(process.client.batch("t", &["1"]).await.status, 502);
        let line = process.says("the endpoint's answer cannot be used").await;
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
        assert_eq!(line["unsaid"], 0);
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
    let line = process.says("the breaker has moved").await;
    assert_eq!((&line["now"], &line["reason"]), (&"open".into(), &"no answer: none within upstream.deadline".into()));
    origin.release();
}
