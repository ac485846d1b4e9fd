//! The errors found so far. What is unknown or missing is judged at the end, when every known key has been met.

use std::collections::BTreeSet;
use std::ops::Range;

use super::error::{ConfigError, ConfigErrors, Warning};

/// Names that are not like any known key are not worth a suggestion below this (Jaro-Winkler, 0 to 1).
const SIMILAR: f64 = 0.7;
/// The same for a key of another table, which has to be a nearer match to be worth naming.
const SIMILAR_ELSEWHERE: f64 = 0.9;

/// The errors found so far, and what their verdicts need.
pub(super) struct Report<'t> {
    text: &'t str,
    /// Where lines begin, so that a place is found without reading the text again.
    lines: Vec<usize>,
    errors: Vec<ConfigError>,
    warnings: Vec<Warning>,
    /// Lines that are not TOML: what the parser made of them is not worth an error of its own.
    not_toml: BTreeSet<usize>,
    /// Tables, each with the keys that it may have.
    known: Vec<(String, Vec<&'static str>)>,
    unknown: Vec<Unknown>,
    missing: Vec<Missing>,
    /// Paths that an unknown key was probably meant to be.
    meant: Vec<String>,
}

/// A key that nobody has read.
pub(super) struct Unknown {
    pub(super) table: String,
    pub(super) key: String,
    pub(super) at: usize,
    pub(super) is_table: bool,
}

/// A key that must be there and is not.
struct Missing {
    table: String,
    key: &'static str,
    at: usize,
}

impl<'t> Report<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self {
            text,
            lines: std::iter::once(0).chain(breaks).collect(),
            errors: Vec::new(),
            warnings: Vec::new(),
            not_toml: BTreeSet::new(),
            known: Vec::new(),
            unknown: Vec::new(),
            missing: Vec::new(),
            meant: Vec::new(),
        }
    }

    /// What the parser could not read; one error a line, since the parser stumbles on after the first.
    pub(super) fn not_toml(&mut self, span: Option<Range<usize>>, message: &str) {
        let at = span.map_or(0, |span| span.start);
        let (line, _) = self.place(at);
        if self.not_toml.insert(line) {
            self.push(at, "", &format!("not TOML: {message}"));
        }
    }

    pub(super) fn add(&mut self, at: usize, key: &str, message: impl AsRef<str>) {
        let (line, _) = self.place(at);
        if !self.not_toml.contains(&line) {
            self.push(at, key, message.as_ref());
        }
    }

    /// For what is allowed and yet not right.
    pub(super) fn warn(&mut self, at: usize, key: &str, message: &str) {
        let warning = self.at(at, key, message);
        self.warnings.push(Warning(warning));
    }

    pub(super) fn take_warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }

    pub(super) fn missing(&mut self, table: &str, key: &'static str, at: usize) {
        self.missing.push(Missing { table: table.to_owned(), key, at });
    }

    pub(super) fn table(&mut self, table: String, known: Vec<&'static str>, unknown: Vec<Unknown>) {
        // Of a list of tables, each knows the same.
        if !self.known.iter().any(|(other, _)| *other == table) {
            self.known.push((table, known));
        }
        self.unknown.extend(unknown);
    }

    /// Whether it is not known what `key`, of a table of the first level, was meant to be: it or something below it has an
    /// error, or something beside it is misspelt.
    pub(super) fn doubts(&self, key: &str) -> bool {
        let is_below = |path: &str| path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let table = key.split('.').next().unwrap_or_default();
        let missing = || self.missing.iter().any(|missing| is_below(&path(&missing.table, missing.key)));
        let unknown = || self.unknown.iter().any(|unknown| unknown.table.is_empty() || unknown.table == table);
        self.errors.iter().any(|error| error.key.is_empty() || is_below(&error.key)) || missing() || unknown()
    }

    /// The path of every known key that holds a value.
    #[cfg(test)]
    pub(super) fn keys(&self) -> BTreeSet<String> {
        let paths = self.known.iter().flat_map(|(table, keys)| keys.iter().map(|key| path(table, key)));
        paths.filter(|path| !self.known.iter().any(|(table, _)| table == path)).collect()
    }

    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T, ConfigErrors> {
        self.judge_unknown();
        self.judge_missing();
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(ConfigErrors::new(self.errors)),
        }
    }

    fn judge_unknown(&mut self) {
        for unknown in std::mem::take(&mut self.unknown) {
            // A heading that is not TOML leaves the keys below it without a table.
            let (line, _) = self.place(unknown.at);
            let orphan = unknown.table.is_empty()
                && !self.is_heading(unknown.at)
                && self.not_toml.first().is_some_and(|not_toml| *not_toml < line);
            if !orphan {
                let (message, meant) = self.suggest(&unknown);
                self.add(unknown.at, &path(&unknown.table, &unknown.key), message);
                self.meant.extend(meant);
            }
        }
    }

    /// Not reported where its absence follows from another error: it may be in what is not TOML, or misspelt.
    fn judge_missing(&mut self) {
        for Missing { table, key, at } in std::mem::take(&mut self.missing) {
            let path = path(&table, key);
            if self.not_toml.is_empty() && !self.meant.iter().any(|meant| *meant == path || *meant == table) {
                self.push(at, &path, "is missing; it has no default");
            }
        }
    }

    /// What to say of an unknown key, and the paths of the known keys that may have been meant.
    fn suggest(&self, unknown: &Unknown) -> (String, Vec<String>) {
        let Unknown { table, key, is_table, .. } = unknown;
        let what = if *is_table { "unknown table" } else { "unknown key" };
        let elsewhere = || self.known.iter().filter(|(other, _)| other != table);

        let homes = || elsewhere().filter(|(home, keys)| !home.is_empty() && keys.contains(&key.as_str()));
        if homes().next().is_some() {
            let tables: Vec<String> = homes().map(|(home, _)| format!("[{home}]")).collect();
            let meant = homes().map(|(home, _)| path(home, key)).collect();
            return (format!("{what}; it belongs in {}", tables.join(" or ")), meant);
        }
        if elsewhere().any(|(home, _)| home == key) {
            return (format!("{what}; [{key}] is a table of its own"), vec![key.clone()]);
        }
        let here = self.known.iter().find(|(other, _)| other == table).map_or(&[][..], |(_, keys)| keys);
        if let Some((_, nearest)) = nearest(here, key, SIMILAR) {
            return (format!("{what}; did you mean \"{nearest}\"?"), vec![path(table, nearest)]);
        }
        let near = elsewhere().filter(|(home, _)| !home.is_empty()).filter_map(|(home, keys)| {
            let (likeness, nearest) = nearest(keys, key, SIMILAR_ELSEWHERE)?;
            Some((likeness, nearest, home))
        });
        match near.max_by(|one, other| one.0.total_cmp(&other.0)) {
            Some((_, nearest, home)) => {
                (format!("{what}; did you mean \"{nearest}\" in [{home}]?"), vec![path(home, nearest)])
            }
            None => (format!("{what}; known here: {}", here.join(", ")), Vec::new()),
        }
    }

    fn push(&mut self, at: usize, key: &str, message: &str) {
        let error = self.at(at, key, message);
        self.errors.push(error);
    }

    fn at(&self, at: usize, key: &str, message: &str) -> ConfigError {
        let (line, column) = self.place(at);
        ConfigError { line, column, key: one_line(key), message: one_line(message) }
    }

    /// Whether the key at a byte stands in a heading, such as `[limits]`.
    fn is_heading(&self, at: usize) -> bool {
        self.text.get(..at).is_some_and(|before| before.trim_end_matches([' ', '\t']).ends_with('['))
    }

    /// Line and column of a byte, both from 1.
    fn place(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= at);
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let before = self.text.get(start..at).unwrap_or_default();
        (line, 1 + before.chars().count())
    }
}

/// The dotted path of a key.
pub(super) fn path(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

fn nearest(known: &[&'static str], key: &str, least: f64) -> Option<(f64, &'static str)> {
    let likeness = known.iter().map(|known| (strsim::jaro_winkler(known, key), *known));
    likeness.filter(|(likeness, _)| *likeness > least).max_by(|one, other| one.0.total_cmp(&other.0))
}

/// A quoted key may hold anything, also line breaks and what a terminal obeys.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() { line.extend(character.escape_default()) } else { line.push(character) }
    }
    line
}
