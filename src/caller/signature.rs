//! SDK-HMAC-SHA256, the scheme by which the cloud's SDKs sign requests: verified, and made again.
//!
//! `Authorization: SDK-HMAC-SHA256 Access={access key}, SignedHeaders={a;b;c}, Signature={hex}` with `X-Sdk-Date`. The
//! signature covers method, path, query, the headers that it lists, and the body's hash or what `X-Sdk-Content-Sha256`
//! states in its place. Canonical forms are those of the official SDKs (`huaweicloudsdkcore`, `signer.py`), whose own
//! signatures are this module's test data.
//!
//! A leaf: it knows HTTP heads and keys and nothing else.

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

use crate::api;
use crate::clock::{basic_date, read_basic_date};
use crate::config::KeyPair;
use crate::error::Fault;

/// The scheme's name.
pub const ALGORITHM: &str = "SDK-HMAC-SHA256";
/// What `X-Sdk-Content-Sha256` states of a body that is not signed.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// Seconds that a signature's date may be off, before or after: what the endpoint allows.
pub const MOST_SKEW: u64 = 15 * 60;

/// All but RFC 3986's unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The key pairs whose signatures can be verified and made again.
#[derive(Debug, Default)]
pub struct Keys(HashMap<String, Arc<KeyPair>>);

impl Keys {
    /// One pair for each access key; of several with the same, the last.
    pub fn new<'p>(pairs: impl IntoIterator<Item = &'p KeyPair>) -> Self {
        Self(pairs.into_iter().map(|pair| (pair.access_key.clone(), Arc::new(pair.clone()))).collect())
    }

    /// The pair with which a request claims to be signed.
    pub fn of(&self, claim: &Claim<'_>) -> Option<&Arc<KeyPair>> {
        self.0.get(claim.access_key)
    }
}

/// What a request's `Authorization` says. Anyone can say so.
pub struct Claim<'r> {
    /// Whose key it names.
    pub access_key: &'r str,
    fields: &'r str,
}

impl<'r> Claim<'r> {
    /// Reads the one `Authorization` of a request; `None` if it is of another scheme, or names no access key.
    pub fn read(headers: &'r HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let fields = value.to_str().ok()?.strip_prefix(ALGORITHM)?.strip_prefix(' ')?;
        Some(Self { access_key: field(fields, "Access=")?, fields })
    }
}

fn field<'f>(fields: &'f str, name: &str) -> Option<&'f str> {
    fields.split(',').find_map(|field| field.trim().strip_prefix(name))
}

/// The hex SHA-256 of a body.
pub fn hash(body: &[u8]) -> String {
    hex::encode(Sha256::digest(body))
}

/// What a request states in place of its body's hash.
///
/// # Errors
/// If it states more than one thing.
pub fn stated_payload(headers: &HeaderMap) -> Result<Option<&str>, Fault> {
    let mut values = headers.get_all(api::SDK_CONTENT).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| Fault::Malformed),
        (Some(_), Some(_)) => Err(Fault::Malformed),
    }
}

/// Verifies what a request claims. `payload` is the hex SHA-256 of its body, or, where it has a body, what it states in
/// place of that; `now` is in Unix seconds.
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

    let date = once(&head.headers, &api::SDK_DATE)?;
    let date = date.to_str().map_err(|_| Fault::Date)?;
    if read_basic_date(date).ok_or(Fault::Date)?.abs_diff(now) > MOST_SKEW {
        return Err(Fault::Expired);
    }
    if !headers.contains(&HOST) {
        return Err(Fault::Host);
    }
    let target = head.uri.path_and_query();
    let mut canonical = Canonical::begin(&head.method, target.map_or("/", PathAndQuery::path), head.uri.query());
    for name in &headers {
        // Twice: which of the values was signed cannot be known.
        let value = match once(&head.headers, name) {
            // HTTP/2 has an authority in its place.
            Err(_) if *name == HOST && !head.headers.contains_key(HOST) => {
                head.uri.authority().ok_or(Fault::Malformed)?.as_str().as_bytes()
            }
            value => value?.as_bytes(),
        };
        canonical.header(name, value);
    }
    let signed = canonical.end(names, payload);
    let mac = mac(pair, date, &signed).ok_or(Fault::Mismatch)?;
    // In constant time.
    mac.verify_slice(&signature).map_err(|_| Fault::Mismatch)?;
    Ok(Signer { pair: Arc::clone(pair), headers: headers.into() })
}

/// Verifies what a request with this whole body claims; `now` is in Unix seconds. With the signer: the payload that is
/// signed, the body's hash or [`UNSIGNED_PAYLOAD`].
///
/// # Errors
/// Why the signature proves nothing.
pub fn verify_whole(
    claim: &Claim<'_>,
    pair: &Arc<KeyPair>,
    head: &Parts,
    body: &[u8],
    now: u64,
) -> Result<(Signer, String), Fault> {
    let hash = hash(body);
    let stated = stated_payload(&head.headers)?;
    let mut payload = stated.filter(|_| !body.is_empty()).unwrap_or(&hash);
    let signer = match verify(claim, pair, head, payload, now) {
        // Without a body some SDKs sign the hash of nothing, and others what they state all the same.
        Err(Fault::Mismatch) if body.is_empty() && stated == Some(UNSIGNED_PAYLOAD) => {
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

fn once<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<&'h HeaderValue, Fault> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        (None, _) if *name == api::SDK_DATE => Err(Fault::Date),
        _ => Err(Fault::Malformed),
    }
}

/// Signs on behalf of someone whose own signature was verified, over the headers that they had signed.
#[derive(Clone)]
pub struct Signer {
    pair: Arc<KeyPair>,
    headers: Arc<[HeaderName]>,
}

impl Signer {
    /// The access key.
    pub fn access_key(&self) -> &str {
        &self.pair.access_key
    }

    /// Whether the verified signature covers this header.
    pub fn covers(&self, name: &HeaderName) -> bool {
        self.headers.contains(name)
    }

    /// Signs a request to `host`, dated `now` (Unix seconds): sets its `X-Sdk-Date` and its `Authorization`. Of the
    /// headers that had been signed, those that are there once are signed again. `payload` is as in [`verify`].
    pub fn sign(
        &self,
        method: &Method,
        target: &PathAndQuery,
        headers: &mut HeaderMap,
        host: &str,
        payload: &str,
        now: u64,
    ) {
        let (date_name, date) = (api::SDK_DATE, basic_date(now));
        if let Ok(value) = HeaderValue::from_str(&date) {
            headers.insert(&date_name, value);
        }
        let mut names: Vec<&HeaderName> = self.headers.iter().filter(|name| once(headers, name).is_ok()).collect();
        names.extend([&HOST, &date_name]);
        names.sort_unstable_by_key(|name| name.as_str());
        names.dedup();
        let mut canonical = Canonical::begin(method, target.path(), target.query());
        let mut list = String::new();
        for name in names {
            let value =
                if *name == HOST { host.as_bytes() } else { headers.get(name).map_or(&[][..], HeaderValue::as_bytes) };
            canonical.header(name, value);
            if !list.is_empty() {
                list.push(';');
            }
            list.push_str(name.as_str());
        }
        let signed = canonical.end(&list, payload);
        let Some(mac) = mac(&self.pair, &date, &signed) else { return };
        let signature = hex::encode(mac.finalize().into_bytes());
        let access_key = &self.pair.access_key;
        let value = format!("{ALGORITHM} Access={access_key}, SignedHeaders={list}, Signature={signature}");
        // Access keys are visible ASCII: the configuration sees to that.
        if let Ok(mut value) = HeaderValue::from_str(&value) {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
    }
}

/// A canonical request, hashed as it is written.
struct Canonical(Sha256);

impl Canonical {
    fn begin(method: &Method, path: &str, query: Option<&str>) -> Self {
        let mut canonical = Self(Sha256::new());
        canonical.write(method.as_str().as_bytes());
        canonical.write(b"\n");
        canonical.path(path);
        canonical.write(b"\n");
        canonical.query(query.unwrap_or(""));
        canonical.write(b"\n");
        canonical
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn encoded(&mut self, bytes: &[u8]) {
        for piece in percent_encode(bytes, ENCODED) {
            self.write(piece.as_bytes());
        }
    }

    /// Decoded as a whole and then split, as the SDKs do: an encoded slash parts segments like any other.
    fn path(&mut self, path: &str) {
        let decoded: Cow<'_, [u8]> = percent_decode_str(path).into();
        for (index, segment) in decoded.split(|byte| *byte == b'/').enumerate() {
            if index > 0 {
                self.write(b"/");
            }
            self.encoded(segment);
        }
        if !decoded.ends_with(b"/") {
            self.write(b"/");
        }
    }

    /// Decoded, sorted, encoded. A plus sign is a plus sign.
    fn query(&mut self, query: &str) {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let mut pairs: Vec<[Cow<'_, [u8]>; 2]> = pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                [name, value].map(|text| percent_decode_str(text).into())
            })
            .collect();
        pairs.sort_unstable();
        for (index, [name, value]) in pairs.iter().enumerate() {
            if index > 0 {
                self.write(b"&");
            }
            self.encoded(name);
            self.write(b"=");
            self.encoded(value);
        }
    }

    fn header(&mut self, name: &HeaderName, value: &[u8]) {
        self.write(name.as_str().as_bytes());
        self.write(b":");
        self.write(value.trim_ascii());
        self.write(b"\n");
    }

    fn end(mut self, signed_headers: &str, payload: &str) -> String {
        self.write(b"\n");
        self.write(signed_headers.as_bytes());
        self.write(b"\n");
        self.write(payload.as_bytes());
        hex::encode(self.0.finalize())
    }
}

/// `None`: never, as HMAC takes a key of any length.
fn mac(pair: &KeyPair, date: &str, canonical: &str) -> Option<Hmac<Sha256>> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(pair.secret_key.expose()).ok()?;
    for piece in [ALGORITHM, "\n", date, "\n", canonical] {
        mac.update(piece.as_bytes());
    }
    Some(mac)
}

#[cfg(test)]
mod tests;
