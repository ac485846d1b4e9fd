//! `[callers]`: how callers are told apart.

use std::time::Duration;

use http::HeaderName;

use super::declare::section;
use super::headers::scope_header;
use super::identity::IdentityConfig;
use super::kind::{DAY, MINUTE, SECOND, duration, flag, secret_file, string_of, text, texts};
use super::secret::{self, KeyPair, StoredSecret};
use super::table::TableVisitor;

section! {
    /// `[callers]`
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CallersConfig {
        /// How long the endpoint's acceptance of a caller is valid: a revoked token loses access within this time.
        pub revalidate: Duration = 5 * MINUTE, duration(SECOND..=DAY);
        /// Whether a request's Cache-Control is honoured; false makes page reloads cheap.
        pub cache_control: bool = true, flag();
        /// Request headers, beyond those of a batch API, whose values may change an answer.
        pub scope_headers: Vec<HeaderName> = Vec::new(), texts(None, scope_header);
        /// Defines which tokens belong to one user and share links. Without this table each token is its own caller. docs/IDENTITY.md says when not to use it.
        pub identity: Option<IdentityConfig> = None => optional(IdentityConfig::blank, IdentityConfig::visit);
        /// Keys whose signed requests may be answered from memory; one such table for each.
        pub keys: Vec<CallerKey> = Vec::new() => list(CallerKey::blank, CallerKey::visit);
    }
}

section! {
    /// One table of `[[callers.keys]]`.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CallerKey: pub(super) fn blank() {
        /// The access key that requests name.
        pub access_key: String = String::new(), string_of("an access key: 1 to 128 letters, digits and underscores", is_access_key).required("AKEXAMPLE0000000001");
        /// File that holds the secret key and nothing else, readable by sidelink's user only.
        pub secret_key_file: Option<StoredSecret> = None, secret_file(secret::from_file).optional("/etc/sidelink/secret-key");
        /// Environment variable that holds the secret key, instead of a file.
        pub secret_key_env: Option<StoredSecret> = None, text("the name of an environment variable", secret::from_variable).optional("SIDELINK_SECRET_KEY");
        /// A name of your choice for the user whose key this is: the keys of one user share links.
        pub user: Option<String> = None, string_of("a name: 1 to 128 visible ASCII characters", is_user).optional("reports");
    }
}

impl CallerKey {
    /// Visits each key of a table; `before` are the tables above it.
    fn visit(&mut self, before: &[Self], table: &mut TableVisitor<'_>) {
        self.keys(table);
        if let Some(found) = table.find("access_key")
            && before.iter().any(|key| key.access_key == self.access_key)
        {
            found.wrong("has the access key of a table above");
        }
        match (table.find("secret_key_file"), table.find("secret_key_env")) {
            (Some(_), Some(_)) => table.wrong("has both secret_key_file and secret_key_env: only one is allowed"),
            (None, None) => table.wrong("has no secret key: set secret_key_file or secret_key_env"),
            _ => {}
        }
    }

    /// The key.
    pub fn pair(&self) -> KeyPair {
        let stored = self.secret_key_file.as_ref().or(self.secret_key_env.as_ref());
        let secret_key = stored.map(|stored| stored.secret.clone()).unwrap_or_default();
        KeyPair { access_key: self.access_key.clone(), secret_key, user: self.user.as_deref().map(Box::from) }
    }
}

fn is_user(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_access_key(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
