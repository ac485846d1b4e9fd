//! A real Prometheus that scrapes a running sidelink records what clients got.
//!
//! `make tools` installs Prometheus; without it these tests fail.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tempfile::TempDir;

use crate::dashboard::queries;
use crate::rules::path;
use crate::support::{LOOPBACK, Stack, TestClient};

/// Longer than several scrapes and evaluations, which are a second apart.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running Prometheus, configured as in `deploy/prometheus`; killed on drop.
struct Prometheus {
    process: Child,
    client: TestClient,
    home: TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    /// Scrapes `target`, and both scrapes and evaluates every second.
    async fn start(target: SocketAddr) -> Self {
        // Prometheus accepts no port 0. A free port may be taken before it listens: then it exits, and another port is tried.
        for _ in 0..20 {
            let mut prometheus = Self::spawn(target, TcpListener::bind(LOOPBACK).unwrap().local_addr().unwrap());
            if prometheus.is_ready().await {
                return prometheus;
            }
            let log = fs::read_to_string(prometheus.home.path().join("log")).unwrap();
            assert!(log.contains("address already in use"), "{log}");
        }
        panic!("no port to be had");
    }

    fn spawn(target: SocketAddr, address: SocketAddr) -> Self {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path();
        for file in ["prometheus.yml", "recording.yml", "alerts.yml"] {
            let shipped = fs::read_to_string(path("deploy/prometheus").join(file)).unwrap();
            let text =
                shipped.replace("\"sidelink:8081\"", &format!("\"{target}\"")).replace("interval: 15s", "interval: 1s");
            assert_eq!(text != shipped, file == "prometheus.yml");
            fs::write(folder.join(file), text).unwrap();
        }
        let log = File::create(folder.join("log")).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("prometheus is not there: run `make tools`");
        Self { process, client: TestClient::new(address), home }
    }

    /// Waits until it answers; `false` if it has exited.
    async fn is_ready(&mut self) -> bool {
        let folder = self.home.path().join("data").display().to_string();
        let began = Instant::now();
        while self.process.try_wait().unwrap().is_none() {
            // Another process on the port has another folder.
            if let Some(flags) = self.get("/api/v1/status/flags").await
                && flags["data"]["storage.tsdb.path"] == folder.as_str()
                && self.get("/-/ready").await.is_some()
            {
                return true;
            }
            assert!(began.elapsed() < PATIENCE, "Prometheus is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// The body of a 200, parsed if it is JSON.
    async fn get(&self, target: &str) -> Option<Value> {
        let reply = self.client.try_get(target).await?;
        reply.status.is_success().then(|| serde_json::from_slice(&reply.body).unwrap_or_default())
    }

    /// The values of an instant query's samples.
    async fn query(&self, expression: &str) -> Vec<f64> {
        let samples = self.samples(expression).await;
        samples.iter().map(|sample| sample["value"][1].as_str().unwrap().parse().unwrap()).collect()
    }

    async fn samples(&self, expression: &str) -> Vec<Value> {
        let target = format!("/api/v1/query?query={}", utf8_percent_encode(expression, NON_ALPHANUMERIC));
        let reply = self.client.get(&target, &[]).await.json();
        assert_eq!(reply["status"], "success", "{expression}: {reply:#}");
        reply["data"]["result"].as_array().unwrap().clone()
    }

    /// Queries until `met` or the timeout; returns the last samples.
    async fn wait(&self, expression: &str, met: impl Fn(&[f64]) -> bool) -> Vec<f64> {
        let began = Instant::now();
        loop {
            let samples = self.query(expression).await;
            if met(&samples) || began.elapsed() > PATIENCE {
                return samples;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Whether `samples` is only `value`, apart from rounding.
fn is(samples: &[f64], value: f64) -> bool {
    matches!(samples, [sample] if (sample - value).abs() < 1e-9)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus_records_the_hit_rate_that_clients_had() {
    let stack = Stack::with(|endpoint| endpoint.missing = vec!["gone".to_owned()], |_| {}).await;
    let prometheus = Prometheus::start(stack.app.admin_address()).await;
    // A rise is visible only after a scrape at 0.
    assert_eq!(prometheus.wait("count(sidelink_ids_total == 0)", |samples| samples == [7.0]).await, [7.0]);

    // Ten ids that are fetched once and hit seven times; one that is not there, and is remembered as absent.
    let ids = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];
    for _ in 0..8 {
        assert_eq!(stack.client.batch("t", &ids).await.ids(), ids);
    }
    for _ in 0..2 {
        assert!(stack.client.batch("t", &["gone"]).await.ids().is_empty());
    }
    let asked = 8.0 * 10.0 + 2.0;
    let spared = 7.0 * 10.0;

    let seen = prometheus.wait("sum(sidelink_ids_total)", |samples| samples == [asked]).await;
    assert_eq!(seen, [asked]);
    for ratio in ["instance:sidelink_hit_ratio:rate5m", "job:sidelink_hit_ratio:rate5m"] {
        let recorded = prometheus.wait(ratio, |samples| is(samples, spared / asked)).await;
        assert!(is(&recorded, spared / asked), "{ratio}: {recorded:?}");
    }
    // The rate never exceeds 1.
    let most =
        prometheus.wait("max_over_time(instance:sidelink_hit_ratio:rate5m[5m])", |samples| !samples.is_empty()).await;
    assert!(matches!(most[..], [most] if most <= 1.0), "{most:?}");
    // Every id has a result.
    let under_way = prometheus.wait("instance:sidelink_ids_under_way", |samples| samples == [0.0]).await;
    assert_eq!(under_way, [0.0]);
    let sent = prometheus.wait("instance:sidelink_ids_sent_ratio:rate5m", |samples| is(samples, 11.0 / asked)).await;
    assert!(is(&sent, 11.0 / asked), "{sent:?}");

    let groups = prometheus.get("/api/v1/rules").await.unwrap();
    let groups = groups["data"]["groups"].as_array().unwrap();
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert!(rules.len() > 30);
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule:#}");
        assert_ne!(rule["state"], "firing", "all is well: {rule:#}");
    }
    assert_eq!(prometheus.query("up{job=\"sidelink\"}").await, [1.0]);

    dashboard_has_something_to_show(&prometheus).await;

    // After sidelink has exited.
    stack.app.drain().await;
    let up = prometheus.wait("up{job=\"sidelink\"}", |samples| samples == [0.0]).await;
    assert_eq!(up, [0.0]);
    let pending = prometheus.wait("ALERTS{alertname=\"SidelinkAbsent\"}", |samples| samples == [1.0]).await;
    assert_eq!(pending, [1.0]);
}

/// Except those of the shared tier and of certificates, which are absent, every query of the dashboard returns series with the labels of its legend.
async fn dashboard_has_something_to_show(prometheus: &Prometheus) {
    for (expression, legend) in queries() {
        let samples = prometheus.samples(&expression).await;
        let absent = ["sidelink_shared_hits_total", "sidelink_tls_certificate_expiry"];
        assert_eq!(samples.is_empty(), absent.iter().any(|name| expression.contains(name)), "{expression}");
        for label in legend.split("{{").skip(1).map(|label| label.split("}}").next().unwrap()) {
            assert!(samples.iter().all(|sample| sample["metric"][label].is_string()), "{expression}: {legend}");
        }
    }
}
