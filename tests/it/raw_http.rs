//! Every byte string on a connection has one defined outcome: it is answered and the connection goes on with the next
//! request, or it is refused and the connection ends. No request is ever hidden in another.

use std::time::Duration;

use sidelink::demo::origin::interface as api;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Stack, TestClient, query, raw};

const ECHO: &str = "/v2/servicerequest/echo";

/// What became of a request and of one more behind it, on the same connection.
struct Outcome {
    /// The statuses of all answers.
    statuses: Vec<u16>,
    /// Whether the request behind was answered.
    goes_on: bool,
    text: String,
}

async fn outcome(stack: &Stack, request: &str) -> Outcome {
    let next = format!("GET {ECHO}?next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let text = raw(stack.client.address, format!("{request}{next}").as_bytes()).await;
    let statuses =
        text.match_indices("HTTP/1.").map(|(at, _)| text[at + 9..at + 12].parse().expect("a status")).collect();
    Outcome { statuses, goes_on: text.contains(&format!("{ECHO}?next\"")), text }
}

async fn is_refused(stack: &Stack, request: &str, status: u16) {
    is_last(stack, request, status).await;
}

/// `request` gets this one answer, and the connection ends.
async fn is_last(stack: &Stack, request: &str, status: u16) -> String {
    let outcome = outcome(stack, request).await;
    let shown = &request[..request.len().min(200)];
    assert_eq!(outcome.statuses, [status], "{shown:?} got {}", outcome.text);
    assert!(!outcome.goes_on && outcome.text.contains("connection: close"), "{shown:?} got {}", outcome.text);
    outcome.text
}

async fn is_answered(stack: &Stack, request: &str) -> String {
    let outcome = outcome(stack, request).await;
    assert_eq!(outcome.statuses, [200, 200], "{request:?} got {}", outcome.text);
    assert!(outcome.goes_on, "{request:?} got {}", outcome.text);
    outcome.text
}

fn post(headers: &str, body: &str) -> String {
    format!("POST {ECHO} HTTP/1.1\r\nhost: a\r\n{headers}\r\n{body}")
}

fn batch(headers: &str, body: &str) -> String {
    format!("GET {} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\n{headers}\r\n{body}", query(&["1"]))
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\n\r\n")
}

const CHUNKED: &str = "transfer-encoding: chunked\r\n";

/// hyper reads such a request as RFC 9112 §6.3 has it: the chunks count, and the connection ends.
#[tokio::test]
async fn a_request_with_two_framings_is_read_as_chunked_and_ends_the_connection() {
    let stack = Stack::start().await;
    let smuggled = format!("0\r\n\r\nGET {ECHO}?smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
    for both in [
        format!("content-length: {}\r\n{CHUNKED}", smuggled.len()),
        format!("{CHUNKED}Content-Length: {}\r\n", smuggled.len()),
        format!("content-length: 0\r\nx: y\r\n{CHUNKED}"),
    ] {
        let echo = is_last(&stack, &post(&both, &smuggled), 200).await;
        assert!(!echo.contains("content-length\",") && echo.contains(r#"["transfer-encoding","chunked"]"#), "{echo}");
        is_last(&stack, &batch(&both, &smuggled), 200).await;
    }
    // Behind others, their bodies read to the end.
    for before in [batch("", ""), post("content-length: 2\r\n", "hi"), post(CHUNKED, "2;x\r\nhi\r\n0\r\n\r\n")] {
        let request = format!("{before}{}", post(&format!("content-length: 3\r\n{CHUNKED}"), &smuggled));
        let outcome = outcome(&stack, &request).await;
        assert_eq!(outcome.statuses, [200, 200], "{}", outcome.text);
        assert!(!outcome.goes_on && !outcome.text.contains("smuggled"));
    }
}

#[tokio::test]
async fn a_second_framing_is_seen_however_the_bytes_come() {
    let stack = Stack::start().await;
    let request = post(&format!("content-length: 5\r\n{CHUNKED}"), "0\r\n\r\n");
    let mut stream = TcpStream::connect(stack.client.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in request.bytes() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn lengths_that_differ_or_are_no_numbers_are_refused() {
    let stack = Stack::start().await;
    for lengths in [
        "content-length: 3\r\ncontent-length: 4\r\n",
        "content-length: 3, 3\r\n",
        "content-length: +3\r\n",
        "content-length: -3\r\n",
        "content-length: 0x3\r\n",
        "content-length:\r\n",
        "content-length: 99999999999999999999\r\n",
    ] {
        is_refused(&stack, &post(lengths, "abcd"), 400).await;
        is_refused(&stack, &batch(lengths, "abcd"), 400).await;
    }
    let text = is_answered(&stack, &post("content-length: 3\r\ncontent-length: 3\r\n", "abc")).await;
    assert_eq!(text.matches(r#"["content-length","3"]"#).count(), 1, "one length is forwarded: {text}");
}

#[tokio::test]
async fn transfer_codings_other_than_chunked_are_refused() {
    let stack = Stack::start().await;
    for coding in [
        "transfer-encoding: identity\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: \x0bchunked\r\n",
        "transfer-encoding : chunked\r\n",
    ] {
        is_refused(&stack, &post(coding, "0\r\n\r\n"), 400).await;
    }
    is_answered(&stack, &post("Transfer-Encoding:\tChunked \r\n", "0\r\n\r\n")).await;
    let old = post(CHUNKED, "0\r\n\r\n").replace("HTTP/1.1", "HTTP/1.0");
    is_refused(&stack, &old, 400).await;
}

#[tokio::test]
async fn heads_that_parsers_read_differently_are_refused() {
    let stack = Stack::start().await;
    for header in [
        "x: a\r\n b\r\n", // Folded (RFC 9112 §5.2).
        "x: a\r\n\tb\r\n",
        "x : a\r\n",
        " x: a\r\n",
        "x y: a\r\n",
        ": a\r\n",
        "nonsense\r\n",
        "x: a\rb: c\r\n",
        "x: a\0b\r\n",
        "x: a\x01b\r\n",
        "x: a\x7fb\r\n",
        "x\0: a\r\n",
    ] {
        is_refused(&stack, &post(header, ""), 400).await;
        is_refused(&stack, &batch(header, ""), 400).await;
    }
    for target in ["\0", "/a\0", "/a\x01", "/a b", "/a\tb", "/a?\"", "/a?<b>", "http:///a", "#"] {
        is_refused(&stack, &get(target), 400).await;
    }
    for version in ["HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "http/1.1", "HTTP/1.10", ""] {
        is_refused(&stack, &get(ECHO).replace("HTTP/1.1", version), 400).await;
    }
    is_refused(&stack, "FOO(BAR / HTTP/1.1\r\nhost: a\r\n\r\n", 400).await;
    // TLS, where there is none.
    is_refused(&stack, "\x16\x03\x01\x02\0\x01\0\x01\u{7c}\x03\x03\r\n\r\n", 400).await;
    assert_eq!(stack.asked().len(), 0);
}

/// The http crate cuts a fragment off, over HTTP/2 as well: memory and endpoint get the same target.
#[tokio::test]
async fn a_fragment_goes_no_further() {
    let stack = Stack::start().await;
    let echo = is_answered(&stack, &get(&format!("{ECHO}?a=b#fragment"))).await;
    assert!(echo.contains(&format!(r#""target":"{ECHO}?a=b""#)) && !echo.contains("fragment"), "{echo}");
    for fragment in ["", "#fragment"] {
        is_answered(&stack, &get(&format!("{}{fragment}", query(&["1"])))).await;
    }
    assert_eq!(stack.asked(), [["1"]]);
}

#[tokio::test]
async fn a_bare_line_feed_ends_a_line_and_what_is_forwarded_is_written_anew() {
    let stack = Stack::start().await;
    let text =
        is_answered(&stack, &format!("\r\n\nPOST {ECHO} HTTP/1.1\nhost: a\nx: y\ncontent-length: 2\n\nhi")).await;
    assert!(text.contains(r#"["x","y"]"#) && text.contains(r#""body":"hi""#), "{text}");
}

#[tokio::test]
async fn a_host_that_is_missing_doubled_or_no_host_is_refused() {
    let stack = Stack::start().await;
    for target in [query(&["1"]), ECHO.to_owned()] {
        for hosts in [
            "",
            "host: a\r\nhost: a\r\n",
            "host: a\r\nx: y\r\nHOST: b\r\n",
            "host: a b\r\n",
            "host: u@a\r\n",
            "host: a/b\r\n",
            "host: a:99999\r\n",
            "host: a:65536\r\n",
            "host: a:b\r\n",
            "host: a:80:80\r\n",
            "host: a:+80\r\n",
            "host: [::1\r\n",
            "host: ::1]\r\n",
            "host: [::1]80\r\n",
            "host: [::1]:99999\r\n",
            "host: [::g]\r\n",
            "host: [a]\r\n",
            "host: a[::1]\r\n",
            "host: ::1\r\n",
        ] {
            is_refused(&stack, &format!("GET {target} HTTP/1.1\r\n{hosts}x-auth-token: t\r\n\r\n"), 400).await;
        }
        for host in ["", "a:80", "a:", "a:65535", "[::1]:8080", "[::ffff:1.2.3.4]", "[v1.x]", "a_b.example", "a%20b"] {
            is_answered(&stack, &format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nx-auth-token: t\r\n\r\n")).await;
        }
    }
}

/// A request with trailers is the last of its connection: a line of trailers ends with CR LF to hyper, and with a bare LF to
/// others, so that a proxy in front may see the next request begin elsewhere.
#[tokio::test]
async fn chunk_extensions_and_trailers_are_read_and_go_no_further() {
    let stack = Stack::start().await;
    let body = "03 ;a=b;c=\"d\"\r\nabc\r\n0;x\r\nx-trailer: 1\r\nx-auth-token: other\r\n\r\n";
    let text = is_last(&stack, &post(&format!("{CHUNKED}trailer: x-trailer\r\n"), body), 200).await;
    assert!(text.contains(r#""body":"abc""#) && !text.contains("railer") && !text.contains("other"), "{text}");
    // A batch's caller is the one of its head.
    let ids = r#"{"accessory_ids":["1"]}"#;
    let head = format!("GET {} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\n{CHUNKED}\r\n", api::PATH);
    is_last(&stack, &format!("{head}{:x}\r\n{ids}\r\n0\r\nx-auth-token: other\r\n\r\n", ids.len()), 200).await;
    assert_eq!(stack.origin.calls()[0].headers["x-auth-token"], "t");
}

#[tokio::test]
async fn chunks_that_cannot_be_read_are_the_clients_fault_on_every_route() {
    let stack = Stack::start().await;
    let long = "x".repeat(20_000);
    let trailers = "x-t: 1\r\n".repeat(2_000);
    for body in [
        "g\r\nabc\r\n0\r\n\r\n".to_owned(),
        "-3\r\nabc\r\n0\r\n\r\n".to_owned(),
        "0x3\r\nabc\r\n0\r\n\r\n".to_owned(),
        "\r\nabc\r\n0\r\n\r\n".to_owned(),
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n".to_owned(),
        "2\r\nabc\r\n0\r\n\r\n".to_owned(),
        "3\nabc\n0\n\n".to_owned(), // A bare line feed is taken for a line's end in a head, not here.
        "3;a\nabc\r\n0\r\n\r\n".to_owned(),
        format!("3;{long}\r\nabc\r\n0\r\n\r\n"),
        format!("3\r\nabc\r\n0\r\n{trailers}\r\n"),
    ] {
        for request in [post(CHUNKED, &body), batch(CHUNKED, &body)] {
            is_refused(&stack, &request, 400).await;
        }
    }
    assert_eq!(stack.client.batch("t", &["1"]).await.status, 200);
}

#[tokio::test]
async fn a_bare_line_feed_among_trailers_hides_no_request() {
    let stack = Stack::start().await;
    for trailers in ["x: y\n\r\n", "x: y\n\n", "\n", "x: y\r\n\n", "x: y\r\nz\n: \r\n\r\n"] {
        // To others the body ends here, and this is the body of the request behind.
        let hidden = get(&format!("{ECHO}?hidden"));
        let hidden = format!("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{hidden}", hidden.len());
        for behind in [get(&format!("{ECHO}?hidden")), hidden] {
            let request = format!("{}{behind}", post(CHUNKED, &format!("3\r\nabc\r\n0\r\n{trailers}")));
            let outcome = outcome(&stack, &request).await;
            assert!(matches!(outcome.statuses[..], [200 | 400]), "{trailers:?}: {}", outcome.text);
            assert!(!outcome.goes_on && !outcome.text.contains("?hidden"), "{trailers:?}: {}", outcome.text);
        }
    }
}

#[tokio::test]
async fn heads_beyond_their_limits_are_refused_in_number_and_in_bytes() {
    let stack = Stack::start().await;
    is_refused(&stack, &post(&"x: y\r\n".repeat(100), ""), 431).await;
    is_refused(&stack, &post(&format!("x: {}\r\n", "x".repeat(70_000)), ""), 431).await;
    is_refused(&stack, &get(&format!("{ECHO}?{}", "x".repeat(70_000))), 431).await;
    // A head that is refused before all of it is sent: its sender gets to read that all the same.
    is_refused(&stack, &post(&format!("x: {}\r\n", "x".repeat(900_000)), ""), 431).await;
}

#[tokio::test]
async fn a_body_on_a_hit_is_read_to_its_end() {
    let stack = Stack::start().await;
    let ids = r#"{"accessory_ids":["1"]}"#;
    let head = format!("GET {} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\n", api::PATH);
    let smuggled = get(&format!("{ECHO}?smuggled"));
    for round in 0..2 {
        for request in [
            format!("{head}content-length: {}\r\n\r\n{ids}", ids.len()),
            format!("{head}{CHUNKED}\r\n{:x}\r\n{ids}\r\n0\r\n\r\n", ids.len()),
        ] {
            let text = is_answered(&stack, &request).await;
            assert!(round == 0 || text.contains("sidelink; hit"), "{text}");
        }
    }
    // A query batch with a body is nobody's to interpret: forwarded as it came, body and all.
    let request = batch(&format!("content-length: {}\r\n", smuggled.len()), &smuggled);
    let outcome = outcome(&stack, &request).await;
    assert_eq!(outcome.statuses, [400, 200], "the endpoint's own refusal: {}", outcome.text);
    assert!(outcome.text.contains("OSM.0001") && !outcome.text.contains("?smuggled\""), "{}", outcome.text);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_one_at_a_time() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let mut stream = TcpStream::connect(stack.client.address).await.unwrap();
    let mut requests = String::new();
    for number in 0..50 {
        requests.push_str(&get(&query(&[&number.to_string()])));
        requests.push_str(&get(&format!("{ECHO}?number={number}.")));
    }
    requests.push_str(&format!("GET {ECHO} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"));
    stream.write_all(requests.as_bytes()).await.unwrap();
    stack.origin.arrived(1).await;
    // Another client's batch comes and goes, and still the first of this one's is the only one under way.
    let other = TestClient::new(stack.client.address);
    other.get(ECHO, &[]).await;
    assert_eq!(stack.asked(), [["0"]]);
    stack.origin.release();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let mut at = 0;
    for number in 0..50 {
        for expected in [format!(r#""accessory_id":"{number}""#), format!("number={number}.")] {
            at += text[at..].find(&expected).unwrap_or_else(|| panic!("{expected} is not in its turn"));
        }
    }
}

#[tokio::test]
async fn a_client_that_closes_its_side_still_gets_its_answer() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let mut stream = TcpStream::connect(stack.client.address).await.unwrap();
    stream.write_all(get(&query(&["1"])).as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    stack.origin.arrived(1).await;
    stack.origin.release();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("accessory_urls"), "{text}");
}

#[tokio::test]
async fn a_request_that_ends_in_the_middle_is_dropped() {
    let stack = Stack::start().await;
    let ids = r#"{"accessory_ids":["1"]}"#;
    for request in [
        "GET".to_owned(),
        format!("GET {ECHO} HTTP/1.1\r\nhost"),
        post("content-length: 9\r\n", "abc"),
        post(CHUNKED, "5\r\nab"),
        format!("GET {} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\ncontent-length: 99\r\n\r\n{ids}", api::PATH),
    ] {
        let mut stream = TcpStream::connect(stack.client.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut text)).await.unwrap().unwrap();
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400 "), "{request:?} got {text}");
    }
    assert_eq!(stack.asked().len(), 0);
    assert_eq!(stack.client.batch("t", &["1"]).await.status, 200);
}

#[tokio::test]
async fn to_continue_is_said_when_the_body_is_wanted_and_not_before() {
    let stack = Stack::with(|_| {}, |config| config.limits.batch_body = 1024).await;
    let ids = r#"{"accessory_ids":["1"]}"#;
    let head = format!("GET {} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\nexpect: 100-Continue\r\n", api::PATH);
    for request in [
        format!("{head}content-length: {}\r\n\r\n{ids}", ids.len()),
        post("expect: 100-continue\r\ncontent-length: 3\r\n", "abc"),
    ] {
        let outcome = outcome(&stack, &request).await;
        assert_eq!(outcome.statuses, [100, 200, 200], "{}", outcome.text);
        assert!(outcome.goes_on, "{}", outcome.text);
    }
    // Too large, as its head says already: it is not asked for.
    let refused = raw(stack.client.address, format!("{head}content-length: 5000\r\n\r\n").as_bytes()).await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    // A client of HTTP/1.0 would take it for the answer.
    let old = post("expect: 100-continue\r\ncontent-length: 3\r\n", "abc").replace("HTTP/1.1", "HTTP/1.0");
    let answer = raw(stack.client.address, old.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    // No other expectation is known, and none is refused: it is the endpoint's to judge.
    is_answered(&stack, &post("expect: the-worst\r\ncontent-length: 3\r\n", "abc")).await;
}

#[tokio::test]
async fn http_1_0_is_answered_in_kind() {
    let stack = Stack::start().await;
    for target in [query(&["1"]), ECHO.to_owned(), "/v2/servicerequest/accessorys/1?bytes=100000".to_owned()] {
        // No Host is needed, the connection ends with the answer, and no answer is chunked.
        let text =
            raw(stack.client.address, format!("GET {target} HTTP/1.0\r\nx-auth-token: t\r\n\r\n").as_bytes()).await;
        assert!(text.starts_with("HTTP/1.0 200 ") && !text.contains("transfer-encoding"), "{text}");
    }
    let kept = format!("GET {ECHO} HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
    let outcome = outcome(&stack, &kept).await;
    assert!(outcome.goes_on && outcome.text.contains("connection: keep-alive"), "{}", outcome.text);
}

#[tokio::test]
async fn a_head_request_gets_the_head_alone() {
    let stack = Stack::start().await;
    for target in [ECHO.to_owned(), query(&["1"])] {
        let request = format!("HEAD {target} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\n\r\n");
        let outcome = outcome(&stack, &request).await;
        assert!(outcome.goes_on && outcome.statuses.len() == 2, "{}", outcome.text);
        let (head, rest) = outcome.text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-length: ") && rest.starts_with("HTTP/1.1 200 "), "{}", outcome.text);
    }
}

#[tokio::test]
async fn a_target_never_leads_anywhere_but_to_the_endpoint() {
    let stack = Stack::start().await;
    let own = stack.origin.address();
    // Two slashes are a path, not an authority; dots are forwarded as they came.
    for target in ["//example.com/a", "/v2/../servicerequest/echo", "/v2/%2e%2e/servicerequest/echo"] {
        let outcome = outcome(&stack, &get(target)).await;
        assert!(outcome.statuses == [404, 200] && outcome.text.contains("APIGW.0101"), "{}", outcome.text);
    }
    for target in [format!("http://{own}{ECHO}"), format!("HTTP://{own}{ECHO}"), format!("https://{own}{ECHO}")] {
        let text = is_answered(&stack, &get(&target)).await;
        assert!(text.contains(&format!(r#""target":"{ECHO}""#)) && text.contains(&own.to_string()), "{text}");
    }
    for target in [format!("http://{own}"), format!("http://{own}?a")] {
        assert_eq!(outcome(&stack, &get(&target)).await.statuses, [404, 200]);
    }
    for target in ["http://example.com/", "ftp://example.com/", "example.com:80", "a", &format!("http://a:b@{own}/")] {
        let outcome = outcome(&stack, &get(target)).await;
        assert!(outcome.statuses[0] == 421 && outcome.goes_on, "{target}: {}", outcome.text);
    }
}

#[tokio::test]
async fn no_upgrade_is_made() {
    let stack = Stack::start().await;
    for headers in [
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
    ] {
        let text = is_answered(&stack, &post(headers, "")).await;
        assert!(!text.contains("\"upgrade\"") && !text.contains("http2-settings"), "{text}");
    }
}
