//! A batch gets the same answer, and is counted the same, whichever way it takes: the short one for what is all in memory,
//! or the long one, which a `Via` of someone else's makes it take and changes nothing besides.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sidelink::api;

use crate::support::{Stack, raw};

fn token(bytes: usize) -> &'static str {
    format!("x-auth-token: {}", "x".repeat(bytes)).leak()
}

/// Heads of batches, most of them plain ones, some with one thing about them or another.
fn heads() -> impl Strategy<Value = (String, Vec<&'static str>)> {
    let id = prop_oneof![8 => Just("1"), 8 => Just("2"), 4 => Just("a%2Fb"), 1 => Just("left-out"), 1 => Just(""), 1 => Just("%zz")];
    let repeated =
        proptest::collection::vec(id, 1..5).prop_map(|ids| format!("accessory_ids={}", ids.join("&accessory_ids=")));
    let query = prop_oneof![
        8 => repeated,
        2 => Just("accessory_ids=1,2,a%2Fb".to_owned()),
        1 => Just("accessory_ids=1,2&accessory_ids=1".to_owned()),
        1 => Just("accessory_ids=1&accessory_ids=2&accessory_ids=3&accessory_ids=4&accessory_ids=5".to_owned()),
        1 => Just("accessory_ids=1&page=2".to_owned()),
        1 => Just("accessory_ids=1+2".to_owned()),
        1 => Just("accessory_ids=1+2&accessory_ids=1%202".to_owned()),
        1 => Just(String::new()),
    ];
    let group = prop_oneof![4 => Just(""), 2 => Just("&group_id=g"), 1 => Just("&group_id="), 1 => Just("&group_id=g+h"), 1 => Just("&group_id=g&group_id=g")];
    let prefix = prop_oneof![
        12 => Just(("GET ", api::PATH)),
        1 => Just(("GET http://elsewhere.example", api::PATH)),
        1 => Just(("POST ", api::PATH)),
        1 => Just(("GET ", "/v2/servicerequest/accessorys/access-url")),
    ];
    let version = prop_oneof![12 => Just("HTTP/1.1"), 1 => Just("HTTP/1.0")];
    let line = (prefix, query, group, version)
        .prop_map(|((method, path), query, group, version)| format!("{method}{path}?{query}{group} {version}"));
    let usual = prop_oneof![
        24 => Just(vec!["host: a", "x-auth-token: t"]),
        1 => Just(vec!["x-auth-token: t"]),
        1 => Just(vec!["host: a", "host: a", "x-auth-token: t"]),
        1 => Just(vec!["host: a b", "x-auth-token: t"]),
        1 => Just(vec!["host: a"]),
        1 => Just(vec!["host: a", "x-auth-token: "]),
        1 => Just(vec!["host: a", "x-auth-token: t", "X-Auth-Token: t"]),
        1 => Just(vec!["host: a", "x-auth-token: someone-else"]),
        1 => Just(vec!["host: a", token(5000)]),
        1 => Just(vec!["host: a", token(5001)]),
    ];
    let more = prop_oneof![
        12 => Just("accept: */*"),
        2 => Just("x-project-id: p"),
        2 => Just("X-Language: en-us"),
        3 => Just("cookie: a=b"),
        1 => Just("origin: https://h"),
        1 => Just("authorization:"),
        1 => Just("x-security-token:"),
        1 => Just("x-auth-token:"),
        2 => Just("x-request-id: mine"),
        1 => Just("x-request-id: not mine"),
        1 => Just("connection: keep-alive"),
        1 => Just("connection: x-auth-token"),
        1 => Just("Connection: keep-alive, host"),
        1 => Just("connection: x-other"),
        1 => Just("range: bytes=0-1"),
        1 => Just("authorization: Basic YTpi"),
        1 => Just("x-security-token: s"),
        1 => Just("cache-control: no-cache"),
        1 => Just("cache-control: only-if-cached"),
        1 => Just("content-encoding: gzip"),
        1 => Just("content-length: 2"),
        1 => Just("transfer-encoding: chunked"),
        1 => Just("via: 1.1 sidelink, 1.1 sidelink, 1.1 sidelink, 1.1 sidelink"),
        1 => Just("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let bounded = prop_oneof![30 => Just(Vec::new()), 6 => long_headers()];
    (line, usual, proptest::collection::vec(more, 0..3), bounded)
        .prop_map(|(line, usual, more, bounded)| (line, [usual, more, bounded].concat()))
}

/// Headers at their bound, or one byte beyond it.
fn long_headers() -> impl Strategy<Value = Vec<&'static str>> {
    let header = |name: &str, bytes: usize| -> &'static str { format!("{name}: {}", "x".repeat(bytes)).leak() };
    let exactly = [header("x-language", 32), header("x-domain-id", 64), header("X-Site", 32)];
    let beyond = [header("x-language", 33), header("x-domain-id", 65), header("X-Site", 33)];
    let halves = [header("x-time-zone", 15), header("x-time-zone", 16)];
    prop_oneof![
        3 => proptest::sample::select(exactly.to_vec()).prop_map(|header| vec![header]),
        3 => proptest::sample::select(beyond.to_vec()).prop_map(|header| vec![header]),
        // As one list: 32 bytes, and 33.
        1 => Just(vec![halves[0], halves[0]]),
        1 => Just(vec![halves[0], halves[1]]),
    ]
}

/// What a client gets of an answer that is the same each time: all but its date and its name, the seconds that it is fresh
/// for, and links that were fetched.
async fn ask(stack: &Stack, line: &str, headers: &[&str]) -> String {
    let body = if headers.contains(&"transfer-encoding: chunked") { "0\r\n\r\n" } else { "{}" };
    let has_body = headers.iter().any(|header| header.starts_with("content-length") || header.starts_with("transfer"));
    let request =
        format!("{line}\r\n{}\r\nconnection: close\r\n\r\n{}", headers.join("\r\n"), if has_body { body } else { "" });
    let answer = raw(stack.client.address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request} got {answer:?}"));
    let is_hit = head.contains("cache-status: sidelink; hit");
    // The client's own name for it is the same each time.
    let head = &head.replace("x-request-id: mine", "x-own-request-id: mine");
    let varies = ["date:", "x-request-id:", "age:", if is_hit { "-" } else { "content-length:" }];
    let head = head.lines().filter(|line| !varies.iter().any(|name| line.starts_with(name)));
    let timeless =
        head.map(|line| if line.starts_with("cache-control") { line.trim_end_matches(char::is_numeric) } else { line });
    timeless.chain(is_hit.then_some(body)).collect::<Vec<_>>().join("\n")
}

/// Batches and ids so far, by what became of them.
async fn counts(stack: &Stack) -> Vec<(String, f64)> {
    let counted = ["sidelink_batches_total", "sidelink_ids_total", "sidelink_batch_ids_sum", "sidelink_bypass_total"];
    let metrics = stack.metrics().await;
    let series = metrics.lines().filter(|line| counted.iter().any(|name| line.starts_with(name)));
    series
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

fn grown(before: &[(String, f64)], after: &[(String, f64)]) -> Vec<(String, f64)> {
    let grown = before.iter().zip(after).map(|((name, before), (_, after))| (name.clone(), after - before));
    grown.filter(|(_, by)| *by != 0.0).collect()
}

#[test]
fn both_ways_lead_to_the_same_answer_and_the_same_counts() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stack = runtime.block_on(Stack::with(
        |endpoint| endpoint.missing = vec!["left-out".into()],
        |config| config.limits.batch_ids = 4,
    ));
    let hits = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&heads(), |(line, headers)| {
        runtime.block_on(async {
            // So that both find the same in memory.
            ask(&stack, &line, &headers).await;
            let begin = counts(&stack).await;
            let short = ask(&stack, &line, &headers).await;
            let middle = counts(&stack).await;
            let long = ask(&stack, &line, &[headers.as_slice(), &["via: 1.1 another"]].concat()).await;
            let end = counts(&stack).await;
            hits.set(hits.get() + u32::from(short.contains("sidelink; hit")));
            prop_assert_eq!(&short, &long);
            prop_assert_eq!(grown(&begin, &middle), grown(&middle, &end));
            Ok(())
        })
    });
    outcome.unwrap();
    assert!(hits.get() > 40, "{} hits", hits.get());
}
