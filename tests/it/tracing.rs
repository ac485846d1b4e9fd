//! A client's trace continues at the endpoint: valid W3C Trace Context is passed on unchanged, an invalid one is dropped, and neither
//! is part of a scope.

use http::Method;
use sidelink::clock::Clock;
use sidelink::demo::origin::RecordedCall;

use crate::signing::{Unsigned, pair};
use crate::support::{Stack, query};

const ECHO: &str = "/v2/servicerequest/echo";
const ONE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TWO: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

fn traced<'a>(parent: &'a str, state: &'a str) -> [(&'a str, &'a str); 3] {
    [("x-auth-token", "t"), ("traceparent", parent), ("tracestate", state)]
}

fn context(call: &RecordedCall) -> [Option<&str>; 2] {
    ["traceparent", "tracestate"].map(|name| call.headers.get(name).map(|value| value.to_str().unwrap()))
}

#[tokio::test]
async fn a_call_carries_the_context_of_its_batch_and_another_trace_gets_the_same_links() {
    let stack = Stack::start().await;
    let first = stack.client.get(&query(&["1"]), &traced(ONE, "a=1, b=2")).await.links();
    let again = stack.client.get(&query(&["1"]), &traced(TWO, "c=3")).await;
    assert_eq!((again.header("cache-status"), again.links()), ("sidelink; hit", first));
    let calls = stack.origin.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(context(&calls[0]), [Some(ONE), Some("a=1,b=2")]);
    // The next batch's calls carry its own context.
    stack.client.get(&query(&["1", "2"]), &traced(TWO, "")).await;
    assert_eq!(context(&stack.origin.calls()[1]), [Some(TWO), None]);
}

#[tokio::test]
async fn every_call_of_a_batch_carries_its_context() {
    let stack = Stack::with(|_| {}, |config| config.upstream.ids_per_call = 1).await;
    assert_eq!(stack.client.get(&query(&["1", "2", "3"]), &traced(ONE, "a=1")).await.ids().len(), 3);
    let calls = stack.origin.calls();
    assert_eq!(calls.len(), 3);
    assert!(calls.iter().all(|call| context(call) == [Some(ONE), Some("a=1")]));
}

#[tokio::test]
async fn a_batch_that_joins_a_flight_of_another_trace_gets_its_link_and_its_own_trace_context() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let ask = |ids: &'static [&'static str], parent: &'static str| {
        let client = stack.client.clone();
        tokio::spawn(async move { client.get(&query(ids), &traced(parent, "")).await })
    };
    let leader = ask(&["1"], ONE);
    stack.origin.arrived(1).await;
    let joiner = ask(&["1", "2"], TWO);
    stack.origin.arrived(2).await;
    stack.origin.release();
    assert_eq!((leader.await.unwrap().ids().len(), joiner.await.unwrap().ids().len()), (1, 2));
    let calls = stack.origin.calls();
    let seen: Vec<_> = calls.iter().map(|call| (call.ids.join(","), context(call)[0])).collect();
    assert_eq!(seen, [("1".to_owned(), Some(ONE)), ("2".to_owned(), Some(TWO))]);
}

#[tokio::test]
async fn an_invalid_context_is_dropped_and_the_batch_answered() {
    let stack = Stack::start().await;
    let long = "a".repeat(20_000);
    for (number, parent) in ["", "00-short", &ONE.to_uppercase(), &long].into_iter().enumerate() {
        assert_eq!(stack.client.get(&query(&[&number.to_string()]), &traced(parent, "a=1")).await.ids().len(), 1);
        assert_eq!(context(&stack.origin.calls()[number]), [None, None], "{parent:.80}");
    }
}

#[tokio::test]
async fn other_routes_pass_a_valid_context_on_and_no_other() {
    let stack = Stack::start().await;
    let echoed = async |headers: &[(&str, &str)]| {
        let echo = stack.client.send(Method::POST, ECHO, headers, "body").await.json();
        let text = echo.to_string();
        [ONE, "a=1", "invalid"].map(|part| text.contains(part))
    };
    assert_eq!(echoed(&traced(ONE, "a=1")).await, [true, true, false]);
    assert_eq!(echoed(&traced("invalid", "a=1")).await, [false; 3]);
    assert_eq!(echoed(&[("tracestate", "a=1")]).await, [false; 3]);
    assert_eq!(echoed(&traced(ONE, "invalid")).await, [true, false, false]);
    // The signature may cover the headers.
    let signed = [("authorization", "Other scheme"), ("traceparent", "invalid")];
    assert_eq!(echoed(&signed).await, [false, false, true]);
}

#[tokio::test]
async fn a_signed_batchs_calls_carry_its_context_too() {
    let clock = Clock::system();
    let keys = |options: &mut sidelink::demo::origin::Options| options.keys = vec![pair("AKTEST", "sk-test")];
    let stack = Stack::on(clock.clone(), keys, |config| crate::signing::knows(config, "AKTEST", "sk-test")).await;
    let request = Unsigned::get(stack.client.address, &query(&["1"]), &clock).header("traceparent", ONE);
    let headers = request.sign();
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(stack.client.get(&query(&["1"]), &headers).await.ids(), ["1"]);
    assert_eq!(context(&stack.origin.calls()[0])[0], Some(ONE));
}
