//! A pooled connection that the endpoint ends, at or just before its next use, fails no batch and no idempotent request; a POST is
//! never sent twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Method;
use sidelink::config::{Config, Endpoint};
use tokio::sync::watch;

use crate::flaky_endpoint::http2::Secure;
use crate::flaky_endpoint::wire::Wire;
use crate::flaky_endpoint::{Act, Asked, Flaky, OTHER_ROUTE, Sidelink, failed};

/// Without retries, which would hide whether a request is sent again.
fn without_retries(config: &mut Config) {
    config.upstream.retry.attempts = 0;
}

/// One batch for each of so many callers.
fn batches(callers: usize, round: &str) -> Vec<(String, String)> {
    (0..callers).map(|caller| (format!("caller-{caller}"), format!("{round}-{caller}"))).collect()
}

/// Delays requests until `open`, so that each has its own connection.
async fn gated(asked: Asked, mut open: watch::Receiver<bool>) -> Act {
    let _ = asked;
    open.wait_for(|open| *open).await.unwrap();
    Act::Answer
}

/// Makes `callers` connections that stay in the pool.
async fn fill_pool(sidelink: &Sidelink, endpoint: &Flaky, callers: usize, gate: &watch::Sender<bool>) {
    let filled = sidelink.burst(batches(callers, "first"));
    let opened = async {
        endpoint.arrived(callers).await;
        gate.send_replace(true);
    };
    let (statuses, ()) = tokio::join!(filled, opened);
    assert!(failed(&statuses).is_empty(), "{statuses:?}");
    assert_eq!(endpoint.connections(), callers);
}

#[tokio::test]
async fn forty_pooled_connections_that_are_reset_at_their_next_use_fail_no_batch() {
    for act in [Act::Reset, Act::Close] {
        let (gate, open) = watch::channel(false);
        let lost = Arc::new(AtomicBool::new(false));
        let loses = Arc::clone(&lost);
        let endpoint = Flaky::start(move |asked| {
            let (act, open, is_lost) = (act.clone(), open.clone(), loses.load(Ordering::SeqCst));
            async move { if is_lost && asked.connection < 40 { act } else { gated(asked, open).await } }
        })
        .await;
        let sidelink = Sidelink::before(endpoint.address, |_| {}).await;
        fill_pool(&sidelink, &endpoint, 40, &gate).await;
        lost.store(true, Ordering::SeqCst);
        for round in ["second", "third"] {
            let statuses = sidelink.burst(batches(40, round)).await;
            assert!(failed(&statuses).is_empty(), "{round}: {:?}", failed(&statuses));
        }
        sidelink.breaker_stayed_closed().await;
    }
}

#[tokio::test]
async fn over_tls_pooled_connections_that_are_closed_at_their_next_use_fail_no_batch() {
    for act in [Act::Close, Act::Reset] {
        let (gate, open) = watch::channel(false);
        let lost = Arc::new(AtomicBool::new(false));
        let loses = Arc::clone(&lost);
        let secure = Secure::start(
            &[b"http/1.1"],
            |_| None,
            move |asked| {
                let (act, open, is_lost) = (act.clone(), open.clone(), loses.load(Ordering::SeqCst));
                async move { if is_lost && asked.connection < 10 { act } else { gated(asked, open).await } }
            },
        )
        .await;
        let sidelink = Sidelink::before_https(secure.port, secure.ca_file(), without_retries).await;
        fill_pool(&sidelink, &secure.endpoint, 10, &gate).await;
        lost.store(true, Ordering::SeqCst);
        let statuses = sidelink.burst(batches(10, "second")).await;
        assert!(failed(&statuses).is_empty(), "{:?}", failed(&statuses));
    }
}

#[tokio::test]
async fn tunnels_of_an_egress_proxy_that_are_all_lost_fail_no_batch() {
    for at_next_use in [true, false] {
        let (gate, open) = watch::channel(false);
        let endpoint = Flaky::start(move |asked| gated(asked, open.clone())).await;
        let wire = Wire::egress(endpoint.address).await;
        let proxy = Endpoint::parse(&format!("http://{}", wire.address)).unwrap();
        let sidelink = Sidelink::before(endpoint.address, |config| {
            config.upstream.proxy = Some(proxy);
        })
        .await;
        fill_pool(&sidelink, &endpoint, 20, &gate).await;
        if at_next_use {
            wire.reset_at_next_use();
        } else {
            wire.reset();
        }
        let statuses = sidelink.burst(batches(20, "second")).await;
        assert!(failed(&statuses).is_empty(), "at next use: {at_next_use}: {:?}", failed(&statuses));
        sidelink.breaker_stayed_closed().await;
    }
}

/// One client at a time; each connection serves one request and does this with the next.
async fn loses_reused(act: Act) -> (Flaky, Sidelink) {
    let endpoint = Flaky::start(move |asked: Asked| {
        let act = act.clone();
        async move { if asked.is_on_a_reused_connection() { act } else { Act::Answer } }
    })
    .await;
    let sidelink = Sidelink::before(endpoint.address, without_retries).await;
    (endpoint, sidelink)
}

#[tokio::test]
async fn an_idempotent_request_on_another_route_survives_a_pooled_connection_that_ends() {
    for act in [Act::Close, Act::Reset] {
        let (endpoint, sidelink) = loses_reused(act.clone()).await;
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::DELETE, Method::PUT] {
            for round in 0..5 {
                let reply = sidelink.client.send(method.clone(), OTHER_ROUTE, &[], "").await;
                assert_eq!(reply.status, 200, "{act:?} {method} {round}: {reply:?}");
            }
        }
        assert!(endpoint.count(Asked::is_on_a_reused_connection) >= 10, "no connection was reused");
    }
}

#[tokio::test]
async fn a_request_that_must_not_be_repeated_is_sent_once_and_gets_a_502() {
    for act in [Act::Close, Act::Reset] {
        for (method, body) in [(Method::POST, ""), (Method::POST, "body"), (Method::PUT, "body"), (Method::PATCH, "")] {
            let (endpoint, sidelink) = loses_reused(act.clone()).await;
            // Until one is sent on a reused connection.
            for sent in 1..=20 {
                assert_eq!(sidelink.client.get(OTHER_ROUTE, &[]).await.status, 200);
                let reply = sidelink.client.send(method.clone(), OTHER_ROUTE, &[], body).await;
                assert_eq!(endpoint.count(|asked| asked.method == method), sent, "{method} was sent twice");
                if endpoint.count(|asked| asked.method == method && asked.is_on_a_reused_connection()) > 0 {
                    assert_eq!(reply.status, 502, "{act:?} {method} {body:?}");
                    break;
                }
                assert!(sent < 20, "no connection was reused");
            }
        }
    }
}

#[tokio::test]
async fn a_408_as_the_first_answer_on_a_reused_connection_is_sent_again() {
    let (endpoint, sidelink) = loses_reused(Act::FailAndClose(408)).await;
    for round in 0..10 {
        sidelink.gets("t", &format!("id-{round}")).await;
        let reply = sidelink.client.get(OTHER_ROUTE, &[]).await;
        assert_eq!(reply.status, 200, "{round}: {reply:?}");
    }
    assert!(endpoint.count(|asked| asked.is_on_a_reused_connection() && !asked.ids.is_empty()) > 0);
    assert!(endpoint.count(|asked| asked.is_on_a_reused_connection() && asked.ids.is_empty()) > 0);
    sidelink.breaker_stayed_closed().await;
}

#[tokio::test]
async fn a_408_on_a_new_connection_and_one_to_a_post_are_passed_on() {
    let endpoint = Flaky::start(|_| async { Act::FailAndClose(408) }).await;
    let sidelink = Sidelink::before(endpoint.address, without_retries).await;
    assert_eq!(sidelink.client.batch("t", &["1"]).await.status, 408);
    assert_eq!(sidelink.client.get(OTHER_ROUTE, &[]).await.status, 408);
    assert_eq!(sidelink.client.send(Method::POST, OTHER_ROUTE, &[], "body").await.status, 408);
    assert_eq!(endpoint.count(|_| true), 3);
}

#[tokio::test]
async fn a_connection_that_ends_between_two_requests_fails_neither() {
    let endpoint = Flaky::start(|_| async { Act::AnswerAndClose }).await;
    let sidelink = Sidelink::before(endpoint.address, without_retries).await;
    for round in 0..50 {
        sidelink.gets("t", &format!("id-{round}")).await;
        assert_eq!(sidelink.client.get(OTHER_ROUTE, &[]).await.status, 200, "{round}");
    }
    sidelink.breaker_stayed_closed().await;
}

#[tokio::test]
async fn a_batch_is_sent_three_times_at_most() {
    // Each connection is lost with its first request, so none is reused.
    let endpoint = Flaky::start(|_| async { Act::Reset }).await;
    let sidelink = Sidelink::before(endpoint.address, without_retries).await;
    assert_eq!(sidelink.client.batch("t", &["1"]).await.status, 502);
    assert!(endpoint.count(|_| true) <= 3, "{:?}", endpoint.asked());
}
