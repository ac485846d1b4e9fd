//! `[shared]`: the tier that a fleet shares, in Redis or Valkey.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::Authority;

use super::declare::section;
use super::kind::{MILLISECOND, MINUTE, SECOND, certificates, duration, flag, secret_file, string_of, texts};
use super::secret::{self, Secret, StoredSecret};
use super::table::TableVisitor;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
/// The port of an address that names none, until it is known what kind of server it is.
const NO_PORT: u16 = 0;
const DATABASES: RangeInclusive<i64> = 0..=1_000_000;
/// Characters that a fleet's secret has at least: 32 of base64 are 192 bits.
const SECRET_CHARS: usize = 32;
/// Secrets at a time: the one that writes, and during a change one more that is read.
const SECRETS: usize = 2;

section! {
    /// `[shared]`. There is none by default.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Shared: pub fn at(nodes: Vec<NodeAddress>, secrets: Vec<Secret>) {
        /// URL of the server: redis:// or rediss:// (TLS), host, port (6379, of Sentinels 26379) and database, or unix:// and a path; a list of nodes of a Cluster, or of Sentinels.
        pub url: Vec<NodeUrl> = nodes.into_iter().map(|address| NodeUrl { tls: false, address, database: 0 }).collect(), texts(Some("names no node"), NodeUrl::parse).required("redis://redis.internal:6379/0");
        /// Whether the nodes are a Cluster.
        pub cluster: bool = false, flag();
        /// The master's name at the Sentinels that url lists; the database in url is the master's.
        pub sentinel: Option<String> = None, string_of("a master's name: visible ASCII characters", is_username).optional("mymaster");
        /// The ACL user to log in as at the Sentinels.
        pub sentinel_username: Option<String> = None, string_of("a user's name: visible ASCII characters", is_username).optional("sidelink");
        /// File that holds the Sentinels' password and nothing else.
        pub sentinel_password_file: Option<StoredSecret> = None, secret_file(secret::from_file).optional("/etc/sidelink/sentinel-password");
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
        pub timeout: Duration = 25 * MILLISECOND, duration(MILLISECOND..=10 * SECOND);
        /// The longest that a batch waits for ids that another sidecar fetches, if a call of its own would then have twice as long; otherwise it waits while such a call has a fair time. 0s: batches do not wait.
        pub lease_wait: Duration = 5 * SECOND, duration(Duration::ZERO..=MINUTE);
    }
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NodeAddress {
    /// At a port.
    Tcp {
        /// A name or an address; of IPv6 without its brackets.
        host: String,
        /// A port.
        port: u16,
    },
    /// At a Unix socket.
    Unix(PathBuf),
}

impl NodeAddress {
    /// At a port of a host.
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self::Tcp { host: host.into(), port }
    }

    fn parse(text: &str) -> Option<Self> {
        let authority: Authority = text.parse().ok()?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = if authority.port().is_some() { authority.port_u16()? } else { NO_PORT };
        let is_allowed = authority.port().is_none() || port != NO_PORT;
        (!host.is_empty() && is_allowed).then_some(Self::Tcp { host, port })
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Shared {
    /// Visits each key, and reports what does not fit together.
    pub(super) fn visit(&mut self, table: &mut TableVisitor<'_>) {
        self.keys(table);
        let usual_port = if self.sentinel.is_some() { SENTINEL_PORT } else { PORT };
        for url in &mut self.url {
            if let NodeAddress::Tcp { port: port @ NO_PORT, .. } = &mut url.address {
                *port = usual_port;
            }
        }
        if let Some(found) = table.find("ca_file").filter(|_| !self.tls()) {
            found.wrong("needs a url with rediss://");
        }
        table.needs("username", "password_file", "needs a password_file beside it");
        table.needs("sentinel_username", "sentinel_password_file", "needs a sentinel_password_file beside it");
        table.needs("sentinel_password_file", "sentinel", "needs sentinel beside it: the master's name");
        if let Some(found) = table.find("sentinel").filter(|_| self.cluster) {
            found.wrong("does not go with cluster = true: a Cluster needs no Sentinels");
        }
        if let Some(found) = table.find("url") {
            let is_twice =
                |(at, url): &(usize, &NodeUrl)| self.url.iter().take(*at).any(|other| other.address == url.address);
            if let Some((_, url)) = self.url.iter().enumerate().find(is_twice) {
                found.wrong(format!("names {} twice", url.address));
            }
            let is_one = !self.cluster && self.sentinel.is_none();
            if self.cluster && self.database() != 0 {
                found.wrong("must not name a database: a Cluster has number 0 alone");
            } else if is_one && self.url.len() > 1 {
                found.wrong(
                    "names a second node: only a Cluster and Sentinels are several; set cluster = true or sentinel",
                );
            } else if !is_one && self.url.iter().any(|url| matches!(url.address, NodeAddress::Unix(_))) {
                found.wrong("must not name a Unix socket: the nodes of a Cluster and Sentinels have hosts");
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
    /// Where it listens.
    pub address: NodeAddress,
    /// The database's number, 0 to 1 000 000; 0 in a Cluster.
    pub database: i64,
}

impl fmt::Display for NodeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tls, address, database } = self;
        match address {
            NodeAddress::Unix(path) if *database == 0 => write!(f, "unix://{}", path.display()),
            NodeAddress::Unix(path) => write!(f, "unix://{}?db={database}", path.display()),
            NodeAddress::Tcp { .. } => write!(f, "{}://{address}/{database}", if *tls { "rediss" } else { "redis" }),
        }
    }
}

impl NodeUrl {
    /// Reads `redis://host:port/database` or `unix:///path?db=database`; `before` are the URLs above it.
    fn parse(text: &str, before: &[Self]) -> Result<Self, String> {
        let url = Self::parse_one(text)?;
        if before.last().is_some_and(|other| (other.tls, other.database) != (url.tls, url.database)) {
            return Err("must have the scheme and the database of the URL before".to_owned());
        }
        Ok(url)
    }

    fn parse_one(text: &str) -> Result<Self, String> {
        // Messages do not repeat what may contain a password.
        let may_be_shown = !text.contains(['@', '?', '#']);
        let shown = || if may_be_shown { format!("\"{}\"", text.escape_debug()) } else { "it".to_owned() };
        let remedy = || match text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text)) {
            Some(path) if may_be_shown => {
                format!("is no URL; write \"unix:///{}\"", path.trim_start_matches('/').escape_debug())
            }
            Some(_) => "is no URL; write unix:///path".to_owned(),
            None => format!("{} is not a URL such as \"redis://host:6379\"", shown()),
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(remedy)?;
        let tls = match scheme {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            "unix" => {
                let how = || {
                    format!(
                        "{} must be unix:// with an absolute path, and ?db= with the number of a database, if not 0",
                        shown()
                    )
                };
                let (path, query) = rest.split_once('?').unwrap_or((rest, "db=0"));
                let number = query.strip_prefix("db=").and_then(|number| number.parse().ok());
                let database = number.filter(|number| DATABASES.contains(number)).filter(|_| path.starts_with('/'));
                let address = NodeAddress::Unix(path.into());
                return Ok(Self { tls: false, address, database: database.ok_or_else(how)? });
            }
            _ => {
                let scheme = scheme.escape_debug();
                return Err(format!("must begin with redis://, rediss:// or unix://, begins with {scheme}://"));
            }
        };
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err("must not name a user or a password: use username and password_file".to_owned());
        }
        let number = if database.is_empty() { Some(0) } else { database.parse().ok() };
        let number = number.filter(|number| DATABASES.contains(number) && !rest.contains(['?', '#']));
        let how = || format!("{} must end in its host and port, or in the number of a database", shown());
        let database = number.ok_or_else(how)?;
        let address = NodeAddress::parse(authority);
        let address = address.ok_or_else(|| format!("{} does not name a host and a port", shown()))?;
        Ok(Self { tls, address, database })
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
