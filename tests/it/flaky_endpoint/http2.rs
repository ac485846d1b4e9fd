//! The same endpoint over TLS, by ALPN: hyper serves each HTTP/2 connection, and a filter of frames before it ends
//! connections in ways that no library would.

use std::convert::Infallible;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::server::TlsStream;

use super::{Act, Asked, Flaky, Shared, error_body, serve_http1, twin};
use crate::raw_http2::frames::*;
use crate::support::LOOPBACK;
use crate::tls::{Authority, acceptor, write};

/// The last id of a GOAWAY that only warns (RFC 9113 §6.8).
const NO_LAST_ID: u32 = (1 << 31) - 1;

/// How an HTTP/2 connection ends, as nginx does it: streams above the last id are not processed.
#[derive(Clone, Copy, Debug)]
pub struct Farewell {
    /// Requests that are served before it.
    pub after: usize,
    /// Whether a GOAWAY without a last id comes first, with the answer to the last of them.
    pub warns: bool,
    pub code: Reason,
}

/// An endpoint at `https://localhost:PORT`.
pub struct Secure {
    pub endpoint: Flaky,
    pub port: u16,
    pub ca_file: PathBuf,
    /// Connections that have agreed on HTTP/2.
    http2: Arc<AtomicUsize>,
    /// Streams above a GOAWAY's last id.
    unprocessed: Arc<AtomicUsize>,
    _files: TempDir,
}

impl Secure {
    /// `farewell` is asked once for each HTTP/2 connection; `None`: it never ends.
    pub async fn start<F>(
        alpn: &[&[u8]],
        farewell: impl Fn(usize) -> Option<Farewell> + Send + 'static,
        decide: impl Fn(Asked) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Act> + Send + 'static,
    {
        let (files, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let acceptor = acceptor(None, &authority.issue("localhost"), alpn);
        let ca_file = write(&files, "ca.pem", &authority.pem());
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::new(decide);
        let (http2, unprocessed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let endpoint = Flaky { address, shared: Arc::clone(&shared) };
        let (counter, lost) = (Arc::clone(&http2), Arc::clone(&unprocessed));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                let (acceptor, shared, farewell) = (acceptor.clone(), Arc::clone(&shared), farewell(number));
                let (counter, lost) = (Arc::clone(&counter), Arc::clone(&lost));
                tokio::spawn(async move {
                    let (stream, twin) = twin(stream);
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                        counter.fetch_add(1, Ordering::SeqCst);
                        serve_http2(stream, twin, number, shared, farewell, lost).await;
                    } else {
                        serve_http1(stream, twin, number, shared).await;
                    }
                });
            }
        });
        Self { endpoint, port: address.port(), ca_file, http2, unprocessed, _files: files }
    }

    pub fn http2_connections(&self) -> usize {
        self.http2.load(Ordering::SeqCst)
    }

    pub fn unprocessed(&self) -> usize {
        self.unprocessed.load(Ordering::SeqCst)
    }

    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }
}

/// What goes out to the client.
enum Out {
    Frame(Vec<u8>),
    Close,
    Reset,
}

async fn serve_http2(
    stream: TlsStream<TcpStream>,
    twin: TcpStream,
    connection: usize,
    shared: Arc<Shared>,
    farewell: Option<Farewell>,
    unprocessed: Arc<AtomicUsize>,
) {
    let (near, far) = duplex(1 << 16);
    let (out, frames) = unbounded_channel();
    let served = serve_requests(far, connection, shared, out.clone());
    let (from_client, to_client) = split(stream);
    let (from_server, to_server) = split(near);
    let (done, answered) = unbounded_channel();
    let to_server = from_client_to_server(from_client, to_server, farewell, out.clone(), answered, unprocessed);
    let to_client_queue = from_server_to_client(from_server, out, done);
    tokio::select! {
        () = served => {}
        () = to_server => {}
        () = to_client_queue => {}
        () = write_out(to_client, frames, twin) => {}
    }
}

async fn serve_requests(
    io: tokio::io::DuplexStream,
    connection: usize,
    shared: Arc<Shared>,
    out: UnboundedSender<Out>,
) {
    let requests = AtomicUsize::new(0);
    let service = service_fn(move |request: Request<Incoming>| {
        let token = request.headers().get("x-auth-token").map_or("", |value| value.to_str().unwrap()).to_owned();
        let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let mut asked = Asked::new(request.method().as_str(), &target, &token);
        (asked.connection, asked.is_http2) = (connection, true);
        asked.earlier = requests.fetch_add(1, Ordering::SeqCst);
        let (shared, out) = (Arc::clone(&shared), out.clone());
        async move { respond(shared.act(&asked).await, &asked, &out).await }
    });
    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service).await;
    // The streams may have been answered after the last frame was read.
    std::future::pending::<Infallible>().await;
}

async fn respond(act: Act, asked: &Asked, out: &UnboundedSender<Out>) -> Result<Response<Full<Bytes>>, h2::Error> {
    let response = |status: u16, body: String| {
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.headers_mut().insert("content-type", "application/json".parse().unwrap());
        response
    };
    match act {
        Act::Answer => Ok(response(200, asked.answer().to_string())),
        Act::Fail(status, headers) => {
            let mut response = response(status, error_body(status));
            response.headers_mut().extend(headers.iter().map(|(name, value)| {
                (http::HeaderName::from_static(name), value.parse::<http::HeaderValue>().unwrap())
            }));
            Ok(response)
        }
        Act::ResetStream(reason) => Err(reason.into()),
        Act::Close | Act::Reset => {
            let _ = out.send(if matches!(act, Act::Reset) { Out::Reset } else { Out::Close });
            std::future::pending().await
        }
        Act::Hang => std::future::pending().await,
        Act::AnswerAndClose | Act::FailAndClose(_) => panic!("a GOAWAY ends a connection of HTTP/2: see Farewell"),
    }
}

/// Passes requests on until the farewell; those that come after it are dropped. The connection ends with the last answer.
async fn from_client_to_server(
    mut client: impl AsyncRead + Unpin,
    mut server: impl AsyncWrite + Unpin,
    farewell: Option<Farewell>,
    out: UnboundedSender<Out>,
    mut answered: UnboundedReceiver<()>,
    unprocessed: Arc<AtomicUsize>,
) {
    let mut preface = [0; PREFACE.len()];
    if client.read_exact(&mut preface).await.is_err() || server.write_all(&preface).await.is_err() {
        return;
    }
    let (queue, mut frames) = unbounded_channel();
    let read = async move {
        while let Some(frame) = read_frame(&mut client).await {
            let _ = queue.send(frame);
        }
    };
    let pass = async {
        let (mut requests, mut answers, mut last, mut is_over) = (0, 0, 0, false);
        loop {
            tokio::select! {
                frame = frames.recv() => {
                    let Some((kind, stream, bytes)) = frame else { return };
                    if let (HEADERS, Some(farewell)) = (kind, farewell) {
                        if requests == farewell.after {
                            unprocessed.fetch_add(1, Ordering::SeqCst);
                            if !std::mem::replace(&mut is_over, true) {
                                let _ = out.send(Out::Frame(goaway(last, farewell.code)));
                            }
                            continue;
                        }
                        (requests, last) = (requests + 1, stream);
                        if requests == farewell.after && farewell.warns {
                            let _ = out.send(Out::Frame(goaway(NO_LAST_ID, Reason::NO_ERROR)));
                        }
                    }
                    if server.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                _ = answered.recv() => {
                    answers += 1;
                    if let Some(farewell) = farewell && answers == farewell.after {
                        if !std::mem::replace(&mut is_over, true) {
                            let _ = out.send(Out::Frame(goaway(last, farewell.code)));
                        }
                        let _ = out.send(Out::Close);
                    }
                }
            }
        }
    };
    tokio::join!(read, pass);
}

fn goaway(last: u32, code: Reason) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), u32::from(code).to_be_bytes()].concat())
}

async fn from_server_to_client(
    mut server: impl AsyncRead + Unpin,
    out: UnboundedSender<Out>,
    answered: UnboundedSender<()>,
) {
    while let Some((kind, _, bytes)) = read_frame(&mut server).await {
        let ends = (matches!(kind, HEADERS | DATA) && bytes[4] & END_STREAM != 0) || kind == RST_STREAM;
        let _ = out.send(Out::Frame(bytes));
        if ends {
            let _ = answered.send(());
        }
    }
    let _ = out.send(Out::Close);
    std::future::pending::<Infallible>().await;
}

async fn write_out(
    mut client: tokio::io::WriteHalf<TlsStream<TcpStream>>,
    mut frames: UnboundedReceiver<Out>,
    twin: TcpStream,
) {
    while let Some(out) = frames.recv().await {
        match out {
            Out::Frame(bytes) => {
                if client.write_all(&bytes).await.is_err() || client.flush().await.is_err() {
                    return;
                }
            }
            Out::Close => {
                let _ = client.shutdown().await;
                // A socket that is closed with requests unread is reset, and answers under way are lost with it.
                return std::future::pending().await;
            }
            Out::Reset => {
                let _ = twin.set_zero_linger();
                return;
            }
        }
    }
}

/// Kind, stream and all bytes; `None` at the end of the connection.
async fn read_frame(io: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.ok()?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let mut bytes = head.to_vec();
    bytes.resize(9 + length, 0);
    io.read_exact(&mut bytes[9..]).await.ok()?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & NO_LAST_ID;
    Some((head[3], stream, bytes))
}
