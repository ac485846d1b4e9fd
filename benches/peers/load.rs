//! The load of a comparison: as many requests as will go, over keep-alive connections, from one core.
//!
//! `load ADDRESS FILE TOKEN BYTES` cycles through FILE, a target on each line, and prints one line of JSON. HTTP/1 has one
//! request at a time on each connection; HTTP/2 has several. Every answer must be a 200 with a list of links of about BYTES bytes.
//! With `--post TARGET` each line of FILE is the body of a POST of git-lfs (HTTP/1 only).
//!
//! It costs little, so that the server's core is full first: requests are written out beforehand, and of an HTTP/1 answer
//! only the status, the length and the last bytes are read. It never sleeps, so no server pays for waking it.
//! wrk reads in steps of 8 KiB, and its core is full first where an answer has a hundred links.

use std::cell::Cell;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

/// Every answer ends with an object that has a list of links.
const END: &[u8] = b"}";
/// At first; grows with an answer that is larger.
const BUFFER_BYTES: usize = 256 << 10;
/// HTTP/2's flow control never delays an answer.
const WINDOW: u32 = 16 << 20;

#[derive(Parser)]
struct Arguments {
    address: SocketAddr,
    file: PathBuf,
    token: String,
    /// The length of every answer's body, within two percent: a link shows the number of the call that it came from.
    bytes: usize,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Ends after one pass through FILE, or earlier after --seconds.
    #[arg(long)]
    once: bool,
    #[arg(long, value_name = "TARGET", conflicts_with = "h2")]
    post: Option<String>,
    /// HTTP/2, with this many streams on each connection.
    #[arg(long, value_name = "STREAMS")]
    h2: Option<usize>,
    /// TLS 1.3; trusts the certificate in this file.
    #[arg(long, value_name = "CERTIFICATE")]
    tls: Option<PathBuf>,
}

/// What all connections share.
struct Load {
    requests: Requests,
    body_length: usize,
    next: Cell<usize>,
    /// Requests to send.
    most: usize,
    end: Instant,
}

enum Requests {
    Http1(Vec<Vec<u8>>),
    Http2(Vec<Request<()>>),
}

enum Connection {
    Http1(Box<dyn Stream>),
    Http2(SendRequest<Bytes>),
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let requests = requests(&arguments)?;
    let tls = arguments.tls.as_deref().map(|certificate| connector(certificate, arguments.h2.is_some())).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (elapsed, mut times) = LocalSet::new().block_on(&runtime, async {
        // Never sleeps: a server that has to wake it for an answer would pay for that by an interrupt, the more often the slower
        // it is.
        tokio::task::spawn_local(async {
            loop {
                tokio::task::yield_now().await;
            }
        });
        let mut connections = Vec::with_capacity(arguments.connections);
        for _ in 0..arguments.connections {
            connections.push(connect(&arguments, tls.as_ref()).await?);
        }
        let began = Instant::now();
        let load = Rc::new(Load {
            most: if arguments.once { requests.len() } else { usize::MAX },
            requests,
            body_length: arguments.bytes,
            next: Cell::new(0),
            end: began + Duration::from_secs(arguments.seconds),
        });
        let mut tasks = Vec::new();
        for connection in connections {
            match connection {
                Connection::Http1(stream) => tasks.push(tokio::task::spawn_local(http1(stream, Rc::clone(&load)))),
                Connection::Http2(sender) => tasks.extend(
                    (0..arguments.h2.unwrap_or_default())
                        .map(|_| tokio::task::spawn_local(http2(sender.clone(), Rc::clone(&load)))),
                ),
            }
        }
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await??);
        }
        Ok::<_, Box<dyn Error>>((began.elapsed(), times))
    })?;
    times.sort_unstable();
    let milliseconds = |share: usize| {
        let time = times.get(times.len().saturating_sub(1) * share / 100).copied().unwrap_or_default();
        time.as_secs_f64() * 1000.0
    };
    let seconds = elapsed.as_secs_f64();
    let (rate, p50, p99) = (times.len() as f64 / seconds, milliseconds(50), milliseconds(99));
    writeln!(io::stdout(), r#"{{"seconds": {seconds:.3}, "rate": {rate:.1}, "p50": {p50:.3}, "p99": {p99:.3}}}"#)?;
    Ok(())
}

fn requests(arguments: &Arguments) -> Result<Requests, Box<dyn Error>> {
    let Arguments { address, token, tls, .. } = arguments;
    let targets = std::fs::read_to_string(&arguments.file)?;
    if let Some(target) = &arguments.post {
        let media_type = "application/vnd.git-lfs+json";
        let write = |body: &str| {
            let length = body.len();
            format!(
                "POST {target} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nAccept: {media_type}\r\n\
                 Content-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .into_bytes()
        };
        return Ok(Requests::Http1(targets.lines().map(write).collect()));
    }
    if arguments.h2.is_none() {
        let write =
            |target| format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nX-Auth-Token: {token}\r\n\r\n").into_bytes();
        return Ok(Requests::Http1(targets.lines().map(write).collect()));
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let write = |target| Request::get(format!("{scheme}://{address}{target}")).header("x-auth-token", token).body(());
    Ok(Requests::Http2(targets.lines().map(write).collect::<Result<_, _>>()?))
}

fn connector(certificate: &Path, h2: bool) -> Result<TlsConnector, Box<dyn Error>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn connect(arguments: &Arguments, tls: Option<&TlsConnector>) -> Result<Connection, Box<dyn Error>> {
    let stream = TcpStream::connect(arguments.address).await?;
    stream.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match tls {
        Some(tls) => Box::new(tls.connect(ServerName::from(arguments.address.ip()), stream).await?),
        None => Box::new(stream),
    };
    if arguments.h2.is_none() {
        return Ok(Connection::Http1(stream));
    }
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
    let (sender, connection) = builder.handshake(stream).await?;
    // Errors reach the streams as well.
    tokio::task::spawn_local(connection);
    Ok(Connection::Http2(sender.ready().await?))
}

impl Requests {
    fn len(&self) -> usize {
        match self {
            Self::Http1(requests) => requests.len(),
            Self::Http2(requests) => requests.len(),
        }
    }
}

impl Load {
    fn is_expected(&self, body_length: usize) -> bool {
        body_length.abs_diff(self.body_length) <= self.body_length / 50
    }

    /// The number of the next request; `None` once the load has ended.
    fn next(&self, now: Instant) -> Option<usize> {
        let number = self.next.get();
        self.next.set(number + 1);
        if now < self.end && number < self.most { number.checked_rem(self.requests.len()) } else { None }
    }
}

/// Asks over one connection until the end; how long each answer took.
async fn http1(mut stream: Box<dyn Stream>, load: Rc<Load>) -> io::Result<Vec<Duration>> {
    let Requests::Http1(requests) = &load.requests else { return Err(wrong("not HTTP/1")) };
    let mut times = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut began = Instant::now();
    while let Some(request) = load.next(began).and_then(|at| requests.get(at)) {
        stream.write_all(request).await?;
        // TLS buffers what is written.
        stream.flush().await?;
        read_answer(&mut stream, &mut buffer, &load).await?;
        let now = Instant::now();
        times.push(now - began);
        began = now;
    }
    Ok(times)
}

/// Asks over one connection's streams, one after another, until the end; how long each answer took.
async fn http2(mut sender: SendRequest<Bytes>, load: Rc<Load>) -> io::Result<Vec<Duration>> {
    let Requests::Http2(requests) = &load.requests else { return Err(wrong("not HTTP/2")) };
    let mut times = Vec::new();
    let mut began = Instant::now();
    while let Some(request) = load.next(began).and_then(|at| requests.get(at)) {
        sender = sender.ready().await.map_err(io::Error::other)?;
        let (response, _) = sender.send_request(request.clone(), true).map_err(io::Error::other)?;
        let response = response.await.map_err(io::Error::other)?;
        let status = response.status();
        let (mut body, mut length, mut last) = (response.into_body(), 0, None);
        while let Some(data) = body.data().await {
            let data = data.map_err(io::Error::other)?;
            body.flow_control().release_capacity(data.len()).map_err(io::Error::other)?;
            length += data.len();
            last = data.last().copied().or(last);
        }
        if status != StatusCode::OK || !load.is_expected(length) || last.as_ref() != END.last() {
            return Err(wrong(&format!("{status} with {length} bytes, not a list of links of {}", load.body_length)));
        }
        let now = Instant::now();
        times.push(now - began);
        began = now;
    }
    Ok(times)
}

/// Reads one answer to its end.
async fn read_answer(stream: &mut Box<dyn Stream>, buffer: &mut Vec<u8>, load: &Load) -> io::Result<()> {
    let (mut filled, mut whole) = (0, None);
    loop {
        let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) else {
            buffer.resize(buffer.len() * 2, 0);
            continue;
        };
        match stream.read(room).await? {
            0 => return Err(wrong("the connection ended")),
            read => filled += read,
        }
        let had = buffer.get(..filled).unwrap_or_default();
        if whole.is_none() {
            whole = length(had, load)?;
        }
        match whole {
            Some(whole) if filled == whole && had.ends_with(END) => return Ok(()),
            Some(whole) if filled >= whole => return Err(wrong("not a list of links")),
            _ => {}
        }
    }
}

/// The bytes of an answer, head included; `None` until its head is there.
fn length(had: &[u8], load: &Load) -> io::Result<Option<usize>> {
    let Some(head) = had.windows(4).position(|four| four == b"\r\n\r\n").and_then(|end| had.get(..end)) else {
        return Ok(None);
    };
    let value = head.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(15)?;
        name.eq_ignore_ascii_case(b"content-length:").then_some(value)
    });
    let body = value.and_then(|value| std::str::from_utf8(value).ok()?.trim().parse::<usize>().ok());
    match body.filter(|body| head.starts_with(b"HTTP/1.1 200") && load.is_expected(*body)) {
        Some(body) => Ok(Some(head.len() + 4 + body)),
        None => Err(wrong(&format!("not 200 with {} bytes: {}", load.body_length, String::from_utf8_lossy(head)))),
    }
}

fn wrong(reason: &str) -> io::Error {
    io::Error::other(reason.to_owned())
}
