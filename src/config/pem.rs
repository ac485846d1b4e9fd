//! Certificates and keys in PEM files (RFC 7468).

use std::path::Path;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The certificates in a file, at least one.
///
/// # Errors
/// The path and the reason.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let fail = |reason: &str| format!("{}: {reason}", path.display());
    is_file(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(fail("holds no certificate")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(fail(&reason(&error))),
    }
}

/// The first private key in a file.
///
/// # Errors
/// The path and the reason, without the file's contents.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    is_file(path)?;
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => format!("{}: holds no private key", path.display()),
        error => format!("{}: {}", path.display(), reason(&error)),
    })
}

/// Only regular files are opened: opening a named pipe would block.
fn is_file(path: &Path) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(format!("{}: is not a file", path.display())),
        Err(error) => Err(format!("{}: cannot be read: {error}", path.display())),
    }
}

/// The reason without the file's contents: it may be a key.
fn reason(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => format!("cannot be read: {error}"),
        _ => "is not in PEM format".to_owned(),
    }
}
