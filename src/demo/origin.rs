//! The simulated endpoint: faithful to the public API reference, with switches for delay, faults and link life.
//!
//! `sidelink origin` runs it alone, the demonstration runs it inside, and the tests drive it in-process: it records
//! what it was asked, holds calls at a gate until told to go on, and answers as scripted.
//!
//! It stands in for the real service, and is not it: any token will do (signatures are verified), nothing that is uploaded
//! is kept, and where the reference is silent (the order of items, unknown ids) an option says what it does.

mod answers;
mod asked;
mod connections;
mod credential;
mod faults;
mod links;
mod neighbours;
mod routes;
#[cfg(test)]
mod tests;

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::request::Form;
use crate::clock::Clock;
use crate::config::{KeyPair, Secret};
use connections::Connections;

pub use connections::Loss;
pub use faults::Faults;
pub use links::{Signer, link_is_for};

/// Most distinct ids that are told apart; so many hashes take some 16 MiB.
const MOST_DISTINCT: usize = 1 << 20;

/// How the simulated endpoint behaves; also the arguments of `sidelink origin`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9090")]
    pub address: SocketAddr,
    /// How long its links live, in whole seconds.
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = crate::config::parse_duration)]
    pub link_life: Duration,
    /// How its links are signed.
    #[arg(long, value_enum, default_value_t = Signer::V2)]
    pub signer: Signer,
    /// How long it takes to answer a batch.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = crate::config::parse_duration)]
    pub delay: Duration,
    /// Most ids that it takes in one call.
    #[arg(long, default_value_t = 100)]
    pub max_ids: usize,
    /// Ids that it does not know.
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub missing: Vec<String>,
    /// What it does with a batch that has some of those.
    #[arg(long, value_enum, default_value_t = UnknownIds::LeaveOut)]
    pub unknown_ids: UnknownIds,
    /// Tokens that it refuses with a 401.
    #[arg(long, value_name = "TOKEN,…", value_delimiter = ',')]
    pub refuse: Vec<String>,
    /// A key pair whose signatures it accepts, as ACCESS_KEY:SECRET_KEY; may be given several times.
    #[arg(long = "key", value_name = "ACCESS_KEY:SECRET_KEY", value_parser = key_pair)]
    pub keys: Vec<KeyPair>,
    /// Ids that make it fail the whole call.
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub poison: Vec<String>,
    /// With which status, 200 to 599: 200 is an error body that comes with a 200, as older codes do.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(200..=599))]
    pub poison_status: u16,
    /// Share of calls that fail by chance, 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub fail_ratio: f64,
    /// With which status those fail, 200 to 599.
    #[arg(long, default_value_t = 503, value_parser = clap::value_parser!(u16).range(200..=599))]
    pub fail_status: u16,
    /// Seconds that its clock is ahead of this machine's; it dates its answers and its links by it.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    pub clock_offset: i64,
    /// `Cache-Control` of its answers.
    #[arg(long)]
    pub cache_control: Option<String>,
    /// It answers in the reverse of the order asked.
    #[arg(long)]
    pub reversed: bool,
    /// It never compresses, even where the client accepts gzip.
    #[arg(long)]
    pub no_gzip: bool,
    /// Whether calls are recorded (memory grows with each).
    #[arg(skip)]
    pub record: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 9090)),
            link_life: Duration::from_secs(15 * 60),
            signer: Signer::V2,
            delay: Duration::ZERO,
            max_ids: 100,
            missing: Vec::new(),
            unknown_ids: UnknownIds::LeaveOut,
            refuse: Vec::new(),
            keys: Vec::new(),
            poison: Vec::new(),
            poison_status: 500,
            fail_ratio: 0.0,
            fail_status: 503,
            clock_offset: 0,
            cache_control: None,
            reversed: false,
            no_gzip: false,
            record: false,
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share is a number from 0 to 1".to_owned()),
    }
}

fn key_pair(text: &str) -> Result<KeyPair, String> {
    let (access_key, secret_key) = text.split_once(':').ok_or("a key pair is ACCESS_KEY:SECRET_KEY")?;
    Ok(KeyPair { access_key: access_key.to_owned(), secret_key: Secret::new(secret_key.into()) })
}

/// What the endpoint does with ids that it does not know: the reference does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UnknownIds {
    /// They are left out of the answer.
    LeaveOut,
    /// The batch fails with a 400, `OSM.0001`.
    Fail,
}

/// A call on the batch route, as it arrived.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Path and query, raw.
    pub target: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The ids it asked for, in that order; none where it could not be read.
    pub ids: Vec<String>,
    /// The group it named.
    pub group: Option<String>,
    /// The form it had, where it could be read.
    pub form: Option<Form>,
}

/// A canned reply to one call on the batch route, sent as it is (hyper adds a `Date` and a length where it has none).
#[derive(Clone, Debug)]
pub enum Reply {
    /// This status, these headers and this body, whose length the headers leave out or state rightly.
    Whole(StatusCode, HeaderMap, Bytes),
    /// A 200 that announces more than this body, and breaks off after it.
    Truncated(Bytes),
    /// The connection (on HTTP/2: the stream) ends with no answer.
    Reset,
    /// Nothing, until the client gives up.
    Hang,
}

impl Reply {
    /// A reply of JSON text; a `status` that is none becomes a 200.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Self {
        let headers =
            HeaderMap::from_iter([(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"))]);
        Self::Whole(StatusCode::from_u16(status).unwrap_or(StatusCode::OK), headers, body.into())
    }
}

/// A running simulated endpoint. Clones are handles on the same one; it runs until [`Origin::stop`], or as long as its
/// runtime.
#[derive(Clone)]
pub struct Origin(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    clock: Clock,
    options: Mutex<Options>,
    faults: Mutex<Faults>,
    calls: Mutex<Vec<Call>>,
    script: Mutex<VecDeque<Reply>>,
    /// Calls on the batch route that have arrived.
    arrived: watch::Sender<usize>,
    /// Whether calls may go on.
    gate: watch::Sender<bool>,
    ids_asked: AtomicUsize,
    /// Hashes of (credential, group, id).
    distinct: Mutex<HashSet<u64>>,
    serial: AtomicUsize,
    open: Connections,
    stop: CancellationToken,
    /// Dropped receivers tell when the listener and every connection have ended.
    connections: watch::Sender<()>,
}

impl Origin {
    /// Binds and begins to serve.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.address).await?;
        let origin = Self::new(listener.local_addr()?, options, Clock::system());
        let alive = origin.0.connections.subscribe();
        tokio::spawn(origin.clone().accept(alive, listener));
        Ok(origin)
    }

    /// Serves the connections that come through `connections`, made in memory, on a clock of the caller's. No socket
    /// listens: [`Origin::address`] is what the options say.
    pub fn in_memory(options: Options, clock: Clock, mut connections: UnboundedReceiver<DuplexStream>) -> Self {
        let origin = Self::new(options.address, options, clock);
        let accepting = origin.clone();
        tokio::spawn(async move {
            while let Some(stream) = connections.recv().await {
                // A dropped stream is a refused connection.
                if !accepting.0.stop.is_cancelled() {
                    accepting.serve(stream);
                }
            }
        });
        origin
    }

    fn new(address: SocketAddr, options: Options, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            address,
            clock,
            options: Mutex::new(options),
            faults: Mutex::default(),
            calls: Mutex::default(),
            script: Mutex::default(),
            arrived: watch::Sender::new(0),
            gate: watch::Sender::new(true),
            ids_asked: AtomicUsize::new(0),
            distinct: Mutex::default(),
            serial: AtomicUsize::new(1),
            open: Connections::default(),
            stop: CancellationToken::new(),
            connections: watch::Sender::new(()),
        }))
    }

    /// Serves a connection in the background, until it or the origin ends.
    fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let (origin, alive) = (self.clone(), self.0.connections.subscribe());
        tokio::spawn(async move { origin.drive(stream, alive).await });
    }

    /// Parameters are dropped from the last to the first: `_alive` once the listener is closed.
    async fn accept(self, _alive: watch::Receiver<()>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.0.stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    self.serve(stream);
                }
                // Out of file descriptors, say: some end soon.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Serves one connection over any stream, HTTP/1.1 or HTTP/2, until either side ends it or [`Origin::stop`].
    pub async fn serve_connection(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        self.drive(io, self.0.connections.subscribe()).await;
    }

    async fn drive(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        // Dropped last, when the stream is closed.
        _alive: watch::Receiver<()>,
    ) {
        let (origin, open) = (self.clone(), self.0.open.open());
        let connection = Arc::clone(&open.connection);
        let service = service_fn(move |request: Request<Incoming>| {
            let (origin, connection) = (origin.clone(), Arc::clone(&connection));
            // An error ends the connection: that is how a reset is played.
            async move {
                if !connection.serves(lock(&origin.0.faults).requests_per_connection) {
                    return Err(Broken::other("lost"));
                }
                routes::answer(&origin, request).await
            }
        });
        let server = auto::Builder::new(TokioExecutor::new());
        let mut serving = pin!(server.serve_connection(TokioIo::new(io), service));
        loop {
            tokio::select! {
                biased;
                () = self.0.stop.cancelled() => return,
                () = open.connection.is_lost.cancelled() => return,
                () = open.connection.is_leaving.notified() => serving.as_mut().graceful_shutdown(),
                // However a connection ends, it is the client's to judge.
                _ = serving.as_mut() => return,
            }
        }
    }

    /// Loses every open connection.
    pub fn lose_connections(&self, how: Loss) {
        self.0.open.lose_all(how);
    }

    /// Loses one open connection: number `which` by age, counted round, if there is any.
    pub fn lose_connection(&self, which: usize, how: Loss) {
        self.0.open.lose_one(which, how);
    }

    /// Connections since the start.
    pub fn connections(&self) -> usize {
        self.0.open.made()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Changes its behaviour from the next call on.
    pub fn update(&self, change: impl FnOnce(&mut Options)) {
        change(&mut lock(&self.0.options));
    }

    /// Changes what goes wrong from the next call on.
    pub fn update_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.0.faults));
    }

    /// The recorded calls on the batch route, in the order of their arrival; empty unless [`Options::record`].
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.0.calls).clone()
    }

    /// Forgets the recorded calls. The counts go on.
    pub fn forget_calls(&self) {
        lock(&self.0.calls).clear();
    }

    /// Calls on the batch route since the start, recorded or not.
    pub fn batch_calls(&self) -> usize {
        *self.0.arrived.borrow()
    }

    /// Ids that those calls asked for in all; a call that could not be read asked for none.
    pub fn ids_asked(&self) -> usize {
        self.0.ids_asked.load(Ordering::Relaxed)
    }

    /// Distinct ids among those, where an id of another group or of another credential is another id. Stops counting
    /// at a million (2^20), so that it stays small.
    pub fn distinct_ids(&self) -> usize {
        lock(&self.0.distinct).len()
    }

    /// Holds calls on the batch route after they have arrived, until [`Origin::release`].
    pub fn hold(&self) {
        self.0.gate.send_replace(false);
    }

    /// Lets held calls go on.
    pub fn release(&self) {
        self.0.gate.send_replace(true);
    }

    /// Waits until `count` calls on the batch route have arrived since the start.
    pub async fn arrived(&self, count: usize) {
        // The sender lives in self.
        let _ = self.0.arrived.subscribe().wait_for(|arrived| *arrived >= count).await;
    }

    /// Has the next call that arrives on the batch route answered by `reply`, in place of its own answer; several
    /// replies serve as many calls, first come, first served.
    pub fn script(&self, reply: Reply) {
        lock(&self.0.script).push_back(reply);
    }

    /// Closes the listener and every connection, in the middle of whatever they do, and returns when they are gone: the
    /// endpoint is down. To have it up again, start another one at the same address.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.connections.closed().await;
    }
}

impl Inner {
    fn count(&self, credential: &str, group: Option<&str>, ids: &[String]) {
        self.ids_asked.fetch_add(ids.len(), Ordering::Relaxed);
        let mut distinct = lock(&self.distinct);
        for id in ids {
            if distinct.len() >= MOST_DISTINCT {
                return;
            }
            let mut hasher = DefaultHasher::new();
            (credential, group, id).hash(&mut hasher);
            distinct.insert(hasher.finish());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a connection's service may fail with: only a reset.
pub(crate) type Broken = io::Error;
