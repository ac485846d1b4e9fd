//! Rules and alerts of `deploy/`: every series in them exists, and every alert has a section in the runbook, a case in which it
//! fires and one in which it does not.
//!
//! `make tools` installs `promtool`; without it these tests fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::documents::generated;
use crate::exposition::{Family, families};
use crate::promql::{Selector, selectors};
use crate::support::Stack;

/// Labels that Prometheus gives to all series of a target.
const TARGET: [&str; 4] = ["job", "instance", "namespace", "pod"];

/// A link of an alert has to be one that a pager can open. Operators put the address of their copy in its place.
const RUNBOOK: &str = "https://sidelink.example.com/docs/RUNBOOK.md";

/// A path in the repository.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The text of a file in the repository.
pub fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub fn string<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value:#}"))
}

/// The rules of a file.
fn rules(name: &str) -> Vec<Value> {
    list(&yaml(name)["groups"]).iter().flat_map(|group| list(&group["rules"]).to_vec()).collect()
}

/// The series that rules record.
fn recorded() -> BTreeSet<String> {
    rules("deploy/prometheus/recording.yml").iter().map(|rule| string(rule, "record").to_owned()).collect()
}

pub fn alerts() -> Vec<Value> {
    rules("deploy/prometheus/alerts.yml")
}

/// Cases of alerts, by the question that the alerts answer.
const ALERT_CASES: [&str; 6] = [
    "deploy/prometheus/tests/alerts/users.yml",
    "deploy/prometheus/tests/alerts/cache.yml",
    "deploy/prometheus/tests/alerts/endpoint.yml",
    "deploy/prometheus/tests/alerts/process.yml",
    "deploy/prometheus/tests/alerts/shared.yml",
    "deploy/prometheus/tests/alerts/identity.yml",
];

/// All files with cases.
fn case_files() -> impl Iterator<Item = &'static str> {
    ["deploy/prometheus/tests/recording.yml"].into_iter().chain(ALERT_CASES)
}

fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(path("deploy/prometheus"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is not there: run `make tools`");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    if input.is_empty() {
        return;
    }
    assert!(said.is_empty(), "promtool has a complaint, if not an error: {said}");
}

#[test]
fn promtool_accepts_configuration_and_rules() {
    promtool(&["check", "config", "prometheus.yml"], "");
    promtool(&["check", "rules", "recording.yml", "alerts.yml"], "");
}

#[test]
fn the_rules_pass_their_test_cases() {
    let files: Vec<&str> = case_files().map(|file| file.strip_prefix("deploy/prometheus/").unwrap()).collect();
    promtool(&[&["test", "rules"], &files[..]].concat(), "");
}

/// The Prometheus Operator takes rules as a resource. Kustomize cannot put a file into one, so it is generated.
#[test]
fn the_prometheus_rule_has_the_groups_of_the_rule_files() {
    let files = ["recording.yml", "alerts.yml"].map(|file| format!("deploy/prometheus/{file}"));
    let resource = "deploy/kubernetes/monitoring/prometheusrule.yaml";
    generated(resource, |_| {
        let mut text = PROMETHEUS_RULE.to_owned();
        for file in &files {
            let groups = self::text(file);
            for line in groups.split_once("\ngroups:\n").unwrap().1.lines() {
                text += format!("  {line}").trim_end();
                text.push('\n');
            }
        }
        text
    });
    let groups: Vec<Value> = files.iter().flat_map(|file| list(&yaml(file)["groups"]).to_vec()).collect();
    assert_eq!(list(&yaml(resource)["spec"]["groups"]), groups);
    let names: BTreeSet<&str> = groups.iter().map(|group| string(group, "name")).collect();
    assert_eq!(names.len(), groups.len(), "the operator refuses two groups of one name");
}

const PROMETHEUS_RULE: &str = "\
# Generated from deploy/prometheus/recording.yml and alerts.yml by `make docs`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: sidelink
  labels:
    app.kubernetes.io/name: sidelink
spec:
  groups:
";

#[tokio::test]
async fn promtool_accepts_a_scrape() {
    let stack = Stack::start().await;
    assert_eq!(stack.client.batch("t", &["1", "2"]).await.ids(), ["1", "2"]);
    promtool(&["check", "metrics"], &stack.metrics().await);
}

#[test]
fn every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    // For each alert, the series of the cases in which it fires, and of those in which it does not.
    type Cases = Vec<BTreeSet<String>>;
    let mut cases: BTreeMap<String, (Cases, Cases)> = BTreeMap::new();
    for case in ALERT_CASES.iter().flat_map(|file| list(&yaml(file)["tests"]).to_vec()) {
        let series = list(&case["input_series"]).iter().map(|series| string(series, "series"));
        let series: BTreeSet<String> = series.map(|series| series.split('{').next().unwrap().to_owned()).collect();
        let expected = list(&case["alert_rule_test"]);
        let name = string(&expected[0], "alertname");
        assert!(expected.iter().all(|expected| string(expected, "alertname") == name), "{case:#}");
        let fires = expected.iter().any(|expected| !list(&expected["exp_alerts"]).is_empty());
        let verb = if fires { "fires" } else { "is quiet" };
        assert!(string(&case, "name").starts_with(&format!("{name} {verb}: ")), "{}", string(&case, "name"));
        let (firing, quiet) = cases.entry(name.to_owned()).or_default();
        if fires { firing } else { quiet }.push(series);
    }
    let alerts: BTreeSet<String> = alerts().iter().map(|alert| string(alert, "alert").to_owned()).collect();
    assert_eq!(cases.keys().cloned().collect::<BTreeSet<_>>(), alerts);
    for (alert, (firing, quiet)) in &cases {
        assert!(!firing.is_empty(), "{alert} is nowhere seen to fire");
        // An alert must not be silent only because its series are absent.
        assert!(quiet.iter().any(|quiet| firing.contains(quiet)), "{alert} is nowhere seen to be quiet");
    }
}

#[test]
fn every_alert_has_a_description_and_a_section_in_the_runbook() {
    let mut sections = BTreeMap::new();
    for section in text("docs/RUNBOOK.md").split("\n## ").skip(1) {
        let (name, said) = section.split_once('\n').unwrap();
        assert!(sections.insert(name.to_owned(), said.to_owned()).is_none(), "{name} has two sections");
    }
    let alerts = alerts();
    let names: Vec<&str> = alerts.iter().map(|alert| string(alert, "alert")).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    assert_eq!(sections.keys().map(String::as_str).collect::<BTreeSet<_>>(), names.iter().copied().collect());
    for (name, said) in &sections {
        let parts = ["Means", "Users notice", "Confirm", "Do", "Leave alone"];
        let found: Vec<&str> = said.split("\n**").skip(1).map(|part| part.split(".**").next().unwrap()).collect();
        assert_eq!(found, parts, "{name}");
    }
    for alert in &alerts {
        let (name, annotations) = (string(alert, "alert"), &alert["annotations"]);
        assert!(["critical", "warning"].contains(&string(&alert["labels"], "severity")), "{name}");
        assert!(!string(annotations, "summary").is_empty() && !string(annotations, "description").is_empty(), "{name}");
        assert_eq!(string(annotations, "runbook_url"), format!("{RUNBOOK}#{}", name.to_lowercase()));
    }
}

/// What scrapes sidelink names its job: a PodMonitor's is `NAMESPACE/NAME`.
#[test]
fn no_rule_names_a_job() {
    for rule in rules("deploy/prometheus/recording.yml").iter().chain(&alerts()) {
        for selector in selectors(string(rule, "expr")) {
            assert!(selector.matchers.iter().all(|(label, ..)| label != "job"), "{selector:?}");
        }
    }
}

/// Panics if `selector` matches no series of the families.
pub fn exists(selector: &Selector, families: &BTreeMap<String, Family>, recorded: &BTreeSet<String>) {
    let owned = selector.matchers.iter().filter(|(label, ..)| !TARGET.contains(&label.as_str()));
    if selector.name == "up" || recorded.contains(&selector.name) {
        assert_eq!(owned.count(), 0, "{selector:?}: no such label");
        return;
    }
    let family = families.iter().find(|(name, family)| family.names(name).contains(&selector.name));
    let (_, family) = family.unwrap_or_else(|| panic!("{selector:?}: no such series"));
    for (label, operator, value) in owned {
        let known: BTreeSet<&str> = match label.as_str() {
            "le" => family.buckets.iter().map(String::as_str).collect(),
            label => family.series.iter().filter_map(|labels| labels.get(label)).map(String::as_str).collect(),
        };
        let values: Vec<String> = match operator.as_str() {
            "=" | "!=" => vec![value.clone()],
            // The rules use only alternatives, and the bucket notations of two versions of Prometheus.
            _ => value.replace(r"(\.0)?", "").split('|').map(str::to_owned).collect(),
        };
        // A fingerprint may have any value, and an API any name.
        let is_open = !known.is_empty() && ["fingerprint", "api"].contains(&label.as_str());
        for value in values.iter().filter(|_| !is_open) {
            assert!(known.contains(value.as_str()), "{selector:?}: {label} is one of {known:?}");
        }
    }
}

#[tokio::test]
async fn every_series_of_a_rule_exists() {
    let (families, recorded) = (families(&Stack::start().await.metrics().await), recorded());
    let mut asked = BTreeSet::new();
    for rule in rules("deploy/prometheus/recording.yml").iter().chain(&alerts()) {
        let selectors = selectors(string(rule, "expr"));
        assert!(!selectors.is_empty(), "{rule:#}");
        selectors.iter().for_each(|selector| exists(selector, &families, &recorded));
        asked.extend(selectors.into_iter().map(|selector| selector.name));
    }
    // The series of the cases exist too.
    for file in case_files() {
        for case in list(&yaml(file)["tests"]) {
            let series = list(&case["input_series"]).iter().map(|series| string(series, "series"));
            for selector in series.flat_map(selectors).filter(|selector| selector.matchers[0].2 == "shop/sidelink") {
                let as_written = |selector: &Selector| selector.matchers.iter().all(|(label, ..)| label != "le");
                if as_written(&selector) {
                    exists(&selector, &families, &recorded);
                }
                assert!(asked.contains(&selector.name), "{selector:?}: no rule asks for it");
            }
        }
    }
}
