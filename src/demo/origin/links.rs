//! Links of the simulated endpoint.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

use serde_json::{Value, json};

use crate::clock::basic_date;

/// How a link is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LinkSigner {
    /// `AccessKeyId`, `Expires`, `Signature`.
    V2,
    /// `X-Amz-Date`, `X-Amz-Expires`, `X-Amz-Signature`.
    V4,
    /// As V4, with `X-Obs-…`.
    Obs,
    /// Not at all.
    Unsigned,
    /// With an expiry that cannot be read.
    Unreadable,
    /// A JSON Web Token as `token`, as Supabase has it.
    Jwt,
    /// `ex`, `is` and `hm`, as Discord has it.
    Discord,
}

/// The caller that a link is made for.
pub(super) struct Owner<'a> {
    /// A token, an access key, or a user that an IAM knows.
    pub(super) name: &'a str,
    pub(super) group: Option<&'a str>,
    pub(super) language: Option<&'a str>,
    pub(super) site: Option<&'a str>,
    pub(super) time_zone: Option<&'a str>,
}

/// The object key. It names the caller and the id that a link is for.
fn object_key(owner: &Owner<'_>, id: &str) -> String {
    format!(
        "/{:016x}/{}/{}/{}/{}",
        fingerprint(owner.name),
        encode(owner.group.unwrap_or("-")),
        encode(owner.language.unwrap_or("-")),
        encode(owner.site.unwrap_or("-")),
        encode(id),
    )
}

/// An encoded value never equals the `-` of an absent one.
pub(super) fn encode(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

/// FNV-1a.
pub(super) fn fingerprint(credential: &str) -> u64 {
    credential.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether `url` was made for this id, group, owner (a token, of a signed call its access key; with an IAM what
/// [`Iam::owner`](super::iam::Iam::owner) says of the token) and values of `X-Language` and `X-Site`.
/// Which call it came with, and how it is signed, does not matter.
pub fn link_is_for(
    url: &str,
    id: &str,
    group: Option<&str>,
    owner: &str,
    language: Option<&str>,
    site: Option<&str>,
) -> bool {
    let key = object_key(&Owner { name: owner, group, language, site, time_zone: None }, id);
    url.strip_prefix(BASE).and_then(|rest| rest.strip_prefix(key.as_str())).is_some_and(|rest| rest.starts_with('?'))
}

const BASE: &str = "https://bucket-osm.obs.cn-south-1.myhuaweicloud.com:443";
/// A temporary credential's token. With it a link is about 447 bytes long, like a real one.
const FILLER: &str = "gQpjbi1ub3J0aC00jPAxmqXHzOhZkGvZ8H2mqG4oVqL0mT6xQyq1y0bM3q2dQJbQ5l7Yg0wVt4r0Vq1aE8fZ2n6kA1sD3fG5hJ7kL9zX2cV4bN6mQ8wE1rT3yU5iO7pA9sD2fG4hJ6kL8";

/// A link made at `now` (Unix seconds); `serial` differs for each call. The query shows the time zone, if one was sent.
pub(super) fn link(signer: LinkSigner, owner: &Owner<'_>, id: &str, now: u64, life: Duration, serial: usize) -> String {
    let zone = owner.time_zone.map(|zone| format!("&time-zone={}", encode(zone))).unwrap_or_default();
    signed(signer, &format!("{BASE}{}?serial={serial}{zone}", object_key(owner, id)), id, now, life, serial)
}

/// A URL, to its query, as a link that is signed.
pub(super) fn signed(signer: LinkSigner, url: &str, id: &str, now: u64, life: Duration, serial: usize) -> String {
    let (life, date) = (life.as_secs(), basic_date(now));
    let expires = now.saturating_add(life);
    let disposition = format!("&response-content-disposition=attachment%3Bfilename%3D{}.png", encode(id));
    let signed = match signer {
        LinkSigner::Unsigned => String::new(),
        LinkSigner::V2 => format!(
            "&AccessKeyId=HPUAEXAMPLE000000001&Expires={expires}&response-expires=1{disposition}\
             &x-obs-security-token={FILLER}&Signature={serial:028}%3D"
        ),
        LinkSigner::Unreadable => format!(
            "&AccessKeyId=HPUAEXAMPLE000000001&response-expires=1&x-obs-security-token={FILLER}&Signature={serial:028}%3D"
        ),
        LinkSigner::V4 => format!(
            "&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-Expires={life}&X-Amz-SignedHeaders=host\
             &X-Amz-Security-Token={FILLER}&X-Amz-Signature={serial:064}"
        ),
        LinkSigner::Obs => format!(
            "&X-Obs-Date={date}&X-Obs-Expires={life}{disposition}&x-obs-security-token={FILLER}&X-Obs-Signature={serial:064}"
        ),
        LinkSigner::Jwt => {
            let part = |claims: Value| URL_SAFE_NO_PAD.encode(claims.to_string());
            let claims = json!({"url": url, "iat": now, "exp": expires});
            format!("&token={}.{}.{serial:043}", part(json!({"alg": "HS256", "typ": "JWT"})), part(claims))
        }
        LinkSigner::Discord => format!("&ex={expires:x}&is={now:x}&hm={serial:064x}"),
    };
    format!("{url}{signed}")
}
