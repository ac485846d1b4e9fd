//! How the endpoint is reached: whom to trust, as whom to be known, and through which egress proxy.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use zeroize::Zeroizing;

use super::file::secret_file;
use super::pem;
use super::reader::{Found, Section};
use super::report::Report;
use super::secret::{EVERYONE, Secret};
use super::{Endpoint, Upstream};

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
    /// Where it is; `http` alone.
    pub address: Endpoint,
    /// What it knows sidelink by, and the file that this was read from.
    pub credentials: Option<(Secret, PathBuf)>,
}

impl Proxy {
    /// Where to connect.
    pub fn uri(&self) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.address.scheme.clone());
        parts.authority = Some(self.address.authority.clone());
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// The value of `Proxy-Authorization` (Basic, RFC 7617), which no debug output shows.
    pub fn authorization(&self) -> Option<HeaderValue> {
        let (credentials, _) = self.credentials.as_ref()?;
        let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(credentials.expose())));
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Reads these keys of `[upstream]`.
pub(super) fn read(section: &mut Section<'_, '_>, upstream: &mut Upstream, report: &mut Report<'_>) {
    upstream.ca_file = section.find("ca_file").and_then(|found| {
        let path = path(&found, report)?;
        pem::certificates(&path).map_err(|message| found.wrong(report, without(&path, message))).ok()?;
        Some(path)
    });

    let (cert, key) = (section.find("client_cert"), section.find("client_key"));
    match (&cert, &key) {
        (Some(cert), None) => cert.wrong(report, "needs upstream.client_key: its private key"),
        (None, Some(key)) => key.wrong(report, "needs upstream.client_cert: the certificate that the key belongs to"),
        _ => {}
    }
    let cert = cert.and_then(|found| {
        let path = path(&found, report)?;
        pem::certificates(&path).map_err(|message| found.wrong(report, without(&path, message))).ok()?;
        Some(path)
    });
    let key = key.and_then(|found| {
        let path = path(&found, report)?;
        pem::private_key(&path).map_err(|message| found.wrong(report, without(&path, message))).ok()?;
        if std::fs::metadata(&path).is_ok_and(|file| file.permissions().mode() & EVERYONE != 0) {
            let message = format!("everyone on this machine may read {}; chmod o-rwx takes that away", path.display());
            report.warn(found.span.start, &found.key, &message);
        }
        Some(path)
    });
    upstream.client = cert.zip(key).map(|(cert, key)| ClientCertificate { cert, key });

    let address = section.find("proxy").and_then(|found| {
        let text = found.text(report, "a URL")?;
        let address = Endpoint::parse(text).map_err(|message| found.wrong(report, message)).ok()?;
        if address.scheme != Scheme::HTTP {
            found.wrong(report, "must begin with http://: the way to the proxy itself is not encrypted");
        }
        Some(address)
    });
    let credentials = section.find("proxy_credentials_file").and_then(|found| {
        if address.is_none() {
            found.wrong(report, "says who sidelink is to upstream.proxy, which names no proxy");
        }
        let (secret, path) = secret_file(&found, report)?;
        if !secret.expose().contains(&b':') {
            found.wrong(report, "must hold USER:PASSWORD");
        }
        Some((secret, path))
    });
    upstream.proxy = address.map(|address| Proxy { address, credentials });
}

fn path(found: &Found<'_, '_>, report: &mut Report<'_>) -> Option<PathBuf> {
    found.text(report, "a file's path").map(PathBuf::from)
}

/// The line shows the path already.
fn without(path: &Path, message: String) -> String {
    message.strip_prefix(&format!("{}: ", path.display())).map_or(message.clone(), str::to_owned)
}
