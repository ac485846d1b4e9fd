//! Access to the status page, explain and purge: users of this machine, and holders of the admin token.
//!
//! A browser on this machine connects from loopback too, on behalf of the page that it shows. Therefore a request without the
//! token must name this machine in `Host`, since DNS rebinding maps a foreign name to loopback, and no request may come from a page of
//! another origin. A request from loopback that a proxy forwarded needs the token, since its client is unknown.

use std::borrow::Cow;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN, VIA};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue};
use siphasher::sip128::SipHasher24;

use super::AdminError;
use crate::config::AdminConfig;
use crate::message::headers::single;
use crate::server::Peer;

/// Fetch Metadata: how a browser's request relates to the page that made it.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Headers that proxies add, `Forwarded` (RFC 7239) and `Via` (RFC 9110 §7.6.3) among them.
const FORWARDED_BY_PROXY: [HeaderName; 5] = [
    FORWARDED,
    VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-real-ip"),
];

pub(super) struct Guard {
    /// The hash of the configured token under `key`, which is random.
    token: Option<u128>,
    key: [u8; 16],
    listener: IpAddr,
}

impl Guard {
    pub(super) fn new(config: &AdminConfig) -> Self {
        let key = rand::random();
        let token = config.token_file.as_ref().map(|token| hash(&key, token.secret.expose()));
        Self { token, key, listener: config.address.ip() }
    }

    pub(super) fn admit(&self, peer: Peer, head: &Parts) -> Result<(), AdminError> {
        let authority = authority(head);
        if is_foreign(&head.headers, authority.as_ref()) {
            return Err(AdminError::FOREIGN_ORIGIN);
        }
        if let (Some(token), Some(shown)) = (self.token, shown_token(&head.headers)) {
            // The time that a comparison of hashes takes tells nothing of the token, since the key is secret.
            let is_token = hash(&self.key, &shown) == token;
            return if is_token { Ok(()) } else { Err(AdminError::WRONG_TOKEN) };
        }
        let refusal = match peer {
            Peer::Tcp(address) if !address.ip().to_canonical().is_loopback() => AdminError::NOT_LOOPBACK,
            _ if FORWARDED_BY_PROXY.iter().any(|name| head.headers.contains_key(name)) => AdminError::FORWARDED,
            // Neither a browser nor another machine can connect to a Unix socket.
            Peer::Local => return Ok(()),
            Peer::Tcp(_) if authority.is_some_and(|authority| self.is_this(&authority)) => return Ok(()),
            Peer::Tcp(_) => AdminError::FOREIGN_HOST,
        };
        Err(if self.token.is_some() { AdminError::NO_TOKEN } else { refusal })
    }

    /// Removes the admin token from a batch's headers: it is not a credential of the batch.
    pub(super) fn take_token(&self, headers: &mut HeaderMap) {
        if self.token.is_some() && headers.contains_key(AUTHORIZATION) {
            let others: Vec<HeaderValue> =
                headers.get_all(AUTHORIZATION).iter().filter(|value| token_of(value).is_none()).cloned().collect();
            headers.remove(AUTHORIZATION);
            for other in others {
                headers.append(AUTHORIZATION, other);
            }
        }
    }

    /// Whether `authority` names loopback or the address of the listener. Any port, since ports may be forwarded.
    fn is_this(&self, authority: &Authority) -> bool {
        let host = authority.host();
        let name = host.trim_end_matches('.');
        if authority.as_str().contains('@') {
            return false;
        }
        match name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback() || ip == self.listener,
            // RFC 6761 §6.3.
            Err(_) => name.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("localhost")),
        }
    }
}

fn hash(key: &[u8; 16], token: &[u8]) -> u128 {
    SipHasher24::new_with_key(key).hash(token).as_u128()
}

/// The admin token that a request shows. `/explain` takes a batch's `Authorization` as well.
fn shown_token(headers: &HeaderMap) -> Option<Cow<'_, [u8]>> {
    let mut tokens = headers.get_all(AUTHORIZATION).iter().filter_map(token_of);
    match (tokens.next(), tokens.next()) {
        // Two tokens are a wrong one.
        (Some(_), Some(_)) => Some(Cow::Borrowed(&[])),
        (token, _) => token,
    }
}

/// The token in an `Authorization`: that of the scheme Bearer (RFC 6750), or the password of the scheme Basic (RFC 7617), for browsers.
/// The name of a scheme is not case-sensitive (RFC 9110 §11.1).
fn token_of(value: &HeaderValue) -> Option<Cow<'_, [u8]>> {
    let mut parts = value.as_bytes().splitn(2, |byte| *byte == b' ');
    let (scheme, shown) = (parts.next()?, parts.next().unwrap_or_default().trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(Cow::Borrowed(shown));
    }
    // A pair that cannot be decoded counts as a wrong token, as an empty one does.
    let password = || {
        let pair = STANDARD.decode(shown).unwrap_or_default();
        let colon = pair.iter().position(|byte| *byte == b':').map_or(pair.len(), |colon| colon + 1);
        pair.get(colon..).unwrap_or_default().to_vec()
    };
    scheme.eq_ignore_ascii_case(b"basic").then(|| Cow::Owned(password()))
}

/// The authority of a request: that of its target (RFC 9112 §3.2.2), else its only `Host`.
fn authority(head: &Parts) -> Option<Authority> {
    let of_host = || Authority::try_from(single(&head.headers, &HOST)?.as_bytes()).ok();
    head.uri.authority().cloned().or_else(of_host)
}

/// Whether the request comes from a browser page of another origin.
fn is_foreign(headers: &HeaderMap, authority: Option<&Authority>) -> bool {
    let is_own = |origin: &HeaderValue| {
        let origin = origin.to_str().unwrap_or_default();
        let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        // Browsers leave out the default port in both.
        host.zip(authority).is_some_and(|(host, authority)| host.eq_ignore_ascii_case(authority.as_str()))
    };
    let is_own_site = |site: &HeaderValue| matches!(site.as_bytes(), b"same-origin" | b"none");
    !headers.get_all(FETCH_SITE).iter().all(is_own_site) || !headers.get_all(ORIGIN).iter().all(is_own)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::config::{Secret, StoredSecret};

    fn guard(token: Option<&str>) -> Guard {
        let token_file =
            token.map(|token| StoredSecret { secret: Secret::new(token.into()), source: "/run/token".into() });
        Guard::new(&AdminConfig { address: "10.0.0.7:8081".parse().unwrap(), token_file, tls: None })
    }

    fn admit(guard: &Guard, peer: &str, headers: &[(&str, &str)]) -> Result<(), AdminError> {
        let mut request = Request::post("/purge");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard.admit(Peer::Tcp(peer.parse().unwrap()), &request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn loopback_is_admitted_under_its_own_names() {
        let guard = guard(None);
        for host in [
            "localhost",
            "LOCALHOST:9",
            "a.localhost",
            "localhost.",
            "127.0.0.1:8081",
            "127.8.8.8",
            "[::1]:8081",
            "[::ffff:127.0.0.1]",
            "10.0.0.7:8081",
        ] {
            for peer in ["127.0.0.1:5", "[::1]:5", "[::ffff:127.0.0.1]:5"] {
                assert_eq!(admit(&guard, peer, &[("host", host)]), Ok(()), "{host} {peer}");
            }
            assert_eq!(admit(&guard, "10.0.0.8:5", &[("host", host)]), Err(AdminError::NOT_LOOPBACK), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "notlocalhost", "10.0.0.8", "a@localhost", "", "a b"] {
            assert_eq!(admit(&guard, "127.0.0.1:5", &[("host", host)]), Err(AdminError::FOREIGN_HOST), "{host}");
        }
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(admit(&guard, "127.0.0.1:5", &twice), Err(AdminError::FOREIGN_HOST));
        assert_eq!(admit(&guard, "127.0.0.1:5", &[]), Err(AdminError::FOREIGN_HOST));
        let (head, ()) =
            Request::get("http://evil.example/").header("host", "localhost").body(()).unwrap().into_parts();
        assert_eq!(guard.admit(Peer::Tcp("127.0.0.1:5".parse().unwrap()), &head), Err(AdminError::FOREIGN_HOST));
        assert_eq!(guard.admit(Peer::Local, &head), Ok(()));
    }

    #[test]
    fn a_forwarded_request_needs_the_token_wherever_the_proxy_is() {
        for forwarded in [
            ("forwarded", "for=10.0.0.8"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-host", "localhost"),
            ("x-real-ip", ""),
            ("via", "1.1 proxy"),
        ] {
            let headers = [("host", "localhost"), forwarded];
            assert_eq!(admit(&guard(None), "127.0.0.1:5", &headers), Err(AdminError::FORWARDED), "{forwarded:?}");
            let guard = guard(Some("token-of-an-operator"));
            assert_eq!(admit(&guard, "127.0.0.1:5", &headers), Err(AdminError::NO_TOKEN), "{forwarded:?}");
            let shown = [headers[0], forwarded, ("authorization", "Bearer token-of-an-operator")];
            assert_eq!(admit(&guard, "127.0.0.1:5", &shown), Ok(()), "{forwarded:?}");
        }
    }

    #[test]
    fn pages_of_another_origin_are_refused_even_with_the_token() {
        let guard = guard(Some("token-of-an-operator"));
        let bearer = ("authorization", "Bearer token-of-an-operator");
        let host = ("host", "localhost:8081");
        for foreign in [
            ("origin", "http://evil.example"),
            ("origin", "http://localhost:3000"),
            ("origin", "http://localhost"),
            ("origin", "null"),
            ("origin", ""),
            ("origin", "file://localhost:8081"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            for headers in [&[host, foreign][..], &[host, foreign, bearer]] {
                assert_eq!(admit(&guard, "127.0.0.1:5", headers), Err(AdminError::FOREIGN_ORIGIN), "{foreign:?}");
            }
        }
        for allowed in [
            ("origin", "http://localhost:8081"),
            ("origin", "https://LOCALHOST:8081"),
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-site", "none"),
        ] {
            assert_eq!(admit(&guard, "127.0.0.1:5", &[host, allowed]), Ok(()), "{allowed:?}");
        }
    }

    #[test]
    fn the_token_admits_from_anywhere_and_a_wrong_one_from_nowhere() {
        let guard = guard(Some("token-of-an-operator"));
        let host = ("host", "sidelink.example");
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        let right = [
            "Bearer token-of-an-operator".to_owned(),
            "bearer  token-of-an-operator ".to_owned(),
            basic(":token-of-an-operator"),
            basic("any user:token-of-an-operator").replace("Basic", "bASIC "),
        ];
        for shown in &right {
            assert_eq!(admit(&guard, "10.0.0.8:5", &[host, ("authorization", shown.as_str())]), Ok(()), "{shown}");
        }
        let wrong = ["Bearer token-of-an-operato", "Bearer token-of-an-operatorr", "Bearer x", "Bearer ", "Bearer"];
        let wrong = wrong.map(str::to_owned).into_iter().chain([
            basic("token-of-an-operator"),
            basic("token-of-an-operator:"),
            basic("user:token-of-an-operator:"),
            basic(""),
            "Basic token-of-an-operator".to_owned(),
            "Basic".to_owned(),
        ]);
        for shown in &wrong.collect::<Vec<_>>() {
            for peer in ["10.0.0.8:5", "127.0.0.1:5"] {
                let headers = [("host", "localhost"), ("authorization", shown.as_str())];
                assert_eq!(admit(&guard, peer, &headers), Err(AdminError::WRONG_TOKEN), "{shown}");
            }
        }
        for other in &right {
            let twice = [host, ("authorization", right[0].as_str()), ("authorization", other)];
            assert_eq!(admit(&guard, "10.0.0.8:5", &twice), Err(AdminError::WRONG_TOKEN));
        }
        let signed = ("authorization", "SDK-HMAC-SHA256 Access=a, SignedHeaders=host, Signature=b");
        for headers in [&[host][..], &[host, signed]] {
            assert_eq!(admit(&guard, "10.0.0.8:5", headers), Err(AdminError::NO_TOKEN));
            assert_eq!(admit(&guard, "127.0.0.1:5", headers), Err(AdminError::NO_TOKEN), "in another host's name");
        }
        assert_eq!(admit(&guard, "127.0.0.1:5", &[("host", "localhost")]), Ok(()));
    }
}
