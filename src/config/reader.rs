//! Reading a TOML document key by key, with the place of each, collecting errors instead of stopping at the first.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::render::size;
use super::report::{Report, Unknown, path};

/// A value with its key's path and its place.
pub(super) struct Found<'a, 'i> {
    pub(super) key: String,
    pub(super) span: Range<usize>,
    pub(super) value: &'a DeValue<'i>,
}

impl Found<'_, '_> {
    pub(super) fn wrong(&self, report: &mut Report<'_>, message: impl AsRef<str>) {
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
    /// Dotted; empty for the whole document.
    name: String,
    state: State<'a, 'i>,
    /// Where the table begins.
    at: usize,
    known: Vec<&'static str>,
}

enum State<'a, 'i> {
    There(&'a DeTable<'i>),
    Absent,
    /// Something else stands in its place, which has been reported.
    NoTable,
}

impl<'a, 'i> Section<'a, 'i> {
    /// The whole document.
    pub(super) fn root(document: &'a Spanned<DeTable<'i>>) -> Self {
        Self { name: String::new(), state: State::There(document.get_ref()), at: 0, known: Vec::new() }
    }

    /// The table `[name]` within this one; one that is not there reads as empty.
    pub(super) fn section(&mut self, name: &'static str, report: &mut Report<'_>) -> Section<'a, 'i> {
        let (state, at) = match self.find(name) {
            Some(found) => match found.value {
                DeValue::Table(table) => (State::There(table), found.span.start),
                other => {
                    found.wrong(report, format!("must be a table, is {}", article(other.type_str())));
                    (State::NoTable, found.span.start)
                }
            },
            None => (State::Absent, self.at),
        };
        Section { name: path(&self.name, name), state, at, known: Vec::new() }
    }

    /// The tables `[[name]]` within this one, in their order. Where there is none, one that reads as empty, so that its
    /// keys are known all the same.
    pub(super) fn tables(&mut self, name: &'static str, report: &mut Report<'_>) -> Vec<Section<'a, 'i>> {
        let path = path(&self.name, name);
        let section = |state, at| Section { name: path.clone(), state, at, known: Vec::new() };
        let Some(found) = self.find(name) else { return vec![section(State::Absent, self.at)] };
        let wrong = |report: &mut Report<'_>, at, kind: &str| {
            report.add(
                at,
                &path,
                format!("must be a list of tables: write [[{path}]] above each; is {}", article(kind)),
            );
        };
        let DeValue::Array(array) = found.value else {
            wrong(report, found.span.start, found.value.type_str());
            return vec![section(State::NoTable, found.span.start)];
        };
        let mut sections = Vec::with_capacity(array.len());
        for element in array.iter() {
            let at = element.span().start;
            match element.get_ref() {
                DeValue::Table(table) => sections.push(section(State::There(table), at)),
                other => wrong(report, at, other.type_str()),
            }
        }
        sections
    }

    /// Whether it stands in the document.
    pub(super) fn is_there(&self) -> bool {
        matches!(self.state, State::There(_))
    }

    /// Reports what is wrong with the table as a whole.
    pub(super) fn wrong(&self, report: &mut Report<'_>, message: &str) {
        report.add(self.at, &self.name, message);
    }

    /// The value of `key`, if it is there.
    pub(super) fn find(&mut self, key: &'static str) -> Option<Found<'a, 'i>> {
        self.known.push(key);
        let State::There(table) = self.state else { return None };
        let (name, value) = table.iter().find(|(name, _)| name.get_ref() == key)?;
        // A table's own span covers its contents; its key is what an operator looks for.
        let span = if value.get_ref().is_table() { name.span() } else { value.span() };
        Some(Found { key: path(&self.name, key), span, value: value.get_ref() })
    }

    /// As [`Section::find`], for a key that must be there.
    pub(super) fn require(&mut self, key: &'static str, report: &mut Report<'_>) -> Option<Found<'a, 'i>> {
        let found = self.find(key);
        if found.is_none() && !matches!(self.state, State::NoTable) {
            report.missing(&self.name, key, self.at);
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
        if let Some(seconds) = integer(found.value).filter(|seconds| *seconds >= 0) {
            found.wrong(report, format!("must be a duration such as \"10s\", is an integer; write \"{seconds}s\""));
            return;
        }
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
        let (read, written) = match found.value {
            DeValue::Integer(number) => {
                (integer(found.value).and_then(|number| u64::try_from(number).ok()), number.as_str())
            }
            _ => {
                let Some(text) = found.text(report, "a size such as \"256MiB\"") else { return };
                match text.parse::<bytesize::ByteSize>() {
                    Ok(read) => (Some(read.as_u64()), text),
                    Err(_) => {
                        let text = text.escape_debug();
                        found.wrong(report, format!("not a size such as \"256MiB\" or \"64KiB\": \"{text}\""));
                        return;
                    }
                }
            }
        };
        match read {
            Some(read) if bounds.contains(&read) => *value = read,
            _ => {
                let (least, most) = (size(*bounds.start()), size(*bounds.end()));
                found.wrong(report, format!("must be between {least} and {most}, is {written}"));
            }
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
        let DeValue::Integer(number) = found.value else {
            found.wrong(report, format!("must be a whole number, is {}", article(found.value.type_str())));
            return;
        };
        match integer(found.value).and_then(|number| usize::try_from(number).ok()) {
            Some(read) if bounds.contains(&read) => *value = read,
            _ => {
                let (least, most) = (bounds.start(), bounds.end());
                found.wrong(report, format!("must be between {least} and {most}, is {}", number.as_str()));
            }
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
        let (read, written) = match found.value {
            DeValue::Float(float) => (float.as_str().replace('_', "").parse::<f64>().ok(), float.as_str()),
            // A whole share is easily written without its point.
            DeValue::Integer(number) => {
                let read = integer(found.value).and_then(|number| i32::try_from(number).ok());
                (read.map(f64::from), number.as_str())
            }
            other => {
                found.wrong(report, format!("must be a number, is {}", article(other.type_str())));
                return;
            }
        };
        match read {
            Some(read) if bounds.contains(&read) => *value = read,
            _ => {
                let (least, most) = (bounds.start(), bounds.end());
                found.wrong(report, format!("must be between {least} and {most}, is {written}"));
            }
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

    /// A string, or an array of strings, each read by `read`. Returns the places of those that were read, in order.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        value: &mut Vec<T>,
        read: impl Fn(&str) -> Result<T, String>,
        report: &mut Report<'_>,
    ) -> Vec<Found<'a, 'i>> {
        let Some(found) = self.find(key) else { return Vec::new() };
        let elements: Vec<(Range<usize>, &DeValue<'_>)> = match found.value {
            DeValue::Array(array) => array.iter().map(|element| (element.span(), element.get_ref())).collect(),
            single => vec![(found.span.clone(), single)],
        };
        value.clear();
        let mut places = Vec::with_capacity(elements.len());
        for (span, element) in elements {
            let element = Found { key: found.key.clone(), span, value: element };
            let Some(text) = element.text(report, "a string, or an array of strings") else { continue };
            match read(text) {
                Ok(read) => {
                    value.push(read);
                    places.push(element);
                }
                Err(message) => element.wrong(report, message),
            }
        }
        places
    }

    /// Hands in the keys that are known here, and every key that nobody has read.
    pub(super) fn finish(self, report: &mut Report<'_>) {
        let mut unknown = Vec::new();
        if let State::There(table) = self.state {
            for (name, value) in table {
                if !self.known.contains(&name.get_ref().as_ref()) {
                    let (table, key) = (self.name.clone(), name.get_ref().to_string());
                    unknown.push(Unknown { table, key, at: name.span().start, is_table: value.get_ref().is_table() });
                }
            }
        }
        report.table(self.name, self.known, unknown);
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
}

fn plain(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
