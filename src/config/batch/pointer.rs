//! JSON Pointers (RFC 6901).

use std::fmt;
use std::str::FromStr;

/// A JSON Pointer: a place in a JSON text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pointer {
    /// As it is written.
    text: Box<str>,
    /// Its tokens, unescaped.
    tokens: Box<[Box<str>]>,
}

impl Pointer {
    /// The tokens, unescaped: names of members, or places in lists. None: the whole text.
    pub fn tokens(&self) -> &[Box<str>] {
        &self.tokens
    }

    /// The first token: the name of a member of the whole, if that is an object.
    pub(super) fn first(&self) -> Option<&str> {
        self.tokens.first().map(|token| &**token)
    }

    /// Whether one of two places is the other, or within it.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.tokens.iter().zip(&other.tokens).all(|(one, other)| one == other)
    }
}

impl FromStr for Pointer {
    type Err = String;

    /// # Errors
    /// What is wrong, and how a pointer is written.
    fn from_str(text: &str) -> Result<Self, String> {
        let shown = text.escape_debug();
        let wrong = |reason: &str| format!("\"{shown}\" is no JSON Pointer (RFC 6901): {reason}");
        let unescape = |token: &str| {
            let mut parts = token.split('~');
            let mut whole = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                match part.split_at_checked(1) {
                    Some(("0", rest)) => whole.extend(["~", rest]),
                    Some(("1", rest)) => whole.extend(["/", rest]),
                    _ => return Err(wrong("write ~ in a name as ~0, and / as ~1")),
                }
            }
            Ok(whole.into_boxed_str())
        };
        let tokens = match text.strip_prefix('/') {
            Some(rest) => rest.split('/').map(unescape).collect::<Result<_, _>>()?,
            None if text.is_empty() => Box::default(),
            None => return Err(wrong("it begins with a slash, or is empty for the whole text")),
        };
        Ok(Self { text: text.into(), tokens })
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_read_as_the_rfc_says() {
        for (text, tokens) in
            [("", &[][..]), ("/", &[""]), ("/a/0/b", &["a", "0", "b"]), ("/a~1b/m~0n/~01", &["a/b", "m~n", "~1"])]
        {
            let read: Pointer = text.parse().unwrap();
            assert_eq!(read.tokens().iter().map(AsRef::as_ref).collect::<Vec<&str>>(), tokens, "{text}");
            assert_eq!(read.to_string(), text);
        }
        for text in ["a", "a/b", "/a~", "/~2", " /a", "#/a"] {
            assert!(text.parse::<Pointer>().is_err(), "{text}");
        }
    }
}
