//! How the endpoint is reached: by which client certificate sidelink is known there, and through which egress proxy.

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
    /// PEM file of the certificate, and of those that lead from it to the endpoint's authority.
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
    /// Where to connect.
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
    let doc = "PEM file of the certificate by which the endpoint knows sidelink, if it asks for one.";
    let at_cert = table.key("client_cert", doc, &mut cert, certificates().optional("/etc/sidelink/client.pem"));
    let doc = "PEM file of that certificate's private key, readable by its user alone.";
    let private_key = pem_file(pem::private_key).check(|path, found| found.warn_if_exposed(path));
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
    let doc =
        "The HTTP proxy through which the endpoint is reached, by CONNECT; HTTPS_PROXY and the like are not looked at.";
    let kind = text("a URL", Endpoint::parse).check(|address, found| {
        if address.scheme != Scheme::HTTP {
            found.wrong("must begin with http://: the way to the proxy itself is not encrypted");
        }
    });
    table.key("proxy", doc, &mut address, kind.optional("http://proxy.internal:3128"));
    let doc = "File that holds USER:PASSWORD for the proxy and nothing else, readable by its user alone.";
    let kind = secret_file(secret::from_file).check(|file, found| {
        if !file.secret.expose().contains(&b':') {
            found.wrong("must hold USER:PASSWORD");
        }
    });
    let kind = kind.optional("/etc/sidelink/proxy-credentials");
    if let Some(found) = table.key("proxy_credentials_file", doc, &mut credentials, kind)
        && address.is_none()
    {
        found.wrong("says who sidelink is to upstream.proxy, which names no proxy");
    }
    *proxy = address.map(|address| Proxy { address, credentials });
}
