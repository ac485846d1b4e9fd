//! A collector on loopback: decodes exports with OpenTelemetry's types, and answers as configured.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::support::LOOPBACK;
use crate::tls::Issued;

/// How a collector answers an export.
#[derive(Clone)]
pub enum Manner {
    /// Accepts all spans.
    Take,
    /// Rejects so many spans.
    Reject(i64),
    /// Answers with a status and `Retry-After`.
    Refuse(u16, Option<&'static str>),
    /// Answers 200 with an HTML page.
    Page,
    /// Does not answer.
    Freeze,
}

/// One export.
#[derive(Clone)]
pub struct Export {
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Export {
    pub fn request(&self) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest::decode(self.body.clone()).unwrap()
    }
}

#[derive(Clone)]
pub struct Collector {
    pub address: SocketAddr,
    manner: Arc<Mutex<Vec<Manner>>>,
    exports: Arc<watch::Sender<Vec<Export>>>,
}

impl Collector {
    /// Starts a collector that accepts everything.
    pub async fn start() -> Self {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            manner: Arc::new(Mutex::new(vec![Manner::Take])),
            exports: Arc::new(watch::Sender::new(Vec::new())),
        };
        let this = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = this.clone();
                tokio::spawn(async move { this.serve(stream).await });
            }
        });
        collector
    }

    /// Listens with TLS as well, on `https://localhost:` and the returned port.
    pub async fn behind_tls(&self, issued: &Issued) -> u16 {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(issued.key.serialize_der()));
        let chain = vec![issued.certificate.der().clone()];
        let tls = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
        let (acceptor, listener) = (TlsAcceptor::from(Arc::new(tls)), TcpListener::bind(LOOPBACK).await.unwrap());
        let (port, this) = (listener.local_addr().unwrap().port(), self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (this, acceptor) = (this.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        this.serve(stream).await;
                    }
                });
            }
        });
        port
    }

    async fn serve(&self, stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
        let answer = service_fn(|request| self.answer(request));
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
    }

    /// Sets the answers to the next exports; the last one is repeated.
    pub fn does(&self, mut manners: Vec<Manner>) {
        manners.reverse();
        *self.manner.lock().unwrap() = manners;
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return Ok(Response::default()) };
        let manner = {
            let mut manners = self.manner.lock().unwrap();
            if manners.len() > 1 { manners.pop() } else { manners.last().cloned() }
        };
        let export = Export { target: head.uri.to_string(), headers: head.headers, body: body.to_bytes() };
        self.exports.send_modify(|exports| exports.push(export));
        let taken = |rejected_spans| {
            let partial = ExportTracePartialSuccess { rejected_spans, error_message: "MARKED".to_owned() };
            let partial_success = (rejected_spans > 0).then_some(partial);
            Response::new(Full::from(ExportTraceServiceResponse { partial_success }.encode_to_vec()))
        };
        Ok(match manner.unwrap() {
            Manner::Take => taken(0),
            Manner::Reject(spans) => taken(spans),
            Manner::Refuse(status, after) => {
                let mut response = Response::builder().status(status);
                if let Some(after) = after {
                    response = response.header("retry-after", after);
                }
                response.body(Full::from("MARKED")).unwrap()
            }
            Manner::Page => Response::new(Full::from("<!doctype html><p>MARKED")),
            Manner::Freeze => std::future::pending().await,
        })
    }

    /// Every export so far.
    pub fn exports(&self) -> Vec<Export> {
        self.exports.borrow().clone()
    }

    /// Waits until there have been so many exports.
    pub async fn exported(&self, count: usize) {
        let mut exports = self.exports.subscribe();
        exports.wait_for(|exports| exports.len() >= count).await.unwrap();
    }

    /// Every span so far, in the order of their start.
    pub fn spans(&self) -> Vec<Span> {
        let requests = self.exports().into_iter().map(|export| export.request());
        let scopes = requests.flat_map(|request| request.resource_spans).flat_map(|spans| spans.scope_spans);
        let mut spans: Vec<Span> = scopes.flat_map(|spans| spans.spans).collect();
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }

    /// Waits for so many spans in all.
    pub async fn has(&self, count: usize) -> Vec<Span> {
        let mut exports = self.exports.subscribe();
        loop {
            let spans = self.spans();
            if spans.len() >= count {
                return spans;
            }
            exports.borrow_and_update();
            exports.changed().await.unwrap();
        }
    }
}

/// Attributes as text.
pub fn words(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let word = |pair: &KeyValue| match pair.value.as_ref().unwrap().value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let words: BTreeMap<String, String> = attributes.iter().map(|pair| (pair.key.clone(), word(pair))).collect();
    assert_eq!(words.len(), attributes.len(), "a key twice: {attributes:?}");
    words
}
