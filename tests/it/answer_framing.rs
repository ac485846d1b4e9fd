//! An answer on another route is framed anew for its client, with one length (RFC 9112 §6.3).

use crate::bad_endpoint::Before;
use crate::support::raw;

const TARGET: &str = "/v2/servicerequest/echo";

/// What a client of HTTP/1.1 gets for `method` from an endpoint that answers with these bytes.
async fn passed_on(method: &str, answer: &'static str) -> String {
    let before = Before::start(move |mut stream, _| async move {
        stream.send(answer).await;
        stream.wait().await;
    })
    .await;
    let request = format!("{method} {TARGET} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    raw(before.app.addresses()[0], request.as_bytes()).await
}

fn lengths(answer: &str) -> Vec<&str> {
    let head = answer.split_once("\r\n\r\n").unwrap().0;
    head.lines().filter_map(|line| line.strip_prefix("content-length: ")).collect()
}

#[tokio::test]
async fn a_length_beside_chunks_is_dropped_and_the_whole_body_arrives() {
    let answer = passed_on(
        "GET",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n",
    )
    .await;
    assert!(answer.contains("B\r\nhello world\r\n0\r\n\r\n") && lengths(&answer).is_empty(), "{answer}");
    assert!(answer.contains("transfer-encoding: chunked"), "{answer}");
    // An answer without a body has the same head (RFC 9110 §9.3.2).
    let answer = passed_on("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && lengths(&answer).is_empty(), "{answer}");
}

#[tokio::test]
async fn the_same_length_twice_becomes_one() {
    for head in ["content-length: 2, 2\r\n", "content-length: 2\r\ncontent-length: 2\r\n", "content-length: 02,2\r\n"] {
        for (method, body) in [("GET", "hi"), ("HEAD", "")] {
            let whole: &'static str = format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}").leak();
            let answer = passed_on(method, whole).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
            assert_eq!(lengths(&answer), ["2"], "{head:?}");
        }
    }
}

#[tokio::test]
async fn lengths_that_differ_or_are_no_numbers_are_a_502() {
    for head in ["content-length: 2, 3\r\n", "content-length: 2\r\ncontent-length: 3\r\n", "content-length: +2\r\n"] {
        for (method, status, body) in [("GET", "200 OK", "hi"), ("HEAD", "200 OK", ""), ("GET", "304 Not Modified", "")]
        {
            let whole: &'static str = format!("HTTP/1.1 {status}\r\n{head}\r\n{body}").leak();
            let answer = passed_on(method, whole).await;
            assert!(answer.starts_with("HTTP/1.1 502 "), "{method} {head:?}: {answer}");
        }
    }
}

#[tokio::test]
async fn an_unknown_transfer_coding_is_a_502() {
    for coding in ["gzip, chunked", "chunked, chunked", "gzip"] {
        let whole: &'static str =
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n2\r\nhi\r\n0\r\n\r\n").leak();
        let answer = passed_on("GET", whole).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{coding}: {answer}");
    }
}
