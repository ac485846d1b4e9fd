//! A new configuration applies to requests from then on, and fails none: links stay in the cache, flights are joined,
//! connections stay open. A configuration that is refused changes nothing.

use std::os::unix::fs::symlink;
use std::time::Duration;

use sidelink::clock::Clock;
use sidelink::config::{Config, Endpoint};
use sidelink::demo::origin::{Origin, link_is_for};

use crate::process::{Files, Process};
use crate::signing::{ACCESS_KEY, SECRET_KEY, Unsigned, knows, pair};
use crate::support::{Reply, Stack, origin_options, query};

fn change(stack: &Stack, change: impl FnOnce(&mut Config)) {
    let mut config = Config::clone(&stack.app.config());
    change(&mut config);
    stack.app.apply(config).unwrap();
}

#[tokio::test]
async fn links_stay_and_what_is_asked_from_then_on_follows_the_new_configuration() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1", "2"]).await;
    change(&stack, |config| {
        config.limits.batch_ids = 3;
        config.freshness.max = Duration::from_secs(20);
        config.upstream.ids_per_call = 1;
    });
    assert_eq!(stack.client.batch("t", &["1", "2"]).await.header("cache-status"), "sidelink; hit");
    assert_eq!(stack.client.batch("t", &["1", "2", "3", "4"]).await.json()["error_code"], "SIDELINK.0001");
    stack.client.batch("t", &["5", "6"]).await;
    assert_eq!(stack.asked().len(), 3, "one id a call");
    let max_age = |reply: Reply| reply.header("cache-control").rsplit('=').next().unwrap().parse::<u64>().unwrap();
    // The deadlines of a link are fixed when it is fetched.
    assert!(max_age(stack.client.batch("t", &["1", "2"]).await) > 500);
    assert!(max_age(stack.client.batch("t", &["5", "6"]).await) <= 20);
    assert_eq!(stack.metric("sidelink_config_last_reload_successful").await, 1.0);
    assert!(stack.metric("sidelink_config_last_reload_success_timestamp_seconds").await > 1e9);
}

/// Regression: links that were cached under a lower floor were still served.
#[tokio::test]
async fn a_higher_floor_counts_for_what_is_kept_already() {
    let stack = Stack::with(|endpoint| endpoint.link_life = Duration::from_secs(200), |_| {}).await;
    stack.client.batch("t", &["1"]).await;
    change(&stack, |config| config.freshness.min_remaining = Duration::from_secs(30));
    assert_eq!(
        stack.client.batch("t", &["1"]).await.header("cache-status"),
        "sidelink; hit",
        "a lower one takes nothing"
    );
    change(&stack, |config| config.freshness.min_remaining = Duration::from_secs(190));
    stack.client.batch("t", &["1"]).await;
    assert_eq!(stack.asked(), [["1"], ["1"]]);
}

/// Regression: links of a call that had waited for a permit over the reload were cached under the lower floor.
#[tokio::test]
async fn a_higher_floor_counts_for_what_a_batch_of_the_time_before_brings() {
    let stack =
        Stack::with(|endpoint| endpoint.link_life = Duration::from_secs(200), |config| config.upstream.calls = 1).await;
    stack.origin.hold();
    let ask = |token: &'static str| {
        let client = stack.client.clone();
        tokio::spawn(async move { client.batch(token, &["1"]).await })
    };
    let first = ask("a");
    stack.origin.arrived(1).await;
    let waits = ask("b");
    while stack.metric("sidelink_limit_used{limit=\"in_flight\"}").await < 2.0 {
        tokio::task::yield_now().await;
    }
    change(&stack, |config| config.freshness.min_remaining = Duration::from_secs(190));
    stack.origin.release();
    assert!(first.await.unwrap().status.is_success() && waits.await.unwrap().status.is_success());
    assert_eq!(stack.client.batch("b", &["1"]).await.header("cache-status"), "sidelink; fwd=miss; stored");
    assert_eq!(stack.asked().len(), 3);
}

#[tokio::test]
async fn an_id_in_flight_is_joined_over_a_reload() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let client = stack.client.clone();
    let leader = tokio::spawn(async move { client.batch("t", &["1", "2"]).await });
    stack.origin.arrived(1).await;
    change(&stack, |config| config.upstream.deadline = Duration::from_secs(60));
    let client = stack.client.clone();
    let joiner = tokio::spawn(async move { client.batch("t", &["2", "3"]).await });
    stack.origin.arrived(2).await;
    stack.origin.release();
    assert_eq!(leader.await.unwrap().ids(), ["1", "2"]);
    assert_eq!(joiner.await.unwrap().ids(), ["2", "3"]);
    assert_eq!(stack.asked(), [vec!["1", "2"], vec!["3"]]);
}

#[tokio::test]
async fn what_queued_before_a_reload_leaves_as_the_last_batch_would() {
    let stack = Stack::with(|_| {}, |config| config.upstream.calls_per_scope = 1).await;
    stack.origin.hold();
    let ask = |ids: &'static [&'static str]| {
        let client = stack.client.clone();
        tokio::spawn(async move { client.batch("t", ids).await })
    };
    let first = ask(&["1"]);
    stack.origin.arrived(1).await;
    change(&stack, |config| config.upstream.ids_per_call = 2);
    let queued = ask(&["2", "3", "4", "5"]);
    // A batch is counted and boards its flights in one go.
    while stack.metric("sidelink_batch_ids_count").await < 2.0 {}
    stack.origin.release();
    first.await.unwrap();
    assert_eq!(queued.await.unwrap().ids().len(), 4);
    assert_eq!(stack.asked(), [vec!["1"], vec!["2", "3"], vec!["4", "5"]]);
}

#[tokio::test]
async fn another_endpoint_is_asked_anew_and_its_links_are_kept_apart() {
    let stack = Stack::start().await;
    let before = stack.client.batch("t", &["1"]).await.links();
    let mut options = origin_options();
    options.signer = Some(sidelink::demo::origin::LinkSigner::V4);
    let other = Origin::start(options).await.unwrap();
    let first = stack.app.config().upstream.endpoint.clone();

    stack.origin.hold();
    let client = stack.client.clone();
    let old = tokio::spawn(async move { client.batch("t", &["2"]).await });
    stack.origin.arrived(2).await;
    let endpoint = Endpoint::parse(&format!("http://{}", other.address())).unwrap();
    change(&stack, |config| config.upstream.endpoint = endpoint);
    // Neither the cache nor the flight of the same id at the first endpoint answers for this one.
    let reply = stack.client.batch("t", &["1", "2"]).await;
    assert_eq!(reply.header("cache-status"), "sidelink; fwd=miss; stored");
    assert_eq!(other.calls().len(), 1);
    assert!(
        reply.links().iter().all(|(id, link)| link.contains("X-Amz") && link_is_for(link, id, None, "t", None, None))
    );
    stack.origin.release();
    assert!(!old.await.unwrap().links()[0].1.contains("X-Amz"));

    // Back again: the links of the first endpoint are still there.
    change(&stack, |config| config.upstream.endpoint = first);
    assert_eq!(stack.client.batch("t", &["1"]).await.links(), before);
    assert_eq!(stack.asked().len(), 2);
}

#[tokio::test]
async fn a_key_pair_that_is_taken_out_loses_access_at_once() {
    let clock = Clock::system();
    let keys = |options: &mut sidelink::demo::origin::Options| options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)];
    let stack = Stack::on(clock.clone(), keys, |config| knows(config, ACCESS_KEY, SECRET_KEY)).await;
    let send = async || {
        let headers = Unsigned::get(stack.client.address, &query(&["1"]), &clock).sign();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        stack.client.get(&query(&["1"]), &headers).await
    };
    send().await;
    assert_eq!(send().await.header("cache-status"), "sidelink; hit");
    change(&stack, |config| {
        config.callers.keys.clear();
        knows(config, ACCESS_KEY, "sk-another");
    });
    let reply = send().await;
    assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=signature");
    change(&stack, |config| config.callers.keys.clear());
    let reply = send().await;
    assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=unknown-key");
    assert_eq!(reply.status, 401, "the endpoint judges a signature that is not for it");
    // With its key back, its links are still there.
    change(&stack, |config| knows(config, ACCESS_KEY, SECRET_KEY));
    assert_eq!(send().await.header("cache-status"), "sidelink; hit");
}

#[tokio::test]
async fn a_smaller_cache_lets_go_of_links_at_once() {
    let stack = Stack::with(|_| {}, |config| config.cache.capacity = 64 << 20).await;
    for first in (0..4000).step_by(100) {
        let ids: Vec<String> = (first..first + 100).map(|id| id.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        stack.client.batch("t", &ids).await;
    }
    assert!(stack.metric("sidelink_cache_bytes").await > f64::from(1 << 20));
    change(&stack, |config| config.cache.capacity = 1 << 20);
    let bytes = stack.metric("sidelink_cache_bytes").await;
    assert!(bytes > 0.0 && bytes <= f64::from(1 << 20), "{bytes}");
}

const RELOADED: &str = "the configuration was reloaded";
const REFUSED: &str = "the configuration was refused; the previous one stays in effect";

/// How many ids a batch may have, as the process under test sees it: a key that is easily changed and seen.
async fn batch_ids(process: &Process) -> usize {
    for count in 1..=5 {
        let ids: Vec<String> = (1..=count + 1).map(|id| id.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        if process.client.batch("t", &ids).await.status == 400 {
            return count;
        }
    }
    panic!("more than are asked for")
}

async fn before_an_endpoint(more: &str) -> (Origin, Files, Process) {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let process = Process::start(&files.write(more)).await;
    (origin, files, process)
}

#[tokio::test]
async fn sighup_loads_the_file_anew() {
    let (origin, files, mut process) = before_an_endpoint("limits.batch_ids = 2").await;
    assert_eq!(batch_ids(&process).await, 2);
    let asked = origin.ids_asked();
    files.write("limits.batch_ids = 3\nlog.level = \"error\"");
    process.signal("HUP");
    while batch_ids(&process).await == 2 {}
    assert_eq!(origin.ids_asked(), asked + 1, "links stay");
    process.client.get("/after", &[]).await;
    process.signal("TERM");
    assert_eq!(process.exit().await, Some(0));
    assert!(process.log.iter().any(|line| line["target"] == "access"));
    assert!(!process.log.iter().any(|line| line["path"] == "/after"), "the level has changed");
}

#[tokio::test]
async fn a_change_of_the_file_is_applied_once_it_is_complete() {
    let (_origin, files, mut process) = before_an_endpoint("limits.batch_ids = 2").await;
    // As an editor writes that truncates first and is slow.
    std::fs::write(files.path(), "[limits").unwrap();
    files.write("limits.batch_ids = 3");
    process.says(RELOADED).await;
    assert_eq!(batch_ids(&process).await, 3);
    // As one writes that moves a new file over the old one.
    let beside = files.directory.path().join("new");
    std::fs::write(&beside, files.text("limits.batch_ids = 4")).unwrap();
    std::fs::rename(beside, files.path()).unwrap();
    process.says(RELOADED).await;
    assert_eq!(batch_ids(&process).await, 4);
    assert!(!process.log.iter().any(|line| line["message"] == REFUSED));
}

#[tokio::test]
async fn kubernetes_swaps_a_whole_mounted_directory() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let mount = files.directory.path();
    // What the kubelet does: data lies in a directory named after the time, `..data` points at it, and is swapped.
    let publish = |version: &str, more: &str| {
        std::fs::create_dir(mount.join(version)).unwrap();
        std::fs::write(mount.join(version).join("sidelink.toml"), files.text(more)).unwrap();
        symlink(version, mount.join("..data_tmp")).unwrap();
        std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    };
    publish("..2026_11_24_10_00_00.1", "limits.batch_ids = 2");
    symlink("..data/sidelink.toml", files.path()).unwrap();
    let mut process = Process::start(&files.path()).await;
    assert_eq!(batch_ids(&process).await, 2);
    publish("..2026_11_24_10_01_00.2", "limits.batch_ids = 3");
    std::fs::remove_dir_all(mount.join("..2026_11_24_10_00_00.1")).unwrap();
    process.says(RELOADED).await;
    assert_eq!(batch_ids(&process).await, 3);
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_seen_in_log_and_metric() {
    let (_origin, files, mut process) = before_an_endpoint("limits.batch_ids = 2").await;
    let path = files.write("limits.batch_ids = 3\nlimits.batch_idz = 4\nlog.level = \"loud\"");
    process.signal("HUP");
    assert_eq!(process.says(REFUSED).await["errors"], 2);
    let said: Vec<&str> = process.log.iter().filter_map(|line| line["reason"].as_str()).collect();
    for (line, key) in [(5, "limits.batch_idz: unknown key"), (6, "log.level: must be one of")] {
        let begin = format!("{}:{line}: {key}", path.display());
        assert!(said.iter().any(|said| said.starts_with(&begin)), "{said:?}");
    }
    assert_eq!(process.metric("sidelink_config_last_reload_successful").await, 0.0);
    assert_eq!(batch_ids(&process).await, 2);
    files.write("limits.batch_ids = 3");
    process.says(RELOADED).await;
    assert_eq!(process.metric("sidelink_config_last_reload_successful").await, 1.0);
    assert_eq!(batch_ids(&process).await, 3);
}

#[tokio::test]
async fn what_cannot_change_while_it_runs_is_named_with_its_line() {
    let (_origin, files, mut process) = before_an_endpoint("").await;
    let text =
        files.text("log.format = \"text\"\nlimits.batch_ids = 3").replace("listen.address = \"127.0.0.1:0\"\n", "");
    std::fs::write(files.path(), text.replace("admin.address = \"127.0.0.1:0\"", "admin.address = \"127.0.0.1:1\""))
        .unwrap();
    process.signal("HUP");
    assert_eq!(process.says(REFUSED).await["errors"], 3);
    let said: Vec<&str> = process.log.iter().filter_map(|line| line["reason"].as_str()).collect();
    for (line, key) in [(1, "admin.address"), (1, "listen.address"), (3, "log.format")] {
        let error = format!("{}:{line}: {key}: cannot change at run time: restart", files.path().display());
        assert!(said.contains(&error.as_str()), "{error} in {said:?}");
    }
    assert!(process.client.batch("t", &["1", "2", "3", "4"]).await.status.is_success());
}

#[tokio::test]
async fn a_secret_key_is_read_anew_when_its_file_changes() {
    let mut options = origin_options();
    options.keys = vec![pair(ACCESS_KEY, "sk-first"), pair("AKSECOND", "sk-second")];
    let origin = Origin::start(options).await.unwrap();
    let files = Files::new(origin.address());
    let secret = files.directory.path().join("secret-key");
    std::fs::write(&secret, "sk-wrong\n").unwrap();
    let table = format!("[[callers.keys]]\naccess_key = \"{ACCESS_KEY}\"\nsecret_key_file = \"{}\"", secret.display());
    let mut process = Process::start(&files.write(&table)).await;
    let client = process.client.clone();
    let send = async |secret_key| {
        let request = Unsigned::get(client.address, &query(&["1"]), &Clock::system());
        let headers = Unsigned { secret_key, ..request }.sign();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        client.get(&query(&["1"]), &headers).await
    };
    assert_eq!(send("sk-first").await.header("cache-status"), "sidelink; fwd=bypass; detail=signature");
    let line = process
        .says("a signature made with a key of callers.keys does not verify; the request is forwarded untouched")
        .await;
    assert!(line["reason"].as_str().unwrap().contains("the secret key differs"), "{line}");
    std::fs::write(&secret, "sk-first\n").unwrap();
    process.says(RELOADED).await;
    assert_eq!(send("sk-first").await.ids(), ["1"]);
    let reply = send("sk-wrong").await;
    assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (401, Some("APIGW.0301")));
}

#[tokio::test]
async fn what_was_refused_for_lack_of_a_file_is_tried_again() {
    let (_origin, files, mut process) = before_an_endpoint("limits.batch_ids = 2").await;
    let secret = files.directory.path().join("secret-key");
    let table = format!("[[callers.keys]]\naccess_key = \"AK\"\nsecret_key_file = \"{}\"", secret.display());
    files.write(&format!("limits.batch_ids = 3\n{table}"));
    process.says(REFUSED).await;
    // As a Secret that comes later than the ConfigMap that names it.
    std::fs::write(secret, "sk").unwrap();
    process.says(RELOADED).await;
    assert_eq!(batch_ids(&process).await, 3);
}

/// Opens `pipe` for writing once a process reads it. While it is open, its reader waits.
async fn open_for_reader(pipe: &std::path::Path) -> std::fs::File {
    use std::os::unix::fs::OpenOptionsExt;
    const NONBLOCK: i32 = 0o4000;

    let mut open = std::fs::OpenOptions::new();
    let open = open.write(true).custom_flags(NONBLOCK);
    let opened = async {
        loop {
            match open.open(pipe) {
                Ok(pipe) => break pipe,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), opened).await.expect("nobody reads it")
}

/// A process whose configuration is a pipe.
async fn with_a_pipe() -> (Origin, Files, Process) {
    let (origin, files, process) = before_an_endpoint("").await;
    let pipe = files.directory.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::fs::rename(&pipe, files.path()).unwrap();
    (origin, files, process)
}

/// Regression: a reload that hung on a file delayed the effect of SIGTERM.
#[tokio::test]
async fn a_reload_that_hangs_on_a_file_keeps_no_end_waiting() {
    let (_origin, files, mut process) = with_a_pipe().await;
    process.signal("HUP");
    let _pipe = open_for_reader(&files.path()).await;
    assert!(process.client.batch("t", &["1"]).await.status.is_success(), "it goes on answering");
    process.signal("TERM");
    assert_eq!(process.exit().await, Some(0));
}

/// Regression: a SIGHUP that came during a reload did nothing.
#[tokio::test]
async fn a_hang_up_during_a_reload_asks_for_another() {
    let (_origin, files, process) = with_a_pipe().await;
    process.signal("HUP");
    let pipe = open_for_reader(&files.path()).await;
    process.signal("HUP");
    for id in ["1", "2", "3"] {
        assert!(process.client.batch("t", &[id]).await.status.is_success());
    }
    drop(pipe);
    drop(open_for_reader(&files.path()).await);
}

/// An operator who asks again wants to know again.
#[tokio::test]
async fn each_sighup_is_answered_in_the_log_also_where_the_file_is_still_wrong() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let mut process = Process::start(&files.write("")).await;
    files.write("limits.batch_idz = 3");
    for _ in 0..3 {
        process.signal("HUP");
        process.says(REFUSED).await;
    }
}
