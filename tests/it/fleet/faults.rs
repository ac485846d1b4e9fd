//! However the server fails, answers are right and bounded in time; when the server is back, it is used again.

use std::time::Duration;

use tokio::time::Instant;

use super::link::Link;
use super::{Fleet, Redis, eventually, shared};
use crate::support::TestClient;

#[tokio::test]
async fn a_frozen_server_delays_no_batch_by_more_than_its_timeout_and_is_used_again() {
    let redis = Redis::start().await;
    let mut tier = shared(vec![redis.address()]);
    tier.timeout = Duration::from_millis(5);
    let lease_wait = tier.lease_wait;
    let fleet = Fleet::with(tier, 1, |_| {}, |_| {}).await;
    let sidecar = &fleet.sidecars[0];
    sidecar.client.batch("t", &["0"]).await;
    sidecar.tier_is(true).await;
    let leases = async || sidecar.metric(r#"sidelink_shared_operations_total{operation="lease"}"#).await;
    let leases_before = leases().await;
    redis.signal("-STOP");
    let begin = Instant::now();
    assert_eq!(sidecar.client.batch("t", &["1"]).await.ids(), ["1"]);
    // The look-up has failed at its timeout, and no lease was waited for.
    assert_eq!(leases().await, leases_before);
    assert!(begin.elapsed() < lease_wait / 2, "{:?}", begin.elapsed());
    sidecar.tier_is(false).await;
    let operations = async || {
        let mut sum = 0.0;
        for operation in ["get", "lease", "put"] {
            sum += sidecar.metric(&format!("sidelink_shared_operations_total{{operation=\"{operation}\"}}")).await;
        }
        sum
    };
    let before = operations().await;
    for id in 2..10 {
        let id = id.to_string();
        assert_eq!(sidecar.client.batch("t", &[&id]).await.ids(), [id]);
    }
    assert_eq!(operations().await, before, "as if there were none");
    assert!(sidecar.failures("timeout").await > 0.0);

    redis.signal("-CONT");
    sidecar.tier_is(true).await;
    eventually("it is used again", async || {
        sidecar.client.batch("t", &[&rand::random::<u32>().to_string()]).await;
        operations().await > before
    })
    .await;
}

/// Regression: a server that did not answer for a while was taken for one that had lost the journal, which voided all links.
#[tokio::test]
async fn a_server_that_stalls_for_a_while_has_lost_nothing() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 2).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    let looks =
        async |sidecar: &super::Sidecar| sidecar.metric("sidelink_shared_operations_total{operation=\"sync\"}").await;
    one.client.batch("t", &["1"]).await;
    eventually("it is shared", async || redis.keys("l").await.len() == 1 && redis.keys("c").await.len() == 1).await;
    let journal = redis.keys("j").await;
    let before = redis.text(&["GET", &journal[0]]).await;
    redis.signal("-STOP");
    // One look into the journal fails, and the next, a second later at most, does not.
    eventually("a look fails", async || one.failures("timeout").await > 0.0).await;
    redis.signal("-CONT");
    let before_looks = looks(one).await;
    eventually("it looks again", async || looks(one).await > before_looks + 3.0).await;
    one.tier_is(true).await;
    other.tier_is(true).await;
    assert_eq!(redis.text(&["GET", &journal[0]]).await, before, "the journal goes on");
    assert_eq!(other.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit; detail=shared");
    assert_eq!((one.failures("journal").await, other.failures("journal").await), (0.0, 0.0));
}

#[tokio::test]
async fn a_server_that_is_killed_and_comes_back_empty_is_used_again() {
    let redis = Redis::start().await;
    let port = redis.port.clone();
    let fleet = Fleet::start(&redis, 2).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    one.client.batch("t", &["1"]).await;
    drop(redis);
    other.tier_is(false).await;
    assert_eq!(other.client.batch("t", &["1"]).await.ids(), ["1"]);
    let redis = Redis::at(port, &[]).await;
    fleet.comes_to_share(&redis).await;
}

#[tokio::test]
async fn a_full_server_costs_hits_and_nothing_else() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 1).await;
    let sidecar = &fleet.sidecars[0];
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    for id in ["1", "2", "3"] {
        assert_eq!(sidecar.client.batch("t", &[id]).await.ids(), [id]);
    }
    eventually("it is seen", async || sidecar.failures("reply").await > 0.0).await;
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    eventually("it is shared again", async || {
        sidecar.client.batch("t", &[&rand::random::<u32>().to_string()]).await;
        !redis.keys("l").await.is_empty()
    })
    .await;
}

/// A planned failover behind one name: the old server becomes a replica, and keeps its connections. Nobody asks anything.
#[tokio::test]
async fn a_server_that_becomes_a_replica_is_left_for_the_one_that_its_name_leads_to() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    let link = Link::to(old.port.number()).await;
    let fleet = Fleet::with(shared(vec![link.address()]), 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    one.client.batch("t", &["1"]).await;
    eventually("it is shared", async || old.keys("l").await.len() == 1).await;
    assert_eq!(other.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit; detail=shared");
    // Of a master that is not there: it hears nothing.
    old.ask(&["REPLICAOF", "127.0.0.1", "1"]).await;
    for sidecar in &fleet.sidecars {
        sidecar.tier_is(false).await;
        eventually("the reason is told", async || sidecar.alerts().await.contains("the server is a replica")).await;
        assert_eq!(sidecar.client.batch("t", &["2"]).await.ids(), ["2"]);
    }
    link.lead_to(new.port.number());
    for sidecar in &fleet.sidecars {
        sidecar.tier_is(true).await;
    }
    let admin = TestClient::new(one.app.admin_address());
    let json = [("content-type", "application/json")];
    assert_eq!(admin.send(http::Method::POST, "/purge", &json, r#"{"all":true}"#).await.status, 200);
    let cached = [("x-auth-token", "t"), ("cache-control", "only-if-cached")];
    eventually("the purge is heard", async || {
        other.client.get(&crate::support::query(&["1"]), &cached).await.status == 504
    })
    .await;
}

#[tokio::test]
async fn a_server_that_answers_with_errors_alone_is_not_used_until_it_is_well() {
    let redis = Redis::with(&["--busy-reply-threshold", "50"]).await;
    let fleet = Fleet::start(&redis, 1).await;
    let sidecar = &fleet.sidecars[0];
    // A script of somebody else's: the server answers all else with BUSY.
    let (endless, killed) = tokio::join!(redis.try_ask(&["EVAL", "while true do end", "0"]), async {
        let is_told = async || sidecar.alerts().await.contains("the server answers with errors alone: BUSY");
        eventually("it is told", is_told).await;
        assert_eq!(sidecar.client.batch("t", &["1"]).await.ids(), ["1"]);
        redis.try_ask(&["SCRIPT", "KILL"]).await
    });
    assert!(endless.is_err() && killed.is_ok(), "{endless:?} {killed:?}");
    sidecar.tier_is(true).await;
}

/// Regression: small round trips fitted, so the breaker closed again at once.
#[tokio::test]
async fn a_link_too_slow_for_look_ups_keeps_the_breaker_open_although_small_replies_fit() {
    const IDS: usize = 100;
    let redis = Redis::start().await;
    let link = Link::to(redis.port.number()).await;
    let mut tier = shared(vec![link.address()]);
    tier.timeout = Duration::from_millis(500);
    let fleet = Fleet::with(tier, 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    let ids: Vec<String> = (0..6 * IDS).map(|id| id.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    for ids in ids.chunks(IDS) {
        one.client.batch("t", ids).await;
    }
    eventually("all is shared", async || redis.keys("l").await.len() == ids.len()).await;
    let bytes = redis.number(&["STRLEN", &redis.keys("l").await[0]]).await * i64::try_from(IDS).unwrap();
    // A look-up takes twice as long as it may, a small reply no time.
    link.limit(u64::try_from(bytes).unwrap());
    let mut batches = ids.chunks(IDS);
    let mut ask = async || assert_eq!(other.client.batch("t", batches.next().unwrap()).await.ids().len(), IDS);
    for _ in 0..3 {
        ask().await;
    }
    other.tier_is(false).await;
    let checks = other.failures("timeout").await;
    eventually("it is checked again and again", async || {
        assert_eq!(other.metric(r#"sidelink_shared_breaker_state{state="closed"}"#).await, 0.0);
        other.failures("timeout").await >= checks + 4.0
    })
    .await;
    const LOOK_UPS: &str = r#"sidelink_shared_operations_total{operation="lease"}"#;
    let look_ups = other.metric(LOOK_UPS).await;
    ask().await;
    assert_eq!(other.metric(LOOK_UPS).await, look_ups, "no batch waits");
    assert!(other.alerts().await.contains("a look-up takes longer than shared.timeout"));
    link.limit(u64::MAX);
    other.tier_is(true).await;
    ask().await;
    assert_eq!(other.ids("shared").await, IDS as f64);
}

/// How a relay to the server changes its answers.
#[derive(Clone, Copy, Debug)]
pub enum Lie {
    Delay,
    Cut,
    Corrupt,
    Endless,
    Garbage,
    /// Whatever the server has done was not done: no lease is granted.
    Denied,
}

/// Starts a relay to `port` that lies while `lying` is set; returns the port of the relay.
pub async fn relay(port: u16, lie: Lie, lying: std::sync::Arc<std::sync::atomic::AtomicBool>) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay_port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let lying = std::sync::Arc::clone(&lying);
            tokio::spawn(async move {
                let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { return };
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let mut bytes = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
                    let mut answer = bytes[..count].to_vec();
                    if lying.load(std::sync::atomic::Ordering::SeqCst) {
                        match lie {
                            Lie::Delay => tokio::time::sleep(Duration::from_millis(300)).await,
                            Lie::Cut => {
                                let _ = to_client.write_all(&answer[..count / 2]).await;
                                return;
                            }
                            // Every tenth byte is another letter: of lengths, types and values alike.
                            Lie::Corrupt => answer.iter_mut().step_by(10).for_each(|byte| *byte ^= 1),
                            Lie::Endless => {
                                if to_client.write_all(b"$536870912\r\n").await.is_err() {
                                    return;
                                }
                                while to_client.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
                                return;
                            }
                            Lie::Denied => {
                                let denied = |at: usize| answer.get(at..at + 5) == Some(b"+OK\r\n");
                                for at in (0..count).filter(|at| denied(*at)).collect::<Vec<_>>() {
                                    answer[at..at + 5].copy_from_slice(b"$-1\r\n");
                                }
                            }
                            Lie::Garbage => answer = b"*2\r\n:1\r\n*1\r\n+OK\r\n%1\r\n:1\r\n_\r\n".to_vec(),
                        }
                    }
                    if to_client.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    relay_port
}

/// Regression: it counted as no connection, and no metric showed how long a round trip takes.
#[tokio::test]
async fn a_timeout_too_short_from_the_start_counts_as_one_and_the_histogram_has_what_it_takes() {
    let redis = Redis::start().await;
    let port = relay(redis.port.number(), Lie::Delay, std::sync::Arc::new(true.into())).await;
    let mut tier = shared(vec![sidelink::config::NodeAddress::tcp("127.0.0.1", port)]);
    tier.timeout = Duration::from_millis(100);
    let fleet = Fleet::without_waiting(tier, 1, |_| {}, |_| {}).await;
    let sidecar = &fleet.sidecars[0];
    eventually("it is tried again", async || sidecar.failures("timeout").await >= 2.0).await;
    assert_eq!(sidecar.failures("connect").await, 0.0);
    let taken = sidecar.metric("sidelink_shared_duration_seconds_sum").await;
    let count = sidecar.metric("sidelink_shared_duration_seconds_count").await;
    assert!(count >= 2.0 && taken / count >= 0.3, "{taken} s in {count} round trips");
    assert!(sidecar.alerts().await.contains("a round trip takes longer than shared.timeout"));
}

#[tokio::test]
async fn a_server_that_lies_costs_hits_and_nothing_else() {
    for lie in [Lie::Delay, Lie::Cut, Lie::Corrupt, Lie::Endless, Lie::Garbage] {
        let redis = Redis::start().await;
        let lying = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let port = relay(redis.port.number(), lie, std::sync::Arc::clone(&lying)).await;
        let mut tier = shared(vec![sidelink::config::NodeAddress::tcp("127.0.0.1", port)]);
        tier.timeout = Duration::from_millis(100);
        let fleet = Fleet::with(tier, 2, |_| {}, |_| {}).await;
        let [one, other] = &fleet.sidecars[..] else { panic!() };
        one.client.batch("t", &["1", "2"]).await;
        lying.store(true, std::sync::atomic::Ordering::SeqCst);
        for id in 0..6 {
            let id = id.to_string();
            let reply = other.client.batch("t", &[&id]).await;
            let [(_, link)] = &reply.links()[..] else { panic!("{lie:?}") };
            assert!(sidelink::demo::origin::link_is_for(link, &id, None, "t", None, None), "{lie:?}");
        }
        let begin = Instant::now();
        other.client.batch("t", &["9"]).await;
        assert!(begin.elapsed() < Duration::from_secs(5), "{lie:?}");
        if !matches!(lie, Lie::Corrupt) {
            other.tier_is(false).await;
        }
        lying.store(false, std::sync::atomic::Ordering::SeqCst);
        other.tier_is(true).await;
    }
}
