//! Sidecars that share a tier: real redis-servers, each on a port reserved for its test.

mod faults;
mod isolation;
mod journal;
mod once;
mod purges;
mod secrecy;
mod servers;
mod sharing;
pub mod split;
mod told;

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

use crate::support::{LOOPBACK, TestClient, config, origin_options, value_of};

pub const SECRET: &str = "a-fleet-secret-of-forty-characters-or-so";

/// Far longer than any step takes, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

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
        NodeAddress { host: "127.0.0.1".to_owned(), port: self.number() }
    }
}

/// A redis-server.
pub struct Redis {
    child: Child,
    pub port: Port,
    /// Of its bus, where it is a node of a Cluster.
    _bus: Port,
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
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("redis-server");
        let usual = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"];
        let bus = Port::reserve();
        command.args(usual).arg(port.number().to_string()).arg("--cluster-port").arg(bus.number().to_string());
        command.arg("--dir").arg(folder.path()).args(arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-server is installed");
        let mut redis = Self { child, port, _bus: bus, _folder: folder };
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
    pub async fn ask(&self, command: &[&str]) -> redis::Value {
        let client = redis::Client::open(format!("redis://{}/", self.address())).unwrap();
        let patient = redis::AsyncConnectionConfig::new()
            .set_response_timeout(Some(PATIENCE))
            .set_connection_timeout(Some(PATIENCE));
        let mut connection = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        let mut asked = redis::cmd(command[0]);
        asked.arg(&command[1..]);
        asked.query_async(&mut connection).await.unwrap_or_else(|error| panic!("{command:?}: {error}"))
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

/// Waits until `is_so`.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !is_so().await {
        assert!(begin.elapsed() < PATIENCE, "not so after a long while: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
