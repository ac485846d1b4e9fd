//! What a proxy does to headers, whoever they are for (RFC 9110 §7.6).

use http::header::{
    CONNECTION, HeaderName, HeaderValue, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, Version};

use crate::api;

/// The name that this proxy goes by in `Via`, `Cache-Status` and `User-Agent`.
pub const NAME: &str = "sidelink";

/// This hop in `Via`, of a message that came by HTTP/1.1 or was made here.
pub const VIA_HTTP_11: &str = "1.1 sidelink";

/// The longest request id of a client's that comes back, and of an endpoint's that is logged.
pub const REQUEST_ID_BYTES: usize = 128;

const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    // Meant for the proxy that a client takes sidelink for.
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
    let named: Vec<HeaderName> = named_by_connection(headers).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The headers that are about one connection only because `Connection` says so.
pub fn made_hop_by_hop(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    named_by_connection(headers).filter(|name| !HOP_BY_HOP.contains(name))
}

fn named_by_connection(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
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

/// How many sidelinks a message has passed.
pub fn sidelinks(headers: &HeaderMap) -> usize {
    headers
        .get_all(VIA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter(|hop| hop.split_whitespace().nth(1) == Some(NAME))
        .count()
}

/// Whether a Host header's value has the characters of one (RFC 9112 §3.2, RFC 3986 §3.2.2); an empty one is allowed.
pub fn is_host(value: &HeaderValue) -> bool {
    value.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}

/// A client's own name for its request, if it is well-formed: 1 to 128 of `A-Za-z0-9._-`, and one.
pub fn client_request_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut values = headers.get_all(api::REQUEST_ID).iter();
    let (Some(id), None) = (values.next(), values.next()) else { return None };
    let is_known = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    ((1..=REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(is_known)).then_some(id)
}

/// 128 random bits in hex: a name for a request that the endpoint has not named.
pub fn request_id() -> HeaderValue {
    let mut text = [0; 32];
    // Never fails: sixteen bytes are thirty-two digits, and digits are a value.
    let _ = hex::encode_to_slice(rand::random::<[u8; 16]>(), &mut text);
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
