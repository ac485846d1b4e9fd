//! Asks the admin listener of a running sidelink: for the command line, and for images without a shell or curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Purge;
use crate::api;
use crate::config::AdminConfig;

/// The longest that an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The admin listener of a running sidelink.
pub struct AdminClient {
    address: SocketAddr,
    token: Option<HeaderValue>,
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
        let token = token.map_err(|_| "the token in admin.token_file cannot be sent in a header".to_owned())?;
        Ok(Self { address, token })
    }

    /// Whether the process serves: whether it is neither starting nor draining.
    ///
    /// # Errors
    /// Why that is not so.
    pub async fn check_health(&self) -> Result<(), String> {
        let (status, text) = self.ask(Method::GET, "/readyz", None, Bytes::new()).await?;
        if status == StatusCode::OK { Ok(()) } else { Err(text.trim_end().to_owned()) }
    }

    /// What would become of a batch now, as JSON; without a token, of one that names no caller.
    ///
    /// # Errors
    /// Why nothing is known.
    pub async fn explain(
        &self,
        ids: &[String],
        group: Option<&str>,
        token: Option<HeaderValue>,
    ) -> Result<String, String> {
        let pair = |(name, value): (&str, &str)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        let ids = ids.iter().map(|id| (api::IDS, id.as_str()));
        let pairs: Vec<String> = ids.chain(group.map(|group| (api::GROUP, group))).map(pair).collect();
        self.expect_ok(Method::GET, &format!("/explain?{}", pairs.join("&")), token, Bytes::new()).await
    }

    /// Purges; returns what was done, as JSON.
    ///
    /// # Errors
    /// Why nothing was done.
    pub async fn purge(&self, purge: &Purge) -> Result<String, String> {
        self.expect_ok(Method::POST, "/purge", None, json!(purge).to_string().into()).await
    }

    async fn expect_ok(
        &self,
        method: Method,
        target: &str,
        caller: Option<HeaderValue>,
        body: Bytes,
    ) -> Result<String, String> {
        match self.ask(method, target, caller, body).await? {
            (StatusCode::OK, text) => Ok(text),
            (status, text) => Err(format!("{} answers {status}: {}", self.address, text.trim_end())),
        }
    }

    /// Status and text of one answer.
    async fn ask(
        &self,
        method: Method,
        target: &str,
        caller: Option<HeaderValue>,
        body: Bytes,
    ) -> Result<(StatusCode, String), String> {
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut()) = (method, target.parse().map_err(|error| format!("{error}"))?);
        let host = HeaderValue::try_from(self.address.to_string()).map_err(|error| error.to_string())?;
        let headers = [
            (HOST, Some(host)),
            (CONTENT_TYPE, Some(HeaderValue::from_static("application/json"))),
            (AUTHORIZATION, self.token.clone()),
            (api::TOKEN, caller),
        ];
        request.headers_mut().extend(headers.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let asked = timeout(PATIENCE, send(self.address, request)).await;
        asked
            .map_err(|_| format!("{} does not answer within {} s", self.address, PATIENCE.as_secs()))?
            .map_err(|error| format!("{} does not answer: {error}", self.address))
    }
}

async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<(StatusCode, String), tower::BoxError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
    let connection = tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    connection.abort();
    Ok((head.status, String::from_utf8_lossy(&body).into_owned()))
}
