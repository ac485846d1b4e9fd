//! Where clients connect, and by which certificate they know that they are right.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;

use super::pem;

/// What a Unix socket's path begins with in the configuration.
const UNIX: &str = "unix:";
/// Bytes of a Unix socket's path at most (`sun_path`, without its end), with room for the name that it has while it is
/// made.
const UNIX_BYTES: usize = 96;

/// `[listen]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// One or more addresses, none of which clash. Default `127.0.0.1:8080`.
    pub address: Vec<ListenAddress>,
    /// Permission bits of Unix sockets, 0 to 0o777. Default 0o660.
    pub unix_mode: u32,
    /// `[listen.tls]`: TLS on the TCP addresses. Default none.
    pub tls: Option<Tls>,
}

impl Default for Listen {
    fn default() -> Self {
        Self { address: vec![SocketAddr::from(([127, 0, 0, 1], 8080)).into()], unix_mode: 0o660, tls: None }
    }
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// Over TCP; port 0 takes a free one.
    Tcp(SocketAddr),
    /// By a socket of this path, which is absolute.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Reads `IP:PORT` or `unix:/PATH`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix(UNIX) else {
            let example = "an address such as \"127.0.0.1:8080\" or \"unix:/run/sidelink.sock\"";
            return text
                .parse()
                .map(ListenAddress::Tcp)
                .map_err(|_| format!("\"{}\" is not {example}", text.escape_debug()));
        };
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err(format!("\"{}\" must be {UNIX} and the absolute path of a socket", text.escape_debug()));
        }
        if path.len() > UNIX_BYTES {
            return Err(format!("a Unix socket's path may have {UNIX_BYTES} bytes at most, this has {}", path.len()));
        }
        Ok(ListenAddress::Unix(PathBuf::from(path)))
    }

    /// Its address in the network, if it has one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            ListenAddress::Tcp(address) => Some(*address),
            ListenAddress::Unix(_) => None,
        }
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

/// `[listen.tls]`: files in PEM, which were readable and fitted together when the configuration was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate, and after it those that link it to its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of which every client must have a certificate. None by default: no client needs one.
    pub client_ca: Option<PathBuf>,
}

/// A file of `[listen.tls]` that will not do.
#[derive(Debug)]
pub struct TlsError {
    /// Its key in `[listen.tls]`.
    pub key: &'static str,
    /// What is wrong with it; nothing of what it holds.
    pub message: String,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "listen.tls.{}: {}", self.key, self.message)
    }
}

impl Tls {
    /// Reads the files, for HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// The file that cannot be read or does not fit.
    pub fn read(&self) -> Result<ServerConfig, TlsError> {
        let wrong = |key, message: String| TlsError { key, message };
        let chain = pem::certificates(&self.cert).map_err(|message| wrong("cert", message))?;
        let key = pem::private_key(&self.key).map_err(|message| wrong("key", message))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("cert", error.to_string()))?;
        let builder = match &self.client_ca {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in pem::certificates(path).map_err(|message| wrong("client_ca", message))? {
                    roots.add(certificate).map_err(|error| wrong("client_ca", error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| wrong("client_ca", error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| wrong("key", format!("does not go with the certificate: {error}")))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}
