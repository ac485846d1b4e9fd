//! JSON Web Tokens (RFC 7519) in the compact form: a token whose signature verifies is who its claims say.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;
use tower::retry::budget::{Budget, TpsBudget};

use super::digest::UserDigest;
use super::oauth2::numeric_date;
use super::remote_keys::RemoteKeys;
use super::requests::Requests;
use super::signature::Algorithm;
use crate::auth::{TokenStatus, UserId};
use crate::clock::Clock;
use crate::config::jwks::{KeySet, VerifyingKey};
use crate::config::{IdentityConfig, IdentitySource};
use crate::message::json::{Members, member, members, string};
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::{IdentityResult, Metrics};
use crate::upstream::{MemoryEndpoint, SetupError};

/// The longest token.
const MOST_BYTES: usize = 64 << 10;
/// Most keys that are tried for a token that names none.
const MOST_TRIED: usize = 8;
const SCOPE: &str = "scope";

/// Reads tokens.
pub(super) struct Tokens {
    keys: Keys,
    /// In the order of their names.
    claims: Vec<String>,
    source: String,
    clock: Clock,
    unproven: LogThrottle,
    /// Signatures to verify of tokens that the endpoint has not accepted: each costs more than the rest of a request may.
    unaccepted: TpsBudget,
}

enum Keys {
    Given(KeySet),
    Remote(Arc<RemoteKeys>),
}

impl Tokens {
    pub(super) fn new(
        config: &IdentityConfig,
        source: IdentitySource<'_>,
        memory: Option<&MemoryEndpoint>,
        clock: Clock,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, SetupError> {
        let (keys, source) = match source {
            IdentitySource::Keys(file) => (Keys::Given(file.secret.clone()), file.source.clone()),
            IdentitySource::KeysAt(url) | IdentitySource::Introspection(url) => {
                let remote = RemoteKeys::new(config, url, memory, clock.clone(), Arc::clone(metrics))?;
                (Keys::Remote(Arc::new(remote)), url.to_string())
            }
        };
        let mut claims = config.claims.clone();
        claims.sort_unstable();
        let unaccepted = TpsBudget::new(Duration::from_secs(1), config.unaccepted, 0.0);
        Ok(Self { keys, claims, source, clock, unproven: LogThrottle::default(), unaccepted })
    }

    /// The requests for the set of keys, if there are any.
    pub(super) fn requests(&self) -> Option<&Requests> {
        match &self.keys {
            Keys::Given(_) => None,
            Keys::Remote(remote) => Some(&remote.requests),
        }
    }

    /// Why the set of keys is not fetched now, and since when.
    pub(super) fn outage(&self) -> Option<(String, Instant)> {
        match &self.keys {
            Keys::Given(_) => None,
            Keys::Remote(remote) => remote.breaker.outage(),
        }
    }

    pub(super) async fn ask(&self, token: &[u8], was_accepted: bool) -> TokenStatus {
        let Some(token) = Jwt::read(token) else { return TokenStatus::NoUser(IdentityResult::Unverified) };
        match &self.keys {
            Keys::Given(keys) => self.status(&token, keys, was_accepted),
            Keys::Remote(remote) => match remote.keys(|keys| token.fits_one_of(keys)).await {
                Ok(keys) => self.status(&token, &keys, was_accepted),
                Err(reason) => TokenStatus::NoUser(reason),
            },
        }
    }

    fn status(&self, token: &Jwt<'_>, keys: &KeySet, was_accepted: bool) -> TokenStatus {
        if !was_accepted && token.fits_one_of(keys) && !self.unaccepted.withdraw() {
            return TokenStatus::NoUser(IdentityResult::Unaccepted);
        }
        let digest = UserDigest::new("jwt", &self.source);
        match token.user(keys, &self.claims, digest, self.clock.now().unix_millis()) {
            Ok((id, ends)) => TokenStatus::User { id, expires: Some(ends), is_active: false },
            Err(lack) => {
                self.tell(&lack);
                TokenStatus::NoUser(lack.result())
            }
        }
    }

    fn tell(&self, lack: &Lack<'_>) {
        let reason = match lack {
            Lack::Key => "no key of the set verifies it".to_owned(),
            Lack::Claim(claim) => format!("its claim {claim:?} is missing or cannot be compared"),
            // An expired token is no fault of the configuration.
            Lack::Validity => return,
        };
        self.unproven.when_due(|suppressed| events::IdentityUnproven { reason: &reason, suppressed }.log());
    }
}

/// What a token lacks to be a user's.
enum Lack<'c> {
    /// A key that verifies it.
    Key,
    /// It is not valid now, or its claims cannot be read.
    Validity,
    /// This claim.
    Claim(&'c str),
}

impl Lack<'_> {
    fn result(&self) -> IdentityResult {
        match self {
            Self::Key => IdentityResult::Unverified,
            Self::Validity => IdentityResult::Expired,
            Self::Claim(_) => IdentityResult::Apart,
        }
    }
}

/// A token whose signature is not verified yet.
struct Jwt<'t> {
    algorithm: Algorithm,
    algorithm_name: String,
    key_name: Option<String>,
    /// What is signed.
    message: &'t [u8],
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'t> Jwt<'t> {
    /// Reads a token of three parts, by an algorithm that is known, without an extension that has to be understood.
    fn read(token: &'t [u8]) -> Option<Self> {
        if token.len() > MOST_BYTES {
            return None;
        }
        let end = token.iter().rposition(|byte| *byte == b'.')?;
        let (message, signature) = (token.get(..end)?, token.get(end + 1..)?);
        let mut parts = message.split(|byte| *byte == b'.');
        let (header, payload, None) = (parts.next()?, parts.next()?, parts.next()) else { return None };
        let [header, payload, signature] = [header, payload, signature].map(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let header = header?;
        let header = members(std::str::from_utf8(&header).ok()?)?;
        if member(&header, "crit").is_some() {
            return None;
        }
        let algorithm_name = string(member(&header, "alg")?)?.into_owned();
        let key_name = match member(&header, "kid") {
            Some(name) => Some(string(name)?.into_owned()),
            None => None,
        };
        let algorithm = Algorithm::named(&algorithm_name)?;
        Some(Self { algorithm, algorithm_name, key_name, message, payload: payload?, signature: signature? })
    }

    fn fits(&self, key: &VerifyingKey) -> bool {
        self.algorithm.fits(&self.algorithm_name, key, self.key_name.as_deref())
    }

    fn fits_one_of(&self, keys: &KeySet) -> bool {
        keys.0.iter().any(|key| self.fits(key))
    }

    /// The user that the `claims` make, and when the token ends, if a key verifies it and it is valid `now`, in Unix milliseconds.
    fn user<'c>(
        &self,
        keys: &KeySet,
        claims: &'c [String],
        mut digest: UserDigest,
        now: u64,
    ) -> Result<(UserId, u64), Lack<'c>> {
        let mut fitting = keys.0.iter().filter(|key| self.fits(key)).take(MOST_TRIED);
        if !fitting.any(|key| self.algorithm.verifies(key, self.message, &self.signature)) {
            return Err(Lack::Key);
        }
        let payload = std::str::from_utf8(&self.payload).ok().and_then(members).ok_or(Lack::Validity)?;
        let ends = valid_until(&payload, now).ok_or(Lack::Validity)?;
        for claim in claims {
            let value = member(&payload, claim).filter(|value| value.get() != "null").ok_or(Lack::Claim(claim))?;
            let added = if claim == SCOPE { digest.words(claim, value) } else { digest.field(claim, Some(value)) };
            added.map_err(|_| Lack::Claim(claim))?;
        }
        Ok((digest.finish(), ends))
    }
}

/// When a token with these claims ends, if it is valid now. It has to have an end.
fn valid_until(claims: &Members<'_>, now: u64) -> Option<u64> {
    let time = |name| member(claims, name).map(numeric_date);
    let ends = time("exp")??;
    let begins = time("nbf").map_or(Some(0), |begins: Option<u64>| begins)?;
    (begins <= now && now < ends).then_some(ends)
}
