//! Metrics and probes are open to everyone who reaches the admin listener. All other routes need a request from loopback under a
//! loopback name, or the token; a browser page of another origin gets nothing. Each refusal has a defined status.

use std::io::Write;
use std::net::IpAddr;

use http::{Method, StatusCode};
use sidelink::config::{Secret, StoredSecret};

use crate::support::{Reply, Stack, TestClient, raw};

pub const TOKEN: &str = "token-of-an-operator";
const JSON: (&str, &str) = ("content-type", "application/json");
/// Guarded routes with GET.
const GUARDED: [&str; 3] = ["/", "/status.json", "/explain?accessory_ids=1"];
const ALL: &str = r#"{"all":true}"#;

pub fn token(config: &mut sidelink::config::Config) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{TOKEN}").unwrap();
    config.admin.token_file =
        Some(StoredSecret { secret: Secret::new(TOKEN.into()), source: file.path().display().to_string() });
}

/// An address of this machine that is not loopback, if there is one.
fn outside() -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing, but selects a source address.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

async fn purge(client: &TestClient, headers: &[(&str, &str)], body: &str) -> Reply {
    client.send(Method::POST, "/purge", headers, body.to_owned()).await
}

fn admin(stack: &Stack) -> TestClient {
    TestClient::new(stack.app.admin_address())
}

#[tokio::test]
async fn every_answer_forbids_browsers_to_store_run_or_frame_it() {
    let stack = Stack::start().await;
    for path in ["/", "/status.json", "/metrics", "/livez", "/readyz", "/explain", "/purge", "/nowhere"] {
        let reply = admin(&stack).get(path, &[]).await;
        assert!(reply.header("content-security-policy").contains("default-src 'none'"), "{path}");
        assert!(reply.header("content-security-policy").contains("frame-ancestors 'none'"), "{path}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(reply.header("x-frame-options"), "DENY", "{path}");
        assert_eq!(reply.header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(reply.header("cache-control"), "no-store", "{path}");
        assert!(!reply.headers.contains_key("access-control-allow-origin"), "{path}");
    }
}

#[tokio::test]
async fn another_method_is_a_405_and_another_path_a_404() {
    let stack = Stack::start().await;
    for (path, allowed) in
        [("/metrics", "GET, HEAD"), ("/livez", "GET, HEAD"), ("/readyz", "GET, HEAD"), ("/purge", "POST")]
    {
        for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let reply = admin(&stack).send(method.clone(), path, &[JSON], ALL).await;
            if allowed.split(", ").any(|allowed| allowed == method.as_str()) {
                assert_eq!(reply.status, 200, "{method} {path}");
            } else {
                assert_eq!(reply.status, 405, "{method} {path}");
                assert_eq!(reply.header("allow"), allowed, "{method} {path}");
            }
        }
    }
    for path in ["/purge/", "/PURGE", "//purge", "/purges", "/admin", "/metrics/x"] {
        assert_eq!(admin(&stack).get(path, &[]).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_purge_is_json_of_a_known_form_within_its_limit() {
    let stack = Stack::start().await;
    let client = admin(&stack);
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let reply = purge(&client, &[("content-type", content_type)], ALL).await;
        assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
    assert_eq!(purge(&client, &[], ALL).await.status, 415);
    assert_eq!(purge(&client, &[JSON, ("content-encoding", "gzip")], ALL).await.status, 415);
    for (body, said) in
        [("", "JSON object"), ("{}", "one of these"), (r#"{"everything":true}"#, "unknown variant `everything`")]
    {
        let reply = purge(&client, &[JSON], body).await;
        assert_eq!(reply.status, 400, "{body}");
        assert!(reply.json()["error"].as_str().unwrap().contains(said), "{body}: {:?}", reply.body);
    }
    let ids = |count: usize| format!(r#"{{"accessory_ids":["{}"]}}"#, vec!["x".repeat(60); count].join("\",\""));
    assert_eq!(purge(&client, &[JSON], &ids(4000)).await.status, 200);
    assert_eq!(purge(&client, &[JSON], &ids(5000)).await.status, 413);
    let address = stack.app.admin_address();
    let head = "POST /purge HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n";
    let chunk = format!("{head}transfer-encoding: chunked\r\n\r\n50000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x50000));
    assert!(raw(address, chunk.as_bytes()).await.starts_with("HTTP/1.1 413"));
    for target in ["ids", "group", "all"] {
        let expected = if target == "ids" { 1.0 } else { 0.0 };
        assert_eq!(stack.metric(&format!("sidelink_purges_total{{target=\"{target}\"}}")).await, expected);
    }
    let typed = ("content-type", "Application/JSON; charset=utf-8");
    assert_eq!(purge(&client, &[typed], ALL).await.status, 200);
}

#[tokio::test]
async fn a_browser_page_of_another_origin_gets_nothing() {
    let stack = Stack::with(|_| {}, token).await;
    let client = admin(&stack);
    let bearer = format!("Bearer {TOKEN}");
    for foreign in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        for headers in [&[JSON, foreign][..], &[JSON, foreign, ("authorization", &bearer)]] {
            let reply = purge(&client, headers, ALL).await;
            assert_eq!(reply.status, 403, "{foreign:?}");
            assert!(!reply.headers.contains_key("www-authenticate"));
        }
        assert_eq!(client.get("/metrics", &[foreign]).await.status, 200, "metrics are for everyone");
        for path in GUARDED {
            assert_eq!(client.get(path, &[foreign]).await.status, 403, "{path}");
            assert_eq!(client.get(path, &[]).await.status, 200, "{path}");
        }
    }
    let own = format!("http://{}", stack.app.admin_address());
    assert_eq!(purge(&client, &[JSON, ("origin", &own), ("sec-fetch-site", "same-origin")], ALL).await.status, 200);
}

#[tokio::test]
async fn dns_rebinding_to_loopback_is_refused() {
    for (configure, status) in [((|_| {}) as fn(&mut sidelink::config::Config), 403), (token, 401)] {
        let stack = Stack::with(|_| {}, configure).await;
        let body = format!(
            "content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{ALL}",
            ALL.len()
        );
        for head in [
            "POST /purge HTTP/1.1\r\nhost: rebound.example:8081\r\n",
            "POST http://rebound.example/purge HTTP/1.1\r\nhost: localhost\r\n",
        ] {
            let answer = raw(stack.app.admin_address(), format!("{head}{body}").as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        }
        let head = "POST /purge HTTP/1.1\r\nhost: localhost\r\n";
        let answer = raw(stack.app.admin_address(), format!("{head}{body}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn a_request_from_elsewhere_needs_the_token() {
    let Some(ip) = outside() else { return };
    for (configure, status) in [((|_| {}) as fn(&mut sidelink::config::Config), 403), (token, 401)] {
        let stack = Stack::with(
            |_| {},
            |config| {
                config.admin.address = (ip, 0).into();
                configure(config);
            },
        )
        .await;
        let client = admin(&stack);
        for path in ["/metrics", "/livez", "/readyz"] {
            assert_eq!(client.get(path, &[]).await.status, 200, "{path}");
        }
        let reply = purge(&client, &[JSON], ALL).await;
        assert_eq!(reply.status, status);
        let challenges: Vec<&str> =
            reply.headers.get_all("www-authenticate").iter().map(|line| line.to_str().unwrap()).collect();
        // Each in a line of its own, or Chromium asks for no password.
        let expected = ["Bearer realm=\"sidelink\"", "Basic realm=\"sidelink\", charset=\"UTF-8\""];
        assert_eq!(challenges, if status == 401 { &expected[..] } else { &[] });
        let reply = purge(&client, &[JSON, ("host", "localhost")], ALL).await;
        assert_eq!(reply.status, status, "whatever it says in Host");
        for path in GUARDED {
            assert_eq!(client.get(path, &[]).await.status, status, "{path}");
        }
        let bearer = format!("Bearer {TOKEN}");
        let reply = purge(&client, &[JSON, ("authorization", &bearer)], ALL).await;
        assert_eq!(reply.status, if status == 401 { 200 } else { 403 });
    }
}

#[tokio::test]
async fn a_wrong_token_is_refused_from_anywhere() {
    let stack = Stack::with(|_| {}, token).await;
    for wrong in ["Bearer token-of-an-operatoR", "Bearer token-of-an-operator-", "Bearer "] {
        let reply = purge(&admin(&stack), &[JSON, ("authorization", wrong)], ALL).await;
        assert_eq!(reply.status, 401, "{wrong}");
        assert_eq!(reply.header("www-authenticate"), "Bearer realm=\"sidelink\", error=\"invalid_token\"");
    }
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_take_gzip_and_for_nobody_else() {
    let stack = Stack::start().await;
    let admin = TestClient::new(stack.app.admin_address());
    let plain = admin.get("/metrics", &[]).await;
    assert_eq!(plain.header("content-encoding"), "");
    for (accepts, is_compressed) in [
        ("gzip", true),
        ("deflate, GZIP;q=0.5", true),
        ("zstd, gzip; q=1.0", true),
        ("gzip;Q=0", false),
        ("gzip;q=0", false),
        ("gzip; q=0.000", false),
        ("identity", false),
        ("x-gzipped", false),
    ] {
        let reply = admin.get("/metrics", &[("accept-encoding", accepts)]).await;
        let coding = if is_compressed { "gzip" } else { "" };
        assert_eq!((reply.status.as_u16(), reply.header("content-encoding")), (200, coding), "{accepts}");
        if is_compressed {
            assert!(reply.body.len() * 5 < plain.body.len(), "{} of {}", reply.body.len(), plain.body.len());
            let mut text = String::new();
            std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&reply.body[..]), &mut text).unwrap();
            assert!(text.contains("sidelink_build_info"));
        }
    }
    // Too short to gain by it.
    assert_eq!(admin.get("/livez", &[("accept-encoding", "gzip")]).await.header("content-encoding"), "");
}
