//! Headers that a proxy reads, removes and adds in any message (RFC 9110 §7.6).

use std::cell::Cell;
use std::net::Ipv6Addr;

use http::header::{
    CONNECTION, COOKIE, EXPECT, HeaderName, HeaderValue, MAX_FORWARDS, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, Method, Uri, Version};
use http_body::Body;

use super::header_filter::Headers;

/// Names a request: the client's own, the endpoint's, or a generated one.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// This hop in `Via`, for messages that came by HTTP/1.1 or are sidelink's own.
pub const VIA_HTTP_11: &str = "1.1 sidelink";

/// The longest request id of a client's that is returned, and of an endpoint's that is logged.
pub const REQUEST_ID_BYTES: usize = 128;

/// The headers that are always about one connection.
pub const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    // A client that uses sidelink as an HTTP proxy means it for sidelink.
    PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Removes the headers that are about one connection: the known ones and those that `Connection` names.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = named_by_connection((&*headers).into()).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The headers that are about one connection only because `Connection` names them.
pub fn made_hop_by_hop<'m>(headers: impl Into<Headers<'m>>) -> impl Iterator<Item = HeaderName> {
    named_by_connection(headers.into()).filter(|name| !HOP_BY_HOP.contains(name))
}

fn named_by_connection(headers: Headers<'_>) -> impl Iterator<Item = HeaderName> {
    list(headers, &CONNECTION).filter_map(|name| name.parse().ok())
}

/// The members of a comma-separated list, over all its lines.
fn list<'m>(headers: Headers<'m>, name: &HeaderName) -> impl Iterator<Item = &'m str> {
    let lines = headers.get_all(name).filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// The value of a header that is there once.
pub fn single<'m>(headers: impl Into<Headers<'m>>, name: &HeaderName) -> Option<&'m HeaderValue> {
    let mut values = headers.into().get_all(name);
    values.next().filter(|_| values.next().is_none())
}

/// Appends this hop to `Via`; `version` is that of the message received.
pub fn add_via(headers: &mut HeaderMap, version: Version) {
    let hop = match version {
        Version::HTTP_2 => HeaderValue::from_static("2 sidelink"),
        Version::HTTP_10 => HeaderValue::from_static("1.0 sidelink"),
        _ => HeaderValue::from_static(VIA_HTTP_11),
    };
    headers.append(VIA, hop);
}

/// A copy that keeps no read buffer in memory: received values are slices of it.
pub fn copied(headers: &HeaderMap) -> HeaderMap {
    let mut copy = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            copy.append(name, value);
        }
    }
    copy
}

/// How many sidelinks a message has passed.
pub fn sidelinks<'m>(headers: impl Into<Headers<'m>>) -> usize {
    let headers = headers.into();
    if !headers.contains(&VIA) {
        return 0;
    }
    list(headers, &VIA).filter(|hop| hop.split_whitespace().nth(1) == Some("sidelink")).count()
}

/// Whether this is a host and port (RFC 9112 §3.2, RFC 3986 §3.2); an empty host is allowed.
pub fn is_host(text: &[u8]) -> bool {
    let is_port = |port: &[u8]| {
        let digit = |byte: &u8| byte.is_ascii_digit().then(|| u16::from(*byte - b'0'));
        let number = |number: u16, byte: &u8| number.checked_mul(10)?.checked_add(digit(byte)?);
        port.iter().try_fold(0, number).is_some()
    };
    let is_punctuation = |byte: &u8| matches!(byte, b'!' | b'$' | b'%' | b'&'..=b'.' | b';' | b'=' | b'_' | b'~');
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || is_punctuation(byte);
    if let Some(literal) = text.strip_prefix(b"[") {
        let mut parts = literal.splitn(2, |byte| *byte == b']');
        let (Some(literal), Some(after)) = (parts.next(), parts.next()) else { return false };
        let is_future = literal.starts_with(b"v") && literal.iter().all(|byte| is_name(byte) || *byte == b':');
        let is_address = || str::from_utf8(literal).is_ok_and(|literal| literal.parse::<Ipv6Addr>().is_ok());
        return (is_future || is_address()) && (after.is_empty() || after.strip_prefix(b":").is_some_and(is_port));
    }
    let name = text.iter().take_while(|byte| is_name(byte)).count();
    match text.get(name..) {
        Some([b':', port @ ..]) => is_port(port),
        rest => rest.is_some_and(<[u8]>::is_empty),
    }
}

/// Whether an HTTP/2 request's target has a scheme, and an authority that is a host and port without a user (RFC 9113 §8.3.1).
/// The http crate also takes an empty scheme.
pub fn is_http2_target(uri: &Uri) -> bool {
    let begins_with_letter = |scheme: &str| scheme.starts_with(|first: char| first.is_ascii_alphabetic());
    uri.scheme_str().is_none_or(begins_with_letter)
        && uri.authority().is_none_or(|authority| is_host(authority.as_str().as_bytes()))
}

/// Whether a field value begins or ends with space. HTTP/1 strips it; in HTTP/2 it is malformed (RFC 9113 §8.2.1).
pub fn has_outer_space(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
}

/// Joins the Cookie fields of an HTTP/2 request into one (RFC 9113 §8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Never fails: each part is a value already.
    if let Ok(mut joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        joined.set_sensitive(true);
        headers.insert(COOKIE, joined);
    }
}

/// Whether a request's client waits for a 100 before it sends the body (RFC 9110 §10.1.1), as hyper reads it. A client without a
/// body, or with HTTP/1.0, does not.
pub fn expects_continue(version: Version, headers: &HeaderMap, body: &impl Body) -> bool {
    let mut values = headers.get_all(EXPECT).iter().peekable();
    values.peek().is_some()
        && values.all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
        && version > Version::HTTP_10
        && !body.is_end_stream()
}

/// How many more proxies may forward this OPTIONS or TRACE (RFC 9110 §7.6.2), if it says so.
pub fn max_forwards<'m>(method: &Method, headers: impl Into<Headers<'m>>) -> Option<u64> {
    if !matches!(*method, Method::OPTIONS | Method::TRACE) {
        return None;
    }
    let digits = single(headers.into(), &MAX_FORWARDS)?.to_str().ok()?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// The client's request id, if there is one alone and it is well-formed: 1 to 128 of `A-Za-z0-9._-`.
pub fn client_request_id<'m>(headers: impl Into<Headers<'m>>) -> Option<&'m HeaderValue> {
    let id = single(headers.into(), &REQUEST_ID)?;
    let is_known = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    ((1..=REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(is_known)).then_some(id)
}

/// Added to a request id for the next one: an odd number, so that all 2¹²⁸ follow (a Weyl sequence).
const NEXT_REQUEST_ID: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// A generated request id: 128 bits in hex, drawn at random for each thread and counted on from there.
pub fn request_id() -> HeaderValue {
    thread_local! {
        static LAST: Cell<u128> = Cell::new(rand::random());
    }
    let id = LAST.get().wrapping_add(NEXT_REQUEST_ID);
    LAST.set(id);
    let mut text = [0; 32];
    // Never fails: sixteen bytes are thirty-two digits, and digits are a value.
    let _ = hex::encode_to_slice(id.to_be_bytes(), &mut text);
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_forwards_is_read_of_options_and_trace_alone_and_only_where_it_is_a_number() {
        let read = |method, values: &[&'static str]| {
            let values = values.iter().map(|value| (MAX_FORWARDS, HeaderValue::from_static(value)));
            max_forwards(&method, &HeaderMap::from_iter(values))
        };
        assert_eq!(read(Method::OPTIONS, &["0"]), Some(0));
        assert_eq!(read(Method::TRACE, &["017"]), Some(17));
        assert_eq!(read(Method::TRACE, &["18446744073709551616"]), Some(u64::MAX));
        assert_eq!(read(Method::GET, &["0"]), None);
        for invalid in [&[][..], &[""], &["-1"], &["+1"], &["1 "], &["x"], &["0, 0"]] {
            assert_eq!(read(Method::OPTIONS, invalid), None, "{invalid:?}");
        }
    }

    #[test]
    fn headers_of_one_connection_are_removed_with_those_that_connection_names() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "X-One, close"),
            ("connection", "x-two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-three", "3"),
        ] {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-three"]);
    }

    #[test]
    fn sidelinks_are_counted_over_all_via_lines() {
        let mut headers = HeaderMap::new();
        headers.append(VIA, "1.1 sidelink, 1.1 nginx".parse().unwrap());
        headers.append(VIA, "2 sidelink (comment), 1.1 sidelinks".parse().unwrap());
        assert_eq!(sidelinks(&headers), 2);
    }
}
