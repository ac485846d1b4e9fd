//! The types of values that keys have: how a value is read, written and described.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SpanRelativeTo;
use jiff::fmt::friendly::{SpanParser, SpanPrinter};
use toml::Value;
use toml::de::DeValue;

use super::diagnostics::FileValue;
use super::pem;
use super::secret::StoredSecret;

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

type Reader<T> = Box<dyn Fn(&FileValue<'_>) -> Option<T>>;
type Writer<T> = Box<dyn Fn(&T) -> Option<Value>>;

/// The type of a key's value, and the key's properties other than name, default and doc.
pub(super) struct ValueKind<T> {
    pub(super) read: Reader<T>,
    /// Its TOML, without secrets; `None` for an absent value.
    pub(super) write: Writer<T>,
    pub(super) about: About,
}

/// The properties of a key, for the generated pages and for reloads.
#[derive(Default)]
pub(super) struct About {
    /// The allowed values, such as `1s to 24h`.
    pub(super) values: String,
    /// A value for the shipped file, where there is no default.
    pub(super) example: Option<Value>,
    /// The file must have the key.
    pub(super) required: bool,
    /// A reload cannot change the value.
    pub(super) immutable: bool,
    /// The value is the path of a file that is read with the configuration.
    pub(super) dependency: bool,
}

impl<T: 'static> ValueKind<T> {
    /// A kind of the allowed `values`, which `read` gets as its second argument.
    pub(super) fn new(
        values: impl Into<String>,
        read: impl Fn(&FileValue<'_>, &str) -> Result<T, String> + 'static,
        write: impl Fn(&T) -> Value + 'static,
    ) -> Self {
        let about = About { values: values.into(), ..About::default() };
        let allowed = about.values.clone();
        let read = move |found: &FileValue<'_>| read(found, &allowed).map_err(|message| found.wrong(message)).ok();
        Self { read: Box::new(read), write: Box::new(move |value| Some(write(value))), about }
    }

    fn with(mut self, set: impl FnOnce(&mut About)) -> Self {
        set(&mut self.about);
        self
    }

    /// A reload cannot change the value.
    pub(super) fn immutable(self) -> Self {
        self.with(|about| about.immutable = true)
    }

    /// The key is mandatory.
    pub(super) fn required(self, example: impl Into<Value>) -> Self {
        self.with(|about| (about.required, about.example) = (true, Some(example.into())))
    }

    /// The key may be absent.
    pub(super) fn optional(self, example: impl Into<Value>) -> ValueKind<Option<T>> {
        let (read, write) = (self.read, self.write);
        ValueKind {
            read: Box::new(move |found| read(found).map(Some)),
            write: Box::new(move |value| value.as_ref().and_then(&write)),
            about: About { example: Some(example.into()), ..self.about },
        }
    }

    /// The file is read only at the start, so a change of it causes no reload.
    pub(super) fn read_once(self) -> Self {
        self.with(|about| about.dependency = false)
    }

    /// `true` and `false` are read as these values.
    pub(super) fn or_flag(self, yes: T, no: T) -> Self
    where
        T: Copy,
    {
        let read = self.read;
        let flag = move |flag: bool| if flag { yes } else { no };
        Self { read: Box::new(move |found| found.value.as_bool().map(flag).or_else(|| read(found))), ..self }
    }

    /// Adds a check of values that could be read.
    pub(super) fn check(self, check: impl Fn(&T, &FileValue<'_>) + 'static) -> Self {
        let read = self.read;
        Self { read: Box::new(move |found| read(found).inspect(|value| check(value, found))), ..self }
    }
}

pub(super) fn string(value: impl Display) -> Value {
    Value::String(value.to_string())
}

fn within<T: PartialOrd>(
    bounds: &RangeInclusive<T>,
    read: Option<T>,
    values: &str,
    written: &str,
) -> Result<T, String> {
    let outside = || format!("must be between {}, is {written}", values.replace(" to ", " and "));
    read.filter(|read| bounds.contains(read)).ok_or_else(outside)
}

pub(super) fn flag() -> ValueKind<bool> {
    let read = |found: &FileValue<'_>, _: &str| found.value.as_bool().ok_or_else(|| found.is_not("true or false"));
    ValueKind::new("", read, |value| Value::Boolean(*value))
}

pub(super) fn duration(bounds: RangeInclusive<Duration>) -> ValueKind<Duration> {
    let values = format!("{} to {}", show_duration(*bounds.start()), show_duration(*bounds.end()));
    let read = move |found: &FileValue<'_>, values: &str| {
        if let Some(number) = integer(found.value).filter(|number| *number >= 0) {
            let units = ["s", "ms", "m", "h", "d"].map(|unit| format!("{number}{unit}"));
            let fits = |text: &&String| parse_duration(text).is_ok_and(|read| bounds.contains(&read));
            let remedy = match units.iter().find(fits) {
                Some(text) => format!("write \"{text}\""),
                None => format!("must be between {}", values.replace(" to ", " and ")),
            };
            return Err(format!("must be a duration such as \"10s\", is an integer; {remedy}"));
        }
        let text = found.text("a duration such as \"10s\"")?;
        let between = || values.replace(" to ", " and ");
        let read = parse_duration(text).map_err(|message| format!("{message}; must be between {}", between()))?;
        within(&bounds, Some(read), values, text)
    };
    ValueKind::new(values, read, |value| string(show_duration(*value)))
}

/// Reads a duration such as `500ms`, `10s` or `1h 30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let span = SpanParser::new().parse_span(text);
    let duration = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()));
    duration.ok().and_then(|duration| Duration::try_from(duration).ok()).ok_or_else(|| {
        let text = text.escape_debug();
        format!("not a duration such as \"10s\": \"{text}\" is not a number with a unit (d, h, m, s, ms)")
    })
}

/// A duration as a file has it: `10s`, `1h 30m`.
pub(crate) fn show_duration(duration: Duration) -> String {
    SpanPrinter::new().unsigned_duration_to_string(&duration)
}

pub(super) fn size<T>(bounds: RangeInclusive<T>) -> ValueKind<T>
where
    T: Copy + PartialOrd + TryFrom<u64> + TryInto<u64> + 'static,
{
    let show = |bytes: T| show_size(bytes.try_into().unwrap_or(u64::MAX));
    let values = format!("{} to {}", show(*bounds.start()), show(*bounds.end()));
    let read = move |found: &FileValue<'_>, values: &str| {
        let (read, written) = match found.value {
            DeValue::Integer(number) => {
                (integer(found.value).and_then(|read| u64::try_from(read).ok()), number.as_str())
            }
            _ => {
                let text = found.text("a size such as \"256MiB\"")?;
                let wrong = |_| format!("not a size such as \"256MiB\" or \"64KiB\": \"{}\"", text.escape_debug());
                (Some(text.parse::<bytesize::ByteSize>().map_err(wrong)?.as_u64()), text)
            }
        };
        within(&bounds, read.and_then(|read| T::try_from(read).ok()), values, written)
    };
    ValueKind::new(values, read, move |value| string(show(*value)))
}

/// A size in the largest binary unit that leaves no remainder.
fn show_size(bytes: u64) -> String {
    for (unit, name) in [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes > 0 && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    format!("{bytes}B")
}

/// A whole number.
pub(super) fn count<T>(bounds: RangeInclusive<T>) -> ValueKind<T>
where
    T: Copy + PartialOrd + Display + TryFrom<i64> + TryInto<i64> + 'static,
{
    let values = format!("{} to {}", bounds.start(), bounds.end());
    let read = move |found: &FileValue<'_>, values: &str| {
        let DeValue::Integer(number) = found.value else { return Err(found.is_not("a whole number")) };
        let read = integer(found.value).and_then(|number| T::try_from(number).ok());
        within(&bounds, read, values, number.as_str())
    };
    ValueKind::new(values, read, |value| Value::Integer((*value).try_into().unwrap_or(i64::MAX)))
}

pub(super) fn share(bounds: RangeInclusive<f64>) -> ValueKind<f64> {
    let values = format!("{} to {}", bounds.start(), bounds.end());
    let read = move |found: &FileValue<'_>, values: &str| {
        let written = match found.value {
            DeValue::Float(float) => float.as_str(),
            // `1` is a share as well.
            DeValue::Integer(number) => number.as_str(),
            _ => return Err(found.is_not("a number")),
        };
        within(&bounds, written.replace('_', "").parse().ok(), values, written)
    };
    ValueKind::new(values, read, |value| Value::Float(*value))
}

pub(super) fn choice<T: Copy + PartialEq + 'static>(words: &'static [(&'static str, T)]) -> ValueKind<T> {
    let values = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
    let read = move |found: &FileValue<'_>, names: &str| {
        let text = found.text("a string")?;
        let known = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        known.ok_or_else(|| format!("must be one of {names}, is \"{}\"", text.escape_debug()))
    };
    let name = |value: &T| words.iter().find(|(_, known)| known == value).map_or("", |(word, _)| *word);
    ValueKind::new(values, read, move |value| string(name(value)))
}

pub(super) fn mode() -> ValueKind<u32> {
    let read = |found: &FileValue<'_>, _: &str| {
        let text = found.text("an octal mode such as \"0660\"")?;
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && !text.starts_with('+'));
        mode.ok_or_else(|| "must be an octal mode such as \"0660\", between \"0000\" and \"0777\"".to_owned())
    };
    ValueKind::new("0000 to 0777", read, |mode| string(format_args!("{mode:04o}")))
}

/// A string that `parse` accepts; `expected` describes it.
pub(super) fn text<T: Display + 'static>(
    expected: &'static str,
    parse: impl Fn(&str) -> Result<T, String> + 'static,
) -> ValueKind<T> {
    ValueKind::new(expected, move |found, expected| parse(found.text(expected)?), |value| string(value))
}

/// A string that `fits`; `expected` describes it.
pub(super) fn string_of(expected: &'static str, fits: fn(&str) -> bool) -> ValueKind<String> {
    text(expected, move |text| if fits(text) { Ok(text.to_owned()) } else { Err(format!("must be {expected}")) })
}

/// A string, or an array of strings, each of which `parse` accepts; its second argument is the values before.
/// `none` refuses an empty array.
pub(super) fn texts<T: Display + 'static>(
    none: Option<&'static str>,
    parse: impl Fn(&str, &[T]) -> Result<T, String> + 'static,
) -> ValueKind<Vec<T>> {
    let read = move |found: &FileValue<'_>, _: &str| {
        if let (Some(none), Some([])) = (none, found.value.as_array().map(|array| array.as_ref())) {
            return Err(none.to_owned());
        }
        let mut values = Vec::new();
        for element in found.elements() {
            match element.text("a string, or an array of strings").and_then(|text| parse(text, &values)) {
                Ok(value) => values.push(value),
                Err(message) => element.wrong(message),
            }
        }
        Ok(values)
    };
    let write = |values: &Vec<T>| match values.as_slice() {
        [one] => string(one),
        several => Value::Array(several.iter().map(string).collect()),
    };
    ValueKind::new("", read, write)
}

pub(super) fn file() -> ValueKind<PathBuf> {
    let kind =
        ValueKind::new("", |found, _| found.text("a file's path").map(PathBuf::from), |path| string(path.display()));
    kind.with(|about| about.dependency = true)
}

/// The path of a PEM file that `read` can read.
pub(super) fn pem_file<T: 'static>(read: fn(&Path) -> Result<T, String>) -> ValueKind<PathBuf> {
    file().check(move |path, found| {
        if let Err(message) = read(path) {
            // The file's line has the path.
            found.wrong(message.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&message));
        }
    })
}

pub(super) fn certificates() -> ValueKind<PathBuf> {
    pem_file(pem::certificates)
}

/// The path of a file with a secret, or several.
pub(super) fn secret_file<S: 'static>(read: fn(&Path) -> Result<S, String>) -> ValueKind<StoredSecret<S>> {
    file_of(read, |_| true)
}

/// The path of a file that `read` reads, where `is_secret` says whether it holds a secret.
pub(super) fn file_of<S: 'static>(
    read: fn(&Path) -> Result<S, String>,
    is_secret: fn(&S) -> bool,
) -> ValueKind<StoredSecret<S>> {
    let read = move |found: &FileValue<'_>, _: &str| {
        let source = found.text("a file's path")?;
        let secret = read(Path::new(source));
        if secret.as_ref().map_or(true, is_secret) {
            found.warn_if_world_readable(Path::new(source));
        }
        Ok(StoredSecret { secret: secret?, source: source.to_owned() })
    };
    ValueKind::new("", read, |secret: &StoredSecret<S>| string(secret)).with(|about| about.dependency = true)
}

pub(super) fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok()
}
