//! `Max-Forwards` of OPTIONS and TRACE (RFC 9110 §7.6.2): at 0 sidelink answers the request, otherwise it forwards the value
//! decremented by one.

use serde_json::Value;

use crate::support::{Stack, raw};

const ECHO: &str = "/v2/servicerequest/echo";

async fn asked(stack: &Stack, method: &str, target: &str, limits: &[&str]) -> String {
    let limits: String = limits.iter().map(|limit| format!("max-forwards: {limit}\r\n")).collect();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nhost: a\r\nx-auth-token: secret\r\nconnection: close\r\nx-request-id: mine\r\n{limits}\r\n"
    );
    raw(stack.client.address, request.as_bytes()).await
}

/// The values of `Max-Forwards` that reached the endpoint.
fn forwarded(answer: &str) -> Vec<String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    let echo: Value = serde_json::from_str(body).unwrap();
    let headers = echo["headers"].as_array().unwrap().iter();
    let values = headers.filter(|pair| pair[0] == "max-forwards");
    values.map(|pair| pair[1].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn options_with_max_forwards_zero_is_answered_by_sidelink() {
    let stack = Stack::start().await;
    for target in [ECHO, "*", "/nowhere"] {
        let answer = asked(&stack, "OPTIONS", target, &["0"]).await;
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
        assert!(answer.contains("\r\nallow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"), "{answer}");
        assert!(answer.contains("via: 1.1 sidelink") && answer.ends_with("\r\n\r\n"), "{answer}");
        assert!(answer.contains("\r\nx-request-id: mine\r\n"), "the client's own name: {answer}");
    }
    stack.origin.stop().await;
    assert!(asked(&stack, "OPTIONS", ECHO, &["00"]).await.starts_with("HTTP/1.1 204 "));
}

#[tokio::test]
async fn trace_with_max_forwards_zero_is_a_405_that_reflects_nothing() {
    let stack = Stack::start().await;
    let answer = asked(&stack, "TRACE", ECHO, &["0"]).await;
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("\r\nallow: "), "{answer}");
    assert!(!answer.contains("secret") && !answer.contains(ECHO), "{answer}");
}

#[tokio::test]
async fn max_forwards_is_decremented() {
    let stack = Stack::start().await;
    for (value, left) in [("1", "0"), ("010", "9"), ("99999999999999999999999", "18446744073709551614")] {
        for method in ["OPTIONS", "TRACE"] {
            assert_eq!(forwarded(&asked(&stack, method, ECHO, &[value]).await), [left], "{method} {value}");
        }
    }
}

#[tokio::test]
async fn invalid_values_and_other_methods_are_forwarded_unchanged() {
    let stack = Stack::start().await;
    for values in [&["-1"][..], &["+1"], &["1.5"], &["x"], &["0, 0"], &["0", "0"], &["3", "4"]] {
        assert_eq!(forwarded(&asked(&stack, "OPTIONS", ECHO, values).await), values, "{values:?}");
    }
    for value in ["0", "5"] {
        assert_eq!(forwarded(&asked(&stack, "GET", ECHO, &[value]).await), [value]);
    }
}
