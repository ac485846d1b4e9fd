//! Derived from the keys of a configuration: the output of `check`, the shipped file, the reference page, the files that the
//! configuration depends on, and the values that a reload cannot change.

use std::fmt::{self, Display, Write};
use std::path::PathBuf;

use super::diagnostics::{Diagnostics, KeyEntry, TableEntry};
use super::{Config, Endpoint, table};

/// The effective configuration as TOML, as `check` prints it: it parses to the same configuration, and contains no secret.
impl Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for table in tables(self).into_iter().filter(|table| table.present) {
            writeln!(text, "\n{}", heading(&table))?;
            for key in table.keys {
                if let Some(value) = key.value {
                    writeln!(text, "{} = {value}", key.name)?;
                }
            }
        }
        f.write_str(text.trim())
    }
}

impl Config {
    /// The files that are read with the configuration: a change of one causes a reload.
    pub fn dependencies(&self) -> Vec<PathBuf> {
        let keys = tables(self).into_iter().filter(|table| table.present).flat_map(|table| table.keys);
        let values = keys.filter(|key| key.about.dependency).filter_map(|key| key.value);
        values.filter_map(|value| value.as_str().map(PathBuf::from)).collect()
    }
}

/// The shipped file: every key with its doc and default.
pub fn shipped() -> String {
    let mut text = "\
# Every key of sidelink, with its default. Only upstream.endpoint is mandatory.
# Durations are written \"500ms\", \"10s\" or \"5m\"; sizes \"256KiB\" or \"8MiB\". `sidelink check --config FILE` reports every error.
"
    .to_owned();
    for table in documented() {
        let mark = if table.present { "" } else { "# " };
        let _ = write!(text, "\n# {}\n{mark}{}\n", table.doc, heading(&table));
        for key in &table.keys {
            let mark = if table.present && key.value.is_some() { "" } else { "# " };
            let values = if key.about.values.is_empty() { String::new() } else { format!(" ({})", key.about.values) };
            let doc = key.doc.trim_end_matches('.');
            let _ = writeln!(text, "# {doc}{values}.\n{mark}{} = {}", key.name, shown(key));
        }
    }
    text
}

/// The tables of `docs/CONFIGURATION.md`.
pub fn reference() -> String {
    let mut text = String::new();
    for table in documented() {
        let _ = write!(text, "\n## `{}`\n\n{}\n\n", heading(&table), table.doc);
        text.push_str("| key | default | values | |\n|---|---|---|---|\n");
        for key in &table.keys {
            let default = match (&key.value, &key.about.example) {
                _ if key.about.required => "mandatory".to_owned(),
                (Some(value), None) => format!("`{value}`"),
                _ => "none".to_owned(),
            };
            let restart = if key.about.immutable { " A reload cannot change it." } else { "" };
            let (name, values, doc) = (key.name, &key.about.values, key.doc);
            let _ = writeln!(text, "| `{name}` | {default} | {values} | {doc}{restart} |");
        }
    }
    text
}

/// Each key that a reload cannot change, and each table that it can neither add nor remove, with its value.
pub(super) fn immutable(config: &Config) -> Vec<(String, String)> {
    let mut values = Vec::new();
    for table in tables(config) {
        // Clients and operators that connected without TLS would stay.
        if matches!(table.path.as_str(), "listen.tls" | "admin.tls") {
            values.push((table.path.clone(), table.present.to_string()));
        }
        for key in table.keys.iter().filter(|key| key.about.immutable) {
            values.push((format!("{}.{}", table.path, key.name), format!("{:?}", key.value)));
        }
    }
    values
}

/// Every key with its default, each table once.
fn documented() -> Vec<TableEntry> {
    // The default batch API is a preset: one key, not a default of each.
    tables(&Config { batch: Vec::new(), ..Config::for_endpoint(Endpoint::stand_in()) })
}

fn tables(config: &Config) -> Vec<TableEntry> {
    let report = Diagnostics::new("");
    table::visit(None, &report, |table| config.clone().keys(table));
    let tables = report.into_tables().into_iter();
    tables.filter(|table| !table.path.is_empty()).collect()
}

fn heading(table: &TableEntry) -> String {
    if table.repeated { format!("[[{}]]", table.path) } else { format!("[{}]", table.path) }
}

/// The value of a key in the shipped file.
fn shown(key: &KeyEntry) -> String {
    match (&key.about.example, &key.value) {
        (Some(example), value) if key.about.required || value.is_none() => example.to_string(),
        (_, value) => value.iter().map(ToString::to_string).collect(),
    }
}
