//! Certificates and keys in PEM files (RFC 7468).

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::secret::is_file;
use crate::clock::rfc3339;

/// The certificates in a file, at least one; or the path and the reason why not.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    read(path, "holds no certificate", |path| {
        let certificates: Vec<_> = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
        if certificates.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(certificates) }
    })
}

/// When the first certificate in a file ends, in seconds since the Unix epoch; or the path and the reason why that is unknown.
pub fn expiry(path: &Path) -> Result<u64, String> {
    let unreadable = || format!("{}: holds a certificate that cannot be read", path.display());
    let first = certificates(path)?.into_iter().next().ok_or_else(unreadable)?;
    let (_, certificate) = X509Certificate::from_der(&first).map_err(|_| unreadable())?;
    Ok(certificate.validity().not_after.timestamp().try_into().unwrap_or(0))
}

/// The last days of a certificate, in which there is a warning.
pub const LAST_DAYS: Duration = Duration::from_secs(14 * 24 * 3600);

/// What to say of a certificate at `path` that has ended, or ends within [`LAST_DAYS`].
pub(super) fn expiry_warning(path: &Path) -> Option<String> {
    let expiry = expiry(path).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let until = rfc3339(expiry.saturating_mul(1000));
    match expiry.checked_sub(now).filter(|left| *left > 0) {
        None => Some(format!("the certificate has expired at {until}: the other side refuses it")),
        Some(left) if left < LAST_DAYS.as_secs() => {
            Some(format!("the certificate expires in {} days, at {until}: replace it", left / 86_400))
        }
        Some(_) => None,
    }
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
