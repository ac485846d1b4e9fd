//! Certificates and keys in PEM files (RFC 7468).

use std::path::Path;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::secret::is_file;

/// The certificates in a file, at least one; or the path and the reason why not.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    read(path, "holds no certificate", |path| {
        let certificates: Vec<_> = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
        if certificates.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(certificates) }
    })
}

/// The first private key in a file; or the path and the reason why not.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    read(path, "holds no private key", |path| PrivateKeyDer::from_pem_file(path))
}

/// A reason never has the file's contents: it may be a key.
fn read<T>(path: &Path, empty: &str, read: impl Fn(&Path) -> Result<T, pem::Error>) -> Result<T, String> {
    let read = is_file(path).and_then(|()| {
        read(path).map_err(|error| match error {
            pem::Error::NoItemsFound => empty.to_owned(),
            pem::Error::Io(error) => format!("cannot be read: {error}"),
            _ => "is not in PEM format".to_owned(),
        })
    });
    read.map_err(|reason| format!("{}: {reason}", path.display()))
}
