//! Sidecars that share a tier: real redis-servers, each on a port reserved for its test.

pub mod alerts;
mod cluster;
mod costs;
mod faults;
mod isolation;
mod journal;
mod kinds;
mod leases;
pub mod link;
mod misfits;
mod once;
mod purges;
mod scale;
mod secrecy;
mod sentinel;
mod servers;
mod sharing;
pub mod split;
mod told;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sidelink::app::App;
use sidelink::clock::Clock;
use sidelink::config::{Config, NodeAddress, Secret, Shared};
use sidelink::demo::origin::{self, Origin};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};

use crate::support::{LOOPBACK, PATIENCE, TestClient, config, eventually, origin_options, value_of};

pub const SECRET: &str = "a-fleet-secret-of-forty-characters-or-so";

/// A port that only a server of this test listens on. The socket is bound and does not listen: connections are refused,
/// no other process is given the port, and a server that sets SO_REUSEADDR, as redis-server does, can listen on it.
#[derive(Clone)]
pub struct Port(Arc<TcpSocket>);

impl Port {
    pub fn reserve() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(LOOPBACK).unwrap();
        Self(Arc::new(socket))
    }

    pub fn number(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    pub fn address(&self) -> NodeAddress {
        NodeAddress::tcp("127.0.0.1", self.number())
    }
}

/// A redis-server.
pub struct Redis {
    child: Child,
    pub port: Port,
    /// Of its bus, where it is a node of a Cluster.
    pub bus: Port,
    _folder: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        // A stopped process takes this signal too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With these arguments beyond the usual ones.
    pub async fn with(arguments: &[&str]) -> Self {
        Self::at(Port::reserve(), arguments).await
    }

    pub async fn at(port: Port, arguments: &[&str]) -> Self {
        let bus = Port::reserve();
        let cluster_port = format!("cluster-port {}", bus.number());
        Self::spawn(port, bus, &["save \"\"", "appendonly no", &cluster_port], arguments).await
    }

    /// A Sentinel that watches `master` under the name `mymaster`; of its kind, `quorum` have to agree.
    pub async fn sentinel(master: &NodeAddress, quorum: usize, lines: &[&str]) -> Self {
        let master = master.to_string().replace(':', " ");
        let monitor = format!("sentinel monitor mymaster {master} {quorum}");
        let usual = ["sentinel down-after-milliseconds mymaster 1000", "sentinel failover-timeout mymaster 5000"];
        let lines = [&[&*monitor][..], &usual, lines].concat();
        Self::spawn(Port::reserve(), Port::reserve(), &lines, &["--sentinel"]).await
    }

    async fn spawn(port: Port, bus: Port, lines: &[&str], arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("redis.conf");
        let usual = format!("bind 127.0.0.1\nport {}\ndir {}\n", port.number(), folder.path().display());
        std::fs::write(&file, usual + &lines.join("\n")).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(file).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("redis-server is installed");
        let mut redis = Self { child, port, bus, _folder: folder };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", redis.port.number())).await.is_err() {
            let status = redis.child.try_wait().unwrap();
            assert!(status.is_none() && begin.elapsed() < PATIENCE, "redis-server does not start: {status:?}");
            sleep(Duration::from_millis(10)).await;
        }
        redis
    }

    pub fn address(&self) -> NodeAddress {
        self.port.address()
    }

    /// One command's reply.
    pub async fn ask<A: AsRef<[u8]> + Debug>(&self, command: &[A]) -> redis::Value {
        self.try_ask(command).await.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    pub async fn try_ask<A: AsRef<[u8]>>(&self, command: &[A]) -> redis::RedisResult<redis::Value> {
        let client = redis::Client::open(format!("redis://{}/", self.address())).unwrap();
        let patient = redis::AsyncConnectionConfig::new()
            .set_response_timeout(Some(PATIENCE))
            .set_connection_timeout(Some(PATIENCE));
        let mut connection = client.get_multiplexed_async_connection_with_config(&patient).await?;
        let mut asked = redis::cmd(std::str::from_utf8(command[0].as_ref()).unwrap());
        for argument in &command[1..] {
            asked.arg(argument.as_ref());
        }
        asked.query_async(&mut connection).await
    }

    /// One command's reply, as strings.
    pub async fn list(&self, command: &[&str]) -> Vec<String> {
        redis::from_redis_value(self.ask(command).await).unwrap()
    }

    pub async fn number(&self, command: &[&str]) -> i64 {
        redis::from_redis_value(self.ask(command).await).unwrap()
    }

    pub async fn text(&self, command: &[&str]) -> String {
        redis::from_redis_value(self.ask(command).await).unwrap()
    }

    /// Whether its replication is so; not while it changes its role, when it resets connections.
    pub async fn is_in_replication(&self, state: &str) -> bool {
        let reply = self
            .try_ask(&["INFO", "replication"])
            .await
            .and_then(|reply| Ok(redis::from_redis_value::<String>(reply)?));
        reply.is_ok_and(|text| text.contains(state))
    }

    /// The value of a key.
    pub async fn value(&self, key: &str) -> Vec<u8> {
        redis::from_redis_value(self.ask(&["GET", key]).await).unwrap()
    }

    /// Sets the value of a key, for this many milliseconds.
    pub async fn put(&self, key: &str, value: &[u8], life: i64) {
        self.ask(&[b"SET", key.as_bytes(), value, b"PX", life.to_string().as_bytes()]).await;
    }

    /// The keys of one kind: `l` of links, `c` of acceptances, `f` of leases, `j` of journals.
    pub async fn keys(&self, kind: &str) -> Vec<String> {
        let mut keys = self.list(&["KEYS", &format!("*:{kind}.*")]).await;
        keys.sort();
        keys
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

/// A tier at `nodes`, with time limits for a busy machine.
pub fn shared(nodes: Vec<NodeAddress>) -> Shared {
    let mut shared = Shared::at(nodes, vec![Secret::new(SECRET.as_bytes().to_vec())]);
    shared.timeout = Duration::from_secs(2);
    shared.lease_wait = Duration::from_secs(10);
    shared
}

/// One sidelink of a fleet.
pub struct Sidecar {
    pub app: App,
    pub client: TestClient,
}

impl Sidecar {
    pub async fn start(config: Config, clock: Clock) -> Self {
        let app = App::start_with(config, clock).await.unwrap();
        let client = TestClient::new(app.addresses()[0]);
        Self { app, client }
    }

    pub async fn metric(&self, series: &str) -> f64 {
        let page = TestClient::new(self.app.admin_address()).get("/metrics", &[]).await;
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        value_of(series, &text)
    }

    /// What the status page says of the tier.
    pub async fn alerts(&self) -> String {
        let status = TestClient::new(self.app.admin_address()).get("/status.json", &[]).await.json();
        let alerts = status["alerts"].as_array().unwrap().iter().filter(|alert| alert["kind"] == "shared_tier");
        alerts.map(|alert| alert["text"].as_str().unwrap()).collect()
    }

    pub async fn failures(&self, kind: &str) -> f64 {
        self.metric(&format!("sidelink_shared_failures_total{{kind=\"{kind}\"}}")).await
    }

    pub async fn ids(&self, result: &str) -> f64 {
        self.metric(&format!("sidelink_ids_total{{result=\"{result}\"}}")).await
    }

    /// Waits until the tier is in use, or is not.
    pub async fn tier_is(&self, up: bool) {
        let state = if up { "closed" } else { "open" };
        let series = format!("sidelink_shared_breaker_state{{state=\"{state}\"}}");
        let begin = Instant::now();
        while self.metric(&series).await < 1.0 {
            assert!(begin.elapsed() < PATIENCE, "the tier does not become {state}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Sidelinks before one endpoint, with one tier.
pub struct Fleet {
    pub origin: Origin,
    pub sidecars: Vec<Sidecar>,
    pub clock: Clock,
}

impl Fleet {
    /// Waits until the first two sidecars share links through the tier.
    pub async fn comes_to_share(&self, redis: &Redis) {
        let [one, other, ..] = &self.sidecars[..] else { panic!("a fleet of one") };
        one.tier_is(true).await;
        other.tier_is(true).await;
        one.client.batch("t", &["2"]).await;
        eventually("it is shared", async || redis.keys("l").await.len() == 1).await;
        assert_eq!(other.client.batch("t", &["2"]).await.header("cache-status"), "sidelink; hit; detail=shared");
    }

    /// `count` of them, whose tier is in use.
    pub async fn start(redis: &Redis, count: usize) -> Self {
        Self::with(shared(vec![redis.address()]), count, |_| {}, |_| {}).await
    }

    pub async fn with(
        shared: Shared,
        count: usize,
        endpoint: impl FnOnce(&mut origin::Options),
        configure: impl Fn(&mut Config),
    ) -> Self {
        let fleet = Self::without_waiting(shared, count, endpoint, configure).await;
        for sidecar in &fleet.sidecars {
            sidecar.tier_is(true).await;
        }
        fleet
    }

    pub async fn without_waiting(
        shared: Shared,
        count: usize,
        endpoint: impl FnOnce(&mut origin::Options),
        configure: impl Fn(&mut Config),
    ) -> Self {
        let mut options = origin_options();
        endpoint(&mut options);
        let origin = Origin::start(options).await.unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let clock = Clock::simulated(i64::try_from(now.as_millis()).unwrap());
        let mut sidecars = Vec::new();
        for _ in 0..count {
            let mut config = sidecar(origin.address(), &shared);
            configure(&mut config);
            sidecars.push(Sidecar::start(config, clock.clone()).await);
        }
        Self { origin, sidecars, clock }
    }
}

pub fn sidecar(endpoint: SocketAddr, shared: &Shared) -> Config {
    let mut config = config(endpoint);
    config.shared = Some(shared.clone());
    config
}
