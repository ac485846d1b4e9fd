//! Access keys that the configuration gives to one user share, once the endpoint has accepted each.

use sidelink::clock::Clock;
use sidelink::config::Config;
use sidelink::demo::origin::ScriptedReply;

use crate::signing::{Unsigned, knows, pair};
use crate::support::{Reply, Stack, query};

const KEYS: [(&str, &str); 4] = [("AKONE", "sk-1"), ("AKTWO", "sk-2"), ("AKOTHER", "sk-3"), ("AKALONE", "sk-4")];

struct World {
    stack: Stack,
    clock: Clock,
}

impl World {
    /// The first two keys are one user's, the third another's, the last nobody's.
    async fn start() -> Self {
        let clock = Clock::system();
        let keys = |config: &mut Config| {
            KEYS.iter().for_each(|(access_key, secret)| knows(config, access_key, secret));
            for (key, user) in config.callers.keys.iter_mut().zip(["reports", "reports", "portal"]) {
                key.user = Some(user.to_owned());
            }
        };
        let known = |options: &mut sidelink::demo::origin::Options| {
            options.keys = KEYS.iter().map(|(access_key, secret)| pair(access_key, secret)).collect();
        };
        Self { stack: Stack::on(clock.clone(), known, keys).await, clock }
    }

    async fn batch(&self, key: usize, headers: &[(&'static str, &str)], ids: &[&str]) -> Reply {
        let (access_key, secret_key) = KEYS[key];
        let request = Unsigned::get(self.stack.client.address, &query(ids), &self.clock);
        let mut request = Unsigned { access_key, secret_key, ..request };
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let headers = request.sign();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.stack.client.get(&request.target, &headers).await
    }
}

#[tokio::test]
async fn keys_of_one_user_share_what_each_brings_and_others_do_not() {
    let world = World::start().await;
    let first = world.batch(0, &[], &["1", "2"]).await;
    world.batch(1, &[], &["2"]).await;
    assert_eq!(world.stack.asked().len(), 2, "the endpoint accepts each");
    assert_eq!(world.batch(1, &[], &["1"]).await.links(), first.links()[..1]);
    assert_eq!(world.stack.asked().len(), 2);
    for other in [2, 3] {
        world.batch(other, &[], &["1"]).await;
        assert_eq!(world.stack.asked().len(), 1 + other, "key {other}");
    }
}

#[tokio::test]
async fn what_is_signed_beside_the_key_is_part_of_its_user() {
    let world = World::start().await;
    world.batch(0, &[], &["1"]).await;
    world.batch(1, &[], &["1"]).await;
    let project = [("x-project-id", "p")];
    world.batch(1, &project, &["2"]).await;
    world.batch(1, &project, &["1"]).await;
    assert_eq!(world.stack.asked().len(), 4, "of another project");
    world.batch(0, &project, &["3"]).await;
    world.batch(0, &project, &["1"]).await;
    assert_eq!(world.stack.asked().len(), 5, "shared within the project");
}

#[tokio::test]
async fn a_key_that_the_endpoint_refuses_loses_access_alone() {
    let world = World::start().await;
    world.batch(0, &[], &["1"]).await;
    world.batch(1, &[], &["1"]).await;
    world.stack.origin.script(ScriptedReply::json(401, r#"{"error_code":"APIGW.0301","error_msg":"no"}"#));
    assert_eq!(world.batch(0, &[], &["9"]).await.status, 401);
    let before = world.stack.asked().len();
    world.batch(1, &[], &["1"]).await;
    assert_eq!(world.stack.asked().len(), before);
    world.batch(0, &[], &["1"]).await;
    assert_eq!(world.stack.asked().len(), before + 1);
}

#[tokio::test]
async fn a_reload_that_takes_a_key_from_its_user_ends_sharing_at_once() {
    let world = World::start().await;
    world.batch(0, &[], &["1"]).await;
    world.batch(1, &[], &["2"]).await;
    world.batch(1, &[], &["1"]).await;
    assert_eq!(world.stack.asked().len(), 2);
    let mut config = (*world.stack.app.config()).clone();
    config.callers.keys[1].user = None;
    world.stack.app.apply(config).unwrap();
    world.batch(1, &[], &["1"]).await;
    assert_eq!(world.stack.asked().len(), 3);
}
