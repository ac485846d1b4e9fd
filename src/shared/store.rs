//! Sends each command to the server that has its key: the one server, or a node of a Cluster.
//!
//! Each round trip is one pipeline for each server concerned, all at the same time. The slots of a Cluster are followed here,
//! since the client's Cluster mode retries and reconnects on a batch's time, and fails all answers where one node is down.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::RwLock;
use redis::{Cmd, ServerErrorKind, ToRedisArgs, Value};
use tokio::time::Instant;

use super::node::{ConnectOptions, Node};
use super::sealing::MOST_TEXT;
use crate::config::NodeAddress;
use crate::telemetry::metrics::Operation;

const SLOTS: u16 = 16384;
const MAX_LAYOUT_AGE: Duration = Duration::from_secs(30);
const MAX_LAYOUT_BYTES: usize = 1 << 20;
const MAX_NODES: usize = 1000;
/// Time limit for reading a Cluster's layout; no batch waits for it.
const LAYOUT_TIMEOUT: Duration = Duration::from_secs(1);

/// A command for the server that has `key`.
pub(super) struct RedisCommand {
    key: Box<str>,
    pub(super) command: Cmd,
    /// Most bytes of values in the reply.
    pub(super) reply_bytes: usize,
}

impl RedisCommand {
    pub(super) fn new(name: &str, key: &str) -> Self {
        Self { key: key.into(), command: redis::cmd(name).arg(key).to_owned(), reply_bytes: 0 }
    }

    /// A script on keys that are at one server; in a Cluster in one slot. Its arguments follow.
    pub(super) fn script<'k>(script: &str, keys: impl ExactSizeIterator<Item = &'k str> + Clone) -> Self {
        let key = keys.clone().next().unwrap_or_default().into();
        let command = redis::cmd("EVAL").arg(script).arg(keys.len()).to_owned();
        keys.fold(Self { key, command, reply_bytes: 0 }, Self::arg)
    }

    pub(super) fn arg(mut self, arg: impl ToRedisArgs) -> Self {
        self.command.arg(arg);
        self
    }

    pub(super) fn reply_bytes(self, reply_bytes: usize) -> Self {
        Self { reply_bytes, ..self }
    }
}

/// The server, or the Cluster.
pub(super) struct Store {
    options: Arc<ConnectOptions>,
    seeds: Vec<NodeAddress>,
    cluster: bool,
    layout: RwLock<Arc<Layout>>,
    /// A node has said that a slot is elsewhere.
    moved: AtomicBool,
}

#[derive(Default)]
struct Layout {
    nodes: Vec<Arc<Node>>,
    /// First and last slot, and index of the node; sorted. Empty: the first node has all slots.
    slots: Vec<(u16, u16, usize)>,
    read: Option<Instant>,
}

impl Layout {
    fn node(&self, key: &str) -> Option<usize> {
        if self.slots.is_empty() {
            return (!self.nodes.is_empty()).then_some(0);
        }
        let slot = slot(key);
        let at = self.slots.partition_point(|(_, last, _)| *last < slot);
        self.slots.get(at).filter(|(first, _, _)| *first <= slot).map(|(_, _, node)| *node)
    }
}

impl Store {
    pub(super) fn new(options: ConnectOptions, seeds: Vec<NodeAddress>, cluster: bool) -> Self {
        let options = Arc::new(options);
        let nodes = if cluster { &[] } else { seeds.get(..1).unwrap_or_default() };
        let nodes = nodes.iter().map(|seed| Arc::new(Node::new(seed.clone(), Arc::clone(&options)))).collect();
        let layout = RwLock::new(Arc::new(Layout { nodes, ..Layout::default() }));
        Self { options, seeds, cluster, layout, moved: AtomicBool::new(false) }
    }

    /// # Errors
    /// Why a server that has one of `keys` is not connected, for an operator.
    pub(super) async fn connect(&self, keys: &[&str]) -> Result<(), String> {
        if self.cluster {
            self.update_layout().await?;
        }
        let layout = self.layout.read().clone();
        let connected = join_all(layout.nodes.iter().map(|node| node.connect())).await;
        for key in keys {
            let node = layout.node(key).ok_or("no node of the Cluster serves all slots")?;
            if let Some(Err(reason)) = connected.get(node) {
                return Err(reason.clone());
            }
        }
        Ok(())
    }

    /// Reads a Cluster's layout from any node, if it may have changed.
    async fn update_layout(&self) -> Result<(), String> {
        let old = self.layout.read().clone();
        let young = old.read.is_some_and(|read| read.elapsed() < MAX_LAYOUT_AGE);
        if young && !self.moved.swap(false, Ordering::Relaxed) && old.nodes.iter().all(|node| node.is_up()) {
            return Ok(());
        }
        let seeds = self.seeds.iter().map(|seed| Arc::new(Node::new(seed.clone(), Arc::clone(&self.options))));
        let mut trouble = String::from("the Cluster has no nodes");
        for node in old.nodes.iter().cloned().chain(seeds) {
            if let Err(reason) = node.connect().await {
                trouble = reason;
                continue;
            }
            let ask = vec![RedisCommand::new("CLUSTER", "SLOTS").reply_bytes(MAX_LAYOUT_BYTES)];
            let replies = node.run(Operation::Sync, ask, LAYOUT_TIMEOUT).await;
            let Some([slots]) = replies.as_deref() else {
                trouble = format!("{}: did not say which node has which slots", node.address);
                continue;
            };
            match self.read_layout(slots, &node.address, &old) {
                Some(layout) => {
                    *self.layout.write() = Arc::new(layout);
                    return Ok(());
                }
                None => trouble = format!("{}: is no node of a Cluster, or of one without slots", node.address),
            }
        }
        Err(trouble)
    }

    /// The answer to CLUSTER SLOTS: `[first, last, [host, port, …], replicas…]` each.
    fn read_layout(&self, slots: &Value, asked: &NodeAddress, old: &Layout) -> Option<Layout> {
        let mut layout = Layout { read: Some(Instant::now()), ..Layout::default() };
        let mut places: HashMap<NodeAddress, usize> = HashMap::new();
        for range in array(slots)? {
            let [Value::Int(first), Value::Int(last), master, ..] = array(range)? else { return None };
            let [host, Value::Int(port), ..] = array(master)? else { return None };
            let host = match host {
                Value::BulkString(host) if !host.is_empty() => String::from_utf8(host.clone()).ok()?,
                // The host that was asked.
                _ => asked.host.clone(),
            };
            let address = NodeAddress { host, port: u16::try_from(*port).ok()? };
            let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
            if first > last || last >= SLOTS || places.len() >= MAX_NODES {
                return None;
            }
            let at = *places.entry(address.clone()).or_insert_with(|| {
                let known = old.nodes.iter().find(|node| node.address == address).cloned();
                layout.nodes.push(known.unwrap_or_else(|| Arc::new(Node::new(address, Arc::clone(&self.options)))));
                layout.nodes.len() - 1
            });
            layout.slots.push((first, last, at));
        }
        layout.slots.sort_unstable();
        (!layout.slots.is_empty()).then_some(layout)
    }

    /// Sends commands in one round trip within `limit`; returns each command's reply, `None` where its server is down or fails.
    pub(super) async fn run(
        &self,
        operation: Operation,
        commands: Vec<RedisCommand>,
        limit: Duration,
    ) -> Vec<Option<Value>> {
        let layout = self.layout.read().clone();
        let mut replies = vec![None; commands.len()];
        let mut trips: HashMap<usize, (Vec<RedisCommand>, Vec<usize>)> = HashMap::new();
        for (at, command) in commands.into_iter().enumerate() {
            let Some(node) = layout.node(&command.key) else { continue };
            let (commands, places) = trips.entry(node).or_default();
            commands.push(command);
            places.push(at);
        }
        let running = trips.into_iter().filter_map(|(node, (commands, places))| {
            let node = layout.nodes.get(node)?;
            Some(async move { (node.run(operation, commands, limit).await, places) })
        });
        for (values, places) in join_all(running).await {
            for (value, place) in values.into_iter().flatten().zip(places) {
                if let Value::ServerError(error) = &value
                    && matches!(error.kind(), Some(ServerErrorKind::Moved | ServerErrorKind::Ask))
                {
                    self.moved.store(true, Ordering::Relaxed);
                }
                if let Some(reply) = replies.get_mut(place) {
                    *reply = Some(value);
                }
            }
        }
        replies
    }

    /// Gets the values of `keys`, with other commands before and after in the same round trip; returns the replies to those
    /// before, the values, and the replies to those after. A value that is no string counts as none.
    pub(super) async fn get(
        &self,
        before: Vec<RedisCommand>,
        keys: &[Box<str>],
        after: Vec<RedisCommand>,
        operation: Operation,
        limit: Duration,
    ) -> (Vec<Option<Value>>, Vec<Option<Vec<u8>>>, Vec<Option<Value>>) {
        let (count, first) = (keys.len(), before.len());
        let mut commands = before;
        // A Cluster takes several keys in one command only if they share a slot.
        if self.cluster {
            commands.extend(keys.iter().map(|key| RedisCommand::new("GET", key).reply_bytes(MOST_TEXT)));
        } else if let Some((first, rest)) = keys.split_first() {
            let get = rest.iter().fold(RedisCommand::new("MGET", first), |get, key| get.arg(&**key));
            commands.push(get.reply_bytes(count * (MOST_TEXT + 16)));
        }
        let last = commands.len();
        commands.extend(after);
        let mut before = self.run(operation, commands, limit).await;
        let after = before.split_off(last);
        let mut values = before.split_off(first);
        if !self.cluster {
            values = match values.pop().flatten() {
                Some(Value::Array(values)) if values.len() == count => values.into_iter().map(Some).collect(),
                _ => vec![None; count],
            }
        };
        let text = |value| if let Some(Value::BulkString(bytes)) = value { Some(bytes) } else { None };
        (before, values.into_iter().map(text).collect(), after)
    }
}

fn array(value: &Value) -> Option<&[Value]> {
    if let Value::Array(values) = value { Some(values) } else { None }
}

/// The slot of a key, by the Redis Cluster specification: a hash of the key, or of the text in its first braces.
fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| Some(rest.split_once('}')?.0)).filter(|tag| !tag.is_empty());
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key).as_bytes()) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        // Its own test vector, and what CLUSTER KEYSLOT says.
        assert_eq!(slot("123456789"), 0x31C3);
        assert_eq!(slot("foo"), 12182);
        assert_eq!(slot("x{foo}y{z}"), 12182);
        assert_ne!(slot("{}foo"), slot(""));
        assert_eq!(slot("sidelink:l.abc"), 4999);
    }
}
