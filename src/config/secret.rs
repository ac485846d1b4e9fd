//! Secret keys: read once, zeroed when dropped, never printable.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Most bytes of a secret: what is longer is some other file.
const MOST_BYTES: usize = 4 << 10;
/// Mode bits that let everyone on the machine read a file.
const EVERYONE: u32 = 0o004;

/// A secret. Debug shows that there is one; nothing shows what it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// A secret of these bytes, which are zeroed when it is dropped.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes, to be used at once and copied nowhere.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// What `bytes` hold but for a line's end; why not, if that is no secret.
    fn of_text(bytes: Zeroizing<Vec<u8>>) -> Result<Self, &'static str> {
        let secret = Self::of_line(bytes)?;
        if !secret.0.iter().all(u8::is_ascii_graphic) {
            return Err("must hold one secret and nothing else: one line of visible ASCII characters");
        }
        Ok(secret)
    }

    /// As [`Secret::of_text`], of several words.
    fn of_line(mut bytes: Zeroizing<Vec<u8>>) -> Result<Self, &'static str> {
        while bytes.pop_if(|byte| matches!(byte, b'\n' | b'\r')).is_some() {}
        if bytes.is_empty() {
            return Err("is empty");
        }
        if !bytes.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
            return Err("must hold one secret and nothing else: one line of visible ASCII characters");
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A secret, or several, and the file that it was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretFile<S = Secret> {
    /// As it was read with the configuration.
    pub secret: S,
    /// The file.
    pub path: PathBuf,
}

/// An access key with its secret key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPair {
    /// The access key: a name, no secret.
    pub access_key: String,
    /// The secret key.
    pub secret_key: Secret,
}

/// Where a secret was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file that holds nothing else.
    File(PathBuf),
    /// The environment variable of this name.
    Environment(String),
}

/// Reads a secret from a file.
pub(super) fn from_file(path: &Path) -> Result<Secret, String> {
    Ok(Secret::of_text(whole_file(path)?)?)
}

/// Reads a secret of several words from a file, such as a header's value: `Bearer …`.
pub(super) fn line_of_file(path: &Path) -> Result<Secret, String> {
    Ok(Secret::of_line(whole_file(path)?)?)
}

/// Reads secrets from a file, one a line.
pub(super) fn lines_of_file(path: &Path) -> Result<Vec<Secret>, String> {
    let bytes = whole_file(path)?;
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let secrets = lines.map(|line| Secret::of_text(Zeroizing::new(line.to_vec()))).collect::<Result<Vec<_>, _>>()?;
    if secrets.is_empty() { Err("is empty".to_owned()) } else { Ok(secrets) }
}

/// The bytes of a file that may hold secrets.
fn whole_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    // Opening a named pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("is not a file".to_owned());
    }
    let file = File::open(path).map_err(unreadable)?;
    // All its room at once: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(1 + MOST_BYTES));
    file.take(1 + MOST_BYTES as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MOST_BYTES {
        return Err("is longer than 4 KiB: it must hold the secret alone".to_owned());
    }
    Ok(bytes)
}

/// Whether everyone on this machine may read the file at `path`.
pub(super) fn is_everyones(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & EVERYONE != 0)
}

/// Reads a secret from an environment variable. The process's environment itself keeps it as well.
pub(super) fn from_environment(name: &str) -> Result<Secret, String> {
    let shown = name.escape_debug();
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(format!("\"{shown}\" is not the name of an environment variable"));
    }
    let value = std::env::var_os(name).ok_or_else(|| format!("the environment has no variable \"{shown}\""))?;
    let bytes = Zeroizing::new(std::os::unix::ffi::OsStringExt::into_vec(value));
    Secret::of_text(bytes).map_err(|reason| format!("the variable \"{shown}\" {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_in_no_debug_output() {
        let pair = KeyPair { access_key: "AK".into(), secret_key: Secret::new(b"MARKED".to_vec()) };
        assert_eq!(format!("{pair:?}"), r#"KeyPair { access_key: "AK", secret_key: Secret(…) }"#);
    }
}
