//! Which server has which key: one server, or the nodes of a Cluster with their slots.

use std::collections::HashMap;
use std::sync::Arc;

use redis::{ServerErrorKind, Value};
use tokio::time::Instant;

use super::node::{ConnectOptions, Node};
use crate::config::NodeAddress;

const SLOTS: u16 = 16384;
const MAX_NODES: usize = 1000;

#[derive(Clone, Default)]
pub(super) struct Layout {
    pub(super) nodes: Vec<Arc<Node>>,
    /// First and last slot, and index of the node; sorted. Empty: the first node has all slots.
    slots: Vec<(u16, u16, usize)>,
    /// When a Cluster or a Sentinel said so.
    pub(super) read: Option<Instant>,
}

impl Layout {
    /// One server with all keys.
    pub(super) fn of_one(node: Arc<Node>) -> Self {
        Self { nodes: vec![node], slots: Vec::new(), read: Some(Instant::now()) }
    }

    /// The index of the node that has `key`.
    pub(super) fn node(&self, key: &str) -> Option<usize> {
        if self.slots.is_empty() {
            return (!self.nodes.is_empty()).then_some(0);
        }
        let slot = slot(key);
        let at = self.slots.partition_point(|(_, last, _)| *last < slot);
        self.slots.get(at).filter(|(first, _, _)| *first <= slot).map(|(_, _, node)| *node)
    }

    pub(super) fn node_at(&self, address: &NodeAddress) -> Option<Arc<Node>> {
        self.nodes.iter().find(|node| node.address == *address).cloned()
    }

    /// Adds a node without slots, unless it is there; `None` if there are too many.
    pub(super) fn add(&mut self, address: NodeAddress, options: &Arc<ConnectOptions>) -> Option<Arc<Node>> {
        let known = self.node_at(&address);
        if known.is_some() || self.nodes.len() >= MAX_NODES {
            return known;
        }
        self.nodes.push(Arc::new(Node::new(address, Arc::clone(options))));
        self.nodes.last().cloned()
    }

    /// Reads the answer of `asked` to CLUSTER SLOTS: `[first, last, [host, port, …], replicas…]` each. Nodes of `old` stay connected.
    pub(super) fn read(slots: &Value, asked: &NodeAddress, old: &Self, options: &Arc<ConnectOptions>) -> Option<Self> {
        let mut layout = Self { read: Some(Instant::now()), ..Self::default() };
        let mut places: HashMap<NodeAddress, usize> = HashMap::new();
        for range in array(slots)? {
            let [Value::Int(first), Value::Int(last), master, ..] = array(range)? else { return None };
            let [host, Value::Int(port), ..] = array(master)? else { return None };
            let host = if let Value::BulkString(host) = host { std::str::from_utf8(host).ok()? } else { "" };
            let address = announced(host, u16::try_from(*port).ok()?, asked);
            let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
            if first > last || last >= SLOTS || places.len() >= MAX_NODES {
                return None;
            }
            let at = *places.entry(address.clone()).or_insert_with(|| {
                let known = old.node_at(&address);
                layout.nodes.push(known.unwrap_or_else(|| Arc::new(Node::new(address, Arc::clone(options)))));
                layout.nodes.len() - 1
            });
            layout.slots.push((first, last, at));
        }
        layout.slots.sort_unstable();
        (!layout.slots.is_empty()).then_some(layout)
    }
}

/// Where a node of a Cluster says that a command belongs.
#[derive(Debug, PartialEq)]
pub(super) enum Redirection {
    /// There, from now on.
    Moved(NodeAddress),
    /// There, this once: the slot is being moved, and the key has been.
    Ask(NodeAddress),
    /// To the same node, later: the slot is being moved, and a part of the keys has been.
    Again,
}

impl Redirection {
    /// Reads the reply of `asked`: `MOVED slot host:port`, `ASK slot host:port`, or `TRYAGAIN …`.
    pub(super) fn read(reply: &Value, asked: &NodeAddress) -> Option<Self> {
        let Value::ServerError(error) = reply else { return None };
        let address = || {
            let (_, place) = error.details()?.split_once(' ')?;
            let (host, port) = place.rsplit_once(':')?;
            Some(announced(host, port.parse().ok()?, asked))
        };
        match error.kind()? {
            ServerErrorKind::Moved => address().map(Self::Moved),
            ServerErrorKind::Ask => address().map(Self::Ask),
            ServerErrorKind::TryAgain => Some(Self::Again),
            _ => None,
        }
    }
}

/// The address that a node announces. One that does not know a host means that of the node that was asked.
fn announced(host: &str, port: u16, asked: &NodeAddress) -> NodeAddress {
    match asked {
        NodeAddress::Tcp { host: asked, .. } if matches!(host, "" | "?") => NodeAddress::tcp(asked, port),
        _ => NodeAddress::tcp(host, port),
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

    #[test]
    fn redirections_lead_to_the_host_that_is_named_or_else_to_the_one_that_was_asked() {
        let asked = NodeAddress::tcp("asked", 1);
        for (reply, expected) in [
            ("-MOVED 3999 10.0.0.1:6381\r\n", Some(Redirection::Moved(NodeAddress::tcp("10.0.0.1", 6381)))),
            ("-MOVED 3999 :6381\r\n", Some(Redirection::Moved(NodeAddress::tcp("asked", 6381)))),
            ("-ASK 3999 ?:6381\r\n", Some(Redirection::Ask(NodeAddress::tcp("asked", 6381)))),
            ("-ASK 3999 fe80::1:6381\r\n", Some(Redirection::Ask(NodeAddress::tcp("fe80::1", 6381)))),
            ("-TRYAGAIN Multiple keys request during rehashing of slot\r\n", Some(Redirection::Again)),
            ("-ASK 3999\r\n", None),
            ("-MOVED 3999 host:port\r\n", None),
            ("-ERR unknown command\r\n", None),
            ("+OK\r\n", None),
        ] {
            let value = redis::parse_redis_value(reply.as_bytes()).unwrap();
            assert_eq!(Redirection::read(&value, &asked), expected, "{reply}");
        }
    }
}
