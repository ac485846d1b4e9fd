//! `[callers.identity]`: which tokens are one user's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::Scheme;

use super::batch::Pointer;
use super::declare::section;
use super::endpoint::{Endpoint, Url};
use super::jwks::KeySet;
use super::kind::{
    MILLISECOND, MINUTE, SECOND, certificates, choice, count, duration, file_of, pem_file, secret_file, text, texts,
};
use super::pem;
use super::secret::{self, Secret, StoredSecret};
use super::table::TableVisitor;
use super::upstream::{UpstreamConfig, proxy, proxy_credentials};

section! {
    /// `[callers.identity]`. There is none by default.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct IdentityConfig: pub fn blank() {
        /// The introspection endpoint, which says whose a token is. Tokens of which it says the same are one user's.
        pub introspect: Option<Url> = None, text("a URL", introspection).optional("https://iam.cn-south-1.myhuaweicloud.cn/v3/auth/tokens");
        /// How it is asked: as OpenStack's Keystone and Huawei's IAM, or as an OAuth 2.0 server (RFC 7662).
        pub style: Style = Style::Keystone, choice(&STYLES);
        /// File with a token of sidelink's own and nothing else. keystone: the X-Auth-Token, in place of the caller's own token; oauth2: the Bearer.
        pub token_file: Option<StoredSecret> = None, secret_file(secret::from_file).optional("/etc/sidelink/identity-token");
        /// oauth2: file with sidelink's CLIENT_ID:CLIENT_SECRET and nothing else.
        pub client_file: Option<StoredSecret> = None, secret_file(client).optional("/etc/sidelink/identity-client");
        /// JSON Pointers to what makes a user in the answer, in place of the style's own fields. A token whose answer lacks one of them stays a caller of its own. One of them has to name the user, unless all users are to share links.
        pub identity: Vec<Pointer> = Vec::new(), texts(None, field);
        /// Claims of a JSON Web Token that make a user, in place of introspection: the token's signature is verified with a key of jwks_file or jwks_url. A token that lacks one of them stays a caller of its own. One of them has to name the user, such as sub, unless all users are to share links.
        pub claims: Vec<String> = Vec::new(), texts(None, claim);
        /// File with the set of keys (JWKS, RFC 7517) that verify tokens.
        pub jwks_file: Option<StoredSecret<KeySet>> = None, file_of(KeySet::from_file, KeySet::has_secret).optional("/etc/sidelink/jwks.json");
        /// URL of the set of keys that verify tokens.
        pub jwks_url: Option<Url> = None, text("a URL", Url::parse).optional("https://sso.example.com/oauth2/jwks");
        /// The longest that an answer may take, the wait for its turn included; after it the token is a caller of its own.
        pub timeout: Duration = SECOND, duration(MILLISECOND..=MINUTE);
        /// Introspections at a time. Tokens that the endpoint has not accepted use a quarter at most, and never all of them.
        pub requests: usize = 16, count(2..=1000);
        /// Introspections a second, or verified signatures, of tokens that the endpoint has not accepted.
        pub unaccepted: u32 = 50, count(1..=10_000);
        /// The HTTP proxy through which the server is reached, by CONNECT.
        pub proxy: Option<Endpoint> = None, text("a URL", proxy).optional("http://proxy.internal:3128");
        /// File that holds USER:PASSWORD for the proxy and nothing else, readable by sidelink's user only.
        pub proxy_credentials_file: Option<StoredSecret> = None, secret_file(proxy_credentials).optional("/etc/sidelink/proxy-credentials");
        /// PEM file of certificate authorities, instead of the platform's.
        pub ca_file: Option<PathBuf> = None, certificates().optional("/etc/sidelink/iam-ca.pem");
        /// PEM file of the client certificate, if the server asks for one.
        pub client_cert: Option<PathBuf> = None, certificates().check(|path, found| found.warn_of_expiry(path)).optional("/etc/sidelink/iam-client.pem");
        /// PEM file of the private key of client_cert, readable by sidelink's user only.
        pub client_key: Option<PathBuf> = None, pem_file(pem::private_key).check(|path, found| found.warn_if_world_readable(path)).optional("/etc/sidelink/iam-client-key.pem");
    }
}

const STYLES: [(&str, Style); 2] = [("keystone", Style::Keystone), ("oauth2", Style::OAuth2)];

/// Names of claims, and of members of RFC 7662, that name a user: of RFC 7519, Entra ID, Okta, UAA and OpenID Connect. What names an
/// application (`azp`, `client_id`) is not one of them: all its users have it.
const SUBJECTS: [&str; 10] =
    ["sub", "oid", "uid", "user_id", "user_name", "username", "preferred_username", "upn", "unique_name", "email"];
/// Names of those that are the same for all users of an issuer.
const COMMON: [&str; 6] = ["iss", "aud", "typ", "ver", "active", "token_type"];

/// How an introspection endpoint is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `GET /v3/auth/tokens` with X-Auth-Token and X-Subject-Token.
    Keystone,
    /// OAuth 2.0 Token Introspection (RFC 7662).
    OAuth2,
}

/// What says whose a token is.
#[derive(Clone, Copy, Debug)]
pub enum IdentitySource<'a> {
    /// The introspection endpoint at this URL.
    Introspection(&'a Url),
    /// The token itself, if one of these keys verifies its signature.
    Keys(&'a StoredSecret<KeySet>),
    /// The same, with the keys that this URL answers with.
    KeysAt(&'a Url),
}

impl IdentityConfig {
    /// Visits each key, and reports what does not fit together.
    pub(super) fn visit(&mut self, table: &mut TableVisitor<'_>) {
        self.keys(table);
        let [introspect, file, url] = ["introspect", "jwks_file", "jwks_url"].map(|key| table.find(key).is_some());
        let claims =
            table.find("claims").is_some_and(|found| found.value.as_array().is_none_or(|list| !list.is_empty()));
        if introspect && claims {
            table.wrong_at(&["claims"], "does not go with introspect: choose one of them");
        } else if !introspect && !claims {
            let needed = "needs introspect, the URL that says whose a token is, or claims, which a token says itself";
            table.wrong_at(&["jwks_file", "jwks_url"], needed);
        } else if claims && !file && !url {
            let proof = "an endpoint that answers anyone proves no signature";
            let message = format!("needs jwks_file or jwks_url, the keys that verify a token: {proof}");
            table.wrong_at(&["claims"], &message);
        } else if introspect && (file || url) {
            let message = "needs claims, in place of introspect: what makes a user in a token";
            table.wrong_at(&["jwks_file", "jwks_url"], message);
        } else if file && url {
            table.wrong_at(&["jwks_url"], "does not go with jwks_file: choose one of them");
        }
        // What has its default value is printed by `check`, and read again.
        let of_introspection = [
            ("style", self.style != Style::Keystone),
            ("token_file", true),
            ("client_file", true),
            ("identity", !self.identity.is_empty()),
        ];
        for (key, _) in of_introspection.into_iter().filter(|(_, is_set)| *is_set) {
            table.needs(key, "introspect", "needs introspect: no other way to learn whose a token is uses it");
        }
        if introspect {
            self.visit_credentials(table);
        }
        self.visit_subject(table);
        if let Some(found) =
            table.find("ca_file").filter(|_| self.server().is_none_or(|server| server.scheme != Scheme::HTTPS))
        {
            found.wrong("needs introspect or jwks_url with https://");
        }
        let unused = "needs callers.identity.proxy: there is no proxy for the credentials";
        table.needs("proxy_credentials_file", "proxy", unused);
        if let Some(found) = table.find("proxy").filter(|_| self.server().is_none()) {
            found.wrong("needs introspect or jwks_url: nothing else is asked");
        }
        table.needs("client_cert", "client_key", "needs callers.identity.client_key: its private key");
        let whose = "needs callers.identity.client_cert: the certificate that the key belongs to";
        table.needs("client_key", "client_cert", whose);
    }

    fn visit_credentials(&self, table: &mut TableVisitor<'_>) {
        match (self.style, table.find("token_file"), table.find("client_file")) {
            (Style::Keystone, _, Some(client)) => {
                client.wrong("is for style = \"oauth2\": keystone takes token_file, or the caller's own token");
            }
            (Style::OAuth2, Some(_), Some(client)) => {
                client.wrong("does not go with token_file: choose one of them");
            }
            (Style::OAuth2, None, None) => {
                let message =
                    "\"oauth2\" needs client_file or token_file: RFC 7662 has nobody ask without authorization";
                table.wrong_at(&["style"], message);
            }
            _ => {}
        }
    }

    /// Reports fields that make a user without naming one.
    fn visit_subject(&self, table: &mut TableVisitor<'_>) {
        let claims: Vec<&str> = self.claims.iter().map(String::as_str).collect();
        let fields: Vec<&str> = self.identity.iter().map(|field| claim_of(self.style, field)).collect();
        let subject = if self.style == Style::Keystone { "/token/user/id" } else { "/sub" };
        for (key, names, subject) in [("claims", claims, "sub"), ("identity", fields, subject)] {
            let Some(found) = table.find(key).filter(|_| !names.is_empty()) else { continue };
            if names.iter().any(|name| SUBJECTS.contains(name)) {
                continue;
            }
            if names.iter().all(|name| COMMON.contains(name)) {
                found.wrong(format!(
                    "names nothing that differs between users: everybody would be one user; add \"{subject}\""
                ));
            } else {
                found.warn(&format!(
                    "names nothing that is known to name a user: users in whose tokens it is equal share links; add \"{subject}\" unless they are meant to"
                ));
            }
        }
    }

    /// What says whose a token is; `None` only for a table that `check` refuses.
    pub fn source(&self) -> Option<IdentitySource<'_>> {
        let introspection = self.introspect.as_ref().map(IdentitySource::Introspection);
        let keys = || self.jwks_file.as_ref().map(IdentitySource::Keys);
        introspection.or_else(keys).or_else(|| self.jwks_url.as_ref().map(IdentitySource::KeysAt))
    }

    /// All that makes two tokens one user, in words: two sidecars that differ in it take other callers for one user.
    pub fn meaning(&self) -> String {
        // Their order makes no difference.
        let (mut fields, mut claims) =
            (self.identity.iter().map(ToString::to_string).collect::<Vec<_>>(), self.claims.clone());
        fields.sort_unstable();
        claims.sort_unstable();
        let style = self.introspect.as_ref().map(|url| (url.to_string(), self.style, fields));
        let keys = self.jwks_file.as_ref().map(|file| &file.source);
        format!("{:?}", (style, keys, self.jwks_url.as_ref().map(ToString::to_string), claims))
    }

    /// The server that is asked, if one is.
    pub fn server(&self) -> Option<&Endpoint> {
        self.introspect.as_ref().or(self.jwks_url.as_ref()).map(|url| &url.server)
    }

    /// The key that names that server.
    pub(super) fn server_key(&self) -> &'static str {
        if self.introspect.is_some() { "callers.identity.introspect" } else { "callers.identity.jwks_url" }
    }

    /// How connections to that server are made.
    pub(crate) fn connections(&self) -> Option<UpstreamConfig> {
        let config = UpstreamConfig::for_endpoint(self.server()?.clone());
        Some(UpstreamConfig {
            // Half, so that there is time left for TLS and for the answer.
            connect_timeout: self.timeout / 2,
            proxy: self.proxy.clone(),
            proxy_credentials_file: self.proxy_credentials_file.clone(),
            ca_file: self.ca_file.clone(),
            client_cert: self.client_cert.clone(),
            client_key: self.client_key.clone(),
            ..config
        })
    }
}

/// Reads the URL of an introspection endpoint. A message does not repeat it: it may contain a password.
fn introspection(text: &str) -> Result<Url, String> {
    if text.contains('?') {
        return Err("must not have a query".to_owned());
    }
    Url::parse(text)
}

/// The claim that a field of an answer has the meaning of; an empty one for a field of Keystone's that names no user.
fn claim_of(style: Style, field: &Pointer) -> &str {
    let tokens: Vec<&str> = field.tokens().iter().map(AsRef::as_ref).collect();
    match (style, tokens.as_slice()) {
        (Style::Keystone, ["token"] | ["token", "user"] | ["token", "user", "id" | "name"]) => "sub",
        (Style::OAuth2, [.., last]) => last,
        _ => "",
    }
}

fn client(path: &Path) -> Result<Secret, String> {
    let secret = secret::from_file(path)?;
    if secret.expose().contains(&b':') { Ok(secret) } else { Err("must hold CLIENT_ID:CLIENT_SECRET".to_owned()) }
}

fn field(text: &str, before: &[Pointer]) -> Result<Pointer, String> {
    let pointer: Pointer = text.parse()?;
    if pointer.tokens().is_empty() {
        return Err("names the whole answer, which is another one for each token".to_owned());
    }
    if before.contains(&pointer) { Err(format!("names {pointer} twice")) } else { Ok(pointer) }
}

fn claim(text: &str, before: &[String]) -> Result<String, String> {
    if !(1..=128).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("must be a claim's name: 1 to 128 visible ASCII characters".to_owned());
    }
    if ["exp", "iat", "nbf", "jti"].contains(&text) {
        return Err(format!("{text} is another one for each token"));
    }
    if before.iter().any(|other| other == text) { Err(format!("names {text} twice")) } else { Ok(text.to_owned()) }
}
