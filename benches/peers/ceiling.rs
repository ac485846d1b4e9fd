//! The ceiling of a comparison: a bare hyper server that reads every request and answers with the same bytes.
//!
//! The difference between the ceiling and a real server is that server's own work; no server on this stack is faster.
//! `ceiling FILE` answers with FILE's content on a free port, which it prints.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

#[derive(Parser)]
struct Arguments {
    /// The body of every answer.
    file: PathBuf,
    /// HTTP/2 only, instead of HTTP/1.
    #[arg(long)]
    h2: bool,
    /// TLS 1.3 with the certificate and the key in these files.
    #[arg(long, num_args = 2)]
    tls: Vec<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let body = Bytes::from(std::fs::read(&arguments.file)?);
    let acceptor = match arguments.tls.as_slice() {
        [certificate, key] => Some(acceptor(certificate, key, arguments.h2)?),
        _ => None,
    };
    // The same runtime as that of sidelink with one thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (body, acceptor) = (body.clone(), acceptor.clone());
            // Errors of connections are the load generator's to report.
            tokio::spawn(async move {
                match acceptor {
                    Some(acceptor) => serve(acceptor.accept(stream).await.ok()?, body, arguments.h2).await,
                    None => serve(stream, body, arguments.h2).await,
                }
            });
        }
    })
}

fn acceptor(certificate: &PathBuf, key: &PathBuf, h2: bool) -> Result<TlsAcceptor, Box<dyn Error>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from_pem_file(certificate)?], PrivateKeyDer::from_pem_file(key)?)?;
    config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves one connection to its end; `None` if it fails.
async fn serve<S>(stream: S, body: Bytes, h2: bool) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = TokioIo::new(stream);
    let answer = service_fn(move |request: Request<Incoming>| {
        let mut response = Response::new(Full::new(body.clone()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // The body alone: a request is large, and moving it takes time.
        let asked = request.into_body();
        async move {
            if !asked.is_end_stream() {
                asked.collect().await?;
            }
            Ok::<_, hyper::Error>(response)
        }
    });
    if h2 {
        http2::Builder::new(TokioExecutor::new()).serve_connection(stream, answer).await.ok()
    } else {
        http1::Builder::new().serve_connection(stream, answer).await.ok()
    }
}
