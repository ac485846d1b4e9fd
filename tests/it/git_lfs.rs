//! The git-lfs client works through sidelink as it works with its server, giftless: objects that are pushed come back the same, the
//! links of a second clone come from memory, no user gets a link of another, and none is given that is dead or soon will be.
//!
//! `make tools` installs both; without them these tests fail.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use serde_json::{Value, json};
use sidelink::app::App;
use sidelink::clock::Clock;
use sidelink::config::batch::BatchApi;
use tempfile::TempDir;

use crate::process::{Files, Process};
use crate::support::{Reply, TestClient, config};

const REPOSITORY: &str = "org/repo.git/info/lfs";
/// Seconds; longer than anything takes, also on a busy machine.
const PATIENCE: &str = "120";
const PRESET: &str = "[[batch]]\npreset = \"git-lfs\"";

/// giftless; killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    passwords: Value,
    folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Its links live for `lifetime` seconds, and say that they live for 900.
    fn start(lifetime: u32) -> Self {
        let (root, folder) = (env!("CARGO_MANIFEST_DIR"), tempfile::tempdir().unwrap());
        let mut command = Command::new(format!("{root}/.venv/bin/python"));
        command.arg(format!("{root}/tests/lfs/server.py")).arg(folder.path()).arg(lifetime.to_string());
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("the server's Python is not there: run `make tools`");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).expect("giftless is not there: run `make tools`");
        let port = u16::try_from(said["port"].as_u64().unwrap()).unwrap();
        Self { child, address: ([127, 0, 0, 1], port).into(), passwords: said["passwords"].clone(), folder }
    }

    fn password(&self, user: &str) -> &str {
        self.passwords[user].as_str().unwrap()
    }

    fn authorization(&self, user: &str) -> String {
        let pair = format!("_jwt:{}", self.password(user));
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    }

    /// Answered requests of `user` whose path ends so.
    async fn requests(&self, user: impl Into<Value>, path: &str) -> Vec<Value> {
        let user = user.into();
        let requests = TestClient::new(self.address).get("/requests", &[]).await.json();
        let is_one = |line: &&Value| line["user"] == user && line["path"].as_str().unwrap().ends_with(path);
        requests.as_array().unwrap().iter().filter(is_one).cloned().collect()
    }

    /// The answered batches of `user`: operation, number of objects, status.
    async fn batches(&self, user: &str) -> Vec<(String, usize, u64)> {
        let batch = |line: &Value| {
            let request = &line["request"];
            let objects = request["objects"].as_array().unwrap().len();
            (request["operation"].as_str().unwrap().to_owned(), objects, line["status"].as_u64().unwrap())
        };
        self.requests(user, "/objects/batch").await.iter().map(batch).collect()
    }

    /// Puts an object of this id into its store.
    fn store(&self, oid: &str, content: &str) {
        std::fs::write(self.folder.path().join("org/repo").join(oid), content).unwrap();
    }
}

/// A machine of a user with git-lfs, whose server is at `address`.
struct User {
    home: TempDir,
    password: String,
}

impl User {
    fn new(server: &Server, name: &str, address: SocketAddr) -> Self {
        let user = Self { home: tempfile::tempdir().unwrap(), password: server.password(name).to_owned() };
        let settings = format!(
            "[user]\nname = {name}\nemail = {name}@example.test\n[init]\ndefaultBranch = main\n[lfs]\n\
             url = http://{address}/{REPOSITORY}\nlocksverify = true\n[credential]\n\
             helper = \"!f() {{ test $1 = get && echo username=_jwt && echo password=$LFS_PASSWORD; }}; f\"\n"
        );
        std::fs::write(user.home.path().join(".gitconfig"), settings).unwrap();
        user.git(user.home.path(), &["lfs", "install", "--skip-repo"]);
        user
    }

    /// Runs git, which has to succeed, in this folder.
    fn git(&self, folder: &Path, arguments: &[&str]) -> String {
        let output = self.try_git(folder, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "git {arguments:?}: {}\n{said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    fn try_git(&self, folder: &Path, arguments: &[&str]) -> Output {
        // timeout(1) ends git's children as well.
        let mut command = Command::new("timeout");
        command.args(["-k", "1", PATIENCE, "git"]).args(arguments).current_dir(folder);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path());
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0").env("LFS_PASSWORD", &self.password);
        command.stdin(Stdio::null()).output().expect("git and git-lfs are not there: run `make tools`")
    }

    /// Clones `remote`, and downloads its objects.
    fn clone(&self, remote: &Path, name: &str) -> PathBuf {
        self.git(self.home.path(), &["clone", "--quiet", remote.to_str().unwrap(), name]);
        self.home.path().join(name)
    }
}

/// A repository with these files, whose objects `user` has pushed.
fn push(user: &User, files: &[(String, Vec<u8>)]) -> PathBuf {
    let home = user.home.path();
    user.git(home, &["init", "--quiet", "--bare", "remote"]);
    let (remote, work) = (home.join("remote"), home.join("work"));
    user.git(home, &["init", "--quiet", "work"]);
    user.git(&work, &["lfs", "track", "--lockable", "*.bin"]);
    for (name, content) in files {
        std::fs::File::create(work.join(name)).unwrap().write_all(content).unwrap();
    }
    user.git(&work, &["add", "."]);
    user.git(&work, &["commit", "--quiet", "--message", "objects"]);
    user.git(&work, &["remote", "add", "origin", remote.to_str().unwrap()]);
    user.git(&work, &["push", "--quiet", "origin", "main"]);
    remote
}

fn files() -> Vec<(String, Vec<u8>)> {
    let content = |n: u8| (0..40_000_u32).map(|at| n.wrapping_mul(31) ^ at.to_le_bytes()[at as usize % 2]).collect();
    (1..=7).map(|n| (format!("{n}.bin"), content(n))).collect()
}

fn are_the_same(clone: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        assert!(std::fs::read(clone.join(name)).unwrap() == *content, "{name} differs");
    }
}

/// The sum of a metric's series with this label.
async fn sum(process: &Process, name: &str, label: &str) -> f64 {
    let page = process.admin.get("/metrics", &[]).await;
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    let series = text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pushed_through_sidelink_is_cloned_twice_and_the_second_clone_hits() {
    let server = Server::start(3600);
    let mut sidelink = Process::start(&Files::new(server.address).write(PRESET)).await;
    let alice = User::new(&server, "alice", sidelink.address);
    let (files, count) = (files(), files().len());
    let remote = push(&alice, &files);
    let uploads = [("upload".to_owned(), count, 200)];
    assert_eq!(server.batches("alice").await, uploads, "an upload is passed on as it is");
    assert_eq!(
        server.requests(Value::Null, "/locks/verify").await.len(),
        1,
        "and so are the API of locks and its answers"
    );

    are_the_same(&alice.clone(&remote, "one"), &files);
    let downloads = |batches: &[(String, usize, u64)]| -> Vec<usize> {
        batches.iter().filter(|(operation, ..)| operation == "download").map(|(_, objects, _)| *objects).collect()
    };
    let once = downloads(&server.batches("alice").await);
    assert_eq!(once.iter().sum::<usize>(), count);
    let before = sum(&sidelink, "sidelink_ids_total", "result=\"hit\"").await;

    are_the_same(&alice.clone(&remote, "two"), &files);
    assert_eq!(downloads(&server.batches("alice").await), once, "the second clone asks the server for no link");
    assert!(sum(&sidelink, "sidelink_ids_total", "result=\"hit\"").await == before + count as f64);
    assert!(sum(&sidelink, "sidelink_bypass_total", "reason=\"condition\"").await >= 1.0, "uploads have a reason");

    // Another user, with links of his own.
    let bob = User::new(&server, "bob", sidelink.address);
    are_the_same(&bob.clone(&remote, "of-bob"), &files);
    assert_eq!(downloads(&server.batches("bob").await).iter().sum::<usize>(), count);
    for (user, downloaded) in [("alice", 2 * count), ("bob", count)] {
        let served = server.requests(user, "").await.into_iter().filter(|line| line["method"] == "GET");
        assert_eq!(served.count(), downloaded, "{user} downloads by links that name {user}");
    }

    sidelink.signal("TERM");
    assert_eq!(sidelink.exit().await, Some(0));
    let lines = sidelink.log.iter().filter(|line| line["message"] == "request");
    let batches: Vec<&Value> = lines.filter(|line| line["route"] == "batch" && line["status"] == 200).collect();
    let hits = batches.iter().filter(|line| line["outcome"] == "hit").map(|line| line["hit"].as_u64().unwrap());
    assert_eq!(hits.sum::<u64>(), count as u64, "{batches:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_locked_and_unlocked_through_sidelink() {
    let server = Server::start(3600);
    let sidelink = Process::start(&Files::new(server.address).write(PRESET)).await;
    let alice = User::new(&server, "alice", sidelink.address);
    push(&alice, &files());
    let work = alice.home.path().join("work");
    alice.git(&work, &["lfs", "lock", "1.bin"]);
    let listed: Value = serde_json::from_str(&alice.git(&work, &["lfs", "locks", "--json"])).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["path"]), (1, &json!("1.bin")));
    std::fs::write(work.join("8.bin"), "more").unwrap();
    alice.git(&work, &["add", "."]);
    alice.git(&work, &["commit", "--quiet", "--message", "more"]);
    alice.git(&work, &["push", "--quiet", "origin", "main"]);
    alice.git(&work, &["lfs", "unlock", "1.bin"]);
    assert_eq!(alice.git(&work, &["lfs", "locks"]), "");
}

/// What an official client says of an object that is gone, direct and through, and what it downloads all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_misses_the_same_objects_through_sidelink_as_directly() {
    let server = Server::start(3600);
    let sidelink = Process::start(&Files::new(server.address).write(PRESET)).await;
    let (files, direct) = (files(), User::new(&server, "alice", server.address));
    let remote = push(&direct, &files);
    let gone = direct.git(&direct.home.path().join("work"), &["lfs", "ls-files", "--long", "--include", "3.bin"]);
    std::fs::remove_file(server.folder.path().join("org/repo").join(gone.split(' ').next().unwrap())).unwrap();

    let through = User::new(&server, "alice", sidelink.address);
    let mut said = Vec::new();
    for (user, name) in [(&direct, "direct"), (&through, "first"), (&through, "second")] {
        let pointers = ["-c", "filter.lfs.smudge=", "-c", "filter.lfs.process=", "-c", "filter.lfs.required=false"];
        let clone = [&pointers[..], &["clone", "--quiet", remote.to_str().unwrap(), name]].concat();
        user.git(user.home.path(), &clone);
        let folder = user.home.path().join(name);
        let pull = user.try_git(&folder, &["lfs", "pull"]);
        let message = String::from_utf8_lossy(&pull.stderr).into_owned();
        let errors: Vec<String> = message.lines().filter(|line| line.contains("[404]")).map(str::to_owned).collect();
        let same = files.iter().filter(|(file, content)| std::fs::read(folder.join(file)).unwrap() == *content).count();
        said.push((pull.status.code(), errors, same));
    }
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0], said[2]);
    assert!(!said[0].1.is_empty() && said[0].0 != Some(0), "{said:?}");
}

/// sidelink in this process, so that its clock can be set.
async fn sidelink(server: &Server, min_remaining: u64) -> (App, Clock, TestClient) {
    let mut config = config(server.address);
    config.batch = BatchApi::preset("git-lfs").into_iter().collect();
    config.freshness.min_remaining = std::time::Duration::from_secs(min_remaining);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let clock = Clock::simulated(i64::try_from(now.as_millis()).unwrap());
    let app = App::start_with(config, clock.clone()).await.unwrap();
    let client = TestClient::new(app.addresses()[0]);
    (app, clock, client)
}

async fn batch(client: &TestClient, authorization: &str, objects: &Value) -> Reply {
    let body = json!({"operation": "download", "transfers": ["basic"], "objects": objects}).to_string();
    let media_type = "application/vnd.git-lfs+json";
    let headers = [("authorization", authorization), ("accept", media_type), ("content-type", media_type)];
    client.send(http::Method::POST, &format!("/{REPOSITORY}/objects/batch"), &headers, body).await
}

#[tokio::test]
async fn a_link_whose_token_lives_for_less_than_the_server_says_is_not_kept_beyond_the_token() {
    let server = Server::start(60);
    let oid = "a".repeat(64);
    server.store(&oid, "content");
    let objects = json!([{"oid": oid, "size": 7}]);
    let (alice, bob) = (server.authorization("alice"), server.authorization("bob"));
    let (_app, clock, client) = sidelink(&server, 10).await;
    let download = |reply: &Reply| reply.json()["objects"][0]["actions"]["download"].clone();
    let first = batch(&client, &alice, &objects).await;
    assert_eq!(
        (first.header("cache-status"), &download(&first)["expires_in"]),
        ("sidelink; fwd=miss; stored", &json!(900))
    );
    clock.step(30_000);
    let later = batch(&client, &alice, &objects).await;
    assert_eq!((later.header("cache-status"), &download(&later)["href"]), ("sidelink; hit", &download(&first)["href"]));
    let left = download(&later)["expires_in"].as_u64().unwrap();
    assert!((851..=870).contains(&left), "what is left of 900 after 30 seconds: {left}");
    assert_eq!(server.batches("alice").await.len(), 1);
    // Of the token's minute fewer than ten seconds are left.
    clock.step(21_000);
    batch(&client, &alice, &objects).await;
    assert_eq!(server.batches("alice").await.len(), 2);

    let of_bob = batch(&client, &bob, &objects).await;
    assert_eq!(of_bob.header("cache-status").split(';').nth(1), Some(" fwd=miss"), "nobody shares a link");
    assert_eq!(server.batches("bob").await.len(), 1);
    let (_app, _, client) = sidelink(&server, 61).await;
    for _ in 0..2 {
        batch(&client, &bob, &objects).await;
    }
    assert_eq!(server.batches("bob").await.len(), 3, "a minute is too short to be kept");
}

/// The answer without what differs from one to the next.
fn without_tokens(reply: &Reply) -> (u16, String, Value) {
    let mut body = reply.json();
    for object in body["objects"].as_array_mut().into_iter().flatten() {
        if let Some(download) = object.pointer_mut("/actions/download") {
            let href = download["href"].as_str().unwrap().split('?').next().unwrap().to_owned();
            (download["href"], download["expires_in"]) = (href.into(), Value::Null);
        }
    }
    (reply.status.as_u16(), reply.header("content-type").to_owned(), body)
}

#[tokio::test]
async fn objects_that_are_missing_are_answered_as_by_the_server() {
    let server = Server::start(3600);
    let oid = |letter: &str| letter.repeat(64);
    for letter in ["a", "b"] {
        server.store(&oid(letter), "content");
    }
    let objects = |letters: &[&str]| -> Value { letters.iter().map(|l| json!({"oid": oid(l), "size": 7})).collect() };
    let (_app, clock, client) = sidelink(&server, 60).await;
    let (direct, alice) = (TestClient::new(server.address), server.authorization("alice"));
    for (at, letters) in [&["c"][..], &["a"], &["a", "c"], &["c", "d"], &["b", "c", "d", "a"], &["a", "b"], &["c", "a"]]
        .iter()
        .cycle()
        .take(14)
        .enumerate()
    {
        let expected = without_tokens(&batch(&direct, &alice, &objects(letters)).await);
        let reply = batch(&client, &alice, &objects(letters)).await;
        assert_eq!(without_tokens(&reply), expected, "{letters:?}");
        // Objects are remembered as missing for five seconds.
        clock.step(if at % 3 == 2 { 6000 } else { 0 });
    }
    let wrong_size = json!([{"oid": oid("a"), "size": 8}]);
    for _ in 0..2 {
        let expected = without_tokens(&batch(&direct, &alice, &wrong_size).await);
        assert_eq!(without_tokens(&batch(&client, &alice, &wrong_size).await), expected);
    }
    assert_eq!(without_tokens(&batch(&client, &alice, &objects(&["a"])).await).0, 200);
}
