//! What a token grants.

use std::fmt;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The account that all users belong to.
pub(super) const ACCOUNT: &str = "Example";

/// The user of a token, and what the token allows. Tokens of equal grants are interchangeable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The user's name.
    pub user: String,
    /// The project that it is for; `None`: the whole account.
    pub project: Option<String>,
    /// Names of roles. Their order does not matter.
    pub roles: Vec<String>,
    /// Further members of answers, such as `assumed_by` (Huawei's agencies) or `application_credential_restricted` (OpenStack).
    pub beside: Map<String, Value>,
}

impl Grant {
    /// A grant of this user for a project, with these roles.
    pub fn new(user: &str, project: &str, roles: &[&str]) -> Self {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        Self { user: user.to_owned(), project: Some(project.to_owned()), roles, beside: Map::new() }
    }

    /// With one more member of answers.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.beside.insert(name.to_owned(), value);
        self
    }

    pub(super) fn user_id(&self) -> String {
        id("user", &self.user)
    }
}

/// Of equal text for equal grants, and only for those.
impl fmt::Display for Grant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut roles: Vec<&String> = self.roles.iter().collect();
        roles.sort_unstable();
        write!(formatter, "{:?} {:?} {roles:?} {}", self.user, self.project, Value::Object(self.beside.clone()))
    }
}

/// The id of what has a name.
pub(super) fn id(kind: &str, name: &str) -> String {
    let mut id = hex::encode(Sha256::digest(format!("{kind} {name}")));
    id.truncate(32);
    id
}
