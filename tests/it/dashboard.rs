//! The dashboard uses series that exist, describes each panel, and is provisioned in Grafana.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::exposition::families;
use crate::promql::selectors;
use crate::rules::{alerts, exists, list, string, text, yaml};
use crate::support::Stack;

/// What narrows the dashboard down, each within those before: labels of a target, and one of batches and ids.
const VARIABLES: [&str; 5] = ["job", "namespace", "pod", "instance", API];
const API: &str = "api";

fn dashboard() -> Value {
    serde_json::from_str(&text("deploy/grafana/dashboards/sidelink.json")).unwrap()
}

/// Its panels without rows, those in folded rows too.
fn panels() -> Vec<Value> {
    let mut panels = Vec::new();
    for panel in list(&dashboard()["panels"]) {
        if panel["type"] == "row" {
            panels.extend(list(&panel["panels"]).to_vec());
        } else {
            panels.push(panel.clone());
        }
    }
    panels
}

/// The queries of its panels with their legends, and with values for its variables.
pub fn queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in panels() {
        for target in list(&panel["targets"]) {
            let mut asked = string(target, "expr").replace("$__rate_interval", "1m");
            for variable in VARIABLES {
                asked = asked.replace(&format!("${variable}"), ".*");
            }
            assert!(!asked.contains('$'), "{asked}");
            queries.push((asked, string(target, "legendFormat").to_owned()));
        }
    }
    queries
}

#[test]
fn the_rows_of_the_dashboard_are_in_order() {
    let dashboard = dashboard();
    let rows = list(&dashboard["panels"]).iter().filter(|panel| panel["type"] == "row");
    assert_eq!(
        rows.map(|row| string(row, "title")).collect::<Vec<_>>(),
        [
            "Are users well?",
            "Is the cache earning its keep?",
            "Is the endpoint well?",
            "Is the process well?",
            "Is the shared tier well?",
            "Is the identity provider well?",
        ]
    );
}

#[test]
fn every_panel_has_a_title_a_description_a_unit_and_a_place() {
    let (mut titles, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels() {
        let title = string(&panel, "title");
        assert!(titles.insert(title.to_owned()), "two panels {title}");
        assert!(string(&panel, "description").ends_with('.'), "{title}");
        assert!(!string(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{title}");
        assert!(!list(&panel["targets"]).is_empty(), "{title}");
        for target in list(&panel["targets"]) {
            assert_eq!(string(&target["datasource"], "uid"), "${datasource}", "{title}");
        }
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24, "{title} is off the page");
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(place), "{title} lies over another panel");
        }
    }
}

#[test]
fn every_alert_is_named_where_its_series_is_shown() {
    let named: BTreeSet<String> = panels()
        .iter()
        .filter_map(|panel| Some(string(panel, "description").split_once("Alert: ")?.1.trim_end_matches('.')))
        .flat_map(|alerts| alerts.split(", ").map(str::to_owned))
        .collect();
    let alerts: BTreeSet<String> = alerts().iter().map(|alert| string(alert, "alert").to_owned()).collect();
    assert_eq!(named, alerts);
}

#[tokio::test]
async fn every_query_is_narrowed_down_by_job_namespace_pod_instance_and_where_it_counts_batches_or_ids_api() {
    let families = families(&Stack::start().await.metrics().await);
    let dashboard = dashboard();
    let variables = list(&dashboard["templating"]["list"]).iter().filter(|variable| variable["type"] == "query");
    assert_eq!(variables.clone().map(|variable| string(variable, "name")).collect::<Vec<_>>(), VARIABLES);
    for (before, variable) in variables.enumerate() {
        let asked = VARIABLES[..before].iter().map(|name| format!("{name}=~\"${name}\""));
        let asked = if before == 0 { String::new() } else { format!("{{{}}}", asked.collect::<Vec<_>>().join(",")) };
        let family = if VARIABLES[before] == API { "sidelink_batches_total" } else { "sidelink_build_info" };
        let expected = format!("label_values({family}{asked}, {})", VARIABLES[before]);
        assert_eq!(string(&variable["query"], "query"), expected);
        // Outside of Kubernetes there is no namespace and no pod.
        assert_eq!((&variable["includeAll"], string(variable, "allValue")), (&Value::Bool(true), ".*"));
    }
    for panel in panels() {
        for target in list(&panel["targets"]) {
            // That a target is a sidelink is asked of all.
            for selector in selectors(string(target, "expr")).iter().filter(|asked| asked.name != "sidelink_build_info")
            {
                let narrowed = |name: &str| {
                    let wanted = (name.to_owned(), "=~".to_owned(), format!("${name}"));
                    selector.matchers.contains(&wanted)
                };
                let of_family = families.iter().find(|(name, family)| family.names(name).contains(&selector.name));
                let has_api =
                    of_family.is_some_and(|(_, family)| family.series.iter().any(|one| one.contains_key(API)));
                let wanted = |name: &str| name != API || has_api;
                assert!(
                    VARIABLES.iter().all(|name| narrowed(name) == wanted(name)),
                    "{}: {selector:?}",
                    string(&panel, "title")
                );
            }
        }
    }
}

#[tokio::test]
async fn every_series_of_the_dashboard_exists() {
    // Also where a Prometheus does not load the recording rules.
    let (families, recorded) = (families(&Stack::start().await.metrics().await), BTreeSet::new());
    let dashboard = dashboard();
    let variables = list(&dashboard["templating"]["list"]).iter().filter(|variable| variable["type"] == "query");
    let variables = variables.map(|variable| {
        let asked = string(&variable["query"], "query").strip_prefix("label_values(").unwrap();
        asked.rsplit_once(',').unwrap().0.to_owned()
    });
    let mut asked = 0;
    for expression in queries().into_iter().map(|(expression, _)| expression).chain(variables) {
        let selectors = selectors(&expression);
        assert!(!selectors.is_empty(), "{expression}");
        selectors.iter().for_each(|selector| exists(selector, &families, &recorded));
        asked += selectors.len();
    }
    assert!(asked > 40);
}

#[test]
fn grafana_is_provisioned_with_prometheus_and_the_dashboard() {
    let sources = yaml("deploy/grafana/provisioning/datasources/prometheus.yml");
    let source = &sources["datasources"][0];
    assert_eq!((string(source, "type"), string(source, "url")), ("prometheus", "http://prometheus:9090"));
    let dashboard = dashboard();
    let choice = &list(&dashboard["templating"]["list"])[0];
    assert_eq!((string(choice, "name"), string(choice, "query")), ("datasource", "prometheus"));
    // Rates cover four scrapes.
    let interval = string(&source["jsonData"], "timeInterval");
    assert_eq!(yaml("deploy/prometheus/prometheus.yml")["global"]["scrape_interval"], interval);
    let providers = yaml("deploy/grafana/provisioning/dashboards/sidelink.yml");
    assert_eq!(providers["providers"][0]["options"]["path"], "/var/lib/grafana/dashboards");
}
