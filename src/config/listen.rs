//! `[listen]`: the addresses and the TLS of the client listeners.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::declare::section;
use super::kind::{file, flag, mode, texts};
use super::pem;
use super::table::TableVisitor;

/// Prefix of a Unix socket's path in the configuration.
const UNIX: &str = "unix:";
/// Bytes of a Unix socket's path at most (`sun_path`, without its end), with room for the name that it has while it is
/// made.
const UNIX_BYTES: usize = 96;

section! {
    /// `[listen]`
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Listen {
        /// Where clients connect: one address, or a list; "unix:/run/sidelink/sidelink.sock" is a Unix socket.
        pub address: Vec<ListenAddress> = vec![SocketAddr::from(([127, 0, 0, 1], 8080)).into()], texts(Some("names no address"), address).immutable();
        /// Permission bits of Unix sockets; connecting needs write permission.
        pub unix_mode: u32 = 0o660, mode().immutable();
        /// Whether another process of this user may listen at the same TCP addresses, here and for operators: for upgrades without a service manager that passes sockets.
        pub reuse_port: bool = false, flag().immutable();
        /// TLS on the TCP addresses, with HTTP/2 and HTTP/1.1.
        pub tls: Option<Tls> = None => optional(Tls::blank, Tls::visit);
    }
}

fn address(text: &str, before: &[ListenAddress]) -> Result<ListenAddress, String> {
    let address = ListenAddress::parse(text)?;
    match before.iter().find(|other| clash(&address, other)) {
        Some(other) => Err(format!("{address} clashes with {other}, listed before")),
        None => Ok(address),
    }
}

/// Whether the system would refuse the second of two listeners. Port 0 never clashes.
pub(super) fn clash(one: &ListenAddress, other: &ListenAddress) -> bool {
    let (Some(one), Some(other)) = (one.tcp(), other.tcp()) else { return one == other };
    let any = one.is_ipv4() == other.is_ipv4() && (one.ip().is_unspecified() || other.ip().is_unspecified());
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || any)
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP; port 0 binds to a free port.
    Tcp(SocketAddr),
    /// A Unix socket at this absolute path.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Reads `IP:PORT` or `unix:/PATH`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix(UNIX) else {
            let example = "an address such as \"127.0.0.1:8080\" or \"unix:/run/sidelink.sock\"";
            return socket_address(text, example, 8080).map(ListenAddress::Tcp);
        };
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err(format!("\"{}\" must be {UNIX} and the absolute path of a socket", text.escape_debug()));
        }
        if path.len() > UNIX_BYTES {
            return Err(format!("a Unix socket's path may have {UNIX_BYTES} bytes at most, this has {}", path.len()));
        }
        Ok(ListenAddress::Unix(PathBuf::from(path)))
    }

    /// Its TCP address, if it has one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            ListenAddress::Tcp(address) => Some(*address),
            ListenAddress::Unix(_) => None,
        }
    }
}

/// Reads `IP:PORT`. An error says what to write where that can be told.
///
/// # Errors
/// `text` is not the `example`.
pub(super) fn socket_address(text: &str, example: &str, default_port: u16) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let advice = advice(text, default_port).map_or_else(String::new, |advice| format!("; {advice}"));
        format!("\"{}\" is not {example}{advice}", text.escape_debug())
    })
}

fn advice(text: &str, default_port: u16) -> Option<String> {
    let write = |ip: IpAddr, port: u16| format!("write \"{}\"", SocketAddr::new(ip, port));
    let local = |port| write(Ipv4Addr::LOCALHOST.into(), port);
    let Some((host, port)) = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) else {
        let of_port = || text.parse().ok().map(local);
        return text.trim_matches(['[', ']']).parse().ok().map(|ip| write(ip, default_port)).or_else(of_port);
    };
    match host {
        "localhost" => Some(local(port)),
        "" | "*" => Some(format!("{}, or \"0.0.0.0:{port}\" for every address of this machine", local(port))),
        _ => match (host.parse(), text.parse()) {
            (Ok(ip), _) => Some(write(ip, port)),
            (Err(_), Ok(ip)) => Some(write(ip, default_port)),
            _ => Some("write the IP address: names are not resolved here".to_owned()),
        },
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        ListenAddress::Tcp(address)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

section! {
    /// `[listen.tls]`, `[admin.tls]`: files in PEM, which were readable and fitted together when the configuration was read.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Tls: pub(super) fn blank() {
        /// PEM file of the certificate and its intermediates.
        pub cert: PathBuf = PathBuf::new(), file().required("/etc/sidelink/tls.crt");
        /// PEM file of its private key.
        pub key: PathBuf = PathBuf::new(), file().required("/etc/sidelink/tls.key");
        /// PEM file of certificate authorities; each client must have a certificate of one of them.
        pub client_ca: Option<PathBuf> = None, file().optional("/etc/sidelink/client-ca.pem");
    }
}

/// A file of `[listen.tls]` or `[admin.tls]` that cannot be used: its key there, and what is wrong with it; never its contents.
#[derive(Debug, thiserror::Error)]
#[error("tls.{0}: {1}")]
pub struct TlsError(&'static str, String);

impl Tls {
    /// Visits the keys and reads the files.
    pub(super) fn visit(&mut self, table: &mut TableVisitor<'_>) {
        self.keys(table);
        if table.is_sound()
            && let Err(TlsError(key, message)) = self.read()
            && let Some(found) = table.find(key)
        {
            // Without the path: what is there may be the key itself.
            let path = match key {
                "cert" => Some(&self.cert),
                "key" => Some(&self.key),
                _ => self.client_ca.as_ref(),
            };
            let prefix = path.map(|path| format!("{}: ", path.display())).unwrap_or_default();
            found.wrong(message.strip_prefix(&prefix).unwrap_or(&message));
        } else if let (Some(cert), Some(key)) = (table.find("cert"), table.find("key")) {
            cert.warn_of_expiry(&self.cert);
            key.warn_if_world_readable(&self.key);
        }
    }

    /// Reads the files, for HTTP/2 and HTTP/1.1.
    pub fn read(&self) -> Result<ServerConfig, TlsError> {
        let chain = pem::certificates(&self.cert).map_err(|message| TlsError("cert", message))?;
        let key = pem::private_key(&self.key).map_err(|message| TlsError("key", message))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError("cert", error.to_string()))?;
        let builder = match &self.client_ca {
            Some(path) => {
                let verifier = verifier(path, provider).map_err(|message| TlsError("client_ca", message))?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| TlsError("key", format!("does not go with the certificate: {error}")))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn verifier(client_ca: &Path, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in pem::certificates(client_ca)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    verifier.build().map_err(|error| error.to_string())
}
