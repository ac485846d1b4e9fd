//! Each batch has its own deadline: a call that fails by one batch's deadline fails no other batch. On a paused clock and connections
//! in memory.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::simulated::World;

const DEADLINE: Duration = Duration::from_secs(10);

/// A call of caller `t` that never returns, sent by a batch that began `ahead` ago.
async fn hanging(ids: &'static [&'static str], ahead: Duration) -> (World, tokio::task::JoinHandle<u16>) {
    let world = World::new(
        |options| options.delay = Duration::from_secs(1000),
        |config| {
            config.upstream.deadline = DEADLINE;
            config.upstream.retry.attempts = 0;
        },
    );
    let mut owner = world.client().await;
    let owner = tokio::spawn(async move { owner.batch("t", ids).await.status.as_u16() });
    world.origin.arrived(1).await;
    world.update(|options| options.delay = Duration::from_millis(40));
    sleep(ahead).await;
    (world, owner)
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_joins_a_call_near_its_end_gets_its_links_within_its_own_deadline() {
    for ahead in [Duration::from_millis(9_800), Duration::from_secs(5)] {
        let (world, owner) = hanging(&["1"], ahead).await;
        let began = Instant::now();
        let reply = world.client().await.batch("t", &["1"]).await;
        assert_eq!(reply.status, 200, "joined after {ahead:?}: {reply:?} after {:?}", began.elapsed());
        assert_eq!(reply.ids(), ["1"]);
        assert!(began.elapsed() <= DEADLINE);
        assert_eq!(owner.await.unwrap(), 504);
        assert_eq!(world.origin.batch_calls(), 2, "one further call");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_joins_for_some_of_its_ids_gets_them_all() {
    let (world, owner) = hanging(&["1", "2", "3"], Duration::from_millis(9_800)).await;
    let reply = world.client().await.batch("t", &["3", "4", "1"]).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.ids(), ["3", "4", "1"]);
    assert_eq!(owner.await.unwrap(), 504);
}

#[tokio::test(start_paused = true)]
async fn batches_that_join_the_same_call_share_the_next_one() {
    let (world, owner) = hanging(&["1"], Duration::from_millis(9_500)).await;
    let mut joiners = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let mut client = world.client().await;
        joiners.spawn(async move { client.batch("t", &["1"]).await });
    }
    for reply in joiners.join_all().await {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    assert_eq!(owner.await.unwrap(), 504);
    assert!(world.origin.batch_calls() <= 3, "{} calls", world.origin.batch_calls());
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_fair_time_is_not_sent() {
    // One call at a time, each of three seconds: the fourth would have one second.
    let world = World::new(
        |options| options.delay = Duration::from_secs(3),
        |config| {
            config.upstream.deadline = DEADLINE;
            config.upstream.calls_per_scope = 1;
            config.upstream.ids_per_call = 1;
        },
    );
    // The latency of calls is known from those that succeeded.
    for id in 0..5 {
        assert_eq!(world.client().await.batch("t", &[&format!("before-{id}")]).await.status, 200);
    }
    let before = world.origin.batch_calls();
    let mut batches = tokio::task::JoinSet::new();
    for id in 0..6 {
        let mut client = world.client().await;
        batches.spawn(async move { client.batch("t", &[&format!("id-{id}")]).await.status.as_u16() });
    }
    let mut statuses = batches.join_all().await;
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 504, 504, 504]);
    sleep(DEADLINE).await;
    assert_eq!(world.origin.batch_calls() - before, 3, "a call had less time than an answer takes");
    assert_eq!(world.metric(r#"sidelink_breaker_state{state="closed"}"#), 1.0);
}
