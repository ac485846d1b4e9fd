//! The errors of a file, each with its place. Unknown and missing keys are reported at the end, when every known key has been
//! visited.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeString, DeValue};

use super::kind::About;
use super::pem;

/// The least likeness (Jaro-Winkler, 0 to 1) of a known key that is suggested.
pub(super) const SIMILAR: f64 = 0.7;
/// The same for a key of another table.
const SIMILAR_ELSEWHERE: f64 = 0.9;
/// How like two names are that differ in one letter, or in the places of two letters beside each other.
const ONE_SLIP: f64 = 0.85;

/// The parser's message for a key that is there twice.
const DUPLICATE: &str = "duplicate key";

/// The mode bit that lets every user read a file.
const WORLD_READABLE: u32 = 0o004;

/// Every error of one file, in order.
#[derive(Debug)]
pub struct ConfigErrors {
    pub(super) file: Option<PathBuf>,
    /// At least one.
    pub errors: Vec<ConfigError>,
}

/// One error or warning. A warning is about a setting that is allowed, and probably not intended.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {key}: {message}")]
pub struct ConfigError {
    /// From 1; 0 for an error of the whole file.
    pub line: usize,
    /// In characters, from 1; 0 for an error of the whole file.
    pub column: usize,
    /// Dotted, such as `upstream.deadline`; empty where the text is not TOML.
    pub key: String,
    /// The message, of one line.
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

/// The errors found so far, and every key that was visited.
pub(super) struct Diagnostics<'a> {
    text: &'a str,
    /// The bytes at which lines begin.
    lines: Vec<usize>,
    state: RefCell<Findings>,
}

#[derive(Default)]
struct Findings {
    errors: Vec<ConfigError>,
    warnings: Vec<ConfigError>,
    /// In the order of the file.
    tables: Vec<TableEntry>,
    unknown: Vec<Unknown>,
    /// Paths of mandatory keys that are absent, each with the byte at which its table begins.
    missing: Vec<(String, usize)>,
    /// Paths suggested for unknown keys.
    meant: Vec<String>,
}

pub(super) struct TableEntry {
    /// Dotted; empty for the whole document.
    pub(super) path: String,
    pub(super) doc: &'static str,
    /// Written as `[[path]]`.
    pub(super) repeated: bool,
    /// Part of the visited configuration; otherwise visited only to list its keys.
    pub(super) present: bool,
    /// The names of its keys and tables.
    pub(super) names: Vec<&'static str>,
    pub(super) keys: Vec<KeyEntry>,
}

pub(super) struct KeyEntry {
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    /// Its value in the visited configuration.
    pub(super) value: Option<toml::Value>,
    pub(super) about: About,
}

pub(super) struct Unknown {
    pub(super) table: String,
    pub(super) key: String,
    pub(super) at: usize,
    pub(super) is_table: bool,
}

/// A value with its key's path and its place.
pub(super) struct FileValue<'a> {
    pub(super) key: String,
    pub(super) at: usize,
    pub(super) value: &'a DeValue<'a>,
    pub(super) report: &'a Diagnostics<'a>,
}

impl<'a> FileValue<'a> {
    pub(super) fn wrong(&self, message: impl AsRef<str>) {
        self.report.add(self.at, &self.key, message);
    }

    /// Why a value of another type cannot be read.
    pub(super) fn is_not(&self, expected: &str) -> String {
        format!("must be {expected}, is {}", article(self.value.type_str()))
    }

    pub(super) fn warn(&self, message: &str) {
        self.report.warn(self.at, &self.key, message);
    }

    /// Warns if the certificate at `path` has ended, or ends soon.
    pub(super) fn warn_of_expiry(&self, path: &Path) {
        if let Some(message) = pem::expiry_warning(path) {
            self.warn(&message);
        }
    }

    /// Warns if every user of this machine may read the file with a secret.
    pub(super) fn warn_if_world_readable(&self, path: &Path) {
        if std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & WORLD_READABLE != 0) {
            let message = format!("everyone on this machine may read {}; chmod o-rwx takes that away", path.display());
            self.warn(&message);
        }
    }

    pub(super) fn text(&self, expected: &str) -> Result<&'a str, String> {
        self.value.as_str().ok_or_else(|| self.is_not(expected))
    }

    /// The elements of an array; any other value alone.
    pub(super) fn elements(&self) -> Vec<FileValue<'a>> {
        let found = |at, value| FileValue { key: self.key.clone(), at, value, report: self.report };
        match self.value {
            DeValue::Array(array) => {
                array.iter().map(|element| found(element.span().start, element.get_ref())).collect()
            }
            single => vec![found(self.at, single)],
        }
    }

    /// The members of a table, each at its name.
    pub(super) fn members(&self, expected: &str) -> Result<Vec<(&'a str, FileValue<'a>)>, String> {
        let table = self.value.as_table().ok_or_else(|| self.is_not(expected))?;
        let member = |(name, value): (&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>)| {
            let at = name.span().start;
            (
                name.get_ref().as_ref(),
                FileValue { key: self.key.clone(), at, value: value.get_ref(), report: self.report },
            )
        };
        Ok(table.iter().map(member).collect())
    }
}

/// Such as `an integer`.
pub(super) fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
    format!("{article} {kind}")
}

impl<'a> Diagnostics<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, lines: std::iter::once(0).chain(breaks).collect(), state: RefCell::default() }
    }

    /// Reports a syntax error.
    pub(super) fn not_toml(&self, span: Option<Range<usize>>, message: &str) {
        let span = span.unwrap_or(0..0);
        let place = (message == DUPLICATE).then(|| self.text.get(span.clone())).flatten();
        let message = match place.map(|key| (key, self.line_of_same(key, span.start))) {
            Some((key, Some(line))) => format!("not TOML: {key} is there twice, first in line {line}"),
            Some((key, None)) => format!("not TOML: {key} is there twice"),
            None => format!("not TOML: {message}"),
        };
        self.add(span.start, "", message);
    }

    /// The last line before the byte `at` that begins with this key, or is a heading of this name.
    fn line_of_same(&self, key: &str, at: usize) -> Option<usize> {
        let (line, _) = self.place(at);
        let is_same = |text: &str| {
            let text = text.trim_start().trim_start_matches('[').trim_start();
            text.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
        };
        let before = self.text.lines().take(line.saturating_sub(1)).enumerate();
        before.filter(|(_, text)| is_same(text)).last().map(|(number, _)| number + 1)
    }

    /// Reports an error, unless its line is not TOML: one error causes others.
    pub(super) fn add(&self, at: usize, key: &str, message: impl AsRef<str>) {
        let error = self.at(at, key, message.as_ref());
        let mut state = self.state.borrow_mut();
        if !state.not_toml().any(|line| line == error.line) {
            state.errors.push(error);
        }
    }

    pub(super) fn warn(&self, at: usize, key: &str, message: &str) {
        let warning = self.at(at, key, message);
        self.state.borrow_mut().warnings.push(warning);
    }

    pub(super) fn missing(&self, table: &str, key: &str, at: usize) {
        self.state.borrow_mut().missing.push((path(table, key), at));
    }

    pub(super) fn unknown(&self, unknown: Unknown) {
        self.state.borrow_mut().unknown.push(unknown);
    }

    /// How many tables have been visited.
    pub(super) fn tables(&self) -> usize {
        self.state.borrow().tables.len()
    }

    /// Adds a visited table; `number` tables were visited before it was entered.
    pub(super) fn visited(&self, number: usize, table: TableEntry) {
        self.state.borrow_mut().tables.insert(number, table);
    }

    /// How many errors have been found.
    pub(super) fn errors(&self) -> usize {
        let state = self.state.borrow();
        state.errors.len() + state.missing.len()
    }

    /// Every table that was visited, in the order of the file.
    pub(super) fn into_tables(self) -> Vec<TableEntry> {
        self.state.into_inner().tables
    }

    /// Whether the key or table at `path`, or something below it, has an error.
    pub(super) fn has_error(&self, path: &str) -> bool {
        let is_below =
            |other: &str| other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let state = self.state.borrow();
        state.errors.iter().any(|error| is_below(&error.key))
            || state.missing.iter().any(|(missing, _)| is_below(missing))
    }

    /// Whether the intended value of `key` is unknown: it or a key below it has an error, a key beside it is unknown, or part of
    /// the text is not TOML.
    pub(super) fn is_uncertain(&self, key: &str) -> bool {
        let table = key.split('.').next().unwrap_or_default();
        let misspelt = |unknown: &Unknown| unknown.table.is_empty() || unknown.table == table;
        let state = self.state.borrow();
        self.has_error(key) || state.not_toml().next().is_some() || state.unknown.iter().any(misspelt)
    }

    /// The warnings, or every error.
    pub(super) fn finish(self) -> Result<Vec<ConfigError>, Vec<ConfigError>> {
        self.report_unknown();
        self.report_missing();
        let Findings { mut errors, warnings, .. } = self.state.into_inner();
        errors.sort_by(|one, other| (one.line, one.column, &one.key).cmp(&(other.line, other.column, &other.key)));
        if errors.is_empty() { Ok(warnings) } else { Err(errors) }
    }

    fn report_unknown(&self) {
        let unknown = std::mem::take(&mut self.state.borrow_mut().unknown);
        for unknown in unknown {
            // Below a heading that is not TOML, keys have no table.
            let (line, _) = self.place(unknown.at);
            let orphan = unknown.table.is_empty()
                && !self.is_heading(unknown.at)
                && self.state.borrow().not_toml().any(|not_toml| not_toml < line);
            if !orphan {
                let (message, meant) = self.state.borrow().suggest(&unknown);
                self.add(unknown.at, &path(&unknown.table, &unknown.key), message);
                self.state.borrow_mut().meant.extend(meant);
            }
        }
    }

    /// Reports missing keys, unless they may be misspelt or in a line that is not TOML.
    fn report_missing(&self) {
        let missing = std::mem::take(&mut self.state.borrow_mut().missing);
        for (path, at) in missing {
            let is_meant =
                |meant: &String| *meant == path || path.rsplit_once('.').is_some_and(|(table, _)| meant == table);
            let follows =
                self.state.borrow().not_toml().next().is_some() || self.state.borrow().meant.iter().any(is_meant);
            if !follows {
                self.add(at, &path, "is missing; it has no default");
            }
        }
    }

    fn at(&self, at: usize, key: &str, message: &str) -> ConfigError {
        let (line, column) = self.place(at);
        ConfigError { line, column, key: one_line(key), message: one_line(message) }
    }

    /// Whether the key at a byte is in a heading, such as `[limits]`.
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

impl Findings {
    /// Lines that are not TOML.
    fn not_toml(&self) -> impl Iterator<Item = usize> {
        self.errors.iter().filter(|error| error.key.is_empty()).map(|error| error.line)
    }

    /// The message for an unknown key, and the paths that it suggests.
    fn suggest(&self, unknown: &Unknown) -> (String, Vec<String>) {
        let Unknown { table, key, is_table, .. } = unknown;
        let what = if *is_table { "unknown table" } else { "unknown key" };
        let known = || self.tables.iter().map(|known| (&known.path, &known.names));
        let elsewhere = || known().filter(|(other, _)| *other != table);

        let is_home = |(home, keys): &(&String, &Vec<&str>)| !home.is_empty() && keys.contains(&key.as_str());
        let mut homes: Vec<&String> = elsewhere().filter(is_home).map(|(home, _)| home).collect();
        // A table may be there several times, one after the other.
        homes.dedup();
        if !homes.is_empty() {
            let tables: Vec<String> = homes.iter().map(|home| format!("[{home}]")).collect();
            let meant = homes.iter().map(|home| path(home, key)).collect();
            return (format!("{what}; it belongs in {}", tables.join(" or ")), meant);
        }
        if elsewhere().any(|(home, _)| home == key) {
            return (format!("{what}; [{key}] is a table of its own"), vec![key.clone()]);
        }
        let here = known().find(|(other, _)| *other == table).map_or(&[][..], |(_, keys)| keys);
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
}

/// The dotted path of a key.
pub(super) fn path(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

/// The nearest of the known names, and how like it is, if that is more than `least`.
pub(super) fn nearest(known: &[&'static str], key: &str, least: f64) -> Option<(f64, &'static str)> {
    // A secret, or a certificate, belongs into a file.
    let in_file = known.iter().find(|known| known.strip_suffix("_file") == Some(key));
    if let Some(in_file) = in_file {
        return Some((1.0, in_file));
    }
    let likeness = known.iter().map(|known| (likeness(known, key), *known));
    likeness.filter(|(likeness, _)| *likeness > least).max_by(|one, other| one.0.total_cmp(&other.0))
}

/// Jaro-Winkler sees no likeness in a short word two of whose letters have changed places.
fn likeness(known: &str, key: &str) -> f64 {
    let is_one_slip = key.len() > 2 && strsim::osa_distance(known, key) == 1;
    strsim::jaro_winkler(known, key).max(if is_one_slip { ONE_SLIP } else { 0.0 })
}

/// Escapes control characters: a quoted key may contain any.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() { line.extend(character.escape_default()) } else { line.push(character) }
    }
    line
}
