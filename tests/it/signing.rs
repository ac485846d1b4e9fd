//! Signs requests as the cloud's SDKs do, written anew, so that it cannot share the proxy's mistakes.

use hmac::{Hmac, KeyInit, Mac};
use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};
use sidelink::clock::{Clock, basic_date};
use sidelink::config::{CallerKey, Config, KeyPair, Secret, StoredSecret};

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub const ACCESS_KEY: &str = "AKTEST";
pub const SECRET_KEY: &str = "sk-test";

pub fn pair(access_key: &str, secret_key: &str) -> KeyPair {
    KeyPair { access_key: access_key.into(), secret_key: Secret::new(secret_key.into()), user: None }
}

/// Configures a key pair.
pub fn knows(config: &mut Config, access_key: &str, secret_key: &str) {
    let KeyPair { access_key, secret_key: secret, .. } = pair(access_key, secret_key);
    let secret_key_env = Some(StoredSecret { secret, source: "TEST".into() });
    config.callers.keys.push(CallerKey { access_key, secret_key_file: None, secret_key_env, user: None });
}

/// A request to be signed.
pub struct Unsigned<'a> {
    pub method: Method,
    /// The Host that is signed.
    pub host: String,
    pub target: String,
    /// Those that are signed besides host and date.
    pub headers: Vec<(&'static str, String)>,
    pub body: &'a [u8],
    pub access_key: &'a str,
    pub secret_key: &'a str,
    /// In Unix seconds.
    pub now: u64,
}

impl<'a> Unsigned<'a> {
    pub fn get(host: impl ToString, target: &str, clock: &Clock) -> Self {
        Self {
            method: Method::GET,
            host: host.to_string(),
            target: target.to_owned(),
            headers: vec![("content-type", "application/json".to_owned())],
            body: b"",
            access_key: ACCESS_KEY,
            secret_key: SECRET_KEY,
            now: clock.now().unix_seconds(),
        }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// All of its headers, Host and Authorization among them.
    pub fn sign(&self) -> Vec<(&'static str, String)> {
        let date = basic_date(self.now);
        let mut headers = self.headers.clone();
        headers.extend([("host", self.host.clone()), ("x-sdk-date", date.clone())]);
        headers.sort();
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let decode = |text: &str| percent_decode_str(text).decode_utf8().unwrap().into_owned();
        let encode = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
        let mut pairs: Vec<(String, String)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decode(name), decode(value)))
            .collect();
        pairs.sort();
        let pairs: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let stated = headers.iter().find(|(name, _)| *name == "x-sdk-content-sha256");
        let payload = match stated {
            Some((_, stated)) if !self.body.is_empty() => stated.clone(),
            _ => hex::encode(Sha256::digest(self.body)),
        };
        let path = decode(path).split('/').map(encode).collect::<Vec<_>>().join("/") + "/";
        let canonical = format!("{}\n{path}\n{}\n{lines}\n{names}\n{payload}", self.method, pairs.join("&"));
        let text = format!("SDK-HMAC-SHA256\n{date}\n{}", hex::encode(Sha256::digest(canonical)));
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(self.secret_key.as_bytes()).unwrap();
        mac.update(text.as_bytes());
        let signature = hex::encode(mac.finalize().into_bytes());
        let access_key = self.access_key;
        let value = format!("SDK-HMAC-SHA256 Access={access_key}, SignedHeaders={names}, Signature={signature}");
        headers.push(("authorization", value));
        headers
    }
}
