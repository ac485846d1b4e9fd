//! The text that `sidelink origin --iam` prints.

use super::{CLIENT, Iam, oauth2};

impl Iam {
    /// Where it listens, what makes a sidelink ask it, and how to get tokens of it.
    pub fn usage(&self) -> String {
        let (keystone, introspection) = (self.keystone_url(), self.introspection_url());
        let (keys, token, secret) = (self.keys_url(), self.url(oauth2::TOKEN), self.client_secret());
        format!(
            r#"the simulated IAM listens on {issuer}

One of these makes the tokens of one user share links:

  [callers.identity]
  introspect = "{keystone}"
  style = "keystone"

  [callers.identity]
  introspect = "{introspection}"
  style = "oauth2"
  client_file = "FILE"    # which holds {CLIENT}:{secret}

  [callers.identity]
  claims = ["iss", "sub", "aud", "scope"]
  jwks_url = "{keys}"

A token of the user anna, with any password:

  curl -s -o /dev/null -D - {keystone} \
    -d '{{"auth":{{"identity":{{"methods":["password"],
      "password":{{"user":{{"name":"anna","password":"x"}}}}}}}}}}'

And a JSON Web Token:

  curl -s -u anna:x {token} \
    -d grant_type=client_credentials

A client sends either of them as its credential: in X-Auth-Token,
or as "Authorization: Bearer" where --api names another API.
"#,
            issuer = self.issuer(),
        )
    }
}
