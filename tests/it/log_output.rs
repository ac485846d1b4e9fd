//! Standard output that nobody reads, or that takes nothing, delays no request and not the end; what is lost is counted and told.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Lines};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sidelink::demo::origin::Origin;
use tokio::time::{Instant, timeout};

use crate::process::{Files, signal};
use crate::support::{TestClient, eventually, origin_options};

/// More lines than a pipe and the queue hold together.
const MANY: usize = 8_000;

/// A process that is killed when the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A `sidelink serve` whose standard output is read only by the test.
struct Unread {
    child: Killed,
    lines: Lines<BufReader<ChildStdout>>,
    admin: TestClient,
    client: TestClient,
}

impl Unread {
    fn start(path: &Path) -> Self {
        let mut child = Killed(serve(path).stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let serving = find(&mut lines, "serving");
        let address = |name: &str| serving[name].as_str().unwrap().parse::<SocketAddr>().unwrap();
        Self { child, lines, admin: TestClient::new(address("admin")), client: TestClient::new(address("addresses")) }
    }

    /// Asks until lines are dropped.
    async fn ask_many(&self) {
        for _ in 0..MANY {
            let answer = timeout(Duration::from_secs(30), self.client.batch("t", &["1"])).await;
            assert_eq!(answer.expect("a request waits for the log's reader").status, 200);
        }
    }

    async fn dropped(&self) -> f64 {
        metric(&self.admin).await
    }

    /// Tells it to end; returns the code, and how long the end took.
    async fn end(mut self) -> (Option<i32>, Duration, Lines<BufReader<ChildStdout>>) {
        let began = Instant::now();
        signal(self.child.0.id(), "TERM");
        let ended = tokio::task::spawn_blocking(move || self.child.0.wait().unwrap().code());
        let code = timeout(Duration::from_secs(30), ended).await.expect("it waits for the log's reader").unwrap();
        (code, began.elapsed(), self.lines)
    }
}

fn serve(path: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidelink"));
    command.args(["serve", "--config"]).arg(path);
    command
}

fn find(lines: &mut Lines<BufReader<ChildStdout>>, message: &str) -> Value {
    let mut values = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    values.find(|line| line["message"] == message).unwrap_or_else(|| panic!("no {message:?}"))
}

async fn metric(admin: &TestClient) -> f64 {
    let page =
        timeout(Duration::from_secs(30), admin.get("/metrics", &[])).await.expect("metrics wait for the log's reader");
    let text = String::from_utf8(page.body.to_vec()).unwrap();
    let line = text.lines().find(|line| line.starts_with("sidelink_log_dropped_total ")).unwrap().to_owned();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Where a process listens, by descriptor.
fn listening(process: u32) -> Vec<SocketAddr> {
    let table = std::fs::read_to_string(format!("/proc/{process}/net/tcp")).unwrap();
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    // State 0A listens; field 9 is the inode; an address is in hexadecimal.
    let ports: HashMap<String, u16> = fields
        .filter(|fields| fields[3] == "0A")
        .map(|fields| (format!("socket:[{}]", fields[9]), u16::from_str_radix(&fields[1][9..], 16).unwrap()))
        .collect();
    let port = |descriptor: u32| {
        let link = std::fs::read_link(format!("/proc/{process}/fd/{descriptor}")).ok()?;
        ports.get(link.to_str()?).copied()
    };
    (0..100).filter_map(port).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect()
}

async fn configured(origin: &Origin) -> (Files, PathBuf) {
    let files = Files::new(origin.address());
    let path = files.write("limits.drain = \"2s\"");
    (files, path)
}

#[tokio::test]
async fn a_reader_that_stalls_delays_no_request_no_probe_and_not_the_end() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let (_files, path) = configured(&origin).await;
    let unread = Unread::start(&path);
    unread.ask_many().await;
    assert_eq!(unread.admin.get("/livez", &[]).await.status, 200);
    eventually("lines are dropped", async || unread.dropped().await > 0.0).await;
    let status = unread.admin.get("/status.json", &[]).await.json();
    assert_eq!(
        (&status["alerts"][0]["kind"], &status["alerts"][0]["fault"]),
        (&"log_dropped".into(), &"operator".into())
    );
    let (code, took, _lines) = unread.end().await;
    assert_eq!(code, Some(0));
    // The drain, and a second for the reader; the rest is for a busy machine.
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test]
async fn once_lines_are_read_again_the_log_says_how_many_were_dropped() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let (_files, path) = configured(&origin).await;
    let mut unread = Unread::start(&path);
    unread.ask_many().await;
    eventually("lines are dropped", async || unread.dropped().await > 0.0).await;
    let reads = move || (find(&mut unread.lines, "log lines were dropped"), unread);
    let (told, unread) = tokio::task::spawn_blocking(reads).await.unwrap();
    assert_eq!(told["level"], "WARN");
    eventually("all are counted", async || Some(unread.dropped().await) == told["lines"].as_f64()).await;
    let (code, _, mut rest) = unread.end().await;
    assert_eq!(code, Some(0));
    find(&mut rest, "stopped");
}

#[tokio::test]
async fn an_output_that_takes_nothing_is_told_of_once_on_standard_error_and_counted() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let path = files.write("");
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let outputs: [(&str, &dyn Fn() -> Stdio); 2] = [("a full disk", &full), ("a closed pipe", &closed)];
    for (what, output) in outputs {
        let mut child = Killed(serve(&path).stdout(output()).stderr(Stdio::piped()).spawn().unwrap());
        // The line that would name them is lost. The admin listener is bound first.
        eventually("it listens", async || listening(child.0.id()).len() == 2).await;
        let [admin, client] =
            listening(child.0.id()).try_into().map(|found: [_; 2]| found.map(TestClient::new)).unwrap();
        for _ in 0..10 {
            assert_eq!(client.batch("t", &["1"]).await.status, 200, "{what}");
        }
        eventually("they are counted", async || metric(&admin).await >= 10.0).await;
        signal(child.0.id(), "TERM");
        let mut told = String::new();
        std::io::Read::read_to_string(&mut child.0.stderr.take().unwrap(), &mut told).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(0), "{what}");
        assert!(
            told.starts_with("sidelink: standard output takes no log lines: ") && told.lines().count() == 1,
            "{told}"
        );
    }
}
