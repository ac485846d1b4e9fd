//! Secret keys: read once, zeroed when dropped, never printable.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use http::HeaderValue;
use zeroize::Zeroizing;

const MOST_BYTES: usize = 4 << 10;

/// A secret. Debug output does not show it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// A secret of these bytes, which are zeroed on drop.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes. Do not copy them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// As the value of a header, which no debug output shows.
    pub(super) fn header_value(&self) -> HeaderValue {
        // Never fails: a secret is visible ASCII.
        let mut value = HeaderValue::from_bytes(self.expose()).unwrap_or_else(|_| HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }

    /// The secret in `bytes`, without the line's end: visible ASCII, and spaces where a secret may be `of_words`.
    fn read(mut bytes: Zeroizing<Vec<u8>>, of_words: bool) -> Result<Self, &'static str> {
        while bytes.pop_if(|byte| matches!(byte, b'\n' | b'\r')).is_some() {}
        if bytes.is_empty() {
            return Err("is empty");
        }
        if !bytes.iter().all(|byte| byte.is_ascii_graphic() || (of_words && *byte == b' ')) {
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

/// A secret, or several, and where it was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredSecret<S = Secret> {
    /// As it was read with the configuration.
    pub secret: S,
    /// The path of a file, or the name of an environment variable.
    pub source: String,
}

/// Shows the source.
impl<S> fmt::Display for StoredSecret<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

/// An access key with its secret key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPair {
    /// The access key: a name, no secret.
    pub access_key: String,
    /// The secret key.
    pub secret_key: Secret,
    /// The user that has it: keys of one user share what they bring.
    pub user: Option<Box<str>>,
}

/// Reads a secret from the environment variable of this name. The process's environment keeps a copy. No error shows the name: what
/// is there may be the secret itself.
pub(super) fn from_variable(name: &str) -> Result<StoredSecret, String> {
    let is_name = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || !name.bytes().all(is_name) || name.starts_with(|first: char| first.is_ascii_digit()) {
        return Err("must be the name of an environment variable: upper-case letters, digits and underscores (a secret itself belongs into \
                    a file, which secret_key_file names)"
            .to_owned());
    }
    let value = std::env::var_os(name).ok_or("the environment has no variable of this name")?;
    let secret = Secret::read(Zeroizing::new(value.into_vec()), false);
    let secret = secret.map_err(|reason| format!("the variable of this name {reason}"))?;
    Ok(StoredSecret { secret, source: name.to_owned() })
}

pub(super) fn from_file(path: &Path) -> Result<Secret, String> {
    Ok(Secret::read(whole_file(path, MOST_BYTES)?, false)?)
}

/// Reads a secret of several words from a file, such as a header's value: `Bearer …`.
pub(super) fn line_of_file(path: &Path) -> Result<Secret, String> {
    Ok(Secret::read(whole_file(path, MOST_BYTES)?, true)?)
}

/// Reads secrets from a file, one a line.
pub(super) fn lines_of_file(path: &Path) -> Result<Vec<Secret>, String> {
    let bytes = whole_file(path, MOST_BYTES)?;
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let secrets =
        lines.map(|line| Secret::read(Zeroizing::new(line.to_vec()), false)).collect::<Result<Vec<_>, _>>()?;
    if secrets.is_empty() { Err("is empty".to_owned()) } else { Ok(secrets) }
}

/// The bytes of a file that may hold secrets, `most` at most.
pub(super) fn whole_file(path: &Path, most: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable = |error| format!("cannot be read: {error}");
    is_file(path)?;
    let file = File::open(path).map_err(unreadable)?;
    // Allocated at once: growing would leave copies in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(1 + most));
    file.take(1 + most as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > most {
        return Err(format!("is longer than {} KiB", most >> 10));
    }
    Ok(bytes)
}

/// Only regular files are opened: opening a named pipe would wait for its writer.
pub(super) fn is_file(path: &Path) -> Result<(), String> {
    let found = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if found.is_file() { Ok(()) } else { Err("is not a file".to_owned()) }
}
