//! Asks the admin listener of a running sidelink: for the command line, and for images without a shell or curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use tower::BoxError;

use super::Purge;
use crate::api;
use crate::config::{AdminConfig, Tls, pem};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const RAW_REQUEST: HeaderValue = HeaderValue::from_static("message/http");

/// The longest that an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The admin listener of a running sidelink.
pub struct AdminClient {
    address: SocketAddr,
    token: Option<HeaderValue>,
    /// Set where the listener uses TLS.
    tls: Option<TlsConnector>,
}

impl AdminClient {
    /// The listener that `config` names, over loopback where it listens at all addresses, with the admin token where there is one.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn new(config: &AdminConfig) -> Result<Self, String> {
        let mut address = config.address;
        if address.port() == 0 {
            return Err("admin.address has port 0: the port of the running process is unknown".to_owned());
        }
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        let bearer = |token: &[u8]| HeaderValue::from_bytes(&[b"Bearer ", token].concat());
        let token = config.token_file.as_ref().map(|token| bearer(token.secret.expose())).transpose();
        let mut token = token.map_err(|_| "the token in admin.token_file cannot be sent in a header".to_owned())?;
        token.iter_mut().for_each(|token| token.set_sensitive(true));
        let certificate =
            |tls: &Tls| pem::certificates(&tls.cert)?.into_iter().next().ok_or("no certificate".to_owned());
        let certificate = config.tls.as_ref().map(certificate).transpose()?;
        let tls = certificate.map(|certificate| connector(Some(certificate))).transpose()?;
        Ok(Self { address, token, tls })
    }

    /// As [`Self::new`], for what anyone may ask: it shows no token, and takes any certificate for the listener's, since the process
    /// may go on with the one before.
    ///
    /// # Errors
    /// Why it cannot be asked.
    pub fn for_probes(config: &AdminConfig) -> Result<Self, String> {
        let tls = config.tls.as_ref().map(|_| connector(None)).transpose()?;
        let config = AdminConfig { address: config.address, token_file: None, tls: None };
        Ok(Self { tls, ..Self::new(&config)? })
    }

    /// Whether the process serves: whether it is neither starting nor draining.
    ///
    /// # Errors
    /// Why that is not so.
    pub async fn check_health(&self) -> Result<(), String> {
        let (status, text) = self.ask(Method::GET, "/readyz", None, JSON, Bytes::new()).await?;
        if status == StatusCode::OK { Ok(()) } else { Err(text.trim_end().to_owned()) }
    }

    /// How a batch of these ids would be answered now, as JSON; without a token, a batch without a caller.
    ///
    /// # Errors
    /// The process did not explain it; why.
    pub async fn explain(
        &self,
        ids: &[String],
        group: Option<&str>,
        token: Option<HeaderValue>,
    ) -> Result<String, String> {
        let pair = |(name, value): (&str, &str)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        let ids = ids.iter().map(|id| ("accessory_ids", id.as_str()));
        let pairs: Vec<String> = ids.chain(group.map(|group| ("group_id", group))).map(pair).collect();
        let target = format!("/explain?{}", pairs.join("&"));
        self.expect_ok(self.ask(Method::GET, &target, token, JSON, Bytes::new()).await)
    }

    /// How this raw request would be answered now, as JSON.
    ///
    /// # Errors
    /// The process did not explain it; why.
    pub async fn explain_request(&self, request: Vec<u8>) -> Result<String, String> {
        let asked = self.ask(Method::POST, "/explain", None, RAW_REQUEST, request.into()).await;
        self.expect_ok(asked)
    }

    /// Purges; returns what was done, as JSON.
    ///
    /// # Errors
    /// Why nothing was done.
    pub async fn purge(&self, purge: &Purge) -> Result<String, String> {
        self.expect_ok(self.ask(Method::POST, "/purge", None, JSON, json!(purge).to_string().into()).await)
    }

    fn expect_ok(&self, asked: Result<(StatusCode, String), String>) -> Result<String, String> {
        match asked? {
            (StatusCode::OK, text) => Ok(text),
            (status, text) => Err(format!("{} answers {status}: {}", self.address, text.trim_end())),
        }
    }

    /// A process whose reload was refused may still do without.
    fn over(&self) -> &'static str {
        if self.tls.is_some() { " over TLS, which admin.tls asks for" } else { "" }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, String), BoxError> {
        let stream = TcpStream::connect(self.address).await?;
        let stream = match &self.tls {
            Some(tls) => Either::Left(tls.connect(self.address.ip().into(), stream).await?),
            None => Either::Right(stream),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        Ok((head.status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Status and text of one answer.
    async fn ask(
        &self,
        method: Method,
        target: &str,
        caller: Option<HeaderValue>,
        media_type: HeaderValue,
        body: Bytes,
    ) -> Result<(StatusCode, String), String> {
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut()) = (method, target.parse().map_err(|error| format!("{error}"))?);
        let host = HeaderValue::try_from(self.address.to_string()).map_err(|error| error.to_string())?;
        let headers = [
            (HOST, Some(host)),
            (CONTENT_TYPE, Some(media_type)),
            (AUTHORIZATION, self.token.clone()),
            (api::TOKEN, caller),
        ];
        request.headers_mut().extend(headers.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let asked = timeout(PATIENCE, self.send(request)).await;
        asked
            .map_err(|_| format!("{} does not answer within {} s", self.address, PATIENCE.as_secs()))?
            .map_err(|error| format!("{} does not answer{}: {error}", self.address, self.over()))
    }
}

/// A connector that takes this certificate for the listener's, and no other; any where there is none.
fn connector(certificate: Option<CertificateDer<'static>>) -> Result<TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Pinned { certificate, algorithms: provider.signature_verification_algorithms };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?.dangerous();
    let config = builder.with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[derive(Debug)]
struct Pinned {
    certificate: Option<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificate.as_ref().is_none_or(|certificate| shown == certificate) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("it shows another certificate than admin.tls.cert".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
