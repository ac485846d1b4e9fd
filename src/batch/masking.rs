//! Links as operators see them: without what makes them work.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::cache::freshness::has_sign_word;

/// A link without what makes it work: its query, its fragment, and a user's name and password.
pub(super) fn masked(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (bare, rest) = url.split_at(end);
    let (scheme, after) = bare.split_once("://").unwrap_or(("", bare));
    let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let colon = if scheme.is_empty() { "" } else { "://" };
    let cut = if rest.is_empty() { "" } else { "?…" };
    format!("{scheme}{colon}{host}{path}{cut}")
}

/// A text that may be a link, such as an id: one with a scheme, or a relative one with a query.
pub(super) fn masked_id(text: &str) -> String {
    let has_query = || text.split_once('?').is_some_and(|(_, query)| query.contains('='));
    if text.contains("://") || has_query() { masked(text) } else { text.to_owned() }
}

/// A JSON text whose strings may be links, or secrets by the names of their members. Without one it stays as it is.
pub(super) fn masked_json(text: &str) -> String {
    let Ok(mut value) = serde_json::from_str::<Value>(text) else { return masked_text(text).into_owned() };
    if mask_strings(&mut value) { value.to_string() } else { text.to_owned() }
}

/// Masks the strings in `value` that are links or named as secrets; returns whether there were any.
fn mask_strings(value: &mut Value) -> bool {
    match value {
        Value::String(text) => {
            let masked = masked_id(text);
            let is_link = masked != *text;
            *text = masked;
            is_link
        }
        // Each is masked, also after the first.
        Value::Array(values) => values.iter_mut().filter_map(|value| mask_strings(value).then_some(())).count() > 0,
        Value::Object(members) => {
            let mask = |(name, value): (&String, &mut Value)| match value {
                value if !value.is_null() && has_sign_word(name) => {
                    *value = Value::from("…");
                    true
                }
                value => mask_strings(value),
            };
            members.iter_mut().filter_map(|member| mask(member).then_some(())).count() > 0
        }
        _ => false,
    }
}

/// A piece of a JSON text: what follows the question mark of a link in it is cut, up to the end of the string.
pub(super) fn masked_text(text: &str) -> Cow<'_, str> {
    if !text.contains(['?', '@', '#']) {
        return Cow::Borrowed(text);
    }
    let parts = text.split('"').map(|part| if part.contains(['/', '=']) { masked_id(part) } else { part.to_owned() });
    Cow::Owned(parts.collect::<Vec<_>>().join("\""))
}

/// A request target whose parameters may be links, or secrets by their names.
pub(super) fn masked_target(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let mask = |value: &str| {
        let decoded = percent_decode_str(value).decode_utf8_lossy();
        let masked = masked_id(&decoded);
        if masked == decoded { value.to_owned() } else { masked }
    };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if has_sign_word(name) => format!("{name}=…"),
        Some((name, values)) => format!("{name}={}", values.split(',').map(mask).collect::<Vec<_>>().join(",")),
        None => pair.to_owned(),
    });
    format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_link_has_no_query_fragment_or_password() {
        for (url, shown) in [
            ("https://h:443/a/b?Signature=x&Expires=1", "https://h:443/a/b?…"),
            ("https://user:secret@h/a#secret", "https://h/a?…"),
            ("https://h/a", "https://h/a"),
            ("https://h?secret", "https://h?…"),
            ("a@b?secret", "b?…"),
            ("", ""),
        ] {
            assert_eq!(masked(url), shown);
        }
    }

    #[test]
    fn links_are_masked_wherever_they_stand_and_all_else_stays_as_it_is() {
        for (text, shown) in [("a/b c", "a/b c"), ("what?", "what?"), ("/o/x?token=SECRET", "/o/x?…")] {
            assert_eq!(masked_id(text), shown);
        }
        assert_eq!(masked_json(r#"{"b": 1, "a":["x"]}"#), r#"{"b": 1, "a":["x"]}"#);
        assert_eq!(
            masked_json(r#"{"a":["https:\/\/h/a?SECRET","https://h/b?SECRET"]}"#),
            r#"{"a":["https://h/a?…","https://h/b?…"]}"#
        );
        assert_eq!(masked_text(r#"{"next":"https://h/a?SECRET","l":["#), r#"{"next":"https://h/a?…","l":["#);
        assert_eq!(masked_target("/p?a=1&u=https%3A%2F%2Fh%3FSECRET,2"), "/p?a=1&u=https://h?…,2");
        assert_eq!(masked_target("/p"), "/p");
        assert_eq!(
            masked_target("/p?a=1&access_token=SECRET&X-Amz-Signature=SECRET"),
            "/p?a=1&access_token=…&X-Amz-Signature=…"
        );
        assert_eq!(masked_json(r#"{"a":[{"accessToken":"SECRET"}]}"#), r#"{"a":[{"accessToken":"…"}]}"#);
        assert_eq!(masked_json(r#"{"auth":{"value":["SECRET"]},"token":null}"#), r#"{"auth":"…","token":null}"#);
    }
}
