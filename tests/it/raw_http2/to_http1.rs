//! A request that came over HTTP/2 means the same over HTTP/1.1 and to everyone who reads it, or is refused (RFC 9113 §8.2, §8.3).

use serde_json::Value;

use super::frames::*;
use crate::support::{Stack, query};

const ECHO: &str = "/v2/servicerequest/echo";

async fn outcome(stack: &Stack, fields: &[(&str, &str)]) -> End {
    let mut client = Http2::connect(stack.client.address).await;
    let end = client.exchange(fields).await;
    assert!(matches!(client.exchange(&get(ECHO)).await, End::Answered(200, _)), "the connection goes on: {end:?}");
    end
}

async fn is_refused(stack: &Stack, fields: &[(&str, &str)]) {
    let end = outcome(stack, fields).await;
    let is_refusal = matches!(&end, End::Answered(400, body) if body.contains("SIDELINK.0005"));
    assert!(is_refusal || matches!(end, End::Reset(1, None)), "{fields:?}: {end:?}");
}

/// The values of `name` that reached the endpoint.
fn forwarded(end: &End, name: &str) -> Vec<String> {
    let End::Answered(200, body) = end else { panic!("{end:?}") };
    let echo: Value = serde_json::from_str(body).unwrap();
    let headers = echo["headers"].as_array().unwrap().iter();
    headers.filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn cookies_in_several_fields_go_on_as_one() {
    let stack = Stack::start().await;
    for (fields, joined) in [
        (&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")][..], "a=1; b=2; c=3"),
        (&[("cookie", "a=1")], "a=1"),
    ] {
        let end = outcome(&stack, &[&get(ECHO), fields].concat()).await;
        assert_eq!(forwarded(&end, "cookie"), [joined]);
    }
}

#[tokio::test]
async fn a_length_that_is_there_twice_is_refused() {
    let stack = Stack::start().await;
    let batch = query(&["1"]);
    stack.client.batch("t", &["1"]).await;
    for length in ["0", "3"] {
        is_refused(&stack, &[get(ECHO), vec![("content-length", length); 2]].concat()).await;
    }
    // Also where all that is asked for is in memory.
    is_refused(&stack, &[get(&batch), vec![("content-length", "0"); 2]].concat()).await;
    assert_eq!(outcome(&stack, &[get(&batch), vec![("content-length", "0")]].concat()).await.status(), 200);
}

#[tokio::test]
async fn a_field_value_with_space_around_it_is_refused() {
    let stack = Stack::start().await;
    let batch = query(&["1"]);
    assert_eq!(outcome(&stack, &get(&batch)).await.status(), 200);
    for value in [" t", "t ", "\tt", "t\t", " "] {
        for target in [ECHO, &batch] {
            for name in ["x-auth-token", "x", "x-language"] {
                let mut fields = get(target);
                fields.retain(|field| field.0 != name);
                fields.push((name, value));
                is_refused(&stack, &fields).await;
            }
        }
    }
    assert_eq!(stack.asked().len(), 1);
    // Space within a value is allowed, and so is an empty one.
    for value in ["a b", ""] {
        let end = outcome(&stack, &[get(ECHO), vec![("x", value)]].concat()).await;
        assert_eq!(forwarded(&end, "x"), [value]);
    }
}

#[tokio::test]
async fn a_scheme_that_is_empty_is_refused() {
    let stack = Stack::start().await;
    let batch = query(&["1"]);
    stack.client.batch("t", &["1"]).await;
    for target in [ECHO, &batch] {
        for scheme in ["", "1http", "+"] {
            let fields = [
                (":method", "GET"),
                (":scheme", scheme),
                (":path", target),
                (":authority", "a"),
                ("x-auth-token", "t"),
            ];
            is_refused(&stack, &fields).await;
        }
    }
}

#[tokio::test]
async fn an_authority_that_is_no_host_and_port_is_refused() {
    let stack = Stack::start().await;
    let batch = query(&["1"]);
    stack.client.batch("t", &["1"]).await;
    for target in [ECHO, &batch] {
        for authority in ["a:99999", "a:b", "[::g]"] {
            let fields = [
                (":method", "GET"),
                (":scheme", "http"),
                (":path", target),
                (":authority", authority),
                ("x-auth-token", "t"),
            ];
            is_refused(&stack, &fields).await;
        }
    }
}

/// The http crate cuts a fragment off, as over HTTP/1: memory and endpoint get the same target (docs/ARCHITECTURE.md).
#[tokio::test]
async fn a_fragment_goes_no_further() {
    let stack = Stack::start().await;
    let End::Answered(200, body) = outcome(&stack, &get(&format!("{ECHO}?a=b#fragment"))).await else { panic!() };
    let echo: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(echo["target"], format!("{ECHO}?a=b"));
}
