//! TLS toward the endpoint and other servers: trusted certificate authorities, and a client certificate.

use std::path::Path;
use std::sync::Arc;

use http::uri::Scheme;
use rustls::client::WantsClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use crate::config::{UpstreamConfig, pem};

/// Why the client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file cannot be read, or its content is not as expected: the key that names it, and why.
    #[error("{0}: {1}")]
    File(&'static str, String),
    /// The platform has no certificate authorities; a `ca_file` can name some.
    #[error("the platform has no certificate authorities ({0}); install them, or set ca_file")]
    NoRoots(String),
    /// `[callers.identity]` names nothing that knows whose a token is, or no credentials to ask with.
    #[error("callers.identity: names no source, or no credentials for it")]
    NoIdentitySource,
    /// The exporter of spans cannot be built.
    #[error("trace: {0}")]
    Exporter(String),
    /// The metrics of a batch API cannot be registered: a bug in sidelink.
    #[error("metrics: {0}")]
    Metrics(String),
}

/// The names of the keys of a configuration that name the files of one client.
#[derive(Debug, PartialEq)]
pub(super) struct TlsKeys {
    ca_file: &'static str,
    client_cert: &'static str,
    client_key: &'static str,
}

/// `[upstream]`
pub(super) const UPSTREAM: TlsKeys =
    TlsKeys { ca_file: "upstream.ca_file", client_cert: "upstream.client_cert", client_key: "upstream.client_key" };
/// `[callers.identity]`
pub(super) const IDENTITY: TlsKeys = TlsKeys {
    ca_file: "callers.identity.ca_file",
    client_cert: "callers.identity.client_cert",
    client_key: "callers.identity.client_key",
};

/// The content of the files that a configuration named when it was loaded.
#[derive(PartialEq)]
pub(super) struct Trust {
    keys: &'static TlsKeys,
    roots: Vec<TrustAnchor<'static>>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Trust {
    /// Reads the files, or the platform's authorities.
    pub(super) fn read(config: &UpstreamConfig, keys: &'static TlsKeys) -> Result<Self, SetupError> {
        let roots = if config.ca_file.is_some() || config.endpoint.scheme == Scheme::HTTPS {
            authorities(keys.ca_file, config.ca_file.as_deref())?.roots
        } else {
            Vec::new()
        };
        let identity = config.client_cert.as_ref().zip(config.client_key.as_ref()).map(|(cert, key)| {
            let chain = pem::certificates(cert);
            let chain = chain.map_err(|reason| SetupError::File(keys.client_cert, reason))?;
            let key = pem::private_key(key);
            Ok((chain, key.map_err(|reason| SetupError::File(keys.client_key, reason))?))
        });
        Ok(Self { keys, roots, identity: identity.transpose()? })
    }

    /// The TLS configuration.
    pub(super) fn client(&self) -> Result<ClientConfig, SetupError> {
        let builder = builder(RootCertStore { roots: self.roots.clone() })?;
        match &self.identity {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain.clone(), key.clone_key())
                .map_err(|error| SetupError::File(self.keys.client_key, format!("does not fit client_cert: {error}"))),
            None => Ok(builder.with_no_client_auth()),
        }
    }
}

/// The TLS configuration toward a server whose authority is in the file that `key` names, or else on the platform's list.
///
/// # Errors
/// If there is nothing to trust.
pub(crate) fn trusted_client(key: &'static str, ca_file: Option<&Path>) -> Result<ClientConfig, SetupError> {
    Ok(builder(authorities(key, ca_file)?)?.with_no_client_auth())
}

/// The authorities in the file that `key` names, or else the platform's.
fn authorities(key: &'static str, ca_file: Option<&Path>) -> Result<RootCertStore, SetupError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        let wrong = |reason| SetupError::File(key, reason);
        for certificate in pem::certificates(path).map_err(wrong)? {
            roots.add(certificate).map_err(|error| wrong(format!("{}: {error}", path.display())))?;
        }
        return Ok(roots);
    }
    let native = rustls_native_certs::load_native_certs();
    let (_, _) = roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        let reason = native.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(SetupError::NoRoots(reason));
    }
    Ok(roots)
}

fn builder(roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, SetupError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SetupError::NoRoots(error.to_string()))?;
    Ok(builder.with_root_certificates(roots))
}
