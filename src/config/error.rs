//! Errors and warnings of a configuration.

use std::fmt;
use std::path::PathBuf;

/// Every error of one file, in order.
#[derive(Debug)]
pub struct ConfigErrors {
    pub(super) file: Option<PathBuf>,
    /// At least one.
    pub errors: Vec<ConfigError>,
}

/// One error or warning. A warning: what is allowed, but not as intended.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {key}: {message}")]
pub struct ConfigError {
    /// From 1; 0 for an error of the whole file.
    pub line: usize,
    /// In characters, from 1; 0 for an error of the whole file.
    pub column: usize,
    /// Dotted, such as `upstream.deadline`; empty where the text is not TOML.
    pub key: String,
    /// What is wrong, in one line.
    pub message: String,
}

/// One line an error: `FILE:LINE: KEY: MESSAGE`, beginning with `configuration` where no file is known.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.errors {
            match &self.file {
                Some(file) => write!(f, "{}", file.display())?,
                None => f.write_str("configuration")?,
            }
            if error.line > 0 {
                write!(f, ":{}", error.line)?;
            }
            if !error.key.is_empty() {
                write!(f, ": {}", error.key)?;
            }
            writeln!(f, ": {}", error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
