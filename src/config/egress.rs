//! The client certificate and the egress proxy of connections to the endpoint.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use zeroize::Zeroizing;

use super::endpoint::Endpoint;
use super::kind::{certificates, pem_file, secret_file, text};
use super::pem;
use super::secret::{self, SecretFile};
use super::table::Table;

/// `upstream.client_cert` and `upstream.client_key`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM file of the certificate and its intermediates.
    pub cert: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
}

/// `upstream.proxy` and `upstream.proxy_credentials_file`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// The proxy; only `http`.
    pub address: Endpoint,
    /// USER:PASSWORD.
    pub credentials: Option<SecretFile>,
}

impl Proxy {
    /// The proxy's URI.
    pub fn uri(&self) -> Uri {
        self.address.uri(PathAndQuery::from_static("/"))
    }

    /// The value of `Proxy-Authorization` (Basic, RFC 7617), which no debug output shows.
    pub fn authorization(&self) -> Option<HeaderValue> {
        let credentials = self.credentials.as_ref()?.secret.expose();
        let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(credentials)));
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Visits the keys of the client certificate.
pub(super) fn client_keys(client: &mut Option<ClientCertificate>, table: &mut Table<'_>) {
    let (mut cert, mut key) = client.take().map(|client| (client.cert, client.key)).unzip();
    let doc = "PEM file of the client certificate for the endpoint, if the endpoint asks for one.";
    let at_cert = table.key("client_cert", doc, &mut cert, certificates().optional("/etc/sidelink/client.pem"));
    let doc = "PEM file of the private key of client_cert, readable by sidelink's user only.";
    let private_key = pem_file(pem::private_key).check(|path, found| found.warn_if_world_readable(path));
    let at_key = table.key("client_key", doc, &mut key, private_key.optional("/etc/sidelink/client-key.pem"));
    match (at_cert, at_key) {
        (Some(cert), None) => cert.wrong("needs upstream.client_key: its private key"),
        (None, Some(key)) => key.wrong("needs upstream.client_cert: the certificate that the key belongs to"),
        _ => {}
    }
    *client = cert.zip(key).map(|(cert, key)| ClientCertificate { cert, key });
}

/// Visits the keys of the proxy.
pub(super) fn proxy_keys(proxy: &mut Option<Proxy>, table: &mut Table<'_>) {
    let (mut address, credentials) = proxy.take().map(|proxy| (proxy.address, proxy.credentials)).unzip();
    let mut credentials = credentials.flatten();
    let doc = "The HTTP proxy through which the endpoint is reached, by CONNECT; HTTPS_PROXY and the like are ignored.";
    let kind = text("a URL", Endpoint::parse).check(|address, found| {
        if address.scheme != Scheme::HTTP {
            found.wrong("must begin with http://: TLS to the proxy itself is not supported");
        }
    });
    table.key("proxy", doc, &mut address, kind.optional("http://proxy.internal:3128"));
    let doc = "File that holds USER:PASSWORD for the proxy and nothing else, readable by sidelink's user only.";
    let kind = secret_file(secret::from_file).check(|file, found| {
        if !file.secret.expose().contains(&b':') {
            found.wrong("must hold USER:PASSWORD");
        }
    });
    let kind = kind.optional("/etc/sidelink/proxy-credentials");
    if let Some(found) = table.key("proxy_credentials_file", doc, &mut credentials, kind)
        && address.is_none()
    {
        found.wrong("needs upstream.proxy: there is no proxy for the credentials");
    }
    *proxy = address.map(|address| Proxy { address, credentials });
}
