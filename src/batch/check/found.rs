//! Describes parts of a recorded message by names and kinds, never by values.

use serde_json::Value;

use super::super::masking::masked_id;
use crate::config::batch::Pointer;

/// The most names that are listed, and the most characters of one.
const MOST_NAMES: usize = 12;
const MOST_CHARS: usize = 64;

/// The kind of a value; of an object also its names.
pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "true or false".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(elements) => format!("a list of {}", elements.len()),
        Value::Object(members) if members.is_empty() => "an empty object".to_owned(),
        Value::Object(members) => format!("an object with {}", names(members.keys())),
    }
}

/// The first of these names; one that is a link has no query.
pub(super) fn names<'n>(names: impl ExactSizeIterator<Item = &'n String>) -> String {
    let more = names.len().saturating_sub(MOST_NAMES);
    let shown = |name: &String| {
        let name = masked_id(name).escape_debug().to_string();
        match name.char_indices().nth(MOST_CHARS) {
            Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
            None => name,
        }
    };
    let shown: Vec<String> = names.take(MOST_NAMES).map(shown).collect();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &rest
}

/// Describes the value at `place` in `whole`, or the last value that exists on the path to it. `what` names the whole.
pub(super) fn at(whole: &Value, what: &str, place: &Pointer) -> String {
    let (mut here, mut path) = (whole, String::new());
    for token in place.tokens() {
        let next = format!("{path}/{}", token.replace('~', "~0").replace('/', "~1"));
        let Some(found) = whole.pointer(&next) else {
            let here = kind(here);
            return match path.as_str() {
                "" => format!("no {place}: {what} is {here}"),
                _ => format!("no {place}: {path} is {here}"),
            };
        };
        (here, path) = (found, next);
    }
    match path.as_str() {
        "" => format!("{what} is {}", kind(here)),
        _ => format!("{place} is {}", kind(here)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_stands_on_the_way_to_a_place_is_told_by_names_and_kinds_alone() {
        let whole = json!({"a/b": {"~": ["SECRET", 1], "n": null}, "ok": true});
        for (place, shown) in [
            ("", "it is an object with a/b, ok"),
            ("/c", "no /c: it is an object with a/b, ok"),
            ("/a~1b/~0", "/a~1b/~0 is a list of 2"),
            ("/a~1b/~0/0", "/a~1b/~0/0 is a string"),
            ("/a~1b/~0/2", "no /a~1b/~0/2: /a~1b/~0 is a list of 2"),
            ("/a~1b/x/y", "no /a~1b/x/y: /a~1b is an object with n, ~"),
            ("/a~1b/n/y", "no /a~1b/n/y: /a~1b/n is null"),
            ("/ok", "/ok is true or false"),
        ] {
            assert_eq!(at(&whole, "it", &place.parse().unwrap()), shown);
        }
    }

    #[test]
    fn names_are_few_short_and_without_the_query_of_a_link() {
        assert_eq!(kind(&json!({"https://h/a?SECRET": 1})), "an object with https://h/a?…");
        let many: serde_json::Map<_, _> = (10..30).map(|at| (format!("{at}\n"), Value::Null)).collect();
        assert!(kind(&many.into()).ends_with("20\\n, 21\\n and 8 more"));
        let long = kind(&json!({"x".repeat(65): 1}));
        assert_eq!(long, format!("an object with {}…", "x".repeat(64)));
    }
}
