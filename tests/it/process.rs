//! `sidelink serve` as a process, for signals, files and exit codes.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::support::{TestClient, value_of};

/// Longer than anything takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `sidelink serve`; killed when dropped.
pub struct Process {
    child: Child,
    lines: UnboundedReceiver<Value>,
    /// Every line so far.
    pub log: Vec<Value>,
    /// Lines from before "serving" that no test has waited for.
    early: Vec<Value>,
    pub address: SocketAddr,
    pub admin: TestClient,
    pub client: TestClient,
}

/// A directory for configuration files.
pub struct Files {
    pub directory: TempDir,
    endpoint: SocketAddr,
}

impl Files {
    pub fn new(endpoint: SocketAddr) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), endpoint }
    }

    /// A configuration with the lines `more`.
    pub fn text(&self, more: &str) -> String {
        let endpoint = self.endpoint;
        format!(
            "listen.address = \"127.0.0.1:0\"\nadmin.address = \"127.0.0.1:0\"\nupstream.endpoint = \"http://{endpoint}\"\n{more}\n"
        )
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("sidelink.toml")
    }

    pub fn write(&self, more: &str) -> PathBuf {
        std::fs::write(self.path(), self.text(more)).unwrap();
        self.path()
    }
}

impl Process {
    pub async fn start(path: &Path) -> Self {
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_sidelink")).args(["serve", "--config"]).arg(path)).await
    }

    /// `command` ends as `sidelink serve`.
    pub async fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (send, lines) = unbounded_channel();
        let read = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in read.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process = Self {
            child,
            lines,
            log: Vec::new(),
            early: Vec::new(),
            address: nowhere,
            admin: TestClient::new(nowhere),
            client: TestClient::new(nowhere),
        };
        let serving = process.says("serving").await;
        // Tasks start concurrently, so lines from before may be waited for as well.
        process.early = process.log.iter().filter(|line| **line != serving).cloned().collect();
        let first = serving["addresses"].as_str().unwrap().trim_matches(['[', ']']).split(", ").next().unwrap();
        if let Ok(address) = first.parse() {
            process.address = address;
            process.client = TestClient::new(address);
        }
        process.admin = TestClient::new(serving["admin"].as_str().unwrap().parse().unwrap());
        process
    }

    /// Waits for a line with this message.
    pub async fn says(&mut self, message: &str) -> Value {
        if let Some(at) = self.early.iter().position(|line| line["message"] == message) {
            return self.early.remove(at);
        }
        let said = async {
            while let Some(line) = self.lines.recv().await {
                self.log.push(line.clone());
                if line["message"] == message {
                    return line;
                }
            }
            panic!("ended without {message:?}; it said {:#?}", self.log)
        };
        tokio::time::timeout(PATIENCE, said).await.unwrap_or_else(|_| panic!("no {message:?}"))
    }

    /// Whether a line with this message was read.
    pub fn logged(&self, message: &str) -> bool {
        self.log.iter().any(|line| line["message"] == message)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        signal(self.id(), name);
    }

    /// Waits for the exit code. [`Process::log`] has every line then.
    pub async fn exit(&mut self) -> Option<i32> {
        let over = async {
            while let Some(line) = self.lines.recv().await {
                self.log.push(line);
            }
        };
        tokio::time::timeout(PATIENCE, over).await.expect("it does not end");
        self.child.wait().unwrap().code()
    }

    pub async fn metric(&self, series: &str) -> f64 {
        let page = self.admin.get("/metrics", &[]).await;
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        value_of(series, &text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(process: u32, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap();
    assert!(sent.success());
}
