//! The kinds of servers that a tier may have, for tests that hold for each.

use std::fmt::Debug;

use sidelink::config::Shared;

use super::{Redis, shared};

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    One,
    Cluster,
    Sentinel,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::One, Self::Cluster, Self::Sentinel];
}

/// The servers of a tier.
pub struct Servers {
    kind: Kind,
    /// With items: the nodes of a Cluster, or the master and then its replicas.
    pub nodes: Vec<Redis>,
    pub sentinels: Vec<Redis>,
}

impl Servers {
    pub async fn start(kind: Kind) -> Self {
        let (mut nodes, mut sentinels) = (Vec::new(), Vec::new());
        match kind {
            Kind::One => nodes.push(Redis::start().await),
            Kind::Cluster => nodes = super::cluster::cluster().await,
            Kind::Sentinel => (nodes, sentinels) = super::sentinel::replicated().await,
        }
        Self { kind, nodes, sentinels }
    }

    pub fn shared(&self) -> Shared {
        let of = if self.sentinels.is_empty() { &self.nodes } else { &self.sentinels };
        let mut shared = shared(of.iter().map(Redis::address).collect());
        shared.cluster = matches!(self.kind, Kind::Cluster);
        shared.sentinel = matches!(self.kind, Kind::Sentinel).then(|| "mymaster".to_owned());
        shared
    }

    /// Those with items of their own.
    pub fn masters(&self) -> &[Redis] {
        if matches!(self.kind, Kind::Cluster) { &self.nodes } else { &self.nodes[..1] }
    }

    /// The keys of one kind, as [`Redis::keys`].
    pub async fn keys(&self, kind: &str) -> Vec<String> {
        self.keys_like(&format!("*:{kind}.*")).await
    }

    pub async fn keys_like(&self, pattern: &str) -> Vec<String> {
        let mut keys = Vec::new();
        for node in self.masters() {
            keys.extend(node.list(&["KEYS", pattern]).await);
        }
        keys.sort();
        keys
    }

    /// The reply to a command for one key, of the server that has it.
    pub async fn ask<A: AsRef<[u8]> + Debug>(&self, command: &[A]) -> redis::Value {
        for node in self.masters() {
            match node.try_ask(command).await {
                Err(error) if error.code() == Some("MOVED") => {}
                reply => return reply.unwrap_or_else(|error| panic!("{command:?}: {error}")),
            }
        }
        panic!("no node has the slot of {command:?}")
    }

    pub async fn number(&self, command: &[&str]) -> i64 {
        redis::from_redis_value(self.ask(command).await).unwrap()
    }

    pub async fn text(&self, command: &[&str]) -> String {
        redis::from_redis_value(self.ask(command).await).unwrap()
    }

    /// The value of a key.
    pub async fn value(&self, key: &str) -> Vec<u8> {
        redis::from_redis_value(self.ask(&["GET", key]).await).unwrap()
    }

    /// Sets the value of a key, for this many milliseconds.
    pub async fn put(&self, key: &str, value: &[u8], life: i64) {
        self.ask(&[b"SET", key.as_bytes(), value, b"PX", life.to_string().as_bytes()]).await;
    }

    pub async fn flush(&self) {
        for node in self.masters() {
            node.ask(&["FLUSHALL"]).await;
        }
    }
}
