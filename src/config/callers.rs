//! `[callers]`: how callers are told apart.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;

use super::declare::section;
use super::kind::{DAY, MINUTE, SECOND, duration, flag, secret_file, string_of, texts};
use super::secret::{self, KeyPair, SecretFile, SecretSource};
use super::table::Table;
use crate::api;

section! {
    /// `[callers]`
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Callers {
        /// How long the endpoint's acceptance of a caller is valid: a revoked token loses access within this time.
        pub revalidate: Duration = 5 * MINUTE, duration(SECOND..=DAY);
        /// Whether a request's Cache-Control is honoured; false makes page reloads cheap.
        pub cache_control: bool = true, flag();
        /// Request headers, beyond the known ones, whose values may change an answer.
        pub scope_headers: Vec<HeaderName> = Vec::new(), texts(scope_header);
        /// Keys whose signed requests may be answered from memory; one such table for each.
        pub keys: Vec<CallerKey> = Vec::new() => [list CallerKey::blank, CallerKey::visit];
    }
}

/// One table of `[[callers.keys]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerKey {
    /// The key, as it was read with the configuration.
    pub pair: KeyPair,
    /// The source of its secret key.
    pub source: SecretSource,
}

impl CallerKey {
    fn blank() -> Self {
        Self { pair: KeyPair::default(), source: SecretSource::File(PathBuf::new()) }
    }

    /// Visits each key of a table; `before` are the tables above it.
    fn visit(&mut self, before: &[Self], table: &mut Table<'_>) {
        let access_key = string_of("an access key: 1 to 128 letters, digits and underscores", is_access_key)
            .required("AKEXAMPLE0000000001");
        let doc = "The access key that requests name.";
        if let Some(found) = table.key("access_key", doc, &mut self.pair.access_key, access_key)
            && before.iter().any(|key| key.pair.access_key == self.pair.access_key)
        {
            found.wrong("has the access key of a table above");
        }

        let known = |path: &PathBuf| !path.as_os_str().is_empty();
        let (mut file, mut variable) = match &self.source {
            SecretSource::File(path) => {
                let file = SecretFile { secret: self.pair.secret_key.clone(), path: path.clone() };
                (Some(file).filter(|file| known(&file.path)), None)
            }
            SecretSource::Environment(name) => (None, Some(name.clone())),
        };
        let doc = "File that holds the secret key and nothing else, readable by sidelink's user only.";
        let in_file = table.key(
            "secret_key_file",
            doc,
            &mut file,
            secret_file(secret::from_file).optional("/etc/sidelink/secret-key"),
        );
        let doc = "Environment variable that holds the secret key, instead of a file.";
        let name = string_of("the name of an environment variable", |_| true);
        let in_variable = table.key("secret_key_env", doc, &mut variable, name.optional("SIDELINK_SECRET_KEY"));
        match (in_file, in_variable) {
            (Some(_), Some(_)) => {
                table.wrong("has both secret_key_file and secret_key_env: only one is allowed");
            }
            (None, None) => table.wrong("has no secret key: set secret_key_file or secret_key_env"),
            (Some(_), None) => {
                if let Some(SecretFile { secret, path }) = file {
                    (self.pair.secret_key, self.source) = (secret, SecretSource::File(path));
                }
            }
            (None, Some(found)) => {
                let Some(name) = variable else { return };
                match secret::from_environment(&name) {
                    Ok(secret_key) => self.pair.secret_key = secret_key,
                    Err(message) => found.wrong(message),
                }
                self.source = SecretSource::Environment(name);
            }
        }
    }
}

fn is_access_key(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn scope_header(text: &str, before: &[HeaderName]) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| format!("\"{}\" is not a header's name", text.escape_debug()))?;
    let reason = match name.as_str() {
        "authorization" | "x-auth-token" | "x-security-token" | "cookie" => {
            "a credential, and always part of the scope"
        }
        "connection"
        | "keep-alive"
        | "proxy-connection"
        | "proxy-authorization"
        | "proxy-authenticate"
        | "te"
        | "trailer"
        | "transfer-encoding"
        | "upgrade"
        | "http2-settings" => "about one connection, and not forwarded",
        "host" | "content-length" | "content-type" | "content-encoding" | "accept" | "accept-encoding"
        | "user-agent" | "via" | "range" | "expect" | "traceparent" | "tracestate" | "cache-control" => {
            "set by sidelink itself on every call"
        }
        "x-sdk-date" | "x-sdk-content-sha256" | "x-request-id" | "date" => "different in every request",
        _ if api::SCOPE_HEADERS.contains(&name) => "always part of the scope",
        _ if before.contains(&name) => return Err(format!("names {name} twice")),
        _ => return Ok(name),
    };
    Err(format!("{name} is {reason}"))
}
