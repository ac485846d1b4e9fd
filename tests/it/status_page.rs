//! The status page in a real browser: its numbers match the metrics and follow the traffic; it loads and stores nothing, and
//! contains no secret.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::Distribution;
use serde_json::{Value, json};
use sidelink::config::Config;
use sidelink::config::batch::BatchApi;
use sidelink::demo::origin::ScriptedReply;

use crate::admin::{TOKEN, token};
use crate::browser::{Browser, ELSEWHERE};
use crate::process::{Files, Process};
use crate::signing::knows;
use crate::support::{Stack, TestClient};

async fn status(stack: &Stack, query: &str) -> Value {
    let reply = TestClient::new(stack.app.admin_address()).get(&format!("/status.json{query}"), &[]).await;
    assert_eq!(reply.status, 200);
    reply.json()
}

#[tokio::test]
async fn the_status_matches_the_metrics() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1", "2"]).await;
    stack.client.batch("t", &["1", "3"]).await;
    stack.client.get("/v2/servicerequest/accessorys/access-urls?accessory_ids=1", &[]).await;
    let said = status(&stack, "").await;
    let totals = &said["totals"];
    assert_eq!(
        (&totals["ids"]["hit"], &totals["ids"]["fetched"], &totals["call_ids"]),
        (&json!(1), &json!(3), &json!(3))
    );
    assert_eq!((&totals["batches"]["miss"], &totals["batches"]["partial"]), (&json!(1), &json!(1)));
    assert_eq!((&totals["calls"]["ok"], &totals["bypass"]["no-credential"]), (&json!(2), &json!(1)));
    assert_eq!(
        (&said["cache"]["links"], &said["breaker"], &said["ready"]),
        (&json!(3), &json!("closed"), &json!(true))
    );
    assert_eq!((&said["cache"]["capacity"], &said["calls_refused"]), (&json!((256 << 20) - (32 << 20)), &Value::Null));
    assert_eq!(said["last_failure"], Value::Null);
    assert_eq!((&said["reload"]["succeeded"], &said["reload"]["errors"]), (&json!(true), &json!([])));
    assert!(said["memory_bytes"].as_f64().unwrap() > 1e6);
    assert_eq!(said["endpoint"], format!("http://{}", stack.origin.address()));
}

#[tokio::test]
async fn the_history_continues_after_the_last_sample_that_the_client_has() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1", "2"]).await;
    let first = loop {
        let said = status(&stack, "").await;
        if said["history"]["last"] != 0 {
            break said;
        }
    };
    let ids: u64 = first["history"]["ids"]["fetched"].as_array().unwrap().iter().map(|ids| ids.as_u64().unwrap()).sum();
    assert_eq!(ids, 2);
    assert!(first["config"].as_str().unwrap().contains("[upstream]"));
    let next = status(&stack, &format!("?since={}", first["history"]["last"])).await;
    let known = first["history"]["at"].as_array().unwrap();
    assert!(next["history"]["at"].as_array().unwrap().iter().all(|at| !known.contains(at)));
    assert!(next.get("config").is_none(), "what does not change is told once");
}

#[tokio::test]
async fn an_open_breaker_is_in_the_status() {
    let configure = |config: &mut Config| {
        config.upstream.breaker.consecutive = 1;
        config.upstream.breaker.open = Duration::from_secs(60);
        config.upstream.retry.attempts = 0;
    };
    let stack = Stack::with(|_| {}, configure).await;
    stack.origin.stop().await;
    stack.client.batch("t", &["1"]).await;
    let said = status(&stack, "").await;
    assert_eq!(said["breaker"], "open");
    assert!(said["calls_refused"].as_str().unwrap().contains("failing"));
    assert!(said["last_failure"]["reason"].as_str().unwrap().contains("no answer: client error"), "{said}");
    assert_eq!((&said["reload"]["succeeded"], &said["shared"]), (&json!(true), &Value::Null));
}

#[tokio::test]
async fn the_status_has_the_host_the_callers_and_the_code_of_the_endpoints_last_error() {
    let stack = Stack::with(|endpoint| endpoint.refuse = vec!["expired".to_owned()], |_| {}).await;
    for token in ["t", "u", "t"] {
        stack.client.batch(token, &["1"]).await;
    }
    let said = status(&stack, "").await;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(said["host"], host.trim());
    assert_eq!((&said["callers_accepted"], &said["last_error"]), (&json!(2), &Value::Null));
    let answer = |body: Value| ScriptedReply::json(403, body.to_string());
    let cases = [("2", "OSM.0003", json!("OSM.0003")), ("3", "no, see https://h/?sig=MARKED", Value::Null)];
    for (id, code, shown) in cases {
        stack.origin.script(answer(json!({"error_code": code, "error_msg": "MARKED"})));
        stack.client.batch("t", &[id]).await;
        let said = status(&stack, "").await;
        let error = &said["last_error"];
        assert_eq!((&error["api"], &error["status"], &error["code"]), (&json!("huawei-osm"), &json!(403), &shown));
        assert!(!said.to_string().contains("MARKED"));
    }
}

#[tokio::test]
async fn a_refused_reload_is_in_the_status_with_its_errors() {
    let files = Files::new("127.0.0.1:9".parse().unwrap());
    let mut process = Process::start(&files.write("limits.batch_ids = 2")).await;
    files.write("limits.batch_idz = 4");
    process.says("the configuration was refused; the previous one stays in effect").await;
    let said = process.admin.get("/status.json", &[]).await.json();
    assert_eq!(said["reload"]["succeeded"], false);
    assert!(said["reload"]["errors"][0].as_str().unwrap().contains("limits.batch_idz: unknown key"), "{said}");
    assert!(said["config"].as_str().unwrap().contains("batch_ids = 2"), "what is in force is as before");
}

#[tokio::test]
async fn no_secret_is_in_the_status() {
    let configure = |config: &mut Config| {
        token(config);
        knows(config, "AK1", "MARKED-secret-key");
    };
    let stack = Stack::with(|_| {}, configure).await;
    let links = stack.client.batch("MARKED-token", &["MARKED-id"]).await.links();
    let said = status(&stack, "").await.to_string();
    let secret = links[0].1.split_once('?').unwrap().1;
    for secret in ["MARKED", "token-of-an-operator", secret] {
        assert!(!said.contains(secret), "{secret}");
    }
    assert!(said.contains("AK1"), "what is no secret is there");
}

#[tokio::test]
async fn the_policy_of_the_page_allows_only_its_own_script() {
    let stack = Stack::start().await;
    let client = TestClient::new(stack.app.admin_address());
    let (one, other) = (client.get("/", &[]).await, client.get("/", &[]).await);
    assert_eq!(one.header("content-type"), "text/html; charset=utf-8");
    assert!(one.body.len() < 64 << 10, "{} bytes", one.body.len());
    let policy = one.header("content-security-policy");
    for part in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"));
    let nonce = |policy: &str| policy.split_once("script-src 'nonce-").unwrap().1[..32].to_owned();
    assert_ne!(nonce(policy), nonce(other.header("content-security-policy")), "drawn for each answer");
    let page = String::from_utf8(one.body.to_vec()).unwrap();
    assert_eq!(page.matches(&format!("nonce=\"{}\"", nonce(policy))).count(), 2, "one style, one script");
    assert!(!page.contains("{nonce}") && !page.contains("{style}") && !page.contains("{script}"));
    for outside in ["//cdn", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

/// The numbers at the axis of a chart.
fn axis(chart: &str) -> String {
    format!(
        "[...document.querySelectorAll('#plot-{chart} text[text-anchor=end]')].map((text) => text.textContent).filter((text) => text !== 'now')"
    )
}

/// The page in a browser is one test: a browser takes seconds to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_numbers_follow_the_traffic_and_the_page_loads_nothing_from_elsewhere() {
    let stack = Stack::start().await;
    let address = stack.app.admin_address();
    let mut browser = Browser::start();
    browser.look(1280, 900, "light");
    browser.open(address, "/");
    browser.until("document.querySelector('#link').textContent === 'live'");
    assert_eq!(browser.text("#tile-hit-rate dd"), "–", "with no traffic there is no rate");
    assert_eq!(browser.text("#ids dd"), "0");
    let host = status(&stack, "").await["host"].as_str().unwrap().to_owned();
    assert!(browser.text("#about").starts_with(&host) && browser.text("title").contains(&host), "whose page it is");

    // An empty axis has no numbers.
    assert_eq!(browser.text("#tiles dt"), "Errors", "what hurts comes first");
    browser.until("document.querySelector('#plot-memory text')?.textContent === '0 B'");
    assert_eq!(browser.eval(&axis("memory")), json!(["0 B"]));
    assert_eq!(browser.eval(&axis("answers")), json!([]));

    // The page matches the traffic.
    stack.client.batch("t", &["1", "2", "3", "4"]).await;
    for _ in 0..4 {
        stack.client.batch("t", &["1", "2", "3", "4"]).await;
    }
    browser.until("document.querySelector('#tile-hit-rate dd')?.textContent === '80 %'");
    assert_eq!(browser.text("#ids dd"), "16");
    browser.until("document.querySelector('#plot-ids path.f-hit') !== null");
    for id in ["failures", "hit-rate", "ids", "answers", "endpoint", "load", "others", "memory"] {
        browser.until(&format!("document.querySelector('#plot-{id} path') !== null"));
        assert!(!browser.text(&format!("#plot-{id}")).contains("NaN"));
    }
    assert_eq!(browser.text("#tile-errors dd"), "0 %");
    // Each tick of a logarithmic axis is ten times the last one, so 1 ms and 100 ms are told apart at a glance.
    let ticks: Vec<String> = serde_json::from_value(browser.eval(&axis("answers"))).unwrap();
    assert!(ticks.len() >= 3, "{ticks:?}");
    assert!(
        ticks.iter().all(|tick| tick.starts_with('1')
            && tick.trim_matches(|one: char| !one.is_ascii_digit()).trim_end_matches('0') == "1"),
        "{ticks:?}"
    );
    // A page opened later has the same history.
    browser.open(address, "/");
    browser.until("document.querySelector('#tile-hit-rate dd')?.textContent === '80 %'");
    assert!(browser.text("#config").contains("min_remaining"));

    // Failed batches and other routes have charts of their own.
    stack.origin.update(|endpoint| endpoint.refuse = vec!["expired".to_owned()]);
    stack.client.batch("expired", &["5"]).await;
    browser.until("document.querySelector('#health').innerText.includes('401 · ')");
    browser.until("/callers, accepted by the endpoint\\s+1\\b/.test(document.querySelector('#health').innerText)");
    stack.client.get("/v2/servicerequest/echo", &[]).await;
    for (chart, column, series) in [("failures", 3, "fetched"), ("others", 2, "hit")] {
        let rises = format!(
            "[...document.querySelectorAll('#chart-{chart} tbody td:nth-child({column})')].some((cell) => cell.textContent !== '0')"
        );
        browser.eval(&format!("document.querySelector('#chart-{chart} details').open = true; 0"));
        browser.until(&rises);
        browser.until(&format!("document.querySelector('#plot-{chart} path.l-{series}') !== null"));
    }

    // Keyboard and screen reader.
    browser.eval("document.querySelector('#plot-ids').focus()");
    browser.press("End");
    browser.until("/from memory .*fetched/.test(document.querySelector('#said-moment').textContent)");
    assert_eq!(browser.eval("document.querySelector('#plot-ids .cursor') !== null"), json!(true));
    browser.press("Escape");
    assert_eq!(browser.eval("document.querySelector('#plot-ids .cursor')"), Value::Null);
    browser.eval("document.querySelector('#chart-ids details').open = true");
    browser.until("document.querySelectorAll('#chart-ids tbody tr').length > 0");
    let heads = browser.eval("[...document.querySelectorAll('#chart-ids thead th')].map((head) => head.textContent)");
    assert_eq!(
        heads,
        json!([
            "time",
            "from memory",
            "joined a call under way",
            "from the shared tier",
            "from memory, past freshness",
            "known to be absent",
            "fetched",
            "failed"
        ])
    );
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let roles: BTreeSet<String> = tree["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|node| node["ignored"] != true)
        .map(|node| node["role"]["value"].as_str().unwrap_or("").to_owned())
        .collect();
    for role in ["banner", "main", "contentinfo", "heading", "button", "image", "table", "status"] {
        assert!(roles.contains(role), "no {role} among {roles:?}");
    }
    let unnamed = "[...document.querySelectorAll('button, a, [role=img], [tabindex]')].filter((one) => \
                   !(one.getAttribute('aria-label') || one.textContent.trim() || one.getAttribute('aria-labelledby'))).length";
    assert_eq!(browser.eval(unnamed), json!(0));

    // Nothing is wider than a phone, and a phone has no arrow keys.
    let hint = "document.querySelector('#charts .title').innerText.split('\\n').pop()";
    assert!(browser.eval(hint).as_str().unwrap().contains("arrow keys"));
    browser.look(390, 844, "dark");
    browser.until(&format!("{hint} === 'Tap a chart to read a moment.'"));
    browser.until("document.documentElement.scrollWidth <= 390");

    // Several APIs have a card; one alone has none.
    let is_shown = "document.querySelector('#of-apis').offsetParent !== null";
    assert_eq!(browser.eval(is_shown), json!(false));
    let mut next = Config::clone(&stack.app.config());
    next.batch.push(BatchApi { name: "lfs".into(), ..BatchApi::preset("git-lfs").unwrap() });
    stack.app.apply(next).unwrap();
    browser.until(is_shown);
    let cells = browser.text("#apis");
    for expected in ["huawei-osm", "76.2 % of 21 ids without a call; 6 batches, 1 failed", "lfs", "– of 0 ids"] {
        assert!(cells.contains(expected), "{cells}");
    }
    browser.until("document.documentElement.scrollWidth <= 390");

    // A paused page sends no requests.
    browser.eval("document.querySelector('#pause').click()");
    assert_eq!(browser.text("#link"), "paused");
    browser.eval("document.querySelector('#pause').click()");
    browser.until("document.querySelector('#link').textContent === 'live'");

    assert_eq!(browser.complaints(), Vec::<String>::new());
    let own = format!("http://{address}/");
    let strays: Vec<String> =
        browser.requests().into_iter().filter(|url| !url.starts_with(&own) && !url.starts_with("data:")).collect();
    assert_eq!(strays, Vec::<String>::new());
    // The policy prevents injected scripts.
    let slipped = "const script = document.createElement('script'); document.body.append(script); \
                   try { script.textContent = 'window.slipped = true'; } catch (error) {} \
                   fetch('http://127.0.0.1:9/').catch(() => { window.refused = true; }); 0";
    browser.eval(slipped);
    browser.until("window.refused === true");
    assert_eq!(browser.eval("window.slipped"), Value::Null);
    assert!(browser.complaints().iter().any(|complaint| complaint.contains("Content Security Policy")));

    // The page shows that the connection is lost.
    drop(stack);
    browser.until("document.querySelector('#link').textContent === 'connection lost'");
    browser.until("document.querySelector('#said').textContent.startsWith('Connection lost at ')");
    assert_eq!(browser.text("#ids dd"), "16", "what was known stays");
}

/// A browser has the password from its prompt, or from the URL, and sends it with each request of the page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_opens_in_a_browser_from_elsewhere_with_the_token_as_password_and_shows_nothing_with_another() {
    let stack = Stack::with(|_| {}, token).await;
    let host = format!("{ELSEWHERE}:{}", stack.app.admin_address().port());
    let mut browser = Browser::start();
    for who in ["", "operator:another-token@", &format!("{TOKEN}:@")] {
        browser.go(&format!("http://{who}{host}/"));
        assert_eq!(browser.eval("document.querySelector('#tiles, #config')"), Value::Null, "{who}");
        let shown = browser.eval("document.body.innerText").to_string();
        assert!(!shown.contains(&stack.origin.address().to_string()), "{who}: {shown}");
    }
    browser.go(&format!("http://operator:{TOKEN}@{host}/"));
    browser.until("document.querySelector('#link')?.textContent === 'live'");
    let shown = browser.eval("document.body.innerText").to_string();
    assert!(shown.contains(&stack.origin.address().to_string()), "{shown}");
}

/// Not a test: takes screenshots of the page, empty and after a few minutes of mixed traffic, into the folder that
/// `SIDELINK_PICTURES` names. `make status-page` keeps one for README.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes, and shows nothing by itself"]
async fn pictures() {
    let Some(folder) = std::env::var_os("SIDELINK_PICTURES").map(std::path::PathBuf::from) else { return };
    let minutes: u64 = std::env::var("SIDELINK_PICTURES_MINUTES").map_or(5, |minutes| minutes.parse().unwrap());
    let delay = |endpoint: &mut sidelink::demo::origin::Options| {
        endpoint.delay = Duration::from_millis(20);
        endpoint.record = false;
        endpoint.missing = (0..5000).step_by(40).map(|id: u32| id.to_string()).collect();
    };
    let configure = |config: &mut Config| {
        config.freshness.max = Duration::from_secs(60);
        config.cache.capacity = 8 << 20;
    };
    let stack = Stack::with(delay, configure).await;
    let address = stack.app.admin_address();
    let mut browser = Browser::start();
    let mut take = |name: &str| {
        for (width, height) in [(1280, 900), (390, 844)] {
            for scheme in ["light", "dark"] {
                browser.look(width, height, scheme);
                browser.open(address, "/");
                browser.until("document.querySelector('#link').textContent === 'live'");
                let file = folder.join(format!("{name}-{width}-{scheme}.png"));
                std::fs::write(&file, browser.picture(false)).unwrap();
                std::fs::write(file.with_extension("whole.png"), browser.picture(true)).unwrap();
            }
        }
    };
    take("empty");
    let end = tokio::time::Instant::now() + Duration::from_secs(60 * minutes);
    let clients: Vec<_> = (0..8_u64)
        .map(|seed| {
            let (client, origin) = (stack.client.clone(), stack.origin.clone());
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(seed);
                let zipf = rand_distr::Zipf::new(5000.0_f64, 0.99).unwrap();
                while tokio::time::Instant::now() < end {
                    let ids: BTreeSet<String> = (0..20).map(|_| zipf.sample(&mut random).floor().to_string()).collect();
                    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                    client.batch(&format!("t{}", seed % 2), &ids).await;
                    // Varying load, and an endpoint that fails at times.
                    let phase = (end - tokio::time::Instant::now()).as_secs_f64();
                    tokio::time::sleep(Duration::from_secs_f64(0.03 + 0.02 * (phase / 25.0).sin())).await;
                    let fails = (phase % 120.0) < 8.0;
                    origin.update(|endpoint| endpoint.fail_ratio = if fails { 0.6 } else { 0.0 });
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    take("load");
}
