//! Clients that send requests without pause. Every request that is sent must be answered, and correctly.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use sidelink::demo::origin::link_is_for;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Reply, query};

/// Both directions of a connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<IO: AsyncRead + AsyncWrite + Send + Unpin> Stream for IO {}

/// How clients connect.
#[derive(Clone)]
pub enum Transport {
    Tcp(SocketAddr),
    Unix(PathBuf),
    Tls(SocketAddr, Arc<ClientConfig>),
}

impl Transport {
    pub async fn connect(&self, version: Version) -> Box<dyn Stream> {
        match self {
            Transport::Tcp(address) => Box::new(TcpStream::connect(address).await.unwrap()),
            Transport::Unix(path) => Box::new(UnixStream::connect(path).await.unwrap()),
            Transport::Tls(address, config) => {
                let mut config = ClientConfig::clone(config);
                let protocol: &[u8] = if version == Version::Http2 { b"h2" } else { b"http/1.1" };
                config.alpn_protocols = vec![protocol.to_vec()];
                let stream = tls(*address, config).await.unwrap();
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
                Box::new(stream)
            }
        }
    }
}

/// Shakes hands with `localhost` at `address`.
pub async fn tls(address: SocketAddr, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Version {
    Http1,
    Http2,
}

/// Clients that are running.
pub struct Load {
    clients: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    answered: AtomicUsize,
    leaving: AtomicBool,
}

impl Load {
    /// Some clients over each transport and version, each on a connection that it keeps.
    pub fn start(transports: &[Transport]) -> Self {
        let mut load = Self { clients: JoinSet::new(), shared: Arc::default() };
        for transport in transports {
            for version in [Version::Http1, Version::Http2] {
                for client in 0..3 {
                    load.clients.spawn(ask(transport.clone(), version, client, Arc::clone(&load.shared)));
                }
            }
        }
        load
    }

    /// Waits until this many more requests were answered.
    pub async fn goes_on(&self, requests: usize) {
        let enough = self.shared.answered.load(Ordering::SeqCst) + requests;
        while self.shared.answered.load(Ordering::SeqCst) < enough {
            assert!(!self.clients.is_empty());
            tokio::task::yield_now().await;
        }
    }

    /// From now on, a client does not connect again once the end of its connection was announced.
    pub fn may_end(&self) {
        self.shared.leaving.store(true, Ordering::SeqCst);
    }

    /// Waits until the end of each client's connection was announced.
    pub async fn all_told(mut self) {
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
    }
}

/// A connection of either version.
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn connect(transport: &Transport, version: Version) -> Self {
        let io = TokioIo::new(transport.connect(version).await);
        match version {
            Version::Http1 => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                Sender::Http1(sender)
            }
            Version::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                Sender::Http2(sender)
            }
        }
    }

    /// `None`: the end of the connection was announced before, and nothing was sent.
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Option<Response<Incoming>> {
        match self {
            Sender::Http1(sender) => {
                sender.ready().await.expect("an HTTP/1 connection ends only after Connection: close");
                Some(sender.send_request(request).await.unwrap())
            }
            Sender::Http2(sender) => {
                sender.ready().await.ok()?;
                match sender.try_send_request(request).await {
                    Ok(response) => Some(response),
                    // GOAWAY came between. Either the request has not left, or its stream is above the last one that GOAWAY
                    // names: such a one was not and will not be processed (RFC 9113 §6.8).
                    Err(mut error) => {
                        let left = error.take_message().is_none();
                        let error = error.into_error();
                        assert!(!left || is_unprocessed(&error), "{error:?}");
                        None
                    }
                }
            }
        }
    }
}

/// h2 gives the error of a GOAWAY to the streams above its last stream id, and to no others.
fn is_unprocessed(error: &hyper::Error) -> bool {
    let error = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    error.is_some_and(|error| error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
}

async fn ask(transport: Transport, version: Version, client: usize, shared: Arc<Shared>) {
    let token = format!("t{client}");
    let mut sender = Sender::connect(&transport, version).await;
    for round in 0.. {
        // Some ids are in memory, some are not.
        let ids: Vec<String> = (0..5).map(|id| (id * 7 + round / 3).to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let mut request = Request::get(query(&ids)).header("x-auth-token", &token);
        request = match version {
            Version::Http1 => request.header("host", "sidelink"),
            Version::Http2 => request.uri(format!("http://sidelink{}", query(&ids))),
        };
        let response = sender.send(request.body(Full::default()).unwrap()).await;
        let mut ends = response.is_none();
        if let Some(response) = response {
            let (head, body) = response.into_parts();
            ends = head.headers.get("connection").is_some_and(|value| value == "close");
            let body = body.collect().await.unwrap().to_bytes();
            let reply = Reply { status: head.status, headers: head.headers, body };
            let links = reply.links();
            assert_eq!(links.len(), ids.len());
            for ((id, link), asked) in links.iter().zip(&ids) {
                assert!(id == asked && link_is_for(link, id, None, &token, None, None), "{link}");
            }
            shared.answered.fetch_add(1, Ordering::SeqCst);
        }
        if ends {
            if shared.leaving.load(Ordering::SeqCst) {
                return;
            }
            sender = Sender::connect(&transport, version).await;
        }
    }
}
