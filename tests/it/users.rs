//! Tokens that the identity provider takes for one user share what each of them brings; nothing crosses users, and a token that is
//! refused loses access at once, and it alone.

mod failures;
mod keys;
mod refusals;
mod reloads;
mod sharing;
mod shown;
mod signatures;
mod tier;

use std::time::Duration;

use sidelink::clock::Clock;
use sidelink::config::{Config, IdentityConfig, Url};
use sidelink::demo::origin::iam::Iam;
use sidelink::demo::origin::{self, link_is_for};

use crate::support::{LOOPBACK, Reply, Stack};

const HOUR: Duration = Duration::from_secs(3600);
const ROLES: &[&str] = &["osm_admin", "te_agency"];

/// A sidelink, an endpoint, and the IAM whose tokens the endpoint takes.
struct World {
    stack: Stack,
    iam: Iam,
    /// sidelink's.
    clock: Clock,
}

/// Users are what the IAM's Keystone says.
fn by_keystone(iam: &Iam) -> IdentityConfig {
    IdentityConfig { introspect: Some(Url::parse(&iam.keystone_url()).unwrap()), ..IdentityConfig::blank() }
}

/// `[callers.identity]` of these lines.
fn identity(lines: &str) -> IdentityConfig {
    let text = format!("[upstream]\nendpoint = \"http://h\"\n[callers.identity]\n{lines}\n");
    Config::parse(&text).unwrap().callers.identity.unwrap()
}

impl World {
    async fn start() -> Self {
        Self::with(|_| {}, |_, _| {}).await
    }

    async fn with(endpoint: impl FnOnce(&mut origin::Options), configure: impl FnOnce(&Iam, &mut Config)) -> Self {
        let iam = Iam::start(LOOPBACK).await.unwrap();
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        let clock = Clock::simulated(i64::try_from(now.as_millis()).unwrap());
        let endpoint = |options: &mut origin::Options| {
            options.iam = Some(iam.clone());
            endpoint(options);
        };
        let configure = |config: &mut Config| {
            config.callers.identity = Some(by_keystone(&iam));
            configure(&iam, config);
        };
        let stack = Stack::on(clock.clone(), endpoint, configure).await;
        Self { stack, iam, clock }
    }

    fn token(&self, user: &str) -> String {
        self.iam.issue(user, "portal", ROLES, HOUR)
    }

    fn tokens<const N: usize>(&self, user: &str) -> [String; N] {
        std::array::from_fn(|_| self.token(user))
    }

    /// A batch, whose links are all of the token's user.
    async fn batch(&self, token: &str, ids: &[&str]) -> Reply {
        let reply = self.stack.client.batch(token, ids).await;
        self.assert_of(token, &reply);
        reply
    }

    fn assert_of(&self, token: &str, reply: &Reply) {
        let owner = self.iam.owner(token).expect("a token that lives");
        for (id, link) in reply.links() {
            assert!(link_is_for(&link, &id, None, &owner, None, None), "{link} for {owner}");
        }
    }

    /// The ids of calls so far, with the token that each had.
    fn asked(&self) -> Vec<(String, Vec<String>)> {
        let token = |call: &origin::RecordedCall| call.headers["x-auth-token"].to_str().unwrap().to_owned();
        self.stack.origin.calls().into_iter().map(|call| (token(&call), call.ids)).collect()
    }

    async fn hits(&self) -> f64 {
        self.stack.metric(r#"sidelink_ids_total{result="hit"}"#).await
    }
}
