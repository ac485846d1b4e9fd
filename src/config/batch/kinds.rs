//! The types of values of a batch API's keys.

use http::{HeaderName, Method};
use serde_json::{Number, Value};
use toml::de::DeValue;

use super::{BatchApi, PathPattern, Pointer, Style};
use crate::config::diagnostics::FileValue;
use crate::config::kind::{ValueKind, integer, string, text, texts};

/// A label of metrics.
pub(super) const API_NAME: &str = "1 to 32 lower-case letters, digits and hyphens, the first a letter";

pub(super) fn is_label(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

pub(super) const MEDIA_TYPE: &str = "a media type such as \"application/json\"";

pub(super) fn is_media_type(text: &str) -> bool {
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    is_visible && text.len() <= 128 && essence.split_once('/').is_some_and(|(kind, sub)| is_part(kind) && is_part(sub))
}

/// The name of a query parameter or of a member of an object.
pub(super) fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// A string that `fits`; `expected` describes it.
pub(super) fn string_that(expected: &'static str, fits: fn(&str) -> bool) -> ValueKind<Box<str>> {
    text(expected, move |text| if fits(text) { Ok(text.into()) } else { Err(format!("must be {expected}")) })
}

/// A string, or an array of strings, none of them empty or twice.
pub(super) fn strings(none: Option<&'static str>) -> ValueKind<Vec<Box<str>>> {
    texts(none, |text, before: &[Box<str>]| {
        if text.is_empty() {
            return Err("has an empty string".to_owned());
        }
        if before.iter().any(|other| **other == *text) {
            return Err(format!("has \"{}\" twice", text.escape_debug()));
        }
        Ok(text.into())
    })
}

/// How a query lists ids; none where no query does.
pub(super) fn styles() -> ValueKind<Vec<Style>> {
    let mut kind = texts(Some("names no style"), Style::parse);
    let write = kind.write;
    kind.write = Box::new(move |styles| write(styles).filter(|_| !styles.is_empty()));
    kind.about.example = Some(toml::Value::Array(vec![string(Style::Repeated)]));
    kind
}

pub(super) fn method() -> ValueKind<Method> {
    text("GET or POST", |text| match text {
        "GET" => Ok(Method::GET),
        "POST" => Ok(Method::POST),
        other => Err(format!("must be GET or POST, is \"{}\"", other.escape_debug())),
    })
}

pub(super) fn path_pattern() -> ValueKind<PathPattern> {
    text("a path", str::parse)
}

/// A path that captures one segment as `{id}`.
pub(super) fn deletion() -> ValueKind<PathPattern> {
    text("a path with {id}", |text| {
        let path: PathPattern = text.parse()?;
        let has_id = path.captures().any(|name| name == "id");
        if has_id { Ok(path) } else { Err("must have a segment {id}: it says which id is deleted".to_owned()) }
    })
}

pub(super) fn pointer() -> ValueKind<Pointer> {
    text("a JSON Pointer", str::parse)
}

/// A pointer into a JSON text, not to the whole.
pub(super) fn inner_pointer() -> ValueKind<Pointer> {
    text("a JSON Pointer", |text| match text {
        "" => Err("must be a JSON Pointer such as \"/id\", is empty".to_owned()),
        text => text.parse(),
    })
}

pub(super) fn pointers() -> ValueKind<Vec<Pointer>> {
    texts(None, |text, before: &[Pointer]| {
        let pointer: Pointer = text.parse()?;
        if before.contains(&pointer) { Err(format!("has \"{pointer}\" twice")) } else { Ok(pointer) }
    })
}

/// A pointer into an item, or `*`.
pub(super) fn item_key() -> ValueKind<Option<Pointer>> {
    let read = |found: &FileValue<'_>, _: &str| match found.text("a string")? {
        "*" => Ok(None),
        "" => Err("must be a JSON Pointer such as \"/id\", or \"*\", is empty".to_owned()),
        text => text.parse().map(Some),
    };
    ValueKind::new("a JSON Pointer, or *", read, |key: &Option<Pointer>| match key {
        Some(pointer) => string(pointer),
        None => string("*"),
    })
}

/// A JSON text.
pub(super) fn json_text() -> ValueKind<Box<str>> {
    text("a JSON text", |text| json(text).map(|_| text.into()))
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))
}

const PLACEHOLDERS: [&str; 4] = ["code", "message", "status", "request_id"];

/// A JSON text with places that are filled in.
pub(super) fn error_body() -> ValueKind<Box<str>> {
    text("a JSON text", |text| match unknown_placeholder(&json(text)?) {
        None => Ok(text.into()),
        Some(name) => Err(format!("has {{{name}}} in it, and only {{{}}} are filled in", PLACEHOLDERS.join("}, {"))),
    })
}

fn unknown_placeholder(body: &Value) -> Option<String> {
    match body {
        Value::String(text) => text.split('{').skip(1).find_map(|rest| {
            let (name, _) = rest.split_once('}')?;
            let is_one = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            (is_one && !PLACEHOLDERS.contains(&name)).then(|| name.to_owned())
        }),
        Value::Array(values) => values.iter().find_map(unknown_placeholder),
        Value::Object(members) => members.values().find_map(unknown_placeholder),
        _ => None,
    }
}

/// A table of JSON values by JSON Pointer.
pub(super) fn values_at(example: (&str, toml::Value)) -> ValueKind<Vec<(Pointer, Value)>> {
    members(
        "values by JSON Pointer",
        example,
        |name| match name {
            "" => Err("\"\" is the whole body, whose ids differ: name a place in it".to_owned()),
            name => name.parse(),
        },
        |found| json_of(found.value),
        |value| toml::Value::try_from(value).ok(),
    )
}

/// A table of numbers by header.
pub(super) fn header_bytes() -> ValueKind<Vec<(HeaderName, usize)>> {
    members(
        "bytes by header",
        ("x-auth-token", 5000.into()),
        |name| name.parse().map_err(|_| format!("\"{}\" is not a header's name", name.escape_debug())),
        |found| match integer(found.value).and_then(|bytes| usize::try_from(bytes).ok()) {
            Some(bytes) if (1..=65_536).contains(&bytes) => Ok(bytes),
            _ => Err("must be a whole number between 1 and 65536".to_owned()),
        },
        |bytes| i64::try_from(*bytes).ok().map(Into::into),
    )
}

/// A table whose names are read by `name` and its values by `read`. An empty one is not written.
fn members<K, V>(
    expected: &'static str,
    (example, value): (&str, toml::Value),
    name: fn(&str) -> Result<K, String>,
    read: fn(&FileValue<'_>) -> Result<V, String>,
    write: fn(&V) -> Option<toml::Value>,
) -> ValueKind<Vec<(K, V)>>
where
    K: PartialEq + ToString + 'static,
    V: 'static,
{
    let read = move |found: &FileValue<'_>, _: &str| {
        let mut values: Vec<(K, V)> = Vec::new();
        for (written, member) in found.members("a table")? {
            match name(written).and_then(|name| Ok((name, read(&member)?))) {
                Ok((name, _)) if values.iter().any(|(known, _)| *known == name) => {
                    member.wrong(format!("names {} twice", name.to_string()));
                }
                Ok(value) => values.push(value),
                Err(message) => member.wrong(format!("{}: {message}", written.escape_debug())),
            }
        }
        Ok(values)
    };
    let mut kind = ValueKind::new(expected, read, |_| toml::Value::Boolean(false));
    kind.write = Box::new(move |values| {
        let members = values.iter().filter_map(|(name, value)| Some((name.to_string(), write(value)?)));
        Some(toml::Table::from_iter(members)).filter(|table| !table.is_empty()).map(toml::Value::Table)
    });
    kind.about.example = Some(toml::Value::Table([(example.to_owned(), value)].into_iter().collect()));
    kind
}

/// A TOML value as JSON.
fn json_of(value: &DeValue<'_>) -> Result<Value, String> {
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Integer(_) => integer(value).map(Into::into).ok_or("is no integer of 64 bits")?,
        DeValue::Float(float) => {
            let number = float.as_str().replace('_', "").parse().ok().and_then(Number::from_f64);
            number.map(Value::Number).ok_or("is no number of JSON")?
        }
        DeValue::Datetime(_) => return Err("is a date: write it as a string".to_owned()),
        DeValue::Array(array) => {
            Value::Array(array.iter().map(|element| json_of(element.get_ref())).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => {
            let member = |(name, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
                let name: &std::borrow::Cow<'_, str> = name.get_ref();
                Ok::<_, String>((name.to_string(), json_of(value.get_ref())?))
            };
            Value::Object(table.iter().map(member).collect::<Result<_, _>>()?)
        }
    })
}

/// The name of a preset, read as that preset.
pub(super) fn preset_of_name() -> ValueKind<BatchApi> {
    let names = BatchApi::presets().collect::<Vec<_>>().join(", ");
    let read = |found: &FileValue<'_>, _: &str| {
        let name = found.text("a preset's name")?;
        BatchApi::preset(name).ok_or_else(|| BatchApi::no_preset(name))
    };
    ValueKind::new(names, read, |preset: &BatchApi| string(&preset.name))
}
