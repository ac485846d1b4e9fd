//! `[shared]`: the tier that a fleet shares, in Redis or Valkey.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::pem;
use super::reader::{Found, Section};
use super::report::Report;
use super::secret::{self, Secret};

/// The default port of Redis.
const PORT: u16 = 6379;
/// Characters that a fleet's secret has at least: 32 of base64 are 192 bits.
const SECRET_CHARS: usize = 32;
/// Secrets at a time: the one that writes, and during a change one more that is read.
const SECRETS: usize = 2;

/// `[shared]`. There is none by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Where it is: one address, or of a Cluster one or more nodes to begin with.
    pub nodes: Vec<Address>,
    /// Whether connections are TLS: `rediss://`.
    pub tls: bool,
    /// The database's number, 0 to 1 000 000; 0 in a Cluster. Default 0.
    pub database: i64,
    /// Whether it is a Cluster. Default false.
    pub cluster: bool,
    /// The fleet's secrets, one or two of 32 characters or more: the first seals, all open.
    pub secrets: Vec<Secret>,
    /// Where they were read.
    pub secret_file: PathBuf,
    /// The ACL user to log in as. None by default.
    pub username: Option<String>,
    /// The password to log in with. None by default.
    pub password: Option<Secret>,
    /// Where it was read.
    pub password_file: Option<PathBuf>,
    /// PEM file of certificate authorities that replaces the platform's. None by default.
    pub ca_file: Option<PathBuf>,
    /// What every key begins with: 1 to 64 visible ASCII characters, no braces. Default `sidelink:`.
    pub prefix: String,
    /// The longest that a round trip may take, 1 ms to 10 s. Default 5 ms.
    pub timeout: Duration,
    /// The longest that a batch waits for ids that another sidecar fetches, and how long that one has them to itself,
    /// 0 to 1 min; 0: nobody waits. Default 500 ms.
    pub lease_wait: Duration,
}

/// A node's host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// A name or an address; of IPv6 without its brackets.
    pub host: String,
    /// A port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl Shared {
    /// The defaults, at `nodes`, under `secrets`.
    pub fn at(nodes: Vec<Address>, secrets: Vec<Secret>) -> Self {
        Self {
            nodes,
            tls: false,
            database: 0,
            cluster: false,
            secrets,
            secret_file: PathBuf::new(),
            username: None,
            password: None,
            password_file: None,
            ca_file: None,
            prefix: "sidelink:".to_owned(),
            timeout: Duration::from_millis(5),
            lease_wait: Duration::from_millis(500),
        }
    }

    /// Its URLs, as they could stand in the file.
    pub fn urls(&self) -> Vec<String> {
        let scheme = if self.tls { "rediss" } else { "redis" };
        self.nodes.iter().map(|node| format!("{scheme}://{node}/{}", self.database)).collect()
    }
}

/// One URL, taken apart.
struct Url {
    tls: bool,
    address: Address,
    database: i64,
}

/// Reads `redis://host:port/database`; a message says what is wrong with it.
fn url(text: &str) -> Result<Url, String> {
    let shown = || text.escape_debug().to_string();
    let (scheme, rest) =
        text.split_once("://").ok_or_else(|| format!("\"{}\" is not a URL such as \"redis://host:6379\"", shown()))?;
    let tls = match scheme {
        "redis" | "valkey" => false,
        "rediss" | "valkeys" => true,
        _ => return Err(format!("must begin with redis:// or rediss://, begins with {}://", scheme.escape_debug())),
    };
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        // Not shown: it may hold a password.
        return Err("must not name a user or a password: username and password_file do".to_owned());
    }
    let database = match database {
        "" => 0,
        number => match number.parse() {
            Ok(number @ 0..=1_000_000) if !rest.contains(['?', '#']) => number,
            _ => return Err(format!("\"{}\" must end in its host and port, or in the number of a database", shown())),
        },
    };
    let parsed: http::uri::Authority =
        authority.parse().map_err(|_| format!("\"{}\" does not name a host and a port", shown()))?;
    let host = parsed.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() || (parsed.port().is_some() && parsed.port_u16().is_none_or(|port| port == 0)) {
        return Err(format!("\"{}\" does not name a host and a port", shown()));
    }
    Ok(Url { tls, address: Address { host, port: parsed.port_u16().unwrap_or(PORT) }, database })
}

/// The whole table, if it stands in the file.
pub(super) fn read(section: &mut Section<'_, '_>, report: &mut Report<'_>) -> Option<Shared> {
    let mut shared = Shared::at(Vec::new(), Vec::new());
    let mut urls = Vec::new();
    let places = section.list("url", &mut urls, url, report);
    let secrets = section.find("secret_file");
    let username = section.find("username");
    let password = section.find("password_file");
    let ca_file = section.find("ca_file");
    let prefix = section.find("prefix");
    section.flag("cluster", &mut shared.cluster, report);
    let bounds = Duration::from_millis(1)..=Duration::from_secs(10);
    section.duration("timeout", &mut shared.timeout, bounds, report);
    section.duration("lease_wait", &mut shared.lease_wait, Duration::ZERO..=Duration::from_secs(60), report);
    if !section.is_there() {
        return None;
    }
    if let Some(found) = section.require("url", report)
        && found.value.as_array().is_some_and(|array| array.is_empty())
    {
        found.wrong(report, "names no node");
    }
    section.require("secret_file", report);
    agree(&urls, &places, shared.cluster, report);
    if let Some(first) = urls.first() {
        (shared.tls, shared.database) = (first.tls, first.database);
    }
    shared.nodes = urls.into_iter().map(|url| url.address).collect();
    if let Some(found) = &secrets {
        shared.secret_file = found.text(report, "a file's path").map(PathBuf::from).unwrap_or_default();
        shared.secrets = fleet_secrets(found, report);
    }
    if let Some(found) = username {
        match found.text(report, "a user's name") {
            Some(name) if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) => {
                found.wrong(report, "must be a user's name: visible ASCII characters");
            }
            name => shared.username = name.map(str::to_owned),
        }
        if password.is_none() {
            found.wrong(report, "needs a password_file beside it");
        }
    }
    if let Some(found) = password
        && let Some(path) = found.text(report, "a file's path").map(Path::new)
    {
        match secret::from_file(path) {
            Ok((password, everyones)) => {
                warn_of_everyone(everyones, path, &found, report);
                shared.password = Some(password);
                shared.password_file = Some(path.to_owned());
            }
            Err(message) => found.wrong(report, message),
        }
    }
    if let Some(found) = ca_file
        && let Some(path) = found.text(report, "a file's path")
    {
        let path = PathBuf::from(path);
        match pem::certificates(&path) {
            _ if !shared.tls => found.wrong(report, "is of use with rediss:// only"),
            Ok(_) => shared.ca_file = Some(path),
            Err(message) => found.wrong(report, message),
        }
    }
    if let Some(found) = prefix
        && let Some(text) = found.text(report, "a string")
    {
        // Braces would put all keys into one slot of a Cluster.
        let fits = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(fits) {
            found.wrong(report, "must be 1 to 64 visible ASCII characters without braces");
        }
        text.clone_into(&mut shared.prefix);
    }
    Some(shared)
}

/// All nodes are reached alike; several make a Cluster.
fn agree(urls: &[Url], places: &[Found<'_, '_>], cluster: bool, report: &mut Report<'_>) {
    let Some(first) = urls.first() else { return };
    for (at, (url, place)) in urls.iter().zip(places).enumerate() {
        if (url.tls, url.database) != (first.tls, first.database) {
            place.wrong(report, "must have the scheme and the database of the one before");
        } else if cluster && url.database != 0 {
            place.wrong(report, "must not name a database: a Cluster has number 0 alone");
        } else if !cluster && at > 0 {
            place.wrong(report, "names a second node: only a Cluster has several; set cluster = true");
        } else if urls.iter().take(at).any(|before| before.address == url.address) {
            place.wrong(report, format!("names {} twice", url.address));
        }
    }
}

fn fleet_secrets(found: &Found<'_, '_>, report: &mut Report<'_>) -> Vec<Secret> {
    let Some(path) = found.text(report, "a file's path").map(Path::new) else { return Vec::new() };
    match secret::lines_of_file(path, SECRETS) {
        Ok((secrets, everyones)) => {
            warn_of_everyone(everyones, path, found, report);
            if secrets.iter().any(|secret| secret.expose().len() < SECRET_CHARS) {
                let how = "openssl rand -base64 32 makes one";
                found.wrong(report, format!("holds a secret of less than {SECRET_CHARS} characters: {how}"));
            }
            if matches!(secrets.as_slice(), [one, other] if one == other) {
                found.wrong(report, "holds the same secret twice");
            }
            secrets
        }
        Err(message) => {
            found.wrong(report, message);
            Vec::new()
        }
    }
}

fn warn_of_everyone(everyones: bool, path: &Path, found: &Found<'_, '_>, report: &mut Report<'_>) {
    if everyones {
        let shown = path.display();
        let message = format!("everyone on this machine may read {shown}; chmod o-rwx takes that away");
        report.warn(found.span.start, &found.key, &message);
    }
}
