//! Visits the keys of a TOML table: reads those in the document, reports errors, and lists every key.

use toml::de::{DeTable, DeValue};

use super::diagnostics::{Diagnostics, FileValue, KeyEntry, TableEntry, Unknown, article, path};
use super::kind::ValueKind;

/// One table of the document. Keys that are not visited are unknown, and reported.
pub(super) struct TableVisitor<'a> {
    report: &'a Diagnostics<'a>,
    entry: TableEntry,
    presence: Presence<'a>,
    /// The byte at which the table begins.
    at: usize,
    /// How many errors were reported before the table was entered.
    errors: usize,
    /// Its values begin with those of a preset: no key is mandatory.
    has_preset: bool,
}

#[derive(Clone, Copy)]
enum Presence<'a> {
    /// In the document.
    There(&'a DeTable<'a>),
    /// Not in the document: it reads as empty, and mandatory keys are missing.
    Absent,
    /// Visited only to list its keys.
    Listed,
}

/// Visits every key by `keys`: of `document`, or only to list them.
pub(super) fn visit<'a>(
    document: Option<&'a DeTable<'a>>,
    report: &'a Diagnostics<'a>,
    keys: impl FnOnce(&mut TableVisitor<'a>),
) {
    let presence = document.map_or(Presence::Listed, Presence::There);
    TableVisitor::visit(report, String::new(), "", (presence, 0), [false, true], keys);
}

impl<'a> TableVisitor<'a> {
    /// Visits a table by `keys`, and adds it to the report before the tables within it.
    fn visit(
        report: &'a Diagnostics<'a>,
        path: String,
        doc: &'static str,
        (presence, at): (Presence<'a>, usize),
        [repeated, present]: [bool; 2],
        keys: impl FnOnce(&mut Self),
    ) {
        let number = report.tables();
        let doc = doc.trim_start();
        let entry = TableEntry { path, doc, repeated, present, names: Vec::new(), keys: Vec::new() };
        let mut table = Self { report, entry, presence, at, errors: report.errors(), has_preset: false };
        keys(&mut table);
        let entry = table.entry;
        if let Presence::There(document) = presence {
            let is_known = |name: &str| entry.names.contains(&name);
            for (name, value) in document.iter().filter(|(name, _)| !is_known(name.get_ref())) {
                let (table, key, at) = (entry.path.clone(), name.get_ref().to_string(), name.span().start);
                report.unknown(Unknown { table, key, at, is_table: value.get_ref().is_table() });
            }
        }
        report.visited(number, entry);
    }

    pub(super) fn key<T: 'static>(&mut self, name: &'static str, doc: &'static str, value: &mut T, kind: ValueKind<T>) {
        let found = self.find(name);
        if let Some(read) = found.as_ref().and_then(&kind.read) {
            *value = read;
        }
        if found.is_none() && kind.about.required && !self.has_preset && !matches!(self.presence, Presence::Listed) {
            self.report.missing(&self.entry.path, name, self.at);
        }
        let (doc, value) = (doc.trim_start(), (kind.write)(value));
        self.entry.keys.push(KeyEntry { name, doc, value, about: kind.about });
    }

    /// Visits a table within this one; an absent one reads as empty.
    pub(super) fn table<T>(
        &mut self,
        name: &'static str,
        doc: &'static str,
        value: &mut T,
        keys: impl FnOnce(&mut T, &mut Self),
    ) {
        let (place, path, has_preset) = (self.inner(name), path(&self.entry.path, name), self.has_preset);
        let present = self.entry.present;
        Self::visit(self.report, path, doc, place, [false, present], |table| {
            table.has_preset = has_preset;
            keys(value, table);
        });
    }

    /// Visits an optional table; where it is absent, `value` stays.
    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        doc: &'static str,
        value: &mut Option<T>,
        blank: impl FnOnce() -> T,
        keys: impl FnOnce(&mut T, &mut Self),
    ) {
        let (state, at) = match self.inner(name) {
            (Presence::Absent, at) => (Presence::Listed, at),
            there => there,
        };
        let is_there = matches!(state, Presence::There(_));
        let mut visited = value.take().filter(|_| !is_there);
        let present = is_there || visited.is_some();
        let inner = visited.get_or_insert_with(blank);
        let path = path(&self.entry.path, name);
        Self::visit(self.report, path, doc, (state, at), [false, present], |table| keys(inner, table));
        *value = visited.filter(|_| present);
    }

    /// Visits the tables `[[name]]` in order; the second argument of `keys` is the values before. Without any, `values` stay.
    pub(super) fn list<T>(
        &mut self,
        name: &'static str,
        doc: &'static str,
        values: &mut Vec<T>,
        blank: impl Fn() -> T,
        keys: impl Fn(&mut T, &[T], &mut Self),
    ) {
        let path = path(&self.entry.path, name);
        let mut tables = Vec::new();
        if let Some(found) = self.find(name) {
            for element in found.elements() {
                match (found.value, element.value) {
                    (DeValue::Array(_), DeValue::Table(table)) => tables.push((Presence::There(table), element.at)),
                    (_, other) => {
                        let kind = article(other.type_str());
                        let message = format!("must be a list of tables: write [[{path}]] above each; is {kind}");
                        self.report.add(element.at, &path, message);
                    }
                }
            }
        }
        let visit = |place, present, value: &mut T, before: &[T]| {
            Self::visit(self.report, path.clone(), doc, place, [true, present], |table| keys(value, before, table));
        };
        let listed = (Presence::Listed, self.at);
        if tables.is_empty() && values.is_empty() {
            visit(listed, false, &mut blank(), &[]);
        } else if tables.is_empty() {
            values.iter_mut().for_each(|value| visit(listed, true, value, &[]));
        } else {
            values.clear();
            for table in tables {
                let mut value = blank();
                visit(table, true, &mut value, values);
                values.push(value);
            }
        }
    }

    /// Whether the table is in the document, without an error so far.
    pub(super) fn is_sound(&self) -> bool {
        self.is_there() && self.report.errors() == self.errors
    }

    /// Whether the table is in the document.
    pub(super) fn is_there(&self) -> bool {
        matches!(self.presence, Presence::There(_))
    }

    /// The values of the keys that follow begin with those of a preset: no key is mandatory.
    pub(super) fn begins_with_preset(&mut self) {
        self.has_preset = true;
    }

    /// The table as a whole is mandatory: an absent one is reported instead of its mandatory keys.
    pub(super) fn must_be_there(&mut self) {
        if matches!(self.presence, Presence::Absent) && !self.has_preset {
            self.report.missing("", &self.entry.path, self.at);
            self.presence = Presence::Listed;
        }
    }

    /// Reports an error at the first of these keys that is in the document, or else of the table as a whole.
    pub(super) fn wrong_at(&mut self, keys: &[&'static str], message: &str) {
        match keys.iter().find_map(|key| self.find(key)) {
            Some(found) => found.wrong(message),
            None => self.wrong(message),
        }
    }

    /// Reports `key` where it is without `other`.
    pub(super) fn needs(&mut self, key: &'static str, other: &'static str, message: &str) {
        if let (Some(found), None) = (self.find(key), self.find(other)) {
            found.wrong(message);
        }
    }

    /// Reports an error of the table as a whole.
    pub(super) fn wrong(&self, message: &str) {
        if self.is_there() {
            self.report.add(self.at, &self.entry.path, message);
        }
    }

    /// The value of a key or table, if it is in the document.
    pub(super) fn find(&mut self, name: &'static str) -> Option<FileValue<'a>> {
        if !self.entry.names.contains(&name) {
            self.entry.names.push(name);
        }
        let Presence::There(table) = self.presence else { return None };
        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
        // The span of a table covers its contents; the error belongs at its key.
        let at = if value.get_ref().is_table() { key.span().start } else { value.span().start };
        Some(FileValue { key: path(&self.entry.path, name), at, value: value.get_ref(), report: self.report })
    }

    /// A table within this one, and where it begins.
    fn inner(&mut self, name: &'static str) -> (Presence<'a>, usize) {
        let Some(found) = self.find(name) else {
            let is_listed = matches!(self.presence, Presence::Listed);
            return (if is_listed { Presence::Listed } else { Presence::Absent }, self.at);
        };
        match found.value {
            DeValue::Table(table) => (Presence::There(table), found.at),
            _ => {
                found.wrong(found.is_not("a table"));
                (Presence::Listed, found.at)
            }
        }
    }
}
