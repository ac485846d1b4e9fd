//! Tokens are one user's only where the identity provider, or a verified token, says so; whatever else happens keeps each token apart
//! and fails nothing.

mod jwt;
mod keystone;
mod limits;
mod oauth2;
mod secrets;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use prometheus::Registry;
use sidelink::auth::{TokenStatus, UserId};
use sidelink::clock::Clock;
use sidelink::config::{IdentityConfig, Secret, StoredSecret, Style, Url};
use sidelink::demo::origin::ScriptedReply;
use sidelink::demo::origin::iam::{CLIENT, Grant, Iam};
use sidelink::identity::IdentityProvider;
use sidelink::telemetry::metrics::{BreakerState, IdentityResult, Metrics};

use crate::support::LOOPBACK;

const HOUR: Duration = Duration::from_secs(3600);
/// 2026-11-24, midnight.
const EPOCH: i64 = 1_795_478_400_000;
const REFUSED: TokenStatus = TokenStatus::NoUser(IdentityResult::Refused);
const APART: TokenStatus = TokenStatus::NoUser(IdentityResult::Apart);
const UNVERIFIED: TokenStatus = TokenStatus::NoUser(IdentityResult::Unverified);
const EXPIRED: TokenStatus = TokenStatus::NoUser(IdentityResult::Expired);
const FAILED: TokenStatus = TokenStatus::NoUser(IdentityResult::Failed);
const CREDENTIALS: TokenStatus = TokenStatus::NoUser(IdentityResult::Credentials);
const BREAKER_OPEN: TokenStatus = TokenStatus::NoUser(IdentityResult::BreakerOpen);

/// The simulated IAM, and what asks it.
struct World {
    clock: Clock,
    iam: Iam,
    asker: Asker,
}

/// What asks.
struct Asker {
    identities: Arc<IdentityProvider>,
    metrics: Arc<Metrics>,
}

impl Asker {
    fn new(config: &IdentityConfig, clock: &Clock) -> Self {
        let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
        let identities = IdentityProvider::new(config, clock.clone(), Arc::clone(&metrics)).unwrap();
        Self { identities: Arc::new(identities), metrics }
    }

    /// Of a token that the endpoint has accepted.
    async fn ask(&self, token: &str) -> TokenStatus {
        self.identities.look_up(token.as_bytes(), true).await
    }

    async fn user(&self, token: &str) -> UserId {
        match self.ask(token).await {
            TokenStatus::User { id, .. } => id,
            other => panic!("{other:?} {:?}", self.counts()),
        }
    }

    /// How many questions there were of each result that has any.
    fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = IdentityResult::ALL.map(|result| (result.name(), self.count(result)));
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    fn count(&self, result: IdentityResult) -> u64 {
        self.metrics.identity.requests.of(result).get()
    }

    fn is_breaker_open(&self) -> bool {
        self.metrics.identity.breaker_state.of(BreakerState::Open).get() == 1
    }
}

impl World {
    /// Asked as Keystone is.
    async fn keystone(configure: impl FnOnce(&Iam, &mut IdentityConfig)) -> Self {
        Self::start(|iam, config| {
            config.introspect = Some(Url::parse(&iam.keystone_url()).unwrap());
            configure(iam, config);
        })
        .await
    }

    /// Asked as RFC 7662 has it.
    async fn oauth2(configure: impl FnOnce(&Iam, &mut IdentityConfig)) -> Self {
        Self::start(|iam, config| {
            config.introspect = Some(Url::parse(&iam.introspection_url()).unwrap());
            config.style = Style::OAuth2;
            config.client_file = Some(secret(&format!("{CLIENT}:{}", iam.client_secret())));
            configure(iam, config);
        })
        .await
    }

    /// A few seconds for an answer: the machine may be busy.
    async fn start(configure: impl FnOnce(&Iam, &mut IdentityConfig)) -> Self {
        let clock = Clock::simulated(EPOCH);
        let iam = Iam::start_with(LOOPBACK, clock.clone()).await.unwrap();
        let mut config = IdentityConfig::blank();
        config.timeout = Duration::from_secs(20);
        configure(&iam, &mut config);
        Self { asker: Asker::new(&config, &clock), clock, iam }
    }

    fn token(&self, user: &str) -> String {
        self.iam.issue(user, "p", &["reader"], HOUR)
    }

    /// Each grant is another user, and each of its tokens is that user.
    async fn tells_apart(&self, grants: &[Grant]) {
        let mut users = Vec::new();
        for grant in grants {
            let mut tokens = Vec::new();
            for _ in 0..3 {
                let token = self.iam.issue_grant(grant.clone(), HOUR);
                tokens.push(self.asker.user(&token).await);
                // Issued at another time, with another end.
                self.clock.step(1000);
            }
            assert_eq!(tokens, [tokens[0]; 3], "{grant}");
            assert!(!users.contains(&tokens[0]), "{grant}");
            users.push(tokens[0]);
        }
    }
}

fn secret(text: &str) -> StoredSecret {
    StoredSecret { secret: Secret::new(text.into()), source: "file".into() }
}

/// A reply of this status, these headers and this body.
fn reply(status: u16, headers: &[(&'static str, &str)], body: impl Into<Bytes>) -> ScriptedReply {
    let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
    ScriptedReply::Whole(StatusCode::from_u16(status).unwrap(), headers.collect::<HeaderMap>(), body.into())
}
