//! Reading a TOML document key by key, with the place of each, collecting errors instead of stopping at the first.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors};

/// Names that are not like any known key are not worth a suggestion below this (Jaro-Winkler, 0 to 1).
const SIMILAR: f64 = 0.7;

/// The errors found so far, and where lines begin.
pub(super) struct Report<'t> {
    text: &'t str,
    errors: Vec<ConfigError>,
}

impl<'t> Report<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, errors: Vec::new() }
    }

    pub(super) fn add(&mut self, at: usize, key: &str, message: impl Into<String>) {
        let before = self.text.as_bytes().iter().take(at);
        let line = 1 + before.filter(|byte| **byte == b'\n').count();
        self.errors.push(ConfigError { line, key: key.to_owned(), message: message.into() });
    }

    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, ConfigErrors> {
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(ConfigErrors::new(self.errors)),
        }
    }
}

/// A value with its key's path and its place.
pub(super) struct Found<'a, 'i> {
    pub(super) key: String,
    pub(super) span: Range<usize>,
    pub(super) value: &'a DeValue<'i>,
}

impl Found<'_, '_> {
    pub(super) fn wrong(&self, report: &mut Report<'_>, message: impl Into<String>) {
        report.add(self.span.start, &self.key, message);
    }

    /// The text of a string value; anything else is reported.
    pub(super) fn text(&self, report: &mut Report<'_>, expected: &str) -> Option<&str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.wrong(report, format!("must be {expected}, is {}", article(self.value.type_str())));
        }
        text
    }
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// One table of the document. Every key that is read counts as known; [`Section::finish`] reports the others.
pub(super) struct Section<'a, 'i> {
    name: &'static str,
    table: Option<&'a DeTable<'i>>,
    /// Where the table begins.
    at: usize,
    known: Vec<&'static str>,
}

impl<'a, 'i> Section<'a, 'i> {
    /// The whole document.
    pub(super) fn root(document: &'a Spanned<DeTable<'i>>) -> Self {
        Self { name: "", table: Some(document.get_ref()), at: 0, known: Vec::new() }
    }

    /// The table under `key`, called `name` in full; one that is not there reads as empty.
    pub(super) fn section(
        &mut self,
        key: &'static str,
        name: &'static str,
        report: &mut Report<'_>,
    ) -> Section<'a, 'i> {
        let found = self.find(key);
        let (table, at) = match &found {
            Some(found) => match found.value {
                DeValue::Table(table) => (Some(table), found.span.start),
                other => {
                    found.wrong(report, format!("must be a table, is {}", article(other.type_str())));
                    (None, found.span.start)
                }
            },
            None => (None, self.at),
        };
        Section { name, table, at, known: Vec::new() }
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// The value of `key`, if it is there.
    pub(super) fn find(&mut self, key: &'static str) -> Option<Found<'a, 'i>> {
        self.known.push(key);
        let (name, value) = self.table?.iter().find(|(name, _)| name.get_ref() == key)?;
        // A table's own span covers its contents; its key is what an operator looks for.
        let span = if value.get_ref().is_table() { name.span() } else { value.span() };
        Some(Found { key: self.path(key), span, value: value.get_ref() })
    }

    /// As [`Section::find`], for a key that must be there.
    pub(super) fn require(&mut self, key: &'static str, report: &mut Report<'_>) -> Option<Found<'a, 'i>> {
        let found = self.find(key);
        if found.is_none() {
            report.add(self.at, &self.path(key), "is missing; it has no default");
        }
        found
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        value: &mut Duration,
        bounds: RangeInclusive<Duration>,
        report: &mut Report<'_>,
    ) {
        let Some(found) = self.find(key) else { return };
        let Some(text) = found.text(report, "a duration such as \"10s\"") else { return };
        match humantime::parse_duration(text) {
            Ok(read) if bounds.contains(&read) => *value = read,
            Ok(_) => {
                let (least, most) = (plain(*bounds.start()), plain(*bounds.end()));
                found.wrong(report, format!("must be between {least} and {most}, is {text}"));
            }
            Err(error) => found.wrong(report, format!("not a duration such as \"10s\": {error}")),
        }
    }

    pub(super) fn size(
        &mut self,
        key: &'static str,
        value: &mut u64,
        bounds: RangeInclusive<u64>,
        report: &mut Report<'_>,
    ) {
        let Some(found) = self.find(key) else { return };
        let read = match found.value {
            DeValue::Integer(_) => integer(found.value)
                .and_then(|number| u64::try_from(number).ok())
                .ok_or_else(|| "out of range".to_owned()),
            _ => match found.text(report, "a size such as \"256MiB\"") {
                Some(text) => text.parse::<bytesize::ByteSize>().map(|size| size.as_u64()),
                None => return,
            },
        };
        match read {
            Ok(read) if bounds.contains(&read) => *value = read,
            Ok(read) => {
                let (least, most) = (bytes(*bounds.start()), bytes(*bounds.end()));
                found.wrong(report, format!("must be between {least} and {most}, is {}", bytes(read)));
            }
            Err(error) => found.wrong(report, format!("not a size such as \"256MiB\": {error}")),
        }
    }

    /// A size that is counted in memory.
    pub(super) fn bytes(
        &mut self,
        key: &'static str,
        value: &mut usize,
        bounds: RangeInclusive<usize>,
        report: &mut Report<'_>,
    ) {
        let mut size = *value as u64;
        self.size(key, &mut size, *bounds.start() as u64..=*bounds.end() as u64, report);
        *value = usize::try_from(size).unwrap_or(*value);
    }

    pub(super) fn count(
        &mut self,
        key: &'static str,
        value: &mut usize,
        bounds: RangeInclusive<usize>,
        report: &mut Report<'_>,
    ) {
        let Some(found) = self.find(key) else { return };
        let DeValue::Integer(_) = found.value else {
            found.wrong(report, format!("must be a whole number, is {}", article(found.value.type_str())));
            return;
        };
        match integer(found.value).and_then(|number| usize::try_from(number).ok()) {
            Some(read) if bounds.contains(&read) => *value = read,
            _ => found.wrong(report, format!("must be between {} and {}", bounds.start(), bounds.end())),
        }
    }

    /// As [`Section::count`], for small numbers.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        value: &mut u32,
        bounds: RangeInclusive<u32>,
        report: &mut Report<'_>,
    ) {
        let widen = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let mut count = widen(*value);
        self.count(key, &mut count, widen(*bounds.start())..=widen(*bounds.end()), report);
        *value = u32::try_from(count).unwrap_or(*value);
    }

    pub(super) fn share(
        &mut self,
        key: &'static str,
        value: &mut f64,
        bounds: RangeInclusive<f64>,
        report: &mut Report<'_>,
    ) {
        let Some(found) = self.find(key) else { return };
        let read = match found.value {
            DeValue::Float(float) => float.as_str().replace('_', "").parse::<f64>().ok(),
            // A whole share is easily written without its point.
            DeValue::Integer(_) => integer(found.value).and_then(|number| i32::try_from(number).ok()).map(f64::from),
            other => {
                found.wrong(report, format!("must be a number, is {}", article(other.type_str())));
                return;
            }
        };
        match read {
            Some(read) if bounds.contains(&read) => *value = read,
            _ => found.wrong(report, format!("must be between {} and {}", bounds.start(), bounds.end())),
        }
    }

    pub(super) fn flag(&mut self, key: &'static str, value: &mut bool, report: &mut Report<'_>) {
        let Some(found) = self.find(key) else { return };
        match found.value.as_bool() {
            Some(read) => *value = read,
            None => found.wrong(report, format!("must be true or false, is {}", article(found.value.type_str()))),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        value: &mut T,
        words: &[(&str, T)],
        report: &mut Report<'_>,
    ) {
        let Some(found) = self.find(key) else { return };
        let Some(text) = found.text(report, "a string") else { return };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, read)) => *value = *read,
            None => {
                let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                found.wrong(report, format!("must be one of {}, is \"{}\"", names.join(", "), text.escape_debug()));
            }
        }
    }

    /// A string, or an array of strings, each read by `read`.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        value: &mut Vec<T>,
        read: impl Fn(&str) -> Result<T, String>,
        report: &mut Report<'_>,
    ) {
        let Some(found) = self.find(key) else { return };
        let elements: Vec<(Range<usize>, &DeValue<'_>)> = match found.value {
            DeValue::Array(array) => array.iter().map(|element| (element.span(), element.get_ref())).collect(),
            single => vec![(found.span.clone(), single)],
        };
        value.clear();
        for (span, element) in elements {
            let element = Found { key: found.key.clone(), span, value: element };
            let Some(text) = element.text(report, "a string, or an array of strings") else { continue };
            match read(text) {
                Ok(read) => value.push(read),
                Err(message) => element.wrong(report, message),
            }
        }
    }

    /// Reports every key that nobody has read.
    pub(super) fn finish(self, elsewhere: &[(&'static str, &'static str)], report: &mut Report<'_>) {
        for (name, _) in self.table.into_iter().flatten() {
            let key = name.get_ref().as_ref();
            if self.known.contains(&key) {
                continue;
            }
            let home = elsewhere.iter().find(|(section, known)| *known == key && *section != self.name);
            let nearest = self.known.iter().map(|known| (strsim::jaro_winkler(known, key), known));
            let nearest =
                nearest.filter(|(likeness, _)| *likeness > SIMILAR).max_by(|one, other| one.0.total_cmp(&other.0));
            let what = if self.name.is_empty() { "section or key" } else { "key" };
            let message = match (home, nearest) {
                (Some((section, _)), _) => format!("unknown {what}; it belongs into [{section}]"),
                (None, Some((_, nearest))) => format!("unknown {what}; did you mean \"{nearest}\"?"),
                (None, None) => format!("unknown {what}; known here: {}", self.known.join(", ")),
            };
            report.add(name.span().start, &self.path(key), message);
        }
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
}

fn plain(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn bytes(size: u64) -> String {
    super::render::size(size)
}
