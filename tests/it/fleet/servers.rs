//! Whatever server it is, and before it is there.

use super::{Fleet, Redis, eventually, free_port, shared};

#[tokio::test]
async fn a_start_without_the_server_works_and_it_is_used_once_it_is_there() {
    let port = free_port();
    let mut tier = shared(vec![sidelink::config::Address { host: "127.0.0.1".into(), port }]);
    tier.timeout = std::time::Duration::from_secs(2);
    let fleet = Fleet::without_waiting(tier, 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    assert_eq!(one.client.batch("t", &["1"]).await.ids(), ["1"]);
    assert_eq!(other.client.batch("t", &["1"]).await.ids(), ["1"]);
    assert_eq!(fleet.origin.batch_calls(), 2);
    let redis = Redis::at(port, &[]).await;
    one.tier_is(true).await;
    other.tier_is(true).await;
    one.client.batch("t", &["2"]).await;
    eventually("it is shared", async || redis.keys("l").await.len() == 1).await;
    assert_eq!(other.client.batch("t", &["2"]).await.header("cache-status"), "sidelink; hit; detail=shared");
}
