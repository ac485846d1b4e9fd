//! What hurts comes first: `alerts` of `/status.json`, and the banners of the page in a real browser, name the cause of a fault,
//! whose fault it is and what to do.

use std::any::Any;
use std::net::SocketAddr;
use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use sidelink::clock::Clock;
use sidelink::config::{Config, Secret};
use sidelink::demo::origin::ScriptedReply;

use crate::browser::Browser;
use crate::fleet::alerts::tier_alert;
use crate::fleet::split::OTHER_SECRET;
use crate::fleet::{Port, Redis, SECRET, shared};
use crate::process::{Files, Process};
use crate::support::{Stack, TestClient, eventually, query};
use crate::tls;

/// A sidelink with a fault, which lasts as long as this.
struct Scene {
    admin: SocketAddr,
    _kept: Box<dyn Any>,
}

impl Scene {
    fn of(stack: Stack) -> Self {
        Self { admin: stack.app.admin_address(), _kept: Box::new(stack) }
    }

    async fn alerts(&self) -> Vec<Value> {
        alerts(&TestClient::new(self.admin)).await
    }
}

pub async fn alerts(admin: &TestClient) -> Vec<Value> {
    admin.get("/status.json", &[]).await.json()["alerts"].as_array().unwrap().clone()
}

/// The one alert of this kind.
fn only<'a>(alerts: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<_> = alerts.iter().filter(|alert| alert["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind} in {alerts:#?}");
    found[0]
}

/// The alert of this kind has this severity and fault, and its text or title has each of `words`.
pub fn says(alerts: &[Value], kind: &str, severity: &str, fault: &str, words: &[&str]) {
    let alert = only(alerts, kind);
    assert_eq!((&alert["severity"], &alert["fault"]), (&json!(severity), &json!(fault)), "{alert:#}");
    let text = format!("{} {}", alert["title"].as_str().unwrap(), alert["text"].as_str().unwrap());
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
}

/// Every call gets this status.
async fn all_fail(status: u16) -> Scene {
    let fails = |endpoint: &mut sidelink::demo::origin::Options| {
        (endpoint.fail_ratio, endpoint.fail_status) = (1.0, status);
    };
    let stack = Stack::with(fails, |config| config.upstream.retry.attempts = 0).await;
    for id in ["1", "2", "3", "4"] {
        assert_eq!(stack.client.batch("t", &[id]).await.status, status);
    }
    Scene::of(stack)
}

/// Two accepted callers with different ids were asked to pause.
async fn paused() -> Scene {
    let stack = Stack::with(|_| {}, |config| config.upstream.retry.attempts = 0).await;
    for token in ["one", "two"] {
        assert_eq!(stack.client.batch(token, &[token]).await.status, 200);
    }
    stack.origin.hold();
    let before = stack.origin.batch_calls();
    let mut asked = Vec::new();
    for (at, token) in ["one", "two"].into_iter().enumerate() {
        let headers = HeaderMap::from_iter([
            (CONTENT_TYPE, "application/json".parse().unwrap()),
            (RETRY_AFTER, "50".parse().unwrap()),
        ]);
        let reply =
            ScriptedReply::Whole(StatusCode::SERVICE_UNAVAILABLE, headers, r#"{"error_code":"APIGW.0202"}"#.into());
        stack.origin.script(reply);
        let client = stack.client.clone();
        asked.push(tokio::spawn(async move { client.batch(token, &[&format!("{token}-else")]).await.status }));
        stack.origin.arrived(before + at + 1).await;
    }
    stack.origin.release();
    for status in asked {
        assert_eq!(status.await.unwrap(), 503);
    }
    Scene::of(stack)
}

async fn refused_configuration() -> Scene {
    let files = Files::new("127.0.0.1:9".parse().unwrap());
    let mut process = Process::start(&files.write("limits.batch_ids = 2")).await;
    files.write("limits.batch_idz = 4");
    process.says("the configuration was refused; the previous one stays in effect").await;
    Scene { admin: process.admin.address, _kept: Box::new((process, files)) }
}

/// A batch in flight keeps it from ending.
async fn draining() -> Scene {
    let configure = |config: &mut Config| {
        config.limits.drain = Duration::from_secs(120);
        // The batch outlasts what a test has to do meanwhile.
        config.upstream.deadline = Duration::from_secs(120);
    };
    let stack = Stack::with(|_| {}, configure).await;
    stack.origin.hold();
    let client = stack.client.clone();
    let waiting = tokio::spawn(async move { client.batch("t", &["1"]).await });
    stack.origin.arrived(1).await;
    let (admin, Stack { origin, app, client }) = (stack.app.admin_address(), stack);
    let drained = tokio::spawn(app.drain());
    let asked = TestClient::new(admin);
    eventually("it drains", async || asked.get("/readyz", &[]).await.status == 503).await;
    Scene { admin, _kept: Box::new((origin, client, waiting, drained)) }
}

async fn open_breaker() -> Scene {
    let configure = |config: &mut Config| {
        config.upstream.breaker.consecutive = 2;
        config.upstream.breaker.open = Duration::from_secs(60);
        config.upstream.retry.attempts = 0;
    };
    let stack = Stack::with(|_| {}, configure).await;
    for token in ["one", "two"] {
        assert_eq!(stack.client.batch(token, &[token]).await.status, 200);
    }
    stack.origin.stop().await;
    for token in ["one", "two", "one", "two"] {
        stack.client.batch(token, &[&format!("{token}-else")]).await;
    }
    Scene::of(stack)
}

/// Nobody listens where the shared tier should be.
async fn tier_down() -> Scene {
    let port = Port::reserve();
    let stack = Stack::with(|_| {}, |config| config.shared = Some(shared(vec![port.address()]))).await;
    Scene { admin: stack.app.admin_address(), _kept: Box::new((stack, port)) }
}

/// Two sidelinks with different secrets at one server.
async fn tier_split() -> Scene {
    let redis = Redis::start().await;
    let start = async |secret: &str| {
        let mut shared = shared(vec![redis.address()]);
        shared.secret_file.secret = vec![Secret::new(secret.as_bytes().to_vec())];
        Stack::with(|_| {}, |config| config.shared = Some(shared)).await
    };
    let (stack, other) = (start(SECRET).await, start(OTHER_SECRET).await);
    let admin = TestClient::new(stack.app.admin_address());
    eventually("the other is seen", async || {
        alerts(&admin).await.iter().any(|alert| alert["kind"] == "shared_tier_split")
    })
    .await;
    Scene { admin: stack.app.admin_address(), _kept: Box::new((stack, other, redis)) }
}

async fn forwarded() -> Scene {
    let stack = Stack::start().await;
    for id in ["1", "2", "3"] {
        assert_eq!(stack.client.get(&query(&[id]), &[]).await.status, 401);
    }
    Scene::of(stack)
}

#[tokio::test]
async fn nothing_is_alerted_where_nothing_hurts() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1", "2"]).await;
    stack.client.batch("t", &["1", "2"]).await;
    assert_eq!(Scene::of(stack).alerts().await, Vec::<Value>::new());
}

#[tokio::test]
async fn failed_batches_are_alerted_with_their_share_and_by_whose_fault_they_fail() {
    for (status, fault, words) in [
        (401, "client", ["All batches fail", "(401)", "Renew them"]),
        (400, "client", ["All batches fail", "(400)", "compare a request"]),
        (429, "client", ["All batches fail", "(429)", "quota"]),
        (500, "endpoint", ["All batches fail", "answers with 500", "Last failure"]),
    ] {
        let found = all_fail(status).await.alerts().await;
        says(&found, "errors", "critical", fault, &words);
        assert!(only(&found, "errors")["text"].as_str().unwrap().contains(&format!("4 × {status} from the endpoint")));
        assert_eq!(found[0]["kind"], "errors", "what hurts comes first");
    }
}

#[tokio::test]
async fn one_clients_failures_among_many_successes_are_a_warning_and_few_are_none() {
    let stack = Stack::with(|endpoint| endpoint.refuse = vec!["expired".to_owned()], |_| {}).await;
    for _ in 0..20 {
        stack.client.batch("t", &["1"]).await;
    }
    let admin = TestClient::new(stack.app.admin_address());
    stack.client.batch("expired", &["1"]).await;
    assert_eq!(alerts(&admin).await, Vec::<Value>::new(), "one of 21");
    for _ in 0..3 {
        stack.client.batch("expired", &["1"]).await;
    }
    says(&alerts(&admin).await, "errors", "warning", "client", &["Many batches fail", "4 of 24", "(401)"]);
}

/// An expired certificate is worse than a few batches of one client, and failed batches are told before why they were forwarded.
#[tokio::test]
async fn the_worst_is_alerted_first() {
    let kinds = |alerts: Vec<Value>| alerts.iter().map(|alert| alert["kind"].clone()).collect::<Vec<_>>();
    assert_eq!(kinds(forwarded().await.alerts().await), ["errors", "forwarded"]);

    let files = tempfile::tempdir().unwrap();
    let (cert, key) = tls::expiring(&files, -1);
    let configure = |config: &mut Config| {
        (config.upstream.client_cert, config.upstream.client_key) = (Some(cert), Some(key));
    };
    let stack = Stack::with(|endpoint| endpoint.refuse = vec!["expired".to_owned()], configure).await;
    for (token, batches) in [("t", 20), ("expired", 4)] {
        for _ in 0..batches {
            stack.client.batch(token, &["1"]).await;
        }
    }
    let found = Scene::of(stack).alerts().await;
    says(&found, "errors", "warning", "client", &[]);
    says(&found, "certificate", "critical", "operator", &["upstream.client_cert"]);
    assert_eq!(kinds(found), ["certificate", "errors"]);
}

#[tokio::test]
async fn batches_refused_at_a_limit_are_the_fault_of_sidelink() {
    let stack = Stack::with(|_| {}, |config| config.limits.in_flight = 1).await;
    for _ in 0..3 {
        assert_eq!(stack.client.batch("t", &["1", "2", "3"]).await.status, 503);
    }
    let words = ["All batches fail: sidelink is at a limit", "limits.in_flight", "3 requests met this limit"];
    says(&Scene::of(stack).alerts().await, "errors", "critical", "sidelink", &words);
}

#[tokio::test]
async fn an_open_breaker_is_alerted_with_its_reason_its_evidence_and_the_next_probe() {
    let words = ["The breaker is open", "no answer", "2 failed to connect, for 2 callers", "The next probe follows in"];
    let found = open_breaker().await.alerts().await;
    says(&found, "breaker", "critical", "endpoint", &words);
    says(&found, "breaker", "critical", "endpoint", &["4 of 6 batches failed in the last 2 min: 2 × 502"]);
    assert_eq!(found.len(), 1, "what fails for that is no second fault: {found:#?}");
}

/// Regression: a failure of 1.2 s ago was said to be 2 s old, by a process that was up for 1 s.
#[tokio::test]
async fn no_failure_is_older_than_the_process() {
    let clock = Clock::simulated(i64::try_from(Clock::system().now().unix_millis()).unwrap());
    let fails = |endpoint: &mut sidelink::demo::origin::Options| {
        (endpoint.fail_ratio, endpoint.fail_status) = (1.0, 500);
    };
    let stack = Stack::on(clock.clone(), fails, |config| config.upstream.retry.attempts = 0).await;
    stack.client.batch("t", &["1"]).await;
    let admin = TestClient::new(stack.app.admin_address());
    for _ in 0..20 {
        clock.step(100);
        let said = admin.get("/status.json", &[]).await.json();
        let text = said["alerts"][0]["text"].as_str().unwrap();
        let age = text.split_once("Last failure, ").unwrap().1.split_once(" s ago").unwrap().0;
        assert!(age.parse::<u64>().unwrap() <= said["uptime_seconds"].as_u64().unwrap(), "{text}");
    }
}

/// Regression: these failures were said to be for a pause.
#[tokio::test]
async fn callers_that_the_breaker_holds_back_alone_are_named_as_the_reason() {
    let fails = |endpoint: &mut sidelink::demo::origin::Options| {
        (endpoint.poison, endpoint.poison_status) = (vec!["bad".to_owned()], 503);
    };
    let configure = |config: &mut Config| {
        config.upstream.breaker.consecutive = 2;
        config.upstream.breaker.open = Duration::from_secs(60);
        config.upstream.retry.attempts = 0;
    };
    let stack = Stack::with(fails, configure).await;
    for token in ["one", "two"] {
        assert_eq!(stack.client.batch(token, &["1"]).await.status, 200);
    }
    for _ in 0..6 {
        assert_eq!(stack.client.batch("two", &["bad"]).await.status, 503);
    }
    let found = Scene::of(stack).alerts().await;
    says(
        &found,
        "errors",
        "critical",
        "unknown",
        &["the breaker holds back callers whose calls fail", "× 503 from sidelink"],
    );
    says(&found, "breaker", "warning", "unknown", &["1 caller is held back"]);
}

#[tokio::test]
async fn a_pause_of_all_callers_is_alerted_with_the_time_that_is_left() {
    let found = paused().await.alerts().await;
    says(&found, "pause", "critical", "endpoint", &["503 with Retry-After", " s left", "no call is sent"]);
}

#[tokio::test]
async fn a_certificate_near_its_end_is_alerted_and_one_that_has_expired_is_critical() {
    for (days, severity, words) in [(-1, "critical", "has expired"), (13, "warning", "12 days left"), (15, "", "")] {
        let files = Files::new("127.0.0.1:9".parse().unwrap());
        let (cert, key) = tls::expiring(&files.directory, days);
        let config = format!("listen.tls = {{ cert = {cert:?}, key = {key:?} }}");
        let process = Process::start(&files.write(&config)).await;
        let found = alerts(&process.admin).await;
        match severity {
            "" => assert_eq!(found, Vec::<Value>::new()),
            severity => says(&found, "certificate", severity, "operator", &[words, "listen.tls.cert"]),
        }
    }
}

#[tokio::test]
async fn a_refused_configuration_is_alerted_with_its_key() {
    let found = refused_configuration().await.alerts().await;
    says(
        &found,
        "reload",
        "warning",
        "operator",
        &["is refused: limits.batch_idz", "limits.batch_idz: unknown key", "stays in effect"],
    );
}

#[tokio::test]
async fn a_drain_is_alerted_with_what_is_still_open() {
    let found = draining().await.alerts().await;
    says(&found, "draining", "warning", "operator", &["no new connections", "1 connection is open", "2 min after"]);
}

#[tokio::test]
async fn a_shared_tier_that_is_down_is_alerted_with_its_reason_and_with_no_other() {
    let scene = tier_down().await;
    let admin = TestClient::new(scene.admin);
    eventually("the cause is known", async || {
        tier_alert(&admin).await.is_some_and(|text| text.contains("Connection refused"))
    })
    .await;
    says(&alerts(&admin).await, "shared_tier", "warning", "operator", &["The shared tier is down", "shared.url"]);
    let text = tier_alert(&admin).await.unwrap();
    assert!(!text.contains("Most frequent") && !text.contains("no connection"), "{text}");
}

#[tokio::test]
async fn stale_answers_are_alerted_before_they_become_errors() {
    let clock = Clock::simulated(i64::try_from(Clock::system().now().unix_millis()).unwrap());
    let configure = |config: &mut Config| config.freshness.max = Duration::from_secs(60);
    let stack = Stack::on(clock.clone(), |_| {}, configure).await;
    assert_eq!(stack.client.batch("t", &["1"]).await.status, 200);
    stack.origin.update(|endpoint| (endpoint.fail_ratio, endpoint.fail_status) = (1.0, 500));
    clock.step(61_000);
    assert_eq!(stack.client.batch("t", &["1"]).await.status, 200);
    let found = Scene::of(stack).alerts().await;
    says(&found, "stale", "warning", "endpoint", &["past their freshness", "1 of 2", "it answers with 500"]);
}

#[tokio::test]
async fn batches_that_are_forwarded_are_alerted_with_the_reason_and_fail_like_others() {
    let found = forwarded().await.alerts().await;
    let words = ["All batches are forwarded", "no credential", "3 of 3", "The reason of 3 of them"];
    says(&found, "forwarded", "warning", "client", &words);
    says(
        &found,
        "errors",
        "critical",
        "client",
        &["All batches fail: clients send no credential (401)", "3 × 401 from the endpoint"],
    );
}

/// One test: a browser takes seconds to start. `SIDELINK_PICTURES` names a folder for pictures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_screen_of_a_phone_and_of_a_desk_names_the_cause_of_each_fault() {
    let pictures = std::env::var_os("SIDELINK_PICTURES").map(std::path::PathBuf::from);
    let mut browser = Browser::start();
    let scenes = [
        ("401", all_fail(401).await, "does not accept the credentials (401)"),
        ("400", all_fail(400).await, "rejects the requests (400)"),
        ("pause", paused().await, "asked all callers to pause (503 with Retry-After)"),
        ("reload", refused_configuration().await, "limits.batch_idz"),
        ("drain", draining().await, "is shutting down"),
        ("breaker", open_breaker().await, "The breaker is open"),
        ("tier", tier_down().await, "The shared tier is down"),
        ("split", tier_split().await, "The shared tier is split"),
        ("forwarded", forwarded().await, "All batches are forwarded"),
    ];
    for (name, scene, words) in &scenes {
        for (width, height) in [(390, 844), (1280, 900)] {
            browser.look(width, height, "light");
            browser.open(scene.admin, "/");
            browser.until("document.querySelector('#link').textContent === 'live'");
            // Every banner is above the tiles, and the one that names the cause is within the first screen.
            let banner = format!(
                "[...document.querySelectorAll('[role=alert]')].some((banner) => banner.innerText.includes({words:?}) \
                 && banner.getBoundingClientRect().bottom <= {height} && banner.getBoundingClientRect().top >= 0)"
            );
            browser.until(&banner);
            let above = "[...document.querySelectorAll('[role=alert]')].every((banner) => banner.getBoundingClientRect().bottom \
                         <= document.querySelector('#tiles').getBoundingClientRect().top)";
            assert_eq!(browser.eval(above), json!(true), "{name}");
            assert_eq!(
                browser.eval("document.documentElement.scrollWidth <= window.innerWidth"),
                json!(true),
                "{name}"
            );
            assert!(browser.text("title").starts_with('⚠'), "{name}");
            if let Some(folder) = &pictures {
                let file = folder.join(format!("{name}-{width}.png"));
                std::fs::write(&file, browser.picture(false)).unwrap();
                std::fs::write(file.with_extension("whole.png"), browser.picture(true)).unwrap();
            }
        }
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
