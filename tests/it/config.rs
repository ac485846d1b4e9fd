//! A configuration is accepted whole, or refused with every error.

mod batch;
mod batch_errors;
mod errors;
mod identity;
mod listeners;
mod secrets;
mod shared;
mod shipped;
mod trace;
mod values;

use sidelink::config::Config;

const SHIPPED: &str = include_str!("../../config/sidelink.toml");

/// (line, key, message) of each error.
fn errors(text: &str) -> Vec<(usize, String, String)> {
    let errors = Config::parse(text).expect_err(text).errors;
    errors.into_iter().map(|error| (error.line, error.key, error.message)).collect()
}

/// The errors of a file with an endpoint in line 2 and `more` from line 3 on.
fn errors_of(rest: &str) -> Vec<(usize, String, String)> {
    errors(&format!("[upstream]\nendpoint = \"http://h\"\n{rest}"))
}

pub fn secret_file(text: &str, mode: u32) -> tempfile::NamedTempFile {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    file
}
