//! `[shared]`: the tier that a fleet shares, in Redis or Valkey.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::Authority;

use super::declare::section;
use super::kind::{MILLISECOND, MINUTE, SECOND, certificates, duration, flag, secret_file, string_of, texts};
use super::secret::{self, Secret, StoredSecret};
use super::table::TableVisitor;

const PORT: u16 = 6379;
/// Characters that a fleet's secret has at least: 32 of base64 are 192 bits.
const SECRET_CHARS: usize = 32;
/// Secrets at a time: the one that writes, and during a change one more that is read.
const SECRETS: usize = 2;

section! {
    /// `[shared]`. There is none by default.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Shared: pub fn at(nodes: Vec<NodeAddress>, secrets: Vec<Secret>) {
        /// URL of the server: redis:// or rediss:// (TLS), host, port and database; a list of seed nodes for a Cluster.
        pub url: Vec<NodeUrl> = nodes.into_iter().map(|address| NodeUrl { tls: false, address, database: 0 }).collect(), texts(Some("names no node"), NodeUrl::parse).required("redis://redis.internal:6379/0");
        /// Whether the nodes are a Cluster.
        pub cluster: bool = false, flag();
        /// File with the fleet's secret, 32 characters at least, the same for all; during a change of secret one more on a second line.
        pub secret_file: StoredSecret<Vec<Secret>> = StoredSecret { secret: secrets, ..StoredSecret::default() }, secret_file(fleet_secrets).required("/etc/sidelink/fleet-secret");
        /// The ACL user to log in as.
        pub username: Option<String> = None, string_of("a user's name: visible ASCII characters", is_username).optional("sidelink");
        /// File that holds the password and nothing else.
        pub password_file: Option<StoredSecret> = None, secret_file(secret::from_file).optional("/etc/sidelink/redis-password");
        /// PEM file of certificate authorities for rediss://, instead of the platform's.
        pub ca_file: Option<PathBuf> = None, certificates().read_once().optional("/etc/sidelink/redis-ca.pem");
        /// Prefix of every key. Fleets that are meant to be apart take one each.
        pub prefix: String = "sidelink:".to_owned(), string_of("1 to 64 visible ASCII characters without braces", is_prefix);
        /// The longest that a round trip may take.
        pub timeout: Duration = 5 * MILLISECOND, duration(MILLISECOND..=10 * SECOND);
        /// The longest that a batch waits for ids that another sidecar fetches, if a call of its own would still have a fair time after that: longer than the endpoint takes. 0s: batches do not wait.
        pub lease_wait: Duration = 5 * SECOND, duration(Duration::ZERO..=MINUTE);
    }
}

/// A node's host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeAddress {
    /// A name or an address; of IPv6 without its brackets.
    pub host: String,
    /// A port.
    pub port: u16,
}

impl NodeAddress {
    fn parse(text: &str) -> Option<Self> {
        let authority: Authority = text.parse().ok()?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = if authority.port().is_some() { authority.port_u16()? } else { PORT };
        (!host.is_empty() && port != 0).then_some(Self { host, port })
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl Shared {
    /// Visits each key, and reports what does not fit together.
    pub(super) fn visit(&mut self, table: &mut TableVisitor<'_>) {
        self.keys(table);
        if let Some(found) = table.find("ca_file").filter(|_| !self.tls()) {
            found.wrong("needs a url with rediss://");
        }
        table.needs("username", "password_file", "needs a password_file beside it");
        if let Some(found) = table.find("url") {
            if self.cluster && self.database() != 0 {
                found.wrong("must not name a database: a Cluster has number 0 alone");
            } else if !self.cluster && self.url.len() > 1 {
                found.wrong("names a second node: only a Cluster has several; set cluster = true");
            }
        }
    }

    /// The nodes.
    pub fn nodes(&self) -> Vec<NodeAddress> {
        self.url.iter().map(|url| url.address.clone()).collect()
    }

    /// Whether connections are TLS: `rediss://`.
    pub fn tls(&self) -> bool {
        self.url.first().is_some_and(|url| url.tls)
    }

    /// The database's number.
    pub fn database(&self) -> i64 {
        self.url.first().map_or(0, |url| url.database)
    }
}

/// A node's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUrl {
    /// `rediss://`.
    pub tls: bool,
    /// Host and port.
    pub address: NodeAddress,
    /// The database's number, 0 to 1 000 000; 0 in a Cluster.
    pub database: i64,
}

impl fmt::Display for NodeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", if self.tls { "rediss" } else { "redis" }, self.address, self.database)
    }
}

impl NodeUrl {
    /// Reads `redis://host:port/database`; `before` are the URLs above it.
    fn parse(text: &str, before: &[Self]) -> Result<Self, String> {
        let shown = || text.escape_debug().to_string();
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("\"{}\" is not a URL such as \"redis://host:6379\"", shown()))?;
        let tls = match scheme {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => {
                return Err(format!("must begin with redis:// or rediss://, begins with {}://", scheme.escape_debug()));
            }
        };
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            // The message does not repeat it: it may contain a password.
            return Err("must not name a user or a password: use username and password_file".to_owned());
        }
        let number = if database.is_empty() { Ok(0) } else { database.parse() };
        let (Ok(database @ 0..=1_000_000), false) = (number, rest.contains(['?', '#'])) else {
            return Err(format!("\"{}\" must end in its host and port, or in the number of a database", shown()));
        };
        let address = NodeAddress::parse(authority);
        let address = address.ok_or_else(|| format!("\"{}\" does not name a host and a port", shown()))?;
        let url = Self { tls, address, database };
        if before.last().is_some_and(|other| (other.tls, other.database) != (tls, database)) {
            return Err("must have the scheme and the database of the URL before".to_owned());
        }
        if before.iter().any(|other| other.address == url.address) {
            return Err(format!("names {} twice", url.address));
        }
        Ok(url)
    }
}

fn is_username(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Braces are excluded: they would put all keys into one slot of a Cluster.
fn is_prefix(text: &str) -> bool {
    is_username(text) && text.len() <= 64 && !text.contains(['{', '}'])
}

fn fleet_secrets(path: &Path) -> Result<Vec<Secret>, String> {
    let secrets = secret::lines_of_file(path)?;
    if secrets.len() > SECRETS {
        return Err(format!("holds {} lines: {SECRETS} at most, one secret each", secrets.len()));
    }
    if secrets.iter().any(|secret| secret.expose().len() < SECRET_CHARS) {
        let how = "openssl rand -base64 32 makes one";
        return Err(format!("holds a secret of less than {SECRET_CHARS} characters: {how}"));
    }
    if matches!(secrets.as_slice(), [one, other] if one == other) {
        return Err("holds the same secret twice".to_owned());
    }
    Ok(secrets)
}
