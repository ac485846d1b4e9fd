//! SDK-HMAC-SHA256, the scheme by which the cloud's SDKs sign requests: verifies signatures, and signs requests again.
//!
//! `Authorization: SDK-HMAC-SHA256 Access={access key}, SignedHeaders={a;b;c}, Signature={hex}` with `X-Sdk-Date`. The
//! signature covers method, path, query, the listed headers, and the body's hash or what `X-Sdk-Content-Sha256` states
//! instead. Canonical forms are those of the official SDKs, whose signatures are this module's test data. The SDKs differ in
//! the order of the query's values (`Order`) and in whether they sign Host: all of these forms verify. Signatures made here
//! have the values sorted by code point and Host signed, which every endpoint accepts.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use sha2::{Digest, Sha256};

use crate::clock::{basic_date, read_basic_date};
use crate::config::KeyPair;

/// Header of a signed request's date, `20261124T151707Z`.
pub const SDK_DATE: HeaderName = HeaderName::from_static("x-sdk-date");
/// Header in which a signed request states its body's hash, or that the body is not signed.
pub const SDK_CONTENT: HeaderName = HeaderName::from_static("x-sdk-content-sha256");
/// Header of the session token of temporary access keys.
pub const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-security-token");
/// Header of the account that signs, for global services.
pub const DOMAIN_ID: HeaderName = HeaderName::from_static("x-domain-id");
/// Header of the project that signs, for regional services.
pub const PROJECT_ID: HeaderName = HeaderName::from_static("x-project-id");

/// Characters that are percent-encoded in canonical forms: all but `A-Z a-z 0-9 - _ . ~`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Why a signature proves nothing; `message` explains each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Fault {
    Malformed,
    Date,
    Expired,
    Payload,
    Mismatch,
}

impl Fault {
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Malformed => "it cannot be read, or a header that it covers is missing or there twice",
            Self::Date => "the request has no X-Sdk-Date such as 20261124T151707Z",
            Self::Expired => {
                "its date is more than 15 minutes from this machine's: a clock is wrong, or it is a replay"
            }
            Self::Payload => "the body is not the one whose hash X-Sdk-Content-Sha256 states",
            Self::Mismatch => "it does not match: the secret key differs, or something on the way changed the request",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// By name, then by value, by code point: Python, Go, and what is signed here.
    CodePoint,
    /// By name; values of one name in the request's order: Java.
    NameOnly,
    /// By name, then by value, by UTF-16 code unit: Node.
    Utf16,
}

const ORDERS: [Order; 3] = [Order::CodePoint, Order::NameOnly, Order::Utf16];

const ALGORITHM: &str = "SDK-HMAC-SHA256";
/// `X-Sdk-Content-Sha256` of a body that is not signed.
pub(crate) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// Seconds between a signature's date and now, either way: what the endpoint allows.
const MOST_SKEW: u64 = 15 * 60;

/// The configured key pairs, by access key.
#[derive(Debug, Default)]
pub struct Keys(HashMap<String, Arc<KeyPair>>);

impl Keys {
    /// Of several pairs with one access key, the last counts.
    pub fn new<'p>(pairs: impl IntoIterator<Item = &'p KeyPair>) -> Self {
        Self(pairs.into_iter().map(|pair| (pair.access_key.clone(), Arc::new(pair.clone()))).collect())
    }

    /// The pair of a claim's access key.
    pub fn of(&self, claim: &Claim<'_>) -> Option<&Arc<KeyPair>> {
        self.0.get(claim.access_key)
    }
}

/// The claim of a request's `Authorization`, not verified yet.
pub struct Claim<'r> {
    /// The access key.
    pub access_key: &'r str,
    fields: &'r str,
}

impl<'r> Claim<'r> {
    /// Reads the only `Authorization` that is not empty; `None` if its scheme is another one, or it names no access key.
    pub fn read(headers: &'r HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(AUTHORIZATION).iter().filter(|value| !value.is_empty());
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let fields = value.to_str().ok()?.strip_prefix(ALGORITHM)?.strip_prefix(' ')?;
        Some(Self { access_key: field(fields, "Access=")?, fields })
    }

    /// Whether Host is signed: such a request is valid for that host alone.
    pub(crate) fn signs_host(&self) -> bool {
        field(self.fields, "SignedHeaders=").is_some_and(|names| names.split(';').any(|name| name == HOST.as_str()))
    }
}

fn field<'f>(fields: &'f str, name: &str) -> Option<&'f str> {
    fields.split(',').find_map(|field| field.trim().strip_prefix(name))
}

/// The hex SHA-256 of a body.
pub fn hash(body: &[u8]) -> String {
    hex::encode(Sha256::digest(body))
}

/// The value that a request states in place of its body's hash.
///
/// # Errors
/// If it states several values.
pub(crate) fn stated_payload(headers: &HeaderMap) -> Result<Option<&str>, Fault> {
    single(headers, &SDK_CONTENT)?.map(HeaderValue::to_str).transpose().map_err(|_| Fault::Malformed)
}

/// Verifies a claim, with the query in any order. `payload` is the hex SHA-256 of the body, or, for a request with a body,
/// what it states instead; `now` is in Unix seconds.
///
/// # Errors
/// Why the signature proves nothing.
pub fn verify(claim: &Claim<'_>, pair: &Arc<KeyPair>, head: &Parts, payload: &str, now: u64) -> Result<Signer, Fault> {
    let names = field(claim.fields, "SignedHeaders=").ok_or(Fault::Malformed)?;
    let mut signature = [0; 32];
    let signature_text = field(claim.fields, "Signature=").ok_or(Fault::Malformed)?;
    hex::decode_to_slice(signature_text, &mut signature).map_err(|_| Fault::Malformed)?;
    let headers: Vec<HeaderName> = names
        .split(';')
        .map(|name| name.parse().ok().filter(|header: &HeaderName| header.as_str() == name).ok_or(Fault::Malformed))
        .collect::<Result<_, _>>()?;

    let date = once(&head.headers, &SDK_DATE)?;
    let date = date.to_str().map_err(|_| Fault::Date)?;
    if read_basic_date(date).ok_or(Fault::Date)?.abs_diff(now) > MOST_SKEW {
        return Err(Fault::Expired);
    }
    let mut signed = Vec::with_capacity(headers.len());
    for name in &headers {
        // Of two values, the signed one cannot be known.
        let value = match once(&head.headers, name) {
            // HTTP/2 has an authority instead.
            Err(_) if *name == HOST && !head.headers.contains_key(HOST) => {
                head.uri.authority().ok_or(Fault::Malformed)?.as_str().as_bytes()
            }
            value => value?.as_bytes(),
        };
        signed.push((name, value));
    }
    let path = head.uri.path_and_query().map_or("/", PathAndQuery::path);
    let pairs = pairs(head.uri.query());
    let mut tried: Vec<Vec<Pair<'_>>> = Vec::with_capacity(ORDERS.len());
    for order in ORDERS {
        let pairs = order.apply(pairs.clone());
        // Most requests are the same in every order, and are tried once.
        if tried.contains(&pairs) {
            continue;
        }
        let canonical = canonical_hash(&head.method, path, &pairs, &signed, payload);
        let mac = mac(pair, date, &canonical).ok_or(Fault::Mismatch)?;
        // In constant time.
        if mac.verify_slice(&signature).is_ok() {
            let is_strict = order == Order::CodePoint && headers.contains(&HOST);
            return Ok(Signer { pair: Arc::clone(pair), headers: headers.into(), is_strict });
        }
        tried.push(pairs);
    }
    Err(Fault::Mismatch)
}

/// Verifies the claim of a request whose whole body has this hex SHA-256; `now` is in Unix seconds. Also returns the signed
/// payload: the body's hash, or `UNSIGNED-PAYLOAD`.
///
/// # Errors
/// Why the signature proves nothing.
pub fn verify_whole(
    claim: &Claim<'_>,
    pair: &Arc<KeyPair>,
    head: &Parts,
    hash: &str,
    now: u64,
) -> Result<(Signer, String), Fault> {
    let stated = stated_payload(&head.headers)?;
    let mut payload = stated.filter(|_| hash != EMPTY).unwrap_or(hash);
    let signer = match verify(claim, pair, head, payload, now) {
        // Without a body some SDKs sign the hash of nothing, and others what they state.
        Err(Fault::Mismatch) if hash == EMPTY && stated == Some(UNSIGNED_PAYLOAD) => {
            payload = UNSIGNED_PAYLOAD;
            verify(claim, pair, head, payload, now)?
        }
        verified => verified?,
    };
    if payload != UNSIGNED_PAYLOAD && payload != hash {
        return Err(Fault::Payload);
    }
    Ok((signer, payload.to_owned()))
}

fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Fault> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(Fault::Malformed) } else { Ok(first) }
}

fn once<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<&'h HeaderValue, Fault> {
    let missing = if *name == SDK_DATE { Fault::Date } else { Fault::Malformed };
    single(headers, name)?.ok_or(missing)
}

/// Signs requests of a caller whose signature was verified, over the headers that the caller has signed.
#[derive(Clone)]
pub struct Signer {
    pair: Arc<KeyPair>,
    headers: Arc<[HeaderName]>,
    is_strict: bool,
}

impl Signer {
    /// The access key.
    pub(crate) fn access_key(&self) -> &str {
        &self.pair.access_key
    }

    /// Whether the strictest endpoint accepts the verified signature: the query is sorted by code point, and Host is signed.
    pub(crate) fn is_strict(&self) -> bool {
        self.is_strict
    }

    /// Whether the verified signature covers this header.
    pub fn covers(&self, name: &HeaderName) -> bool {
        self.headers.contains(name)
    }

    /// Signs a request to `host` at `now` (Unix seconds): sets `X-Sdk-Date` and `Authorization`. Signs those of the caller's
    /// signed headers that occur once. `payload` is as in [`verify`].
    pub fn sign(
        &self,
        method: &Method,
        target: &PathAndQuery,
        headers: &mut HeaderMap,
        host: &str,
        payload: &str,
        now: u64,
    ) {
        let (date_name, date) = (SDK_DATE, basic_date(now));
        if let Ok(value) = HeaderValue::from_str(&date) {
            headers.insert(&date_name, value);
        }
        let mut names: Vec<&HeaderName> = self.headers.iter().filter(|name| once(headers, name).is_ok()).collect();
        names.extend([&HOST, &date_name]);
        names.sort_unstable_by_key(|name| name.as_str());
        names.dedup();
        let value = |name| headers.get(name).map_or(&[][..], HeaderValue::as_bytes);
        let with_value =
            names.into_iter().map(|name| (name, if *name == HOST { host.as_bytes() } else { value(name) }));
        let signed: Vec<_> = with_value.collect();
        let pairs = Order::CodePoint.apply(pairs(target.query()));
        let canonical = canonical_hash(method, target.path(), &pairs, &signed, payload);
        let list = list(&signed);
        let Some(mac) = mac(&self.pair, &date, &canonical) else { return };
        let signature = hex::encode(mac.finalize().into_bytes());
        let access_key = &self.pair.access_key;
        let value = format!("{ALGORITHM} Access={access_key}, SignedHeaders={list}, Signature={signature}");
        // Access keys are visible ASCII: the configuration checks that.
        if let Ok(mut value) = HeaderValue::from_str(&value) {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
    }
}

type Pair<'q> = [Cow<'q, [u8]>; 2];

/// The parameters of a query, in its order. A plus sign is a plus sign.
fn pairs(query: Option<&str>) -> Vec<Pair<'_>> {
    let pairs = query.unwrap_or("").split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            [name, value].map(|text| percent_decode_str(text).into())
        })
        .collect()
}

impl Order {
    fn apply(self, mut pairs: Vec<Pair<'_>>) -> Vec<Pair<'_>> {
        let utf16 = |text: &[u8]| String::from_utf8_lossy(text).encode_utf16().collect::<Vec<u16>>();
        match self {
            // In UTF-8, the order of bytes is that of code points.
            Order::CodePoint => pairs.sort_unstable(),
            Order::NameOnly => pairs.sort_by(|[one, _], [other, _]| one.cmp(other)),
            Order::Utf16 => pairs.sort_by_cached_key(|[name, value]| [utf16(name), utf16(value)]),
        }
        pairs
    }
}

/// The hex hash of a canonical request, with the query's parameters and the signed headers in this order.
fn canonical_hash(
    method: &Method,
    path: &str,
    pairs: &[Pair<'_>],
    headers: &[(&HeaderName, &[u8])],
    payload: &str,
) -> String {
    let encode = |bytes: &[u8]| percent_encode(bytes, ENCODED).to_string();
    // Decoded as a whole and then split, as the SDKs do: an encoded slash separates segments like any other.
    let decoded: Cow<'_, [u8]> = percent_decode_str(path).into();
    let mut path = decoded.split(|byte| *byte == b'/').map(encode).collect::<Vec<_>>().join("/");
    if !path.ends_with('/') {
        path.push('/');
    }
    let pairs: Vec<_> = pairs.iter().map(|[name, value]| format!("{}={}", encode(name), encode(value))).collect();
    let mut hash = Sha256::new_with_prefix(format!("{method}\n{path}\n{}\n", pairs.join("&")));
    for (name, value) in headers {
        hash.update([name.as_str().as_bytes(), b":", value.trim_ascii(), b"\n"].concat());
    }
    hash.update(format!("\n{}\n{payload}", list(headers)));
    hex::encode(hash.finalize())
}

/// The names of signed headers, as `SignedHeaders` lists them.
fn list(headers: &[(&HeaderName, &[u8])]) -> String {
    headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";")
}

/// Never `None`: HMAC takes a key of any length.
fn mac(pair: &KeyPair, date: &str, canonical: &str) -> Option<Hmac<Sha256>> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(pair.secret_key.expose()).ok()?;
    for piece in [ALGORITHM, "\n", date, "\n", canonical] {
        mac.update(piece.as_bytes());
    }
    Some(mac)
}

#[cfg(test)]
mod tests;
