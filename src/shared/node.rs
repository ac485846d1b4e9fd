//! One server: a connection that many batches share, with a bound on what it may answer, and a breaker.
//!
//! A round trip that takes longer than `shared.timeout`, or fails, costs a batch that long; after [`FAILURES`] in a row the
//! connection is given up, and until there is another, made in the background, a round trip costs nothing.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, RedisConnectionInfo, Value};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::config::Address;
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::{Kind, Metrics, Operation};

/// Failures in a row after which a connection is given up; of a new one, the first.
const FAILURES: u32 = 3;
/// The longest that connecting may take, TLS and login included; nobody waits for it.
const CONNECT: Duration = Duration::from_secs(1);
/// Bytes that may come before anything was asked: what logging in answers.
const GREETING: usize = 64 << 10;
/// Bytes of answers outstanding at most.
const MOST_OUTSTANDING: usize = 16 << 20;
/// Bytes that one reply may have besides a value.
const REPLY: usize = 1 << 10;

/// How connections are made.
pub(super) struct Way {
    pub(super) login: RedisConnectionInfo,
    pub(super) tls: Option<TlsConnector>,
    /// Of a round trip.
    pub(super) timeout: Duration,
    pub(super) metrics: Arc<Metrics>,
}

/// One server.
pub(super) struct Node {
    pub(super) address: Address,
    way: Arc<Way>,
    link: RwLock<Option<Link>>,
    /// In a row.
    failures: AtomicU32,
    refused: LogThrottle,
}

#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
    allowance: Arc<Allowance>,
    _driver: Arc<Driver>,
}

/// Commands for one server that go and come back together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) pipeline: Pipeline,
    pub(super) commands: usize,
    /// Bytes of values that may come back.
    pub(super) most: usize,
}

impl Node {
    pub(super) fn new(address: Address, way: Arc<Way>) -> Self {
        Self {
            address,
            way,
            link: RwLock::new(None),
            failures: AtomicU32::new(FAILURES),
            refused: LogThrottle::default(),
        }
    }

    /// Whether there is a connection.
    pub(super) fn is_up(&self) -> bool {
        self.link().is_some()
    }

    /// Connects, unless it is connected, and sees to it that a round trip takes no longer than it may.
    ///
    /// # Errors
    /// Why there is no connection, for an operator.
    pub(super) async fn connect(&self) -> Result<(), String> {
        if self.is_up() {
            return Ok(());
        }
        let link = match timeout(CONNECT, self.open()).await {
            Ok(Ok(link)) => link,
            Ok(Err(reason)) => return Err(self.unreachable(reason)),
            Err(_) => return Err(self.unreachable("connecting takes too long".to_owned())),
        };
        let mut trial = link.connection.clone();
        link.allowance.grant(REPLY);
        match timeout(self.way.timeout, trial.send_packed_command(&redis::cmd("PING"))).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(self.unreachable(error.to_string())),
            Err(_) => return Err(self.unreachable("a round trip takes longer than shared.timeout".to_owned())),
        }
        // One failure of a connection that is new ends it: there were enough before.
        self.failures.store(FAILURES - 1, Ordering::Relaxed);
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = Some(link);
        Ok(())
    }

    fn unreachable(&self, reason: String) -> String {
        self.way.metrics.shared.count_failure(Kind::Connect);
        format!("{}: {reason}", self.address)
    }

    async fn open(&self) -> Result<Link, String> {
        let Address { host, port } = &self.address;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        match &self.way.tls {
            None => self.log_in(stream).await,
            Some(tls) => {
                let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
                let stream = tls.connect(name, stream).await.map_err(|error| error.to_string())?;
                self.log_in(stream).await
            }
        }
    }

    async fn log_in<S>(&self, stream: S) -> Result<Link, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let allowance = Arc::new(Allowance(AtomicUsize::new(GREETING)));
        let stream = Measured { stream, allowance: Arc::clone(&allowance) };
        // Round trips have their time limit here.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (connection, driver) = MultiplexedConnection::new_with_config(&self.way.login, stream, config)
            .await
            .map_err(|error| error.to_string())?;
        let driver = Arc::new(Driver(tokio::spawn(driver).abort_handle()));
        Ok(Link { connection, allowance, _driver: driver })
    }

    fn link(&self) -> Option<Link> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One round trip of at most `limit`: a reply for each command. `None`: it has failed, or there is no connection.
    pub(super) async fn exchange(&self, operation: Operation, batch: &Batch, limit: Duration) -> Option<Vec<Value>> {
        let mut link = self.link()?;
        link.allowance.grant(batch.most + batch.commands * REPLY);
        let metrics = &self.way.metrics.shared;
        let begin = Instant::now();
        let replies = timeout(limit, link.connection.send_packed_commands(&batch.pipeline, 0, batch.commands)).await;
        metrics.count(operation, begin.elapsed().as_secs_f64());
        match replies {
            Ok(Ok(replies)) if replies.len() == batch.commands => {
                if let Some(code) = replies.iter().find_map(refusal) {
                    metrics.count_failure(Kind::Reply);
                    self.refused.when_due(|suppressed| {
                        events::SharedRefusal { server: format_args!("{}", self.address), code, suppressed }.log();
                    });
                }
                // A server that answers everything with an error (loading, no login) is as good as none.
                if replies.iter().all(|reply| refusal(reply).is_some()) && operation == Operation::Get {
                    self.failed();
                } else {
                    self.failures.store(0, Ordering::Relaxed);
                }
                Some(replies)
            }
            Ok(Ok(_)) => {
                metrics.count_failure(Kind::Reply);
                self.give_up();
                None
            }
            Ok(Err(_)) => {
                metrics.count_failure(Kind::Broken);
                self.give_up();
                None
            }
            Err(_) => {
                metrics.count_failure(Kind::Timeout);
                self.failed();
                None
            }
        }
    }

    fn failed(&self) {
        if self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= FAILURES {
            self.give_up();
        }
    }

    fn give_up(&self) {
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What a server calls the reason for which it refuses a command, as `OOM`. What it says besides may name anything.
fn refusal(value: &Value) -> Option<&str> {
    if let Value::ServerError(error) = value { Some(error.code()) } else { None }
}

/// Ends a connection's task once nobody has the connection.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Bytes that a server may still answer. More than was asked for is no answer, whatever length it announces: memory stays
/// bounded.
struct Allowance(AtomicUsize);

impl Allowance {
    fn grant(&self, bytes: usize) {
        let add = |left: usize| Some(left.saturating_add(bytes).min(MOST_OUTSTANDING));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn spend(&self, bytes: usize) -> io::Result<()> {
        let spent = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        spent.map(drop).map_err(|_| io::Error::other("an answer longer than what was asked for"))
    }
}

/// A stream that ends in an error where more is read than was allowed.
struct Measured<S> {
    stream: S,
    allowance: Arc<Allowance>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Measured<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = read {
            return Poll::Ready(self.allowance.spend(buf.filled().len() - before));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Measured<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
