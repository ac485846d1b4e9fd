//! Sends each command to the server that has its key: the one server, the master that Sentinels name, or a node of a Cluster.
//!
//! Each round trip is one pipeline for each server concerned, all at the same time. The slots of a Cluster are followed here,
//! since the client's Cluster mode retries and reconnects on a batch's time, and fails all answers where one node is down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::RwLock;
use redis::{Cmd, ToRedisArgs, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;

use super::layout::{Layout, Redirection};
use super::node::{ConnectOptions, Node, WriteRefusal};
use super::sealing::MOST_TEXT;
use super::sentinel::Sentinels;
use crate::config::{self, NodeAddress};
use crate::telemetry::metrics::{Metrics, Operation};

const MAX_LAYOUT_AGE: Duration = Duration::from_secs(30);
const MAX_LAYOUT_BYTES: usize = 1 << 20;
/// The time after which a command is sent again that a node refuses for a moment.
const AGAIN_PAUSE: Duration = Duration::from_millis(2);
/// Most redirections of a command.
const MAX_REDIRECTIONS: usize = 4;
/// Time limit for reading a Cluster's layout; no batch waits for it.
const LAYOUT_TIMEOUT: Duration = Duration::from_secs(1);

/// A command for the server that has `key`.
#[derive(Clone)]
pub(super) struct RedisCommand {
    /// As an ACL names it.
    pub(super) name: &'static str,
    key: Box<str>,
    pub(super) command: Cmd,
    /// Most bytes of values in the reply.
    pub(super) reply_bytes: usize,
}

impl RedisCommand {
    pub(super) fn new(name: &'static str, key: &str) -> Self {
        Self { name, key: key.into(), command: redis::cmd(name).arg(key).to_owned(), reply_bytes: 0 }
    }

    /// A command without a key.
    pub(super) fn without_key(name: &'static str) -> Self {
        Self { name, key: Box::default(), command: redis::cmd(name), reply_bytes: 0 }
    }

    /// Of the right to a subcommand.
    pub(super) fn of_right(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// A script on keys that are at one server; in a Cluster in one slot. Its arguments follow.
    pub(super) fn script<'k>(script: &str, keys: impl ExactSizeIterator<Item = &'k str> + Clone) -> Self {
        let key = keys.clone().next().unwrap_or_default().into();
        let command = redis::cmd("EVAL").arg(script).arg(keys.len()).to_owned();
        keys.fold(Self { name: "EVAL", key, command, reply_bytes: 0 }, Self::arg)
    }

    pub(super) fn arg(mut self, arg: impl ToRedisArgs) -> Self {
        self.command.arg(arg);
        self
    }

    pub(super) fn reply_bytes(self, reply_bytes: usize) -> Self {
        Self { reply_bytes, ..self }
    }
}

/// The server, the Cluster, or the master that Sentinels name.
pub(super) struct Store {
    options: Arc<ConnectOptions>,
    servers: Servers,
    layout: RwLock<Arc<Layout>>,
    /// A node has said that a slot is elsewhere.
    moved: AtomicBool,
}

/// How the servers are found.
enum Servers {
    One,
    Cluster { seeds: Vec<NodeAddress> },
    Sentinel(Sentinels),
}

/// Commands for one server.
struct Trip {
    node: Arc<Node>,
    commands: Vec<RedisCommand>,
    /// The place of each command's reply, if it has any.
    places: Vec<Option<usize>>,
}

impl Trip {
    /// Adds a command to the trip to `node`, which begins with `first`, if any.
    fn add(trips: &mut Vec<Self>, node: &Arc<Node>, first: Option<RedisCommand>, command: RedisCommand, place: usize) {
        if !trips.iter().any(|trip| Arc::ptr_eq(&trip.node, node)) {
            trips.push(Self { node: Arc::clone(node), commands: Vec::new(), places: Vec::new() });
        }
        let Some(trip) = trips.iter_mut().find(|trip| Arc::ptr_eq(&trip.node, node)) else { return };
        trip.places.extend(first.as_ref().map(|_| None));
        trip.commands.extend(first);
        trip.commands.push(command);
        trip.places.push(Some(place));
    }
}

impl Store {
    /// `tls` is for `rediss://`; `closed` is told when a connection is closed.
    pub(super) fn new(
        shared: &config::Shared,
        tls: Option<rustls::ClientConfig>,
        closed: &Arc<Notify>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let tls = tls.map(|tls| TlsConnector::from(Arc::new(tls)));
        let options = Arc::new(ConnectOptions::of_server(shared, tls.clone(), closed, metrics));
        let (addresses, mut layout) = (shared.nodes(), Layout::default());
        let servers = match &shared.sentinel {
            Some(master) => {
                let options = ConnectOptions::of_sentinel(shared, tls, closed, metrics);
                Servers::Sentinel(Sentinels::new(addresses, master, options))
            }
            None if shared.cluster => Servers::Cluster { seeds: addresses },
            None => {
                layout
                    .nodes
                    .extend(addresses.into_iter().take(1).map(|one| Arc::new(Node::new(one, Arc::clone(&options)))));
                Servers::One
            }
        };
        Self { options, servers, layout: RwLock::new(Arc::new(layout)), moved: AtomicBool::new(false) }
    }

    fn is_cluster(&self) -> bool {
        matches!(self.servers, Servers::Cluster { .. })
    }

    /// # Errors
    /// Why a server that has one of `keys` is not connected, for an operator.
    pub(super) async fn connect(&self, keys: &[&str]) -> Result<(), String> {
        self.update_layout().await?;
        let layout = self.layout.read().clone();
        let connected = join_all(layout.nodes.iter().map(|node| node.connect())).await;
        self.tell_nodes(&layout);
        for key in keys {
            let node = layout.node(key).ok_or("no node of the Cluster serves all slots")?;
            if let Some(Err(reason)) = connected.get(node) {
                return Err(reason.clone());
            }
        }
        Ok(())
    }

    /// Why one of the servers is not to be used for a while, if one is not.
    pub(super) fn outage(&self) -> Option<String> {
        self.layout.read().nodes.iter().find_map(|node| node.outage())
    }

    /// Why a node of a Cluster is down, if one is.
    pub(super) fn node_down(&self) -> Option<String> {
        self.layout.read().nodes.iter().find_map(|node| node.why_down())
    }

    /// Logs which nodes of a Cluster are down or back; of one server, the tier itself is down.
    fn tell_nodes(&self, layout: &Layout) {
        if self.is_cluster() {
            layout.nodes.iter().for_each(|node| node.tell());
        }
    }

    /// What one of the servers that can be used refuses, if one does.
    pub(super) fn write_refusal(&self) -> Option<WriteRefusal> {
        self.layout.read().nodes.iter().find_map(|node| node.write_refusal())
    }

    /// Finds the servers anew, if they may have changed.
    async fn update_layout(&self) -> Result<(), String> {
        let old = self.layout.read().clone();
        let young = old.read.is_some_and(|read| read.elapsed() < MAX_LAYOUT_AGE);
        if young && !self.moved.swap(false, Ordering::Relaxed) && old.nodes.iter().all(|node| node.is_up()) {
            return Ok(());
        }
        let layout = match &self.servers {
            Servers::One => return Ok(()),
            Servers::Cluster { seeds } => self.read_cluster(seeds, &old).await?,
            Servers::Sentinel(sentinels) => {
                let known = old.nodes.first();
                match (sentinels.find(known, &self.options).await, known) {
                    (Ok(master), _) => Layout::of_one(master),
                    // No Sentinel answers: the server that can be used is used on.
                    (Err(_), Some(known)) if known.is_up() => Layout::of_one(Arc::clone(known)),
                    (Err(reason), _) => return Err(reason),
                }
            }
        };
        *self.layout.write() = Arc::new(layout);
        Ok(())
    }

    /// Reads a Cluster's layout from any node.
    async fn read_cluster(&self, seeds: &[NodeAddress], old: &Layout) -> Result<Layout, String> {
        let seeds = seeds.iter().filter(|seed| old.node_at(seed).is_none());
        let seeds = seeds.map(|seed| Arc::new(Node::new(seed.clone(), Arc::clone(&self.options))));
        let mut trouble = String::from("the Cluster has no nodes");
        for node in old.nodes.iter().cloned().chain(seeds) {
            if let Err(reason) = node.connect().await {
                trouble = reason;
                continue;
            }
            let ask = RedisCommand::new("CLUSTER", "SLOTS").of_right("CLUSTER|SLOTS").reply_bytes(MAX_LAYOUT_BYTES);
            let replies = node.run(Operation::Sync, vec![ask], LAYOUT_TIMEOUT).await;
            trouble = match (replies.as_deref(), node.outage()) {
                (_, Some(reason)) => reason,
                (Some([slots]), _) => match Layout::read(slots, &node.address, old, &self.options) {
                    Some(layout) => return Ok(layout),
                    None => format!("{}: the Cluster does not serve any slots", node.address),
                },
                _ => format!("{}: the server does not say which node has which slots", node.address),
            };
        }
        self.tell_nodes(old);
        Err(trouble)
    }

    /// Sends commands in one round trip within `limit`; returns each command's reply, `None` where its server is down or fails.
    /// A Cluster's commands follow the slots that are being moved, within the same limit.
    pub(super) async fn run(
        &self,
        operation: Operation,
        commands: Vec<RedisCommand>,
        limit: Duration,
    ) -> Vec<Option<Value>> {
        let until = Instant::now() + limit;
        let layout = self.layout.read().clone();
        let mut replies = vec![None; commands.len()];
        let again = if self.is_cluster() { commands.clone() } else { Vec::new() };
        let mut trips = Vec::new();
        for (place, command) in commands.into_iter().enumerate() {
            if let Some(node) = layout.node(&command.key).and_then(|node| layout.nodes.get(node)) {
                Trip::add(&mut trips, node, None, command, place);
            }
        }
        for round in 0..=MAX_REDIRECTIONS {
            let mut is_early = false;
            let running = trips.drain(..).map(async |Trip { node, commands, places }| {
                // A node that a redirection names for the first time.
                if round > 0 {
                    node.connect_once(until).await;
                }
                let values = node.run(operation, commands, until.saturating_duration_since(Instant::now())).await;
                let placed = places.into_iter().zip(values.unwrap_or_default());
                let placed: Vec<_> = placed.filter_map(|(place, value)| Some((place?, value))).collect();
                (node, placed)
            });
            for (node, values) in join_all(running.collect::<Vec<_>>()).await {
                for (place, value) in values {
                    if let Some(command) = again.get(place)
                        && let Some(redirection) = Redirection::read(&value, &node.address)
                    {
                        is_early |= redirection == Redirection::Again;
                        self.redirect(&mut trips, redirection, &node, command.clone(), place);
                    }
                    if let Some(reply) = replies.get_mut(place) {
                        *reply = Some(value);
                    }
                }
            }
            if trips.is_empty() {
                break;
            }
            if is_early {
                sleep(AGAIN_PAUSE).await;
            }
        }
        replies
    }

    fn redirect(
        &self,
        trips: &mut Vec<Trip>,
        redirection: Redirection,
        asked: &Arc<Node>,
        command: RedisCommand,
        place: usize,
    ) {
        let (address, asking) = match redirection {
            Redirection::Moved(address) => {
                self.moved.store(true, Ordering::Relaxed);
                (address, None)
            }
            Redirection::Ask(address) => (address, Some(RedisCommand::without_key("ASKING"))),
            Redirection::Again => return Trip::add(trips, asked, None, command, place),
        };
        let known = self.layout.read().node_at(&address);
        if let Some(node) = known.or_else(|| Arc::make_mut(&mut self.layout.write()).add(address, &self.options)) {
            Trip::add(trips, &node, asking, command, place);
        }
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
        if self.is_cluster() {
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
        if !self.is_cluster() {
            values = match values.pop().flatten() {
                Some(Value::Array(values)) if values.len() == count => values.into_iter().map(Some).collect(),
                _ => vec![None; count],
            }
        };
        let text = |value| if let Some(Value::BulkString(bytes)) = value { Some(bytes) } else { None };
        (before, values.into_iter().map(text).collect(), after)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use prometheus::Registry;
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    use super::*;

    /// Longer than anything takes.
    const LIMIT: Duration = Duration::from_secs(10);

    /// Answers as a Sentinel that names itself as master, and as a node of a Cluster with all slots, which refuses the first
    /// `refused` GETs of `moving` for a moment, and from which `at:` and a port is being moved to there.
    async fn serve(client: TcpStream, port: u16, refused: usize, asked: Arc<AtomicUsize>) {
        let mut client = BufReader::new(client);
        loop {
            let mut words = Vec::new();
            let mut count = String::new();
            if client.read_line(&mut count).await.unwrap_or(0) == 0 {
                return;
            }
            for _ in 0..count.trim()[1..].parse::<usize>().unwrap() {
                let mut length = String::new();
                client.read_line(&mut length).await.unwrap();
                let mut word = vec![0; length.trim()[1..].parse::<usize>().unwrap() + 2];
                client.read_exact(&mut word).await.unwrap();
                words.push(String::from_utf8(word).unwrap().trim_end().to_owned());
            }
            let reply = match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["CLUSTER", ..] => format!("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$0\r\n\r\n:{port}\r\n"),
                ["SENTINEL", ..] => {
                    format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.to_string().len())
                }
                ["ROLE"] => "*1\r\n$6\r\nmaster\r\n".to_owned(),
                ["GET", "moving"] if asked.fetch_add(1, Ordering::SeqCst) < refused => {
                    "-TRYAGAIN Multiple keys request during rehashing of slot\r\n".to_owned()
                }
                ["GET", away] if away.starts_with("at:") => format!("-ASK 0 127.0.0.1:{}\r\n", &away[3..]),
                _ => "$5\r\nvalue\r\n".to_owned(),
            };
            client.write_all(reply.as_bytes()).await.unwrap();
        }
    }

    /// The address of a server, how often it was asked for `moving`, and the task that accepts connections.
    async fn server(refused: usize) -> (NodeAddress, Arc<AtomicUsize>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, port, refused, Arc::clone(&counted)));
            }
        });
        (NodeAddress::tcp("127.0.0.1", port), asked, accepting)
    }

    fn store(address: NodeAddress, configure: impl FnOnce(&mut config::Shared)) -> Store {
        let mut shared = config::Shared::at(vec![address], Vec::new());
        shared.timeout = LIMIT;
        configure(&mut shared);
        let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
        Store::new(&shared, None, &Arc::new(Notify::new()), &metrics)
    }

    /// The reply to a GET, and how often it was sent.
    async fn get_while_moving(refused: usize) -> (Option<Value>, usize) {
        let (address, asked, _accepting) = server(refused).await;
        let store = store(address, |shared| shared.cluster = true);
        store.connect(&["moving"]).await.unwrap();
        let get = vec![RedisCommand::new("GET", "moving").reply_bytes(5), RedisCommand::new("GET", "other")];
        let mut replies = store.run(Operation::Get, get, LIMIT).await;
        assert_eq!(replies.pop(), Some(Some(Value::BulkString(b"value".to_vec()))));
        (replies.pop().flatten(), asked.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn a_command_that_is_refused_for_a_moment_is_sent_again_and_not_for_ever() {
        let (reply, sent) = get_while_moving(2).await;
        assert_eq!((reply, sent), (Some(Value::BulkString(b"value".to_vec())), 3));
        let (reply, sent) = get_while_moving(usize::MAX).await;
        assert!(matches!(reply, Some(Value::ServerError(error)) if error.code() == "TRYAGAIN"));
        assert_eq!(sent, 1 + MAX_REDIRECTIONS);
    }

    /// Regression: while slots were being moved to a node that did not answer, each batch waited for it.
    #[tokio::test]
    async fn a_node_that_does_not_answer_delays_one_of_the_batches_that_are_redirected_to_it() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = format!("at:{}", silent.local_addr().unwrap().port());
        let (address, ..) = server(0).await;
        let store = store(address, |shared| shared.cluster = true);
        store.connect(&[&key]).await.unwrap();
        for _ in 0..3 {
            let get = vec![RedisCommand::new("GET", &key)];
            let replies = store.run(Operation::Get, get, Duration::from_millis(500)).await;
            assert!(matches!(&replies[..], [Some(Value::ServerError(error))] if error.code() == "ASK"), "{replies:?}");
        }
        silent.accept().await.unwrap();
        assert!(futures_util::FutureExt::now_or_never(silent.accept()).is_none(), "one has connected");
    }

    #[tokio::test]
    async fn a_master_is_used_on_while_no_sentinel_answers() {
        let (address, _, accepting) = server(0).await;
        let store = store(address, |shared| shared.sentinel = Some("mymaster".to_owned()));
        store.connect(&["key"]).await.unwrap();
        accepting.abort();
        assert!(accepting.await.unwrap_err().is_cancelled(), "it accepts no further connections");
        Arc::make_mut(&mut *store.layout.write()).read = None;
        store.connect(&["key"]).await.unwrap();
        let get = vec![RedisCommand::new("GET", "key").reply_bytes(5)];
        let replies = store.run(Operation::Get, get, LIMIT).await;
        assert_eq!(replies, [Some(Value::BulkString(b"value".to_vec()))]);
    }
}
