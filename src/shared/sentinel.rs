//! Finds the server that Redis Sentinel has made the master, as its client specification says: each Sentinel is asked in turn,
//! and what one says counts once the server itself says that it is a master.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::Value;

use super::node::{ConnectOptions, Node};
use super::store::RedisCommand;
use crate::config::NodeAddress;
use crate::telemetry::metrics::Operation;

/// Time limit for a Sentinel's answer; no batch waits for it.
const TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Sentinels {
    addresses: Vec<NodeAddress>,
    /// The name of the master.
    master: String,
    options: Arc<ConnectOptions>,
    /// The one that last named a master that can be used.
    first: AtomicUsize,
}

impl Sentinels {
    pub(super) fn new(addresses: Vec<NodeAddress>, master: &str, options: ConnectOptions) -> Self {
        Self { addresses, master: master.to_owned(), options: Arc::new(options), first: AtomicUsize::new(0) }
    }

    /// The master, connected: `current` if it is still the one.
    ///
    /// # Errors
    /// Why there is none, for an operator.
    pub(super) async fn find(
        &self,
        current: Option<&Arc<Node>>,
        servers: &Arc<ConnectOptions>,
    ) -> Result<Arc<Node>, String> {
        let mut trouble = String::from("no Sentinel is named");
        let (count, first) = (self.addresses.len(), self.first.load(Ordering::Relaxed));
        for at in (0..count).map(|at| (first + at) % count) {
            let Some(address) = self.addresses.get(at) else { continue };
            let found = async {
                let address = self.ask(address).await?;
                let known = current.filter(|node| node.address == address).cloned();
                let node = known.unwrap_or_else(|| Arc::new(Node::new(address, Arc::clone(servers))));
                node.connect().await?;
                Ok(node)
            };
            match found.await {
                Ok(node) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(node);
                }
                Err(reason) => trouble = reason,
            }
        }
        Err(trouble)
    }

    async fn ask(&self, address: &NodeAddress) -> Result<NodeAddress, String> {
        let sentinel = Node::new(address.clone(), Arc::clone(&self.options));
        sentinel.connect().await?;
        let ask = RedisCommand::new("SENTINEL", "GET-MASTER-ADDR-BY-NAME")
            .arg(&self.master)
            .of_right("SENTINEL|GET-MASTER-ADDR-BY-NAME");
        let replies = sentinel.run(Operation::Sync, vec![ask], TIMEOUT).await;
        let reason = match (replies.as_deref(), sentinel.outage()) {
            (Some([Value::ServerError(error)]), _) if error.code() == "ERR" => {
                "is no Sentinel: shared.url has to name Sentinels, or remove shared.sentinel"
            }
            (_, Some(reason)) => return Err(reason),
            (Some([Value::Array(place)]), _) => match place.as_slice() {
                [Value::BulkString(host), Value::BulkString(port)] => {
                    let text = |bytes| std::str::from_utf8(bytes).ok();
                    let place = text(host).zip(text(port).and_then(|port| port.parse().ok()));
                    match place {
                        Some((host, port)) => return Ok(NodeAddress::tcp(host, port)),
                        None => "the Sentinel names no address",
                    }
                }
                _ => "the Sentinel names no address",
            },
            (Some([Value::Nil]), _) => "the Sentinel knows no master of the name in shared.sentinel",
            _ => "the Sentinel does not answer",
        };
        Err(format!("{address}: {reason}"))
    }
}
