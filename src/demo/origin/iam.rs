//! A simulated IAM beside the simulated endpoint: it issues tokens, says whom they stand for, and forgets those that are revoked.
//!
//! It is a server of its own, so that it can be down, slow or wrong while the endpoint is not. `keystone` has the routes of OpenStack's
//! and Huawei's IAM, `oauth2` those of OAuth 2.0. An endpoint with [`Options::iam`] accepts just the tokens that live here, and makes its
//! links for the user of a token.
//!
//! [`Options::iam`]: super::Options::iam

mod grant;
mod keys;
mod keystone;
mod oauth2;
mod usage;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ScriptedReply;
use super::connections::{accept, receive};
use super::gate::Gate;
use crate::clock::Clock;
use crate::message::body::{Body, whole};
use keys::SigningKeys;

pub use grant::Grant;
pub use keys::JwtAlgorithm;

/// The client of [`Iam::client_secret`], which may introspect.
pub const CLIENT: &str = "sidelink";
/// How long tokens live that are issued over HTTP, as Huawei has it.
const LIFE: Duration = Duration::from_secs(24 * 3600);
const MOST_BYTES: usize = 64 << 10;

/// A running simulated IAM. Clones share it; it runs until [`Iam::stop`], or as long as its runtime.
#[derive(Clone)]
pub struct Iam(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    clock: Clock,
    client_secret: String,
    state: Mutex<IamState>,
    gate: Gate,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct IamState {
    behaviour: Behaviour,
    keys: SigningKeys,
    tokens: HashMap<String, Issued>,
    script: VecDeque<ScriptedReply>,
    /// Of introspections, by the token that they ask about.
    requests: HashMap<String, usize>,
    key_requests: usize,
}

/// A token that was issued. Times are in Unix milliseconds.
#[derive(Clone, Debug)]
struct Issued {
    grant: Grant,
    issued: u64,
    expires: u64,
    /// Differs for each token.
    serial: String,
}

/// How the IAM answers. All but the dialect are faults.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// Whose Keystone it is.
    pub dialect: Dialect,
    /// The only token to ask about which meets the faults; `None`: all of them, and the key set.
    pub only_for: Option<String>,
    /// How long an answer takes.
    pub delay: Duration,
    /// Replaces its own answer.
    pub reply: Option<ScriptedReply>,
    /// The media type of its answers, in place of the right one.
    pub content_type: Option<&'static str>,
    /// Spaces at the end of its answers.
    pub padding: usize,
    /// The token that its answers describe, in place of the one that is asked about.
    pub describes: Option<String>,
    /// The roles come in the reverse of their order.
    pub roles_reversed: bool,
}

/// Whose form the answers of Keystone's routes have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Huawei's: no audit ids, and `0` as the id of every role.
    #[default]
    Huawei,
    /// OpenStack's.
    OpenStack,
}

impl Iam {
    /// Binds and begins to serve.
    ///
    /// # Errors
    /// If the address cannot be bound, or the machine has no random numbers.
    pub async fn start(address: SocketAddr) -> io::Result<Self> {
        Self::start_with(address, Clock::system()).await
    }

    /// As [`Iam::start`], on a clock of the caller's.
    ///
    /// # Errors
    /// As [`Iam::start`].
    pub async fn start_with(address: SocketAddr, clock: Clock) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let iam = Self::new(listener.local_addr()?, clock)?;
        let (accepting, stop) = (iam.clone(), iam.0.stop.clone());
        iam.0.tasks.spawn(accept(listener, stop, move |stream| accepting.spawn(stream)));
        Ok(iam)
    }

    /// Serves the connections that come through `connections`, made in memory. No socket listens at `address`.
    ///
    /// # Errors
    /// If the machine has no random numbers.
    pub fn in_memory(
        address: SocketAddr,
        clock: Clock,
        connections: UnboundedReceiver<DuplexStream>,
    ) -> io::Result<Self> {
        let iam = Self::new(address, clock)?;
        let (accepting, stop) = (iam.clone(), iam.0.stop.clone());
        tokio::spawn(receive(connections, stop, move |stream| accepting.spawn(stream)));
        Ok(iam)
    }

    fn new(address: SocketAddr, clock: Clock) -> io::Result<Self> {
        let state = IamState {
            behaviour: Behaviour::default(),
            keys: SigningKeys::generate()?,
            tokens: HashMap::new(),
            script: VecDeque::new(),
            requests: HashMap::new(),
            key_requests: 0,
        };
        Ok(Self(Arc::new(Inner {
            address,
            clock,
            client_secret: random(24),
            state: Mutex::new(state),
            gate: Gate::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })))
    }

    fn spawn(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let iam = self.clone();
        self.0.tasks.spawn(async move { iam.serve_connection(stream).await });
    }

    /// Serves one connection over any stream, HTTP/1.1 or HTTP/2, until either side ends it or [`Iam::stop`].
    pub async fn serve_connection(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let _tracked = self.0.tasks.token();
        let service = service_fn(|request: Request<Incoming>| self.clone().answer(request));
        let server = auto::Builder::new(TokioExecutor::new());
        // However a connection ends, it is the client's to judge.
        let _ = self.0.stop.run_until_cancelled(server.serve_connection(TokioIo::new(io), service)).await;
    }

    /// Answers one request.
    ///
    /// # Errors
    /// To end the connection: the request's body breaks off, a reset is scripted, or the IAM stops.
    async fn answer(self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, MOST_BYTES).collect().await.map_err(io::Error::other)?.to_bytes();
        let subject = self.subject(&parts, &body);
        let (behaviour, scripted) = {
            let mut state = self.state();
            match &subject {
                Some(subject) => *state.requests.entry(subject.clone()).or_default() += 1,
                None if parts.uri.path() == oauth2::KEYS => state.key_requests += 1,
                None => {}
            }
            // Before the arrival is told: a reply that is scripted from then on is for the next request.
            (state.behaviour.of(subject.as_deref()), state.script.pop_front())
        };
        self.0.gate.pass(behaviour.delay, &self.0.stop).await?;
        if let Some(reply) = scripted.or_else(|| behaviour.reply.clone()) {
            return reply.play(&self.0.stop).await;
        }
        let mut response = match (&parts.method, parts.uri.path()) {
            (&Method::GET, keystone::TOKENS) => keystone::validate(&self, &behaviour, &parts),
            (&Method::POST, keystone::TOKENS) => keystone::authenticate(&self, &behaviour, &body),
            (&Method::POST, oauth2::INTROSPECT) => oauth2::introspect(&self, &behaviour, &parts, &body),
            (&Method::POST, oauth2::TOKEN) => oauth2::issue(&self, &parts, &body),
            (&Method::GET, oauth2::KEYS) => oauth2::keys(&self),
            _ => keystone::error(404, "Not Found", "Could not find the requested resource."),
        };
        let media_type = behaviour.content_type.unwrap_or("application/json");
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        response.body_mut().extend(std::iter::repeat_n(' ', behaviour.padding));
        Ok(response.map(|body| whole(body.into())))
    }

    /// The token that a request asks about.
    fn subject(&self, parts: &Parts, body: &Bytes) -> Option<String> {
        match (&parts.method, parts.uri.path()) {
            (&Method::GET, keystone::TOKENS) => keystone::subject(parts).map(str::to_owned),
            (&Method::POST, oauth2::INTROSPECT) => oauth2::subject(body),
            _ => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, IamState> {
        self.0.state.lock()
    }

    fn now(&self) -> u64 {
        self.0.clock.now().unix_millis()
    }
}

/// For tests and the demonstration.
impl Iam {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The URL of Keystone's tokens.
    pub fn keystone_url(&self) -> String {
        self.url(keystone::TOKENS)
    }

    /// The URL of RFC 7662's introspection.
    pub fn introspection_url(&self) -> String {
        self.url(oauth2::INTROSPECT)
    }

    /// The URL of the key set.
    pub fn keys_url(&self) -> String {
        self.url(oauth2::KEYS)
    }

    /// The issuer of its JSON Web Tokens.
    pub fn issuer(&self) -> String {
        self.url("")
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.0.address)
    }

    /// The secret of [`CLIENT`].
    pub fn client_secret(&self) -> &str {
        &self.0.client_secret
    }

    /// Issues a token of this user for this project, with these roles, that lives so long.
    pub fn issue(&self, user: &str, project: &str, roles: &[&str], lives: Duration) -> String {
        self.issue_grant(Grant::new(user, project, roles), lives)
    }

    /// Issues a token for a grant. It has characters that a form has to encode, as real ones do.
    pub fn issue_grant(&self, grant: Grant, lives: Duration) -> String {
        // As Huawei's: base64 of a signed message, with `-` for `/`.
        let token = format!("MII+{}", STANDARD.encode(rand::random::<[u8; 94]>()).replace('/', "-"));
        let issued = self.new_token(grant, lives);
        self.state().tokens.insert(token.clone(), issued);
        token
    }

    /// Issues a JSON Web Token for a grant.
    pub fn issue_jwt(&self, grant: Grant, lives: Duration, algorithm: JwtAlgorithm) -> String {
        let issued = self.new_token(grant, lives);
        let token = self.sign(algorithm, &oauth2::claims(self, &issued));
        self.state().tokens.insert(token.clone(), issued);
        token
    }

    /// Signs claims, whatever they say. No token is issued: the IAM does not know the result.
    pub fn sign(&self, algorithm: JwtAlgorithm, claims: &Value) -> String {
        self.state().keys.sign(algorithm, claims)
    }

    /// Replaces its signing keys. Tokens that were signed with the old ones live on.
    ///
    /// # Errors
    /// If the machine has no random numbers.
    pub fn rotate_keys(&self) -> io::Result<()> {
        let keys = SigningKeys::generate()?;
        self.state().keys = keys;
        Ok(())
    }

    fn new_token(&self, grant: Grant, lives: Duration) -> Issued {
        let issued = self.now();
        let lives = u64::try_from(lives.as_millis()).unwrap_or(u64::MAX);
        Issued { grant, issued, expires: issued.saturating_add(lives), serial: random(16) }
    }

    /// Forgets a token; returns whether it was known.
    pub fn revoke(&self, token: &str) -> bool {
        self.state().tokens.remove(token).is_some()
    }

    /// A token that is known and lives.
    fn token(&self, token: &str) -> Option<Issued> {
        let now = self.now();
        self.state().tokens.get(token).filter(|issued| now < issued.expires).cloned()
    }

    /// The owner of the links that a token gets, for [`link_is_for`]: equal for equal grants. `None` where the token is not known or has
    /// expired.
    ///
    /// [`link_is_for`]: super::link_is_for
    pub fn owner(&self, token: &str) -> Option<String> {
        self.token(token).map(|issued| issued.grant.to_string())
    }

    /// Changes its behaviour from the next request on.
    pub fn update(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state().behaviour);
    }

    /// Has the next request that arrives answered by `reply`; several replies serve as many requests, in their order.
    pub fn script(&self, reply: ScriptedReply) {
        self.state().script.push_back(reply);
    }

    /// Requests since the start, on all routes.
    pub fn requests(&self) -> usize {
        self.0.gate.count()
    }

    /// Introspections of a token since the start.
    pub fn requests_for(&self, token: &str) -> usize {
        self.state().requests.get(token).copied().unwrap_or_default()
    }

    /// Requests for the key set since the start.
    pub fn key_requests(&self) -> usize {
        self.state().key_requests
    }

    /// Delays requests after they have arrived, until [`Iam::release`].
    pub fn hold(&self) {
        self.0.gate.set_open(false);
    }

    /// Lets requests go on.
    pub fn release(&self) {
        self.0.gate.set_open(true);
    }

    /// Waits until so many requests have arrived since the start.
    pub async fn arrived(&self, count: usize) {
        self.0.gate.arrived(count).await;
    }

    /// Closes the listener and every connection, in the middle of answers, and returns when they are gone. Its tokens live on at the
    /// endpoint.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

/// Without tokens and secrets.
impl fmt::Debug for Iam {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Iam").field(&self.0.address).finish()
    }
}

impl Behaviour {
    /// The behaviour towards a request about a token.
    fn of(&self, subject: Option<&str>) -> Self {
        match &self.only_for {
            Some(only) if Some(only.as_str()) != subject => Self { dialect: self.dialect, ..Self::default() },
            _ => self.clone(),
        }
    }

    /// The token that an answer about `token` describes; `None` where it is not known or has expired.
    fn describe(&self, iam: &Iam, token: &str) -> Option<Issued> {
        let mut issued = iam.token(self.describes.as_deref().unwrap_or(token))?;
        if self.roles_reversed {
            issued.grant.roles.reverse();
        }
        Some(issued)
    }
}

/// So many random bytes, as text.
fn random(bytes: usize) -> String {
    URL_SAFE_NO_PAD.encode(std::iter::repeat_with(rand::random::<u8>).take(bytes).collect::<Vec<_>>())
}
