//! Every series exists from the start, and no client can create another one.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use futures_util::stream;
use sidelink::config::Config;
use sidelink::demo::origin::ScriptedReply;

use crate::exposition::{Family, Labels, families};
use crate::support::{Stack, query};

/// Each series of a page: its name and labels.
fn series(page: &str) -> BTreeSet<&str> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap().0).collect()
}

/// Each series of sidelink, with its value.
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
            &format!("sidelink_build_info{{revision=\"unknown\",version=\"{version}\"}}"),
            "sidelink_cache_capacity_bytes",
            "sidelink_config_last_reload_success_timestamp_seconds",
            "sidelink_config_last_reload_successful",
            "sidelink_identity_breaker_state{state=\"closed\"}",
            "sidelink_limit{limit=\"batch_bodies\"}",
            "sidelink_limit{limit=\"calls\"}",
            "sidelink_limit{limit=\"connections\"}",
            "sidelink_limit{limit=\"exchanges\"}",
            "sidelink_limit{limit=\"in_flight\"}",
            "sidelink_limit{limit=\"signed_bodies\"}",
            "sidelink_limit{limit=\"waiters\"}",
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

/// The label that the tables leave out: its values are the same in all families that have it.
const API: &str = "api";

/// Each family on docs/METRICS.md; a value without quotes means any.
fn documented(page: &str) -> BTreeMap<String, Family> {
    let quoted = |text: &str| text.trim().strip_prefix('`').and_then(|text| text.strip_suffix('`')).map(str::to_owned);
    let mut families = BTreeMap::new();
    for section in page.split("\n### ").skip(1) {
        let mut lines = section.lines().take_while(|line| !line.starts_with("## "));
        let name = quoted(lines.next().unwrap()).unwrap();
        let mut family = Family::default();
        let (mut labels, mut in_table) = (Vec::<String>::new(), false);
        for line in lines {
            if let Some(help) = line.strip_prefix("> ") {
                assert!(family.help.is_empty(), "{name} has two help texts");
                help.clone_into(&mut family.help);
            } else if line.starts_with("| ") {
                let cells = line.trim_matches('|').split(" | ").map(str::trim);
                if !in_table {
                    in_table = true;
                    assert_eq!(cells.map_while(quoted).collect::<Vec<_>>(), labels, "{name}");
                    continue;
                }
                // Several values in a cell stand for as many rows.
                let mut rows = vec![Labels::new()];
                for (label, cell) in labels.iter().zip(cells.clone()) {
                    let values = cell.split(", ").map(|value| quoted(value).unwrap_or_else(|| "any".to_owned()));
                    let values: Vec<String> = values.collect();
                    let with = |row: &Labels, value: &String| {
                        row.clone().into_iter().chain([(label.clone(), value.clone())]).collect::<Labels>()
                    };
                    rows = rows.iter().flat_map(|row| values.iter().map(move |value| with(row, value))).collect();
                }
                for row in rows {
                    assert!(family.series.insert(row), "{name} has a row twice: {line}");
                }
                assert!(cells.skip(labels.len()).all(|meaning| meaning.len() > 1), "{name}: {line}");
            } else if family.kind.is_empty() && !line.is_empty() {
                let (kind, buckets) = line.split_once("; buckets ").unwrap_or((line, ""));
                let (kind, by) = kind.split_once(" by ").unwrap_or((kind, ""));
                kind.clone_into(&mut family.kind);
                family.buckets = buckets.split(", ").filter(|bucket| !bucket.is_empty()).map(str::to_owned).collect();
                labels = by.split(", ").filter_map(quoted).filter(|label| label != API).collect();
                if labels.is_empty() {
                    family.series.insert(Labels::new());
                }
            }
        }
        assert!(families.insert(name.clone(), family).is_none(), "{name} has two sections");
    }
    families
}

/// The page with the type, labels, buckets and HELP text of each family as the program has them.
fn updated(page: &str, program: &BTreeMap<String, Family>) -> String {
    let (mut family, mut type_is_next) = (None, false);
    let line = |line: &str| {
        if line.starts_with('#') {
            family = line.strip_prefix("### ").and_then(|name| program.get(name.trim_matches('`')));
            type_is_next = true;
        }
        match family.filter(|_| !line.is_empty() && !line.starts_with('#')) {
            Some(Family { kind, buckets, series, .. }) if std::mem::take(&mut type_is_next) => {
                let labels: Vec<String> =
                    series.iter().flat_map(|labels| labels.keys()).map(|name| format!("`{name}`")).collect();
                let labels: BTreeSet<String> = labels.into_iter().collect();
                let by = if labels.is_empty() { "" } else { " by " };
                let labels = Vec::from_iter(labels).join(", ");
                let with = if buckets.is_empty() { "" } else { "; buckets " };
                format!("{kind}{by}{labels}{with}{}\n", buckets.join(", "))
            }
            Some(family) if line.starts_with("> ") => format!("> {}\n", family.help),
            _ => format!("{line}\n"),
        }
    };
    page.lines().map(line).collect()
}

#[tokio::test]
async fn the_page_on_metrics_matches_the_program() {
    let stack = Stack::start().await;
    let mut program = families(&stack.metrics().await);
    let text = crate::documents::generated("docs/METRICS.md", |page| updated(page, &program));
    let page = documented(&text);
    // The only labels whose values are not known in advance. The line of the type, which is generated, names `api`.
    for family in program.values_mut() {
        let series = std::mem::take(&mut family.series);
        let without = |labels: Labels| labels.into_iter().filter(|(name, _)| name != API).collect();
        family.series = series.into_iter().map(without).collect();
    }
    for name in ["sidelink_build_info", "sidelink_shared_fleet_info"] {
        let family = program.get_mut(name).unwrap();
        let any = |labels: Labels| labels.into_keys().map(|name| (name, "any".to_owned())).collect();
        family.series = std::mem::take(&mut family.series).into_iter().map(any).collect();
    }
    let names = |families: &BTreeMap<String, Family>| families.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&page), names(&program));
    for (name, family) in &program {
        assert_eq!(&page[name], family, "{name}: left the page, right the program");
        assert!(family.help.len() > 20 && family.help.ends_with('.'), "{name}: {}", family.help);
    }
}

#[tokio::test]
async fn usage_and_limit_are_metrics_and_the_limit_follows_a_reload() {
    let stack = Stack::start().await;
    let defaults = stack.app.config();
    stack.origin.hold();
    let client = stack.client.clone();
    let waiting = tokio::spawn(async move { client.batch("t", &["1", "2", "3"]).await });
    stack.origin.arrived(1).await;
    for (limit, used, most) in [
        ("connections", 1, defaults.limits.connections),
        ("in_flight", 3, defaults.limits.in_flight),
        ("waiters", 1, defaults.limits.waiters),
        ("exchanges", 0, defaults.limits.exchanges),
        ("batch_bodies", 0, defaults.limits.batch_bodies),
        ("signed_bodies", 0, defaults.limits.signed_bodies),
        ("calls", 1, defaults.upstream.calls),
    ] {
        assert_eq!(
            stack.metric(&format!("sidelink_limit_used{{limit=\"{limit}\"}}")).await,
            f64::from(used),
            "{limit}"
        );
        assert_eq!(stack.metric(&format!("sidelink_limit{{limit=\"{limit}\"}}")).await, most as f64, "{limit}");
    }
    stack.origin.release();
    waiting.await.unwrap();
    let mut fewer = Config::clone(&defaults);
    fewer.upstream.calls = 16;
    stack.app.apply(fewer).unwrap();
    assert_eq!(stack.metric("sidelink_limit{limit=\"calls\"}").await, 16.0);
}

/// Ids requested, and ids with a result.
/// Clients, the endpoint and sidelink are told apart by who has decided on a status.
#[tokio::test]
async fn answers_are_counted_by_route_source_and_status() {
    let stack = Stack::with(|_| {}, |config| config.limits.batch_ids = 2).await;
    let batch = async |ids: &[&str]| stack.client.batch("t", ids).await.status;
    assert_eq!(batch(&["1"]).await, 200);
    assert_eq!(batch(&["1"]).await, 200);
    assert_eq!(batch(&["1", "2", "3"]).await, 400);
    for status in [401, 403, 400, 418, 500] {
        stack.origin.script(ScriptedReply::json(status, "{}"));
        assert_eq!(batch(&[&status.to_string()]).await, status);
    }
    assert_eq!(stack.client.get("/no-such-route", &[]).await.status, 404);
    let counted = async |route: &str, source: &str, code: &str| {
        stack
            .metric(&format!("sidelink_responses_total{{code=\"{code}\",route=\"{route}\",source=\"{source}\"}}"))
            .await
    };
    for (route, source, code, count) in [
        ("batch", "sidelink", "200", 2.0),
        ("batch", "sidelink", "400", 1.0),
        ("batch", "endpoint", "400", 1.0),
        ("batch", "endpoint", "401", 1.0),
        ("batch", "endpoint", "403", 1.0),
        ("batch", "endpoint", "4xx", 1.0),
        ("batch", "endpoint", "500", 1.0),
        ("passthrough", "endpoint", "404", 1.0),
        ("passthrough", "endpoint", "200", 0.0),
    ] {
        assert_eq!(counted(route, source, code).await, count, "{route} {source} {code}");
    }
    for (code, count) in [("200", 1.0), ("400", 1.0), ("401", 1.0), ("4xx", 1.0), ("500", 1.0), ("404", 1.0)] {
        assert_eq!(
            stack.metric(&format!("sidelink_upstream_responses_total{{code=\"{code}\"}}")).await,
            count,
            "{code}"
        );
    }
}

/// A failing endpoint answers fast, and an average over all attempts would call it healthy.
#[tokio::test]
async fn the_durations_of_failed_attempts_are_apart_from_those_of_answers() {
    let stack = Stack::start().await;
    assert_eq!(stack.client.batch("t", &["1"]).await.status, 200);
    stack.origin.script(ScriptedReply::json(401, "{}"));
    assert_eq!(stack.client.batch("t", &["2"]).await.status, 401);
    stack.origin.script(ScriptedReply::json(500, "{}"));
    assert_eq!(stack.client.batch("t", &["3"]).await.status, 500);
    for (result, count) in [("ok", 1.0), ("client_error", 1.0), ("server_error", 1.0), ("no_answer", 0.0)] {
        let series = format!("sidelink_upstream_call_duration_seconds_count{{result=\"{result}\"}}");
        assert_eq!(stack.metric(&series).await, count, "{result}");
    }
}

async fn requested_and_counted(stack: &Stack) -> (f64, f64) {
    let page = stack.metrics().await;
    let sum = |prefix: &str| own(&page).filter(|(series, _)| series.starts_with(prefix)).map(|(_, value)| value).sum();
    (sum("sidelink_batch_ids_sum"), sum("sidelink_ids_total{"))
}

#[tokio::test]
async fn every_id_of_an_admitted_batch_has_exactly_one_result() {
    let stack = Stack::with(|endpoint| endpoint.missing = vec!["gone".to_owned()], |c| c.limits.batch_ids = 10).await;
    let client = &stack.client;
    let with = |directive: &'static str| [("x-auth-token", "t"), ("cache-control", directive)];
    // 3 fetched, of which one is left out and one came twice; 3 from memory; 2 and 1.
    client.batch("t", &["1", "2", "gone", "1"]).await;
    client.batch("t", &["1", "2", "gone"]).await;
    client.batch("t", &["2", "3"]).await;
    assert_eq!(requested_and_counted(&stack).await, (8.0, 8.0));
    // One error of the endpoint, and two of sidelink.
    stack.origin.script(ScriptedReply::json(400, r#"{"error_code":"OSM.0001","error_msg":"failed"}"#));
    assert_eq!(client.batch("t", &["4", "5"]).await.status, 400);
    assert_eq!(client.get(&query(&["1", "6"]), &with("only-if-cached")).await.status, 504);
    assert_eq!(client.get(&query(&["1", "6"]), &with("no-store")).await.status, 200);
    assert_eq!(requested_and_counted(&stack).await, (14.0, 14.0));
    // An answer that matches nothing: the batch is fetched whole.
    for _ in 0..2 {
        stack
            .origin
            .script(ScriptedReply::json(200, r#"{"accessory_urls":[{"accessory_id":"x","accessory_url":"u"}]}"#));
    }
    assert_eq!(client.batch("t", &["1", "7"]).await.status, 200);
    // Not admitted: too many ids; not read: no batch.
    let many: Vec<String> = (0..11).map(|id| id.to_string()).collect();
    assert_eq!(client.batch("t", &many.iter().map(String::as_str).collect::<Vec<_>>()).await.status, 400);
    client.get(&format!("{}&surprise=1", query(&["1"])), &with("max-age=1")).await;
    assert_eq!(requested_and_counted(&stack).await, (16.0, 16.0));

    // A client that disconnects: its ids are under way until the call has ended.
    stack.origin.hold();
    let calls = stack.origin.batch_calls();
    let leaver = client.clone();
    let left = tokio::spawn(async move { leaver.batch("t", &["1", "8", "9"]).await });
    stack.origin.arrived(calls + 1).await;
    assert_eq!(requested_and_counted(&stack).await, (19.0, 16.0));
    left.abort();
    stack.origin.release();
    while requested_and_counted(&stack).await != (19.0, 19.0) {
        tokio::task::yield_now().await;
    }
}
