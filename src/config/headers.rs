//! Names of request headers that a configuration may give.

use http::HeaderName;

use crate::message::headers::HOP_BY_HOP;

/// A header of `callers.scope_headers`; `before` are those named before it.
pub(super) fn scope_header(text: &str, before: &[HeaderName]) -> Result<HeaderName, String> {
    let name = header(text, before)?;
    let reason = credential(&name).map(|()| "a credential, and always part of the scope");
    allowed(name, |name| reason.or_else(|| unusable(name)))
}

/// A header of a batch API's `scope_headers`. A batch API may have `accept`: its calls carry the client's.
pub(super) fn scope_header_of_api(text: &str, before: &[HeaderName]) -> Result<HeaderName, String> {
    let name = header(text, before)?;
    let reason = credential(&name).map(|()| "a credential: if it says who asks, name it in credentials");
    allowed(name, |name| reason.or_else(|| unusable(name)).filter(|_| name != "accept"))
}

/// A header of a batch API's `credentials`. A message repeats no name that is none, and none that is unusually long: it may be a
/// secret that was put in the place of its header.
pub(super) fn credential_header(text: &str, before: &[HeaderName]) -> Result<HeaderName, String> {
    if !is_credential_name(text) {
        return Err(format!("must be a header's name: 1 to {MAX_BYTES} letters, digits, hyphens and underscores"));
    }
    allowed(header(text, before)?, unusable)
}

/// Whether this can be the name of a credential header, and not a secret that was put in its place.
pub(crate) fn is_credential_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=MAX_BYTES).contains(&text.len()) && text.bytes().all(is_plain)
}

/// The most bytes of a credential's header.
const MAX_BYTES: usize = 32;

fn header(text: &str, before: &[HeaderName]) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| format!("\"{}\" is not a header's name", text.escape_debug()))?;
    if before.contains(&name) { Err(format!("names {name} twice")) } else { Ok(name) }
}

fn allowed(name: HeaderName, reason: impl FnOnce(&HeaderName) -> Option<&'static str>) -> Result<HeaderName, String> {
    match reason(&name) {
        Some(reason) => Err(format!("{name} is {reason}")),
        None => Ok(name),
    }
}

fn credential(name: &HeaderName) -> Option<()> {
    matches!(name.as_str(), "authorization" | "x-auth-token" | "x-security-token" | "cookie").then_some(())
}

/// Why no call carries a client's header of this name.
fn unusable(name: &HeaderName) -> Option<&'static str> {
    Some(match name.as_str() {
        "proxy-authenticate" | "http2-settings" => "about one connection, and not forwarded",
        _ if HOP_BY_HOP.contains(name) => "about one connection, and not forwarded",
        "host" | "content-length" | "content-type" | "content-encoding" | "accept" | "accept-encoding"
        | "user-agent" | "via" | "range" | "expect" | "traceparent" | "tracestate" | "cache-control" => {
            "set by sidelink itself on every call"
        }
        "x-sdk-date" | "x-sdk-content-sha256" | "x-request-id" | "date" => "different in every request",
        _ => return None,
    })
}
