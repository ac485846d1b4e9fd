//! What is counted is told in series that are there from the start, and that no client can make more of.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use futures_util::stream;

use crate::support::Stack;

/// Each series of a page: its name and labels.
fn series(page: &str) -> BTreeSet<&str> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap().0).collect()
}

/// Each series of sidelink's own, with its value.
fn own(page: &str) -> impl Iterator<Item = (&str, f64)> {
    let lines = page.lines().filter(|line| line.starts_with("sidelink_"));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(series, value)| (series, value.parse().unwrap()))
}

#[tokio::test]
async fn every_series_is_there_from_the_start_and_counts_from_0() {
    let stack = Stack::start().await;
    let page = stack.metrics().await;
    let at_work: Vec<&str> = own(&page).filter(|(_, value)| *value != 0.0).map(|(series, _)| series).collect();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        at_work,
        [
            "sidelink_breaker_state{state=\"closed\"}",
            &format!("sidelink_build_info{{version=\"{version}\"}}"),
            "sidelink_config_last_reload_success_timestamp_seconds",
            "sidelink_config_last_reload_successful",
            "sidelink_shared_breaker_state{state=\"closed\"}",
            "sidelink_tasks",
        ]
    );
}

#[tokio::test]
async fn no_caller_id_or_path_makes_a_series() {
    let stack = Stack::start().await;
    let before = stack.metrics().await;
    // 1,000 callers with ten ids each that nobody else has, and 1,000 paths.
    stream::iter(0..1000)
        .for_each_concurrent(16, |caller| {
            let client = stack.client.clone();
            async move {
                let ids: Vec<String> = (0..10).map(|id| format!("marked-{caller}-{id}")).collect();
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                let token = format!("marked-token-{caller}");
                assert_eq!(client.batch(&token, &ids).await.ids(), ids);
                client.get(&format!("/marked/{caller}?marked={caller}"), &[("x-auth-token", &token)]).await;
            }
        })
        .await;
    let after = stack.metrics().await;
    assert_eq!(stack.metric("sidelink_ids_total{result=\"fetched\"}").await, 10_000.0);
    let forwarded = "sidelink_request_duration_seconds_count{outcome=\"bypass\",route=\"passthrough\"}";
    assert_eq!(stack.metric(forwarded).await, 1000.0);
    assert_eq!(series(&after), series(&before));
    assert!(!after.contains("marked"));
}
