//! What another configuration has said of a token does not count.

use std::time::Duration;

use sidelink::config::Config;

use super::World;

fn change(world: &World, change: impl FnOnce(&mut Config)) {
    let mut config = Config::clone(&world.stack.app.config());
    change(&mut config);
    world.stack.app.apply(config).unwrap();
}

#[tokio::test]
async fn without_an_identity_each_token_is_a_caller_by_itself_on_open_connections_as_well() {
    let world = World::start().await;
    let [first, second] = world.tokens("alice");
    world.batch(&first, &["1"]).await;
    // The last that its connection shows before the reload.
    world.batch(&second, &["1"]).await;
    assert_eq!(world.asked().len(), 1);
    change(&world, |config| config.callers.identity = None);
    world.batch(&second, &["1"]).await;
    assert_eq!(world.asked().last().unwrap().0, second, "it asks for itself");
}

#[tokio::test]
async fn a_shorter_span_counts_for_what_the_identity_provider_has_said_already() {
    let world = World::with(|_| {}, |_, config| config.callers.revalidate = Duration::from_secs(3000)).await;
    let [revoked, other] = world.tokens("alice");
    for token in [&revoked, &other] {
        world.batch(token, &["1"]).await;
    }
    change(&world, |config| config.callers.revalidate = Duration::from_secs(60));
    world.iam.revoke(&revoked);
    world.clock.step(61_000);
    world.batch(&other, &["1"]).await;
    assert_eq!(world.stack.client.batch(&revoked, &["1"]).await.status, 401);
}
