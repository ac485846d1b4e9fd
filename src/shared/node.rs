//! One server: a connection that batches share, with a bound on the size of answers, and a breaker.
//!
//! A round trip costs a batch at most `shared.timeout`. After [`FAILURES`] in a row the connection is dropped; until the
//! background task has made another, a round trip costs nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::RwLock;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, RedisConnectionInfo, Value};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use tokio_util::task::AbortOnDropHandle;
use tower::BoxError;

use super::store::RedisCommand;
use crate::config::{self, NodeAddress};
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::{Metrics, Operation, SharedFailure};

/// Failures in a row after which a connection is dropped; a new connection is dropped at the first.
const FAILURES: u32 = 3;
/// Time limit for connecting, TLS and login included; no batch waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_LOGIN_BYTES: usize = 64 << 10;
const MAX_OUTSTANDING_BYTES: usize = 16 << 20;
/// Most bytes of one reply besides a value.
const MAX_REPLY_OVERHEAD: usize = 1 << 10;

pub(super) struct ConnectOptions {
    login: RedisConnectionInfo,
    tls: Option<TlsConnector>,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

impl ConnectOptions {
    pub(super) fn new(shared: &config::Shared, tls: Option<rustls::ClientConfig>, metrics: Arc<Metrics>) -> Self {
        let mut login = RedisConnectionInfo::default().set_db(shared.database()).set_skip_set_lib_name();
        if let Some(password) = &shared.password_file {
            login = login.set_password(String::from_utf8_lossy(password.secret.expose()));
        }
        if let Some(username) = &shared.username {
            login = login.set_username(username);
        }
        let tls = tls.map(|tls| TlsConnector::from(Arc::new(tls)));
        Self { login, tls, timeout: shared.timeout, metrics }
    }
}

pub(super) struct Node {
    pub(super) address: NodeAddress,
    options: Arc<ConnectOptions>,
    connection: RwLock<Option<NodeConnection>>,
    /// In a row.
    failures: AtomicU32,
    refused: LogThrottle,
}

#[derive(Clone)]
struct NodeConnection {
    requests: MultiplexedConnection,
    allowance: Arc<Allowance>,
    /// Reads and writes while any clone of the connection exists.
    _driver: Arc<AbortOnDropHandle<()>>,
}

impl Node {
    pub(super) fn new(address: NodeAddress, options: Arc<ConnectOptions>) -> Self {
        Self {
            address,
            options,
            connection: RwLock::new(None),
            failures: AtomicU32::new(FAILURES),
            refused: LogThrottle::default(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.connection.read().is_some()
    }

    /// Connects, unless there is a connection, and checks that a round trip is within its time limit.
    ///
    /// # Errors
    /// Why there is no connection, for an operator.
    pub(super) async fn connect(&self) -> Result<(), String> {
        if self.is_up() {
            return Ok(());
        }
        let connection = self.open().await.map_err(|reason| {
            self.options.metrics.shared.failures.of(SharedFailure::Connect).inc();
            format!("{}: {reason}", self.address)
        })?;
        self.failures.store(FAILURES - 1, Ordering::Relaxed);
        *self.connection.write() = Some(connection);
        Ok(())
    }

    async fn open(&self) -> Result<NodeConnection, BoxError> {
        let logged_in = timeout(CONNECT_TIMEOUT, self.log_in()).await;
        let mut connection = logged_in.map_err(|_| "connecting takes too long")??;
        connection.allowance.grant(MAX_REPLY_OVERHEAD);
        let ping = redis::cmd("PING");
        let pong = timeout(self.options.timeout, connection.requests.send_packed_command(&ping)).await;
        pong.map_err(|_| "a round trip takes longer than shared.timeout")??;
        Ok(connection)
    }

    async fn log_in(&self) -> Result<NodeConnection, BoxError> {
        let NodeAddress { host, port } = &self.address;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        let stream = match &self.options.tls {
            None => Either::Left(stream),
            Some(tls) => Either::Right(tls.connect(ServerName::try_from(host.clone())?, stream).await?),
        };
        let allowance = Arc::new(Allowance(AtomicUsize::new(MAX_LOGIN_BYTES)));
        let (read, write) = tokio::io::split(stream);
        let stream = tokio::io::join(Measured { read, allowance: Arc::clone(&allowance) }, write);
        // Round trips have time limits.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (requests, driver) = MultiplexedConnection::new_with_config(&self.options.login, stream, config).await?;
        let driver = Arc::new(AbortOnDropHandle::new(tokio::spawn(driver)));
        Ok(NodeConnection { requests, allowance, _driver: driver })
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
        let mut pipeline = Pipeline::new();
        for RedisCommand { command, reply_bytes, .. } in commands {
            connection.allowance.grant(reply_bytes + MAX_REPLY_OVERHEAD);
            pipeline.add_command(command);
        }
        let commands = pipeline.len();
        let metrics = &self.options.metrics.shared;
        let begin = Instant::now();
        let replies = timeout(limit, connection.requests.send_packed_commands(&pipeline, 0, commands)).await;
        metrics.count(operation, begin.elapsed().as_secs_f64());
        match replies {
            Ok(Ok(replies)) if replies.len() == commands => {
                if let Some(code) = replies.iter().find_map(error_code) {
                    metrics.failures.of(SharedFailure::Reply).inc();
                    self.refused.when_due(|suppressed| {
                        events::SharedRefusal { server: format_args!("{}", self.address), code, suppressed }.log();
                    });
                }
                // A server that answers everything with an error (loading, no login) counts as failed.
                if replies.iter().all(|reply| error_code(reply).is_some()) && operation == Operation::Get {
                    self.failed();
                } else {
                    self.failures.store(0, Ordering::Relaxed);
                }
                Some(replies)
            }
            Ok(broken) => {
                metrics.failures.of(if broken.is_ok() { SharedFailure::Reply } else { SharedFailure::Broken }).inc();
                *self.connection.write() = None;
                None
            }
            Err(_) => {
                metrics.failures.of(SharedFailure::Timeout).inc();
                self.failed();
                None
            }
        }
    }

    fn failed(&self) {
        if self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= FAILURES {
            *self.connection.write() = None;
        }
    }
}

/// The code of an error, as `OOM`. The text of an error may contain anything.
fn error_code(value: &Value) -> Option<&str> {
    if let Value::ServerError(error) = value { Some(error.code()) } else { None }
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
