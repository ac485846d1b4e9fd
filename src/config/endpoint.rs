//! URLs: of an endpoint, and of one of a server's resources.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;
use http::uri::{Authority, Parts, PathAndQuery, Scheme};

/// A URL of scheme, host and port only: `scheme://host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// Host, in lower case, and port; without the scheme's default port.
    pub authority: Authority,
}

impl Endpoint {
    /// Reads `http(s)://host[:port]`, with or without a final `/`.
    ///
    /// # Errors
    /// The reason, which does not repeat the URL: it may contain a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("not a URL: {error}"))?;
        let parts = uri.into_parts();
        let scheme = match parts.scheme {
            Some(scheme) if scheme == Scheme::HTTP || scheme == Scheme::HTTPS => scheme,
            _ => return Err("must begin with http:// or https://".to_owned()),
        };
        if parts.path_and_query.is_some_and(|path| path.as_str() != "/") || text.contains('#') {
            return Err("must be scheme, host and port only, without a path, query or fragment".to_owned());
        }
        let authority = parts.authority.ok_or("names no host")?;
        if authority.as_str().contains('@') {
            return Err("must not carry a user or password".to_owned());
        }
        let host = authority.host().to_ascii_lowercase();
        if !is_host(&host) {
            return Err("names no host: expected a name, an IPv4 address or an IPv6 address in brackets".to_owned());
        }
        let port = match authority.as_str().get(host.len()..).unwrap_or_default() {
            "" => default_port(&scheme),
            port => read_port(port).ok_or("names no port from 1 to 65535")?,
        };
        let plain = if port == default_port(&scheme) { host } else { format!("{host}:{port}") };
        let authority = plain.parse().map_err(|error| format!("not a host: {error}"))?;
        Ok(Self { scheme, authority })
    }

    /// A placeholder whose name does not resolve (RFC 6761).
    pub(super) fn stand_in() -> Self {
        Self { scheme: Scheme::HTTP, authority: Authority::from_static("stand-in.invalid") }
    }

    /// The URI of `path` there.
    pub fn uri(&self, path: PathAndQuery) -> Uri {
        let mut parts = Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// Whether it is this machine, by its address or as `localhost` (RFC 6761), without a look-up of the name.
    pub(super) fn is_loopback(&self) -> bool {
        let host = self.authority.host().trim_end_matches('.').trim_start_matches('[').trim_end_matches(']');
        let is_address = host.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback());
        is_address || host.rsplit('.').next() == Some("localhost")
    }

    /// Its port, or the scheme's default.
    pub fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or_else(|| default_port(&self.scheme))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

/// A URL of scheme, host, port, and a path, with a query where its key allows one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Scheme, host and port.
    pub server: Endpoint,
    /// The path and the query.
    pub path: PathAndQuery,
}

impl Url {
    /// Reads `http(s)://host[:port]/path[?query]`.
    ///
    /// # Errors
    /// The reason, which does not repeat the URL: it may contain a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("not a URL: {error}"))?;
        if text.contains('#') {
            return Err("must not have a fragment".to_owned());
        }
        let path = uri.path_and_query().map_or("", PathAndQuery::as_str);
        let server = Endpoint::parse(text.strip_suffix(path).unwrap_or(text))?;
        let path = path.parse().map_err(|error| format!("not a path: {error}"))?;
        Ok(Self { server, path })
    }

    /// As a request's target.
    pub fn uri(&self) -> Uri {
        self.server.uri(self.path.clone())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.server, self.path)
    }
}

fn default_port(scheme: &Scheme) -> u16 {
    if *scheme == Scheme::HTTPS { 443 } else { 80 }
}

/// `:port`, digits only: `parse` alone accepts a sign.
fn read_port(text: &str) -> Option<u16> {
    let digits = text.strip_prefix(':').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|port| *port != 0)
}

fn is_host(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.strip_suffix(']').is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok());
    }
    let is_label = |label: &str| {
        let named = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        named && !label.is_empty() && label.len() <= 63
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    // A name that ends in a number is an IPv4 address, possibly in a short form such as 127.1, which is refused.
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if numeric { host.parse::<Ipv4Addr>().is_ok() } else { name.len() <= 253 && name.split('.').all(is_label) }
}
