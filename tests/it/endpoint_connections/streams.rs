//! Over HTTP/2, requests that were not processed are sent again, a silent connection is given up, and an endpoint that requires
//! HTTP/1.1 gets it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use h2::Reason;
use sidelink::config::Config;

use crate::flaky_endpoint::http2::{Farewell, Secure};
use crate::flaky_endpoint::nginx::Nginx;
use crate::flaky_endpoint::wire::{Target, Wire};
use crate::flaky_endpoint::{Act, Asked, OTHER_ROUTE, Sidelink, failed};
use crate::support::TestClient;

const HTTP2: &[&[u8]] = &[b"h2"];

fn without_retries(config: &mut Config) {
    config.upstream.retry.attempts = 0;
}

/// Callers that send their batches one after another, each on its own connection. Returns the statuses.
async fn callers(sidelink: &Sidelink, callers: usize, batches: usize) -> Vec<u16> {
    let mut running = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let client = TestClient::new(sidelink.client.address);
        running.spawn(async move {
            let mut statuses = Vec::new();
            for batch in 0..batches {
                let (token, id) = (format!("caller-{caller}"), format!("id-{caller}-{batch}"));
                statuses.push(client.batch(&token, &[&id]).await.status.as_u16());
            }
            statuses
        });
    }
    running.join_all().await.concat()
}

#[tokio::test]
async fn nginx_ends_connections_gracefully_and_no_batch_fails() {
    for is_http2 in [true, false] {
        let nginx = Nginx::start(50, is_http2).await;
        let wire = Wire::start(Target::Unix(nginx.socket.clone()), Duration::from_millis(10)).await;
        let sidelink = Sidelink::before_https(wire.address.port(), &nginx.ca_file, |_| {}).await;
        let statuses = callers(&sidelink, 24, 20).await;
        let (answered, refused) = nginx.answered();
        assert_eq!(refused, 0, "nginx refused some of {answered}");
        assert!(failed(&statuses).is_empty(), "HTTP/2: {is_http2}: of {}: {:?}", statuses.len(), failed(&statuses));
        sidelink.breaker_stayed_closed().await;
        assert!(wire.connections() >= 480 / 50);
    }
}

#[tokio::test]
async fn a_goaway_with_any_code_fails_no_batch() {
    for (warns, code) in [(false, Reason::NO_ERROR), (true, Reason::NO_ERROR), (false, Reason::ENHANCE_YOUR_CALM)] {
        let secure = Secure::start(
            HTTP2,
            move |_| Some(Farewell { after: 40, warns, code }),
            |_| async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Act::Answer
            },
        )
        .await;
        let sidelink = Sidelink::before_https(secure.port, secure.ca_file(), without_retries).await;
        let statuses = callers(&sidelink, 16, 20).await;
        assert!(failed(&statuses).is_empty(), "warns: {warns}, {code:?}: {:?}", failed(&statuses));
        sidelink.breaker_stayed_closed().await;
        assert!(secure.http2_connections() >= 8 && (warns || secure.unprocessed() > 0));
    }
}

#[tokio::test]
async fn a_lost_connection_is_one_failure_however_many_streams_it_carried() {
    // The thirtieth request of the first connection takes all others with it.
    for act in [Act::Reset, Act::Close] {
        let secure = Secure::start(
            HTTP2,
            |_| None,
            move |asked: Asked| {
                let act = act.clone();
                async move {
                    match asked.connection {
                        0 if asked.earlier == 29 => act,
                        0 if asked.earlier > 0 => Act::Hang,
                        _ => Act::Answer,
                    }
                }
            },
        )
        .await;
        let sidelink = Sidelink::before_https(secure.port, secure.ca_file(), without_retries).await;
        sidelink.gets("caller-0", "first").await;
        let batches = (0..29).map(|caller| (format!("caller-{caller}"), format!("id-{caller}")));
        let statuses = sidelink.burst(batches).await;
        assert!(failed(&statuses).is_empty(), "{:?}", failed(&statuses));
        sidelink.breaker_stayed_closed().await;
        assert!(secure.endpoint.count(|asked| asked.connection > 0) >= 29, "they were sent again");
    }
}

#[tokio::test]
async fn a_connection_that_is_lost_before_its_first_answer_is_one_failure_as_well() {
    let secure = Secure::start(
        HTTP2,
        |_| None,
        |asked: Asked| async move {
            match (asked.connection, asked.earlier) {
                (0, 29) => Act::Reset,
                (0, _) => Act::Hang,
                _ => Act::Answer,
            }
        },
    )
    .await;
    let sidelink = Sidelink::before_https(secure.port, secure.ca_file(), without_retries).await;
    let first = sidelink.burst([("caller-0".to_owned(), "first".to_owned())]);
    let others = async {
        secure.endpoint.arrived(1).await;
        sidelink.burst((0..29).map(|caller| (format!("caller-{caller}"), format!("id-{caller}")))).await
    };
    // Whether these are sent again is not said here: no answer proves that the connection was ever good.
    tokio::join!(first, others);
    assert_eq!(secure.endpoint.count(|asked| asked.connection == 0), 30);
    let statuses = sidelink.burst((0..10).map(|caller| (format!("caller-{caller}"), format!("next-{caller}")))).await;
    assert!(failed(&statuses).is_empty(), "{:?}", failed(&statuses));
    sidelink.breaker_stayed_closed().await;
}

#[tokio::test]
async fn a_refused_stream_is_sent_again() {
    // Each request once, so that the new connection that it is sent again on serves it.
    let refused = Arc::new(Mutex::new(HashSet::new()));
    let seen = Arc::clone(&refused);
    let decide = move |asked: Asked| {
        let is_new = seen.lock().unwrap().insert(asked.ids.concat());
        async move { if is_new { Act::ResetStream(Reason::REFUSED_STREAM) } else { Act::Answer } }
    };
    let secure = Secure::start(HTTP2, |_| None, decide).await;
    let sidelink = Sidelink::before_https(secure.port, secure.ca_file(), without_retries).await;
    for batch in 0..10 {
        sidelink.gets("t", &format!("id-{batch}")).await;
    }
    sidelink.breaker_stayed_closed().await;
    assert_eq!(secure.endpoint.count(|_| true), 20);
}

#[tokio::test]
async fn a_stream_that_is_always_refused_is_sent_three_times_at_most() {
    let secure = Secure::start(HTTP2, |_| None, |_| async { Act::ResetStream(Reason::REFUSED_STREAM) }).await;
    let sidelink = Sidelink::before_https(secure.port, secure.ca_file(), without_retries).await;
    assert_eq!(sidelink.client.batch("t", &["1"]).await.status, 502);
    assert_eq!(secure.endpoint.count(|_| true), 3);
}

#[tokio::test]
async fn a_connection_that_goes_silent_fails_no_batch() {
    let secure = Secure::start(HTTP2, |_| None, |_| async { Act::Answer }).await;
    let target = Target::Tcp(secure.endpoint.address);
    let wire = Wire::start(target, Duration::ZERO).await;
    let sidelink = Sidelink::before_https(wire.address.port(), secure.ca_file(), |config| {
        without_retries(config);
        config.upstream.deadline = Duration::from_secs(10);
    })
    .await;
    sidelink.gets("t", "before").await;
    wire.silence();
    // Some at once, and further ones after the first has noticed.
    let statuses = sidelink.burst((0..4).map(|batch| (format!("caller-{batch}"), format!("id-{batch}")))).await;
    assert!(failed(&statuses).is_empty(), "{:?}", failed(&statuses));
    for batch in 0..3 {
        sidelink.gets("t", &format!("after-{batch}")).await;
    }
    sidelink.breaker_stayed_closed().await;
    assert!(wire.connections() >= 2);
}

#[tokio::test]
async fn an_endpoint_that_wants_http_1_1_gets_it_from_then_on() {
    let secure =
        Secure::start(
            &[b"h2", b"http/1.1"],
            |_| None,
            |asked: Asked| async move {
                if asked.is_http2 { Act::ResetStream(Reason::HTTP_1_1_REQUIRED) } else { Act::Answer }
            },
        )
        .await;
    let sidelink = Sidelink::before_https(secure.port, secure.ca_file(), without_retries).await;
    sidelink.gets("t", "first").await;
    let attempts = secure.endpoint.count(|asked| asked.is_http2);
    assert_eq!(attempts, 1);
    let batches = (0..10).map(|caller| (format!("caller-{caller}"), format!("id-{caller}")));
    let statuses = sidelink.burst(batches).await;
    assert!(failed(&statuses).is_empty(), "{:?}", failed(&statuses));
    assert_eq!(sidelink.client.get(OTHER_ROUTE, &[]).await.status, 200);
    assert_eq!(secure.endpoint.count(|asked| asked.is_http2), attempts, "it is remembered");
    sidelink.breaker_stayed_closed().await;
}

#[tokio::test]
async fn many_first_batches_at_once_all_move_to_http_1_1() {
    let refused = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&refused);
    let secure = Secure::start(
        &[b"h2", b"http/1.1"],
        |_| None,
        move |asked: Asked| {
            counter.fetch_add(usize::from(asked.is_http2), Ordering::SeqCst);
            async move { if asked.is_http2 { Act::ResetStream(Reason::HTTP_1_1_REQUIRED) } else { Act::Answer } }
        },
    )
    .await;
    let sidelink = Sidelink::before_https(secure.port, secure.ca_file(), without_retries).await;
    for round in 0..3 {
        let batches = (0..10).map(|caller| (format!("caller-{caller}"), format!("id-{round}-{caller}")));
        let statuses = sidelink.burst(batches).await;
        assert!(failed(&statuses).is_empty(), "{:?}", failed(&statuses));
    }
    assert!(refused.load(Ordering::SeqCst) <= 10);
}
