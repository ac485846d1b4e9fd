//! The breaker counts sources of failures: one caller, or one id, that fails opens it for nobody else. Calls to a dead endpoint are
//! refused after a few failures of any caller, and go on soon after the endpoint is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sidelink::demo::origin::ScriptedReply;
use tokio::net::TcpListener;

use crate::flaky_endpoint::{Act, Asked, Flaky, Sidelink, failed, serves};
use crate::simulated::World;
use crate::support::LOOPBACK;

/// Fails every request for an id that begins with `poison`, and serves all others.
async fn poisoned(act: Act) -> Flaky {
    Flaky::start(move |asked: Asked| {
        let act = act.clone();
        async move { if asked.asks_for("poison") { act } else { Act::Answer } }
    })
    .await
}

const WAYS_TO_FAIL: [fn() -> Act; 5] =
    [|| Act::fail(502), || Act::fail(503), || Act::fail(504), || Act::Reset, || Act::Close];

#[tokio::test]
async fn a_made_up_token_that_polls_a_poison_id_fails_nobody_elses_batch() {
    for way in WAYS_TO_FAIL {
        let endpoint = poisoned(way()).await;
        let sidelink = Sidelink::before(endpoint.address, |_| {}).await;
        sidelink.gets("victim", "first").await;
        for round in 0..30 {
            let poll = sidelink.client.batch("made-up", &["poison"]).await;
            assert!(poll.status.is_server_error(), "{poll:?}");
            let reply = sidelink.client.batch("victim", &[&format!("id-{round}")]).await;
            assert_eq!(reply.status, 200, "{:?}, after {round} polls: {reply:?}", way());
        }
    }
}

#[tokio::test]
async fn many_made_up_tokens_that_poll_poison_ids_fail_nobody_elses_batch() {
    for way in WAYS_TO_FAIL {
        let endpoint = poisoned(way()).await;
        let sidelink = Sidelink::before(endpoint.address, |_| {}).await;
        sidelink.gets("victim", "first").await;
        for round in 0..10 {
            let polls = (0..4).map(|poll| (format!("made-up-{round}-{poll}"), format!("poison-{round}-{poll}")));
            let (_, reply) = tokio::join!(sidelink.burst(polls), async {
                sidelink.client.batch("victim", &[&format!("id-{round}")]).await
            });
            assert_eq!(reply.status, 200, "{:?}, in round {round}: {reply:?}", way());
        }
    }
}

#[tokio::test]
async fn one_poison_id_that_many_accepted_callers_ask_for_is_one_source() {
    for way in WAYS_TO_FAIL {
        let endpoint = poisoned(way()).await;
        let sidelink = Sidelink::before(endpoint.address, |_| {}).await;
        sidelink.gets("victim", "first").await;
        for caller in 0..12 {
            let caller = format!("caller-{caller}");
            sidelink.gets(&caller, "good").await;
            assert!(sidelink.client.batch(&caller, &["poison"]).await.status.is_server_error());
            let reply = sidelink.client.batch("victim", &[&format!("id-{caller}")]).await;
            assert_eq!(reply.status, 200, "{:?}, after {caller}: {reply:?}", way());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn made_up_tokens_whose_ids_hang_fail_nobody_elses_batch() {
    let poison = |round: usize, poll: usize| format!("poison-{round}-{poll}");
    let world = World::new(
        |options| {
            options.poison = (0..24).map(|at| poison(at / 8, at % 8)).collect();
            options.poison_reply = Some(ScriptedReply::Hang);
        },
        |config| config.upstream.deadline = Duration::from_millis(400),
    );
    let mut victim = world.client().await;
    let mut statuses = vec![victim.batch("victim", &["first"]).await.status.as_u16()];
    for round in 0..3 {
        let mut hanging = tokio::task::JoinSet::new();
        for poll in 0..8 {
            let mut client = world.client().await;
            hanging.spawn(async move { client.batch("made-up", &[&poison(round, poll)]).await.status.as_u16() });
        }
        for batch in 0..20 {
            statuses.push(victim.batch("victim", &[&format!("id-{round}-{batch}")]).await.status.as_u16());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!hanging.join_all().await.contains(&200));
        statuses.push(victim.batch("victim", &[&format!("after-{round}")]).await.status.as_u16());
    }
    assert!(failed(&statuses).is_empty(), "of {}: {:?}", statuses.len(), failed(&statuses));
}

#[tokio::test]
async fn a_pause_that_one_poison_id_is_told_holds_back_nobody_else() {
    let endpoint = poisoned(Act::fail_with_retry_after(503, 60)).await;
    let sidelink = Sidelink::before(endpoint.address, |_| {}).await;
    sidelink.gets("victim", "first").await;
    for round in 0..3 {
        let poll = sidelink.client.batch("made-up", &["poison"]).await;
        assert_eq!(poll.status, 503, "{poll:?}");
        sidelink.gets("victim", &format!("id-{round}")).await;
    }
}

/// Four calls at a time, each of 60 ms, can serve no more than half of what the heavy caller asks for.
#[tokio::test(start_paused = true)]
async fn one_callers_long_queue_fails_nobody_elses_batch() {
    let world = World::new(
        |options| options.delay = Duration::from_millis(60),
        |config| {
            config.upstream.deadline = Duration::from_millis(500);
            config.upstream.ids_per_call = 10;
        },
    );
    let mut victim = world.client().await;
    for token in ["victim", "heavy"] {
        assert_eq!(victim.batch(token, &["first"]).await.status, 200);
    }
    let mut heavy = tokio::task::JoinSet::new();
    let queueing = async {
        let mut pace = tokio::time::interval(Duration::from_millis(8));
        for batch in 0..124 {
            pace.tick().await;
            let mut client = world.client().await;
            heavy.spawn(async move {
                let ids: Vec<String> = (0..10).map(|id| format!("{:x<50}-{batch}-{id}", "id")).collect();
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                client.batch("heavy", &ids).await.status.as_u16()
            });
        }
        heavy.join_all().await
    };
    let victim = async {
        let mut statuses = Vec::new();
        for batch in 0..20 {
            statuses.push(victim.batch("victim", &[&format!("id-{batch}")]).await.status.as_u16());
        }
        statuses
    };
    let (heavy, victim) = tokio::join!(queueing, victim);
    assert!(failed(&victim).is_empty(), "of {}: {:?}", victim.len(), failed(&victim));
    let heavy = failed(&heavy);
    assert!(heavy.values().sum::<usize>() > 20, "the queue was not long: {heavy:?}");
    assert!(heavy.keys().all(|status| *status == 504), "a healthy endpoint was taken for a dead one: {heavy:?}");
    assert_eq!(world.metric(r#"sidelink_breaker_state{state="closed"}"#), 1.0);
}

/// Batches of `id` until one is refused without a call; how many had failed before, all as `status`.
async fn failures_until_refused(sidelink: &Sidelink, status: u16) -> usize {
    for failures in 0..12 {
        let reply = sidelink.client.batch("only-one", &["1"]).await;
        if reply.json()["error_code"] == "SIDELINK.1003" {
            assert_eq!(reply.status, 503);
            return failures;
        }
        assert_eq!(reply.status, status, "{reply:?}");
    }
    panic!("a dead endpoint is asked again and again");
}

/// The time until a batch has its link.
async fn time_until_served(sidelink: &Sidelink) -> Duration {
    let began = Instant::now();
    loop {
        let reply = sidelink.client.batch("only-one", &["1"]).await;
        if serves(&reply, "only-one", &["1"]) {
            return began.elapsed();
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{reply:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Long beside what a loaded machine takes for a batch.
const OPEN: Duration = Duration::from_secs(1);

#[tokio::test]
async fn refusals_of_made_up_tokens_are_no_sign_of_health() {
    // A gateway that refuses tokens before an endpoint that is down.
    for act in [|| Act::fail(502), || Act::Reset] {
        let is_down = Arc::new(AtomicBool::new(false));
        let down = Arc::clone(&is_down);
        let endpoint = Flaky::start(move |asked: Asked| {
            let is_down = down.load(Ordering::SeqCst);
            async move {
                match asked.token.as_str() {
                    "made-up" => Act::fail(401),
                    _ if is_down => act(),
                    _ => Act::Answer,
                }
            }
        })
        .await;
        let sidelink = Sidelink::before(endpoint.address, |config| config.upstream.retry.attempts = 0).await;
        for caller in ["one", "two"] {
            sidelink.gets(caller, "first").await;
        }
        is_down.store(true, Ordering::SeqCst);
        let mut refused = None;
        for round in 0..12 {
            assert!([401, 503].contains(&sidelink.client.batch("made-up", &["1"]).await.status.as_u16()));
            let caller = if round % 2 == 0 { "one" } else { "two" };
            let reply = sidelink.client.batch(caller, &[&format!("id-{round}")]).await;
            if reply.json()["error_code"] == "SIDELINK.1003" {
                refused = Some(round);
                break;
            }
            assert!(reply.status.is_server_error(), "{reply:?}");
        }
        assert!(refused.is_some_and(|failures| failures <= 6), "a dead endpoint is asked again and again: {refused:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_connections_fails_fast_for_a_single_caller_and_is_used_again() {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let sidelink = Sidelink::before(address, |config| config.upstream.breaker.open = OPEN).await;
    assert!(failures_until_refused(&sidelink, 502).await <= 6);
    let another = sidelink.client.batch("another", &["2"]).await;
    assert_eq!((another.status.as_u16(), another.code().as_str()), (503, "SIDELINK.1003"), "refused without a call");
    let _endpoint = Flaky::on(TcpListener::bind(address).await.unwrap(), |_| async { Act::Answer });
    let served = time_until_served(&sidelink).await;
    assert!(served < OPEN * 2 + Duration::from_millis(500), "{served:?}");
}

#[tokio::test]
async fn an_endpoint_that_never_answers_fails_fast_for_a_single_caller_and_is_used_again() {
    let is_dead = Arc::new(AtomicBool::new(true));
    let dead = Arc::clone(&is_dead);
    let endpoint = Flaky::start(move |_| {
        let is_dead = dead.load(Ordering::SeqCst);
        async move { if is_dead { Act::Hang } else { Act::Answer } }
    })
    .await;
    let sidelink = Sidelink::before(endpoint.address, |config| {
        config.upstream.breaker.open = OPEN;
        config.upstream.deadline = Duration::from_millis(500);
    })
    .await;
    assert!(failures_until_refused(&sidelink, 504).await <= 6);
    is_dead.store(false, Ordering::SeqCst);
    let served = time_until_served(&sidelink).await;
    assert!(served < OPEN * 2 + Duration::from_millis(500), "{served:?}");
}

#[tokio::test]
async fn an_endpoint_that_dies_and_comes_back_is_used_again_although_its_kept_connections_are_gone() {
    // 0: it serves; 1: each connection is reset with its request; 2: kept connections are, and new ones serve.
    let phase = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&phase);
    let endpoint = Flaky::start(move |asked: Asked| {
        let lost = match now.load(Ordering::SeqCst) {
            0 => false,
            1 => true,
            _ => asked.is_on_a_reused_connection(),
        };
        async move { if lost { Act::Reset } else { Act::Answer } }
    })
    .await;
    let sidelink = Sidelink::before(endpoint.address, |config| config.upstream.breaker.open = OPEN).await;
    let callers = |round: usize| (0..10).map(move |caller| (format!("caller-{caller}"), format!("{round}-{caller}")));
    assert!(failed(&sidelink.burst(callers(0)).await).is_empty());
    phase.store(1, Ordering::SeqCst);
    for round in 1..3 {
        sidelink.burst(callers(round)).await;
    }
    let refused = sidelink.client.batch("caller-0", &["refused"]).await;
    assert_eq!(refused.json()["error_code"], "SIDELINK.1003", "{refused:?}");
    phase.store(2, Ordering::SeqCst);
    let served = time_until_served(&sidelink).await;
    assert!(served < OPEN * 2 + Duration::from_millis(500), "{served:?}");
    assert!(failed(&sidelink.burst(callers(9)).await).is_empty());
}

#[tokio::test]
async fn a_probe_uses_a_new_connection() {
    // Twenty kept connections go silent, and new ones serve.
    let (gate, open) = tokio::sync::watch::channel(false);
    let is_silent = Arc::new(AtomicBool::new(false));
    let silent = Arc::clone(&is_silent);
    let endpoint = Flaky::start(move |asked: Asked| {
        let (is_silent, mut open) = (silent.load(Ordering::SeqCst) && asked.connection < 20, open.clone());
        async move {
            open.wait_for(|open| *open).await.unwrap();
            if is_silent { Act::Hang } else { Act::Answer }
        }
    })
    .await;
    let sidelink = Sidelink::before(endpoint.address, |config| {
        config.upstream.breaker.open = OPEN;
        config.upstream.deadline = Duration::from_secs(1);
        config.upstream.retry.attempts = 0;
    })
    .await;
    let opened = async {
        endpoint.arrived(20).await;
        gate.send_replace(true);
    };
    let callers = (0..20).map(|caller| (format!("caller-{caller}"), "first".to_owned()));
    let (statuses, ()) = tokio::join!(sidelink.burst(callers), opened);
    assert!(failed(&statuses).is_empty(), "{:?}", failed(&statuses));
    is_silent.store(true, Ordering::SeqCst);
    // Until the breaker is open, or a new connection is used without it.
    for _ in 0..12 {
        let reply = sidelink.client.batch("only-one", &["1"]).await;
        if reply.status != 504 {
            break;
        }
    }
    let served = time_until_served(&sidelink).await;
    assert!(served < OPEN * 2 + Duration::from_millis(500), "{served:?}");
}
