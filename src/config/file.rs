//! Reads a file: its text, its keys, and the rules between them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use toml::de::DeTable;

use super::diagnostics::Diagnostics;
use super::error::ConfigErrors;
use super::{Config, Endpoint, rules, table};

/// A longer file is not a configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The text of the file at `path`, or why it cannot be read.
pub(super) fn text(path: &Path) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    // One byte more than allowed shows that the file is too long, even if it is endless.
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err("is longer than 1 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        format!("is not UTF-8 text: see line {}", 1 + before.filter(|byte| **byte == b'\n').count())
    })
}

/// Reads a whole file; on a reload, `running` is the current configuration.
pub(super) fn read(text: &str, running: Option<&Config>) -> Result<Config, ConfigErrors> {
    let report = Diagnostics::new(text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in syntax {
        report.not_toml(error.span(), error.message());
    }
    let mut config = Config::for_endpoint(Endpoint::stand_in());
    table::visit(&document, &report, |table| config.keys(table));
    rules::check(&config, document.get_ref(), &report);
    if let Some(running) = running {
        rules::check_immutable(running, &config, document.get_ref(), &report);
    }
    Ok(Config { warnings: report.finish()?, ..config })
}
