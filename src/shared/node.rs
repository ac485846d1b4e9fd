//! One server: a connection that batches share, with a bound on the size of answers, and a breaker.
//!
//! A round trip costs a batch at most `shared.timeout`. After [`FAILURES`] in a row the connection is closed, and at once after
//! an error reply by which the server is of no use; until the background task has made another, a round trip costs nothing. A
//! new connection is used only once it has passed the [`ConnectionCheck`], and has answered the look-up that last took too long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, RedisConnectionInfo, RedisError, Value};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use tokio_util::task::AbortOnDropHandle;
use tower::BoxError;

use super::check::{ConnectionCheck, Refusal, refusals};
use super::store::RedisCommand;
use crate::config::{self, NodeAddress, StoredSecret};
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::{Metrics, Operation, SharedFailure};

/// Failures in a row after which a connection is closed; a new connection is closed at the first.
const FAILURES: u32 = 3;
/// The shortest time from the end of a connection to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest: each connection that ends soon doubles it. The background task tries every two seconds: about five pass at most.
const MAX_PAUSE: Duration = Duration::from_secs(3);
/// How long a connection has to last for the pause after it to be the shortest.
const LASTING: Duration = Duration::from_secs(30);
/// Time limit for connecting, TLS and login included; no batch waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The time between two log lines of a server about refused commands, and about its being down.
const LOG_PAUSE: Duration = Duration::from_secs(300);
/// How long a server counts as one that refuses writes if nothing is written any more, as at a node of a Cluster that no id leads to.
const REFUSAL_LIFE: Duration = Duration::from_secs(15);
const MAX_LOGIN_BYTES: usize = 64 << 10;
const MAX_OUTSTANDING_BYTES: usize = 16 << 20;
/// Most bytes of one reply besides a value.
const MAX_REPLY_OVERHEAD: usize = 1 << 10;

pub(super) struct ConnectOptions {
    login: RedisConnectionInfo,
    tls: Option<TlsConnector>,
    timeout: Duration,
    check: ConnectionCheck,
    /// Told when a connection is closed.
    closed: Arc<Notify>,
    metrics: Arc<Metrics>,
}

impl ConnectOptions {
    /// For a server with items.
    pub(super) fn of_server(
        shared: &config::Shared,
        tls: Option<TlsConnector>,
        closed: &Arc<Notify>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let login = login(shared.username.as_deref(), shared.password_file.as_ref()).set_db(shared.database());
        Self::new(login, ConnectionCheck::of_server(shared), shared, tls, closed, metrics)
    }

    /// For a Sentinel.
    pub(super) fn of_sentinel(
        shared: &config::Shared,
        tls: Option<TlsConnector>,
        closed: &Arc<Notify>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let login = login(shared.sentinel_username.as_deref(), shared.sentinel_password_file.as_ref());
        Self::new(login, ConnectionCheck::of_sentinel(), shared, tls, closed, metrics)
    }

    fn new(
        login: RedisConnectionInfo,
        check: ConnectionCheck,
        shared: &config::Shared,
        tls: Option<TlsConnector>,
        closed: &Arc<Notify>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let (closed, metrics) = (Arc::clone(closed), Arc::clone(metrics));
        Self { login, tls, timeout: shared.timeout, check, closed, metrics }
    }
}

fn login(username: Option<&str>, password: Option<&StoredSecret>) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(password) = password {
        login = login.set_password(String::from_utf8_lossy(password.secret.expose()));
    }
    if let Some(username) = username {
        login = login.set_username(username);
    }
    login
}

pub(super) struct Node {
    pub(super) address: NodeAddress,
    options: Arc<ConnectOptions>,
    connection: RwLock<Option<NodeConnection>>,
    /// Whether a batch has tried to connect.
    was_tried: AtomicBool,
    outage: Mutex<Outage>,
    write_refusal: Mutex<Option<WriteRefusal>>,
    refused: LogThrottle,
    down: LogThrottle,
    /// Whether the log says that the server is down.
    is_told: AtomicBool,
}

/// A server that can be read from refuses what is written.
#[derive(Clone, Debug)]
pub(crate) struct WriteRefusal {
    pub(crate) server: NodeAddress,
    pub(crate) command: &'static str,
    /// The first word of the error.
    pub(crate) code: String,
    pub(crate) since: Instant,
    last: Instant,
}

#[derive(Clone)]
struct NodeConnection {
    requests: MultiplexedConnection,
    allowance: Arc<Allowance>,
    /// In a row: of look-ups, and of other round trips. The small ones of the background task say nothing of look-ups.
    failures: Arc<[AtomicU32; 2]>,
    opened: Instant,
    /// Reads and writes while any clone of the connection exists.
    _driver: Arc<AbortOnDropHandle<()>>,
}

/// Why there is no connection, and until when none is made.
#[derive(Default)]
struct Outage {
    reason: String,
    pause: Duration,
    until: Option<Instant>,
    /// The last look-up that took too long, with the bytes that its reply may have.
    slow: Option<(Pipeline, usize)>,
}

impl Outage {
    /// Begins with the end of a connection that has lasted so long.
    fn begin(&mut self, reason: &str, lasted: Duration, now: Instant) {
        self.pause = if lasted > LASTING { FIRST_PAUSE } else { (self.pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE) };
        self.until = Some(now + self.pause);
        reason.clone_into(&mut self.reason);
    }
}

impl Node {
    pub(super) fn new(address: NodeAddress, options: Arc<ConnectOptions>) -> Self {
        Self {
            address,
            options,
            connection: RwLock::new(None),
            was_tried: AtomicBool::new(false),
            outage: Mutex::default(),
            write_refusal: Mutex::default(),
            refused: LogThrottle::every(LOG_PAUSE),
            down: LogThrottle::every(LOG_PAUSE),
            is_told: AtomicBool::new(false),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.connection.read().is_some()
    }

    /// Why there is no connection, once there was one or a try.
    pub(super) fn why_down(&self) -> Option<String> {
        let outage = self.outage.lock();
        (!self.is_up() && !outage.reason.is_empty()).then(|| format!("{}: {}", self.address, outage.reason))
    }

    /// Logs that a node of a Cluster is down, and that it is back.
    pub(super) fn tell(&self) {
        let server = format_args!("{}", self.address);
        if self.is_up() {
            if self.is_told.swap(false, Ordering::Relaxed) {
                events::SharedNodeUp { server }.log();
            }
        } else if !self.is_told.load(Ordering::Relaxed) {
            self.down.when_due(|suppressed| {
                self.is_told.store(true, Ordering::Relaxed);
                let reason = &self.outage.lock().reason;
                events::SharedNodeDown { server, reason, suppressed }.log();
            });
        }
    }

    /// Why the last connection was closed, while no other may be made.
    pub(super) fn outage(&self) -> Option<String> {
        let outage = self.outage.lock();
        let is_paused = outage.until.is_some_and(|until| Instant::now() < until);
        is_paused.then(|| format!("{}: {}", self.address, outage.reason))
    }

    /// The last refusal, if the server has taken nothing since.
    pub(super) fn write_refusal(&self) -> Option<WriteRefusal> {
        let refusal = self.write_refusal.lock();
        refusal.clone().filter(|refusal| self.is_up() && refusal.last.elapsed() < REFUSAL_LIFE)
    }

    /// Connects, unless there is a connection, and checks that batches can use it within their time limit.
    ///
    /// # Errors
    /// Why there is no connection, for an operator.
    pub(super) async fn connect(&self) -> Result<(), String> {
        if self.is_up() {
            return Ok(());
        }
        if let Some(reason) = self.outage() {
            return Err(reason);
        }
        let connection = self.open().await.map_err(|(failure, error)| {
            self.options.metrics.shared.failures.of(failure).inc();
            let reason = error.to_string();
            reason.clone_into(&mut self.outage.lock().reason);
            format!("{}: {reason}", self.address)
        })?;
        *self.connection.write() = Some(connection);
        Ok(())
    }

    /// Connects by `until` for a batch, the first time: other batches do without a node that cannot be used, until the background task has
    /// connected to it.
    pub(super) async fn connect_once(&self, until: Instant) {
        if !self.is_up() && !self.was_tried.swap(true, Ordering::Relaxed) {
            // The command fails where there is no connection.
            let _ = timeout_at(until, self.connect()).await;
        }
    }

    async fn open(&self) -> Result<NodeConnection, (SharedFailure, BoxError)> {
        let unconnected = |error: BoxError| (SharedFailure::Connect, error);
        let too_slow = |reason: &str| (SharedFailure::Timeout, reason.into());
        let logged_in = timeout(CONNECT_TIMEOUT, self.log_in()).await;
        let mut connection =
            logged_in.map_err(|_| unconnected("connecting takes too long".into()))?.map_err(unconnected)?;
        let check = &self.options.check;
        if !check.commands.is_empty() {
            let (pipeline, reply_bytes) = pipeline(&check.commands);
            let replies = self.within_limit(&mut connection, Operation::Sync, &pipeline, reply_bytes).await;
            let replies = replies.ok_or_else(|| too_slow("a round trip takes longer than shared.timeout"))?;
            let replies = replies.map_err(|error| unconnected(error.into()))?;
            check.judge(&replies).map_err(|reason| unconnected(reason.into()))?;
        }
        let slow = self.outage.lock().slow.take();
        if let Some((look_up, reply_bytes)) = slow
            && self.within_limit(&mut connection, Operation::Get, &look_up, reply_bytes).await.is_none()
        {
            self.outage.lock().slow = Some((look_up, reply_bytes));
            return Err(too_slow(
                "a look-up takes longer than shared.timeout, though the server answers: is the way to it slow?",
            ));
        }
        Ok(connection)
    }

    /// The replies; `None` if they take too long for a batch. No batch waits for them: they have longer, so that the histogram shows how
    /// long they take.
    async fn within_limit(
        &self,
        connection: &mut NodeConnection,
        operation: Operation,
        pipeline: &Pipeline,
        reply_bytes: usize,
    ) -> Option<Result<Vec<Value>, RedisError>> {
        connection.allowance.grant(reply_bytes);
        let (limit, commands) = (self.options.timeout, pipeline.len());
        let begin = Instant::now();
        let replies = connection.requests.send_packed_commands(pipeline, 0, commands);
        let replies = timeout(limit.max(CONNECT_TIMEOUT), replies).await;
        let taken = begin.elapsed();
        self.options.metrics.shared.count(operation, taken.as_secs_f64());
        replies.ok().filter(|_| taken <= limit)
    }

    async fn log_in(&self) -> Result<NodeConnection, BoxError> {
        let stream = match (&self.address, &self.options.tls) {
            (NodeAddress::Unix(path), _) => Either::Left(Either::Left(UnixStream::connect(path).await?)),
            (NodeAddress::Tcp { host, port }, tls) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                match tls {
                    None => Either::Left(Either::Right(stream)),
                    Some(tls) => Either::Right(tls.connect(ServerName::try_from(host.clone())?, stream).await?),
                }
            }
        };
        let allowance = Arc::new(Allowance(AtomicUsize::new(MAX_LOGIN_BYTES)));
        let (read, write) = tokio::io::split(stream);
        let stream = tokio::io::join(Measured { read, allowance: Arc::clone(&allowance) }, write);
        // Round trips have time limits.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let connected = MultiplexedConnection::new_with_config(&self.options.login, stream, config).await;
        let (requests, driver) = connected.map_err(|error| self.options.check.why_no_login(&error))?;
        let driver = Arc::new(AbortOnDropHandle::new(tokio::spawn(driver)));
        let failures = Arc::new([FAILURES - 1, FAILURES - 1].map(AtomicU32::new));
        Ok(NodeConnection { requests, allowance, failures, opened: Instant::now(), _driver: driver })
    }

    /// Sends commands in one round trip; returns a reply for each. `None` if there is no connection, or no answer within
    /// `limit`.
    pub(super) async fn run(
        &self,
        operation: Operation,
        commands: Vec<RedisCommand>,
        limit: Duration,
    ) -> Option<Vec<Value>> {
        let mut connection = self.connection.read().clone()?;
        let (pipeline, reply_bytes) = pipeline(&commands);
        connection.allowance.grant(reply_bytes);
        let metrics = &self.options.metrics.shared;
        let begin = Instant::now();
        let replies = timeout(limit, connection.requests.send_packed_commands(&pipeline, 0, commands.len())).await;
        metrics.count(operation, begin.elapsed().as_secs_f64());
        match replies {
            Ok(Ok(replies)) if replies.len() == commands.len() => {
                self.judge(&connection, operation, &commands, &replies);
                Some(replies)
            }
            Ok(broken) => {
                metrics.failures.of(if broken.is_ok() { SharedFailure::Reply } else { SharedFailure::Broken }).inc();
                self.close(&connection, "the connection broke");
                None
            }
            Err(_) => {
                metrics.failures.of(SharedFailure::Timeout).inc();
                if operation == Operation::Get {
                    self.outage.lock().slow = Some((pipeline, reply_bytes));
                }
                self.failed(&connection, operation, "round trips take longer than shared.timeout");
                None
            }
        }
    }

    fn judge(&self, connection: &NodeConnection, operation: Operation, commands: &[RedisCommand], replies: &[Value]) {
        let check = &self.options.check;
        let is_redirection = |code| check.cluster && matches!(code, "MOVED" | "ASK" | "TRYAGAIN");
        let refusals = refusals(commands, replies).filter(|refusal| !is_redirection(refusal.code));
        let refusals: Vec<Refusal<'_>> = refusals.collect();
        // A full server refuses all that is written.
        let reads = matches!(operation, Operation::Get | Operation::Sync);
        let is_answer = !reads || refusals.len() < replies.len();
        if is_answer {
            failures_of(operation, connection).store(0, Ordering::Relaxed);
        }
        if refusals.is_empty() {
            self.note_refusals(commands, replies, &refusals);
            return;
        }
        self.options.metrics.shared.failures.of(SharedFailure::Reply).inc();
        if let Some(reason) = check.why_unusable(&refusals) {
            return self.close(connection, &reason);
        }
        self.note_refusals(commands, replies, &refusals);
        if !is_answer {
            self.failed(connection, operation, "the server answers with errors alone");
        }
    }

    /// Logs what is refused, and remembers whether the server takes what is written.
    fn note_refusals(&self, commands: &[RedisCommand], replies: &[Value], refusals: &[Refusal<'_>]) {
        let mut known = self.write_refusal.lock();
        if let Some(Refusal { command, code, .. }) = refusals.iter().find(|refusal| refusal.is_of_writes()) {
            let last = Instant::now();
            let known = known.get_or_insert_with(|| {
                let (server, code) = (self.address.clone(), String::new());
                WriteRefusal { server, command, code, since: last, last }
            });
            (known.command, known.last) = (command, last);
            (*code).clone_into(&mut known.code);
        } else if commands.iter().zip(replies).any(|(command, reply)| takes_write(command, reply)) {
            *known = None;
        }
        drop(known);
        let Some(Refusal { command, code, .. }) = refusals.first() else { return };
        self.refused.when_due(|suppressed| {
            let server = format_args!("{}", self.address);
            events::SharedRefusal { server, command, code, suppressed }.log();
        });
    }

    fn failed(&self, connection: &NodeConnection, operation: Operation, reason: &str) {
        if failures_of(operation, connection).fetch_add(1, Ordering::Relaxed).saturating_add(1) >= FAILURES {
            self.close(connection, reason);
        }
    }

    /// Closes `connection`, unless there is another already.
    fn close(&self, connection: &NodeConnection, reason: &str) {
        let mut current = self.connection.write();
        if !current.as_ref().is_some_and(|current| Arc::ptr_eq(&current.allowance, &connection.allowance)) {
            return;
        }
        self.outage.lock().begin(reason, connection.opened.elapsed(), Instant::now());
        *current = None;
        self.options.closed.notify_one();
    }
}

/// A full server takes commands that need no memory.
fn takes_write(command: &RedisCommand, reply: &Value) -> bool {
    command.name == "SET" && !matches!(reply, Value::ServerError(_))
}

fn failures_of(operation: Operation, connection: &NodeConnection) -> &AtomicU32 {
    let [look_ups, others] = &*connection.failures;
    if matches!(operation, Operation::Get | Operation::Lease) { look_ups } else { others }
}

/// The commands, and the bytes that their replies may have.
fn pipeline(commands: &[RedisCommand]) -> (Pipeline, usize) {
    let mut pipeline = Pipeline::new();
    let mut reply_bytes = 0_usize;
    for command in commands {
        reply_bytes = reply_bytes.saturating_add(command.reply_bytes + MAX_REPLY_OVERHEAD);
        pipeline.add_command(command.command.clone());
    }
    (pipeline, reply_bytes)
}

/// Bytes that a server may still answer. A longer answer is an error, so memory stays bounded whatever length the server
/// announces.
struct Allowance(AtomicUsize);

impl Allowance {
    fn grant(&self, bytes: usize) {
        let add = |left: usize| Some(left.saturating_add(bytes).min(MAX_OUTSTANDING_BYTES));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn spend(&self, bytes: usize) -> io::Result<()> {
        let spent = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        spent.map(drop).map_err(|_| io::Error::other("an answer longer than what was asked for"))
    }
}

/// Reading more than the allowance from this is an error.
struct Measured<R> {
    read: R,
    allowance: Arc<Allowance>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Measured<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.read).poll_read(cx, buf))?;
        Poll::Ready(self.allowance.spend(buf.filled().len() - before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_that_ends_soon_doubles_the_pause_and_one_that_lasts_ends_that() {
        let (mut outage, now) = (Outage::default(), Instant::now());
        let pauses = [0.25, 0.5, 1.0, 2.0, 3.0, 3.0].map(Duration::from_secs_f64);
        for pause in pauses {
            outage.begin("", Duration::from_secs(1), now);
            assert_eq!(outage.until, Some(now + pause));
        }
        outage.begin("", LASTING + Duration::from_secs(1), now);
        assert_eq!(outage.until, Some(now + FIRST_PAUSE));
    }
}
