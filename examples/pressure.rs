//! A real sidelink at its limits: `make pressure`, some minutes. More callers than are usual, more connections than it may
//! have, and far more links than its cache holds; what it takes of memory is printed after each, and has a bound.
//!
//! Starts `sidelink origin` and `sidelink serve` as processes of their own. Ends with 0 only if every answer was right and
//! nothing was over its bound.

#![allow(clippy::print_stdout, reason = "a program that reports")]

use std::error::Error;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use sidelink::demo::origin::interface as api;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

/// Callers at a time, each on a connection of its own.
const CALLERS: usize = 3_000;
/// Connections opened and closed, and how many of them there are at a time: more than may be served.
const CHURN: usize = 10_000;
const CHURN_AT_A_TIME: usize = 1_200;
/// Links asked for once, and how many in a batch.
const LINKS: usize = 1_000_000;
const BATCH: usize = 1_000;
/// Batches of those at a time, each another caller's: one may have half of `limits.in_flight`.
const BATCHES_AT_A_TIME: usize = 12;
/// Connections that may be served: fewer than want to be.
const CONNECTIONS: usize = CALLERS;
const CAPACITY_MIB: f64 = 16.0;
/// What memory may come to: idle, half as much again as the cache holds, and this: some 20 KiB for each of the connections,
/// and as much again for 20,000 ids in flight and their batches' answers, half a MiB for a thousand. All links that pass
/// would be 450 MiB.
const BESIDES_MIB: f64 = 192.0;
/// Places that are left to connections that come and go, twice over.
const QUEUE: usize = 1_000;

/// Batches that were told to ask again, for a limit was reached.
static SHED: AtomicUsize = AtomicUsize::new(0);

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let stage = Stage::set().await?;
    let idle = stage.look("idle").await?;
    callers(stage.address).await?;
    stage.look(&format!("{CALLERS} callers, each on its connection, 5 batches of 20")).await?;
    churn(stage.address).await?;
    stage.look(&format!("{CHURN} connections came and went")).await?;
    let began = Instant::now();
    links(stage.address).await?;
    let rate = LINKS as f64 / began.elapsed().as_secs_f64();
    let last = stage.look(&format!("{LINKS} distinct links, {rate:.0} a second")).await?;
    let bound = idle.rss + 1.5 * CAPACITY_MIB + BESIDES_MIB;
    let held = [
        (last.peak <= bound, format!("memory: {:.0} MiB at the most, of {bound:.0} allowed", last.peak)),
        (last.cached <= CAPACITY_MIB, format!("cache: {:.1} MiB of {CAPACITY_MIB} at the end", last.cached)),
        (last.connections <= 64.0, format!("connections: {} left", last.connections)),
    ];
    for (holds, what) in &held {
        println!("{} {what}", if *holds { "ok " } else { "NOT" });
    }
    if held.iter().all(|(holds, _)| *holds) { Ok(()) } else { Err("not everything held: see above".into()) }
}

/// All at a time, and each keeps its connection until all have been served.
async fn callers(address: SocketAddr) -> Result<(), Failure> {
    let (mut tasks, arrived) = (JoinSet::new(), Arc::new(tokio::sync::Barrier::new(CALLERS)));
    for caller in 0..CALLERS {
        let arrived = Arc::clone(&arrived);
        tasks.spawn(async move {
            let mut connection = connect(address).await?;
            for round in 0..5 {
                let first = caller * 7 + round * 10;
                ask(&mut connection, address, &format!("caller-{caller}"), first..first + 20).await?;
            }
            arrived.wait().await;
            Ok::<_, Failure>(())
        });
    }
    all(tasks).await
}

/// Beside connections that already have all places there are: each waits for its turn, asks once, and leaves.
async fn churn(address: SocketAddr) -> Result<(), Failure> {
    let (mut tasks, next) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    // They say nothing, and leave a few places to the others.
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS - QUEUE / 2 {
        idle.push(TcpStream::connect(address).await?);
    }
    for _ in 0..CHURN_AT_A_TIME {
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < CHURN {
                let mut connection = connect(address).await?;
                ask(&mut connection, address, "churn", 0..20).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    all(tasks).await?;
    drop(idle);
    Ok(())
}

async fn links(address: SocketAddr) -> Result<(), Failure> {
    let (mut tasks, next) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for caller in 0..BATCHES_AT_A_TIME {
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            let mut connection = connect(address).await?;
            loop {
                let first = next.fetch_add(BATCH, Ordering::Relaxed);
                if first >= LINKS {
                    return Ok::<_, Failure>(());
                }
                ask(&mut connection, address, &format!("links-{caller}"), first..first + BATCH).await?;
            }
        });
    }
    all(tasks).await
}

async fn all(mut tasks: JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let (sender, connection) = handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Asks for links by these numbers, again where a limit is reached, and sees that they are answered, all and in their order.
async fn ask(
    connection: &mut SendRequest<Full<Bytes>>,
    address: SocketAddr,
    token: &str,
    numbers: std::ops::Range<usize>,
) -> Result<(), Failure> {
    let mut ids = String::new();
    for number in numbers {
        let separator = if ids.is_empty() { "" } else { "," };
        write!(ids, "{separator}{number}")?;
    }
    loop {
        let request = Request::get(format!("{}?{}={ids}", api::PATH, api::IDS))
            .header("host", address.to_string())
            .header("x-auth-token", token)
            .body(Full::default())?;
        connection.ready().await?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let answer: serde_json::Value = serde_json::from_slice(&body)?;
        if answer.get("error_code").is_some_and(|code| code == "SIDELINK.1004") {
            SHED.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(rand::random_range(500..1500))).await;
            continue;
        }
        let items = answer
            .get("accessory_urls")
            .and_then(|items| items.as_array())
            .ok_or_else(|| format!("{status}: {answer}"))?;
        let answered = items.iter().map(|item| item.get("accessory_id").and_then(|id| id.as_str()).unwrap_or_default());
        if answered.eq(ids.split(',')) {
            return Ok(());
        }
        return Err(format!("{status}: other links than those asked for").into());
    }
}

/// What runs.
struct Stage {
    address: SocketAddr,
    admin: SocketAddr,
    sidelink: Child,
    _endpoint: Child,
    _folder: tempfile::TempDir,
}

/// What sidelink takes, in MiB and in number.
struct Look {
    rss: f64,
    peak: f64,
    cached: f64,
    connections: f64,
}

impl Stage {
    async fn set() -> Result<Self, Failure> {
        let own = std::env::current_exe()?;
        let binary = own.parent().and_then(Path::parent).ok_or("this program has no folder")?.join("sidelink");
        let (endpoint, address, admin) = (free().await?, free().await?, free().await?);
        let folder = tempfile::TempDir::new()?;
        let file = folder.path().join("sidelink.toml");
        let text = format!(
            "[listen]\naddress = \"{address}\"\n[admin]\naddress = \"{admin}\"\n\
             [upstream]\nendpoint = \"http://{endpoint}\"\ndeadline = \"60s\"\n\
             [cache]\ncapacity = \"{CAPACITY_MIB}MiB\"\n\
             [limits]\nconnections = {CONNECTIONS}\nidle_timeout = \"30s\"\n[log]\naccess = false\n"
        );
        std::fs::write(&file, text)?;
        let _endpoint = Command::new(&binary)
            .args(["origin", "--address", &endpoint.to_string()])
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{}: {error}; build it first", binary.display()))?;
        up(endpoint).await?;
        let serve = Command::new(&binary)
            .args(["serve", "--config"])
            .arg(file)
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        up(admin).await?;
        Ok(Self { address, admin, sidelink: serve?, _endpoint, _folder: folder })
    }

    /// Looks once what was in flight is over, and says so.
    async fn look(&self, after: &str) -> Result<Look, Failure> {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut connection = connect(self.admin).await?;
        let request = Request::get("/metrics").header("host", self.admin.to_string()).body(Full::default())?;
        let page = connection.send_request(request).await?.into_body().collect().await?.to_bytes();
        let page = String::from_utf8_lossy(&page).into_owned();
        let metric = |name: &str| {
            page.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
                .ok_or_else(|| format!("no {name}"))
        };
        let pid = self.sidelink.id().ok_or("sidelink has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
            line.and_then(|kib| kib.parse::<f64>().ok()).map(|kib| kib / 1024.0).ok_or_else(|| format!("no {name}"))
        };
        let look = Look {
            rss: mib("VmRSS:")?,
            peak: mib("VmHWM:")?,
            cached: metric("sidelink_cache_bytes ")? / 1024.0 / 1024.0,
            connections: metric("sidelink_connections ")?,
        };
        println!(
            "{:6.1} MiB, {:6.1} at the most so far; {:6.0} links in {:4.1} MiB of cache; {:3.0} connections; {} asked again: {after}",
            look.rss,
            look.peak,
            metric("sidelink_cache_links ")?,
            look.cached,
            look.connections,
            SHED.swap(0, Ordering::Relaxed),
        );
        Ok(look)
    }
}

async fn free() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()
}

async fn up(address: SocketAddr) -> Result<(), Failure> {
    for _ in 0..200 {
        if TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("nobody listens at {address}").into())
}
