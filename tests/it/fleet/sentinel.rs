//! Servers that Redis Sentinel watches: real Sentinels, real failovers.

use sidelink::config::{NodeAddress, Shared};

use super::cluster::{a_link_is_shared, a_purge_reaches};
use super::kinds::{Kind, Servers};
use super::link::Link;
use super::servers::{grant_documented_rights, password};
use super::{Fleet, Redis, eventually, shared};

/// A master with a replica, and the three Sentinels that watch them.
pub async fn replicated() -> (Vec<Redis>, Vec<Redis>) {
    let master = Redis::start().await;
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &master.port.number().to_string()]).await;
    let mut sentinels = Vec::new();
    for _ in 0..3 {
        sentinels.push(Redis::sentinel(&master.address(), 2, &[]).await);
    }
    for sentinel in &sentinels {
        let knows_all = async || {
            let master = sentinel.list(&["SENTINEL", "MASTER", "mymaster"]).await;
            let is = |name, value| master.chunks(2).any(|pair| pair == [name, value]);
            is("num-slaves", "1") && is("num-other-sentinels", "2")
        };
        eventually("the Sentinels know each other and the replica", knows_all).await;
    }
    let is_synchronized = async || replica.is_in_replication("master_link_status:up").await;
    eventually("the replica has everything", is_synchronized).await;
    (vec![master, replica], sentinels)
}

fn tier(sentinels: &[&Redis]) -> Shared {
    let mut tier = shared(sentinels.iter().map(|sentinel| sentinel.address()).collect());
    tier.sentinel = Some("mymaster".to_owned());
    tier
}

/// Waits until the two sidecars of `fleet` use `master`.
async fn are_at(master: &Redis, fleet: &Fleet) {
    // The last command of an idle sidecar.
    let count = async || master.text(&["CLIENT", "LIST"]).await.matches("cmd=getrange").count();
    eventually("both are at the new master", async || count().await == 2).await;
    for sidecar in &fleet.sidecars {
        sidecar.tier_is(true).await;
    }
}

#[tokio::test]
async fn a_master_that_is_killed_is_replaced_by_the_one_that_sentinels_promote() {
    let mut servers = Servers::start(Kind::Sentinel).await;
    let fleet = Fleet::with(servers.shared(), 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    a_link_is_shared(one, other).await;
    // With the master goes a Sentinel, the first that is asked.
    drop((servers.nodes.remove(0), servers.sentinels.remove(0)));
    let promoted = async || servers.nodes[0].is_in_replication("role:master").await;
    eventually("the replica is promoted", promoted).await;
    are_at(&servers.nodes[0], &fleet).await;
    a_link_is_shared(one, other).await;
    a_purge_reaches(one, other).await;
    assert!(!servers.nodes[0].keys("l").await.is_empty());
}

#[tokio::test]
async fn a_planned_failover_is_followed_and_sentinels_may_go_while_the_master_stays() {
    let servers = Servers::start(Kind::Sentinel).await;
    for server in servers.nodes.iter().chain(&servers.sentinels) {
        grant_documented_rights(server, servers.sentinels.iter().any(|sentinel| std::ptr::eq(sentinel, server))).await;
    }
    let mut tier = servers.shared();
    let login = || (Some("sidelink".to_owned()), Some(password(b"PASSWORD")));
    (tier.username, tier.password_file) = login();
    (tier.sentinel_username, tier.sentinel_password_file) = login();
    let fleet = Fleet::with(tier, 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    a_link_is_shared(one, other).await;
    servers.sentinels[0].ask(&["SENTINEL", "FAILOVER", "mymaster"]).await;
    for (node, role) in servers.nodes.iter().zip(["slave", "master"]) {
        let has_role = async || node.is_in_replication(&format!("role:{role}")).await;
        eventually("the roles are swapped", has_role).await;
    }
    are_at(&servers.nodes[1], &fleet).await;
    a_link_is_shared(one, other).await;
    a_purge_reaches(one, other).await;
    let Servers { sentinels, nodes: _nodes, .. } = servers;
    drop(sentinels);
    a_link_is_shared(one, other).await;
    a_purge_reaches(other, one).await;
}

#[tokio::test]
async fn a_server_that_says_that_it_is_no_master_is_not_used_whatever_a_sentinel_says() {
    let master = Redis::start().await;
    let replica = ["--replicaof", "127.0.0.1", &master.port.number().to_string(), "--replica-read-only", "no"];
    let replica = Redis::with(&replica).await;
    // The Sentinel keeps its connection to the master; new ones lead to a replica that lets itself be written to.
    let link = Link::to(master.port.number()).await;
    let patient = "sentinel down-after-milliseconds mymaster 600000";
    let sentinel = Redis::sentinel(&link.address(), 1, &[patient]).await;
    let is_seen = async || {
        sentinel
            .list(&["SENTINEL", "MASTER", "mymaster"])
            .await
            .chunks(2)
            .any(|pair| pair == ["role-reported", "master"])
            && master.text(&["CLIENT", "LIST"]).await.contains("name=sentinel")
    };
    eventually("the Sentinel is connected", is_seen).await;
    link.lead_to(replica.port.number());
    let fleet = Fleet::without_waiting(tier(&[&sentinel]), 1, |_| {}, |_| {}).await;
    let sidecar = &fleet.sidecars[0];
    eventually("it is told", async || sidecar.alerts().await.contains("says that it is no master")).await;
    link.lead_to(master.port.number());
    sidecar.tier_is(true).await;
}

#[tokio::test]
async fn sentinels_have_a_login_of_their_own() {
    let master = Redis::with(&["--requirepass", "of the servers"]).await;
    let lines = ["requirepass of-the-sentinels", "sentinel auth-pass mymaster \"of the servers\""];
    let sentinel = Redis::sentinel(&master.address(), 1, &lines).await;
    let mut tier = tier(&[&sentinel]);
    tier.password_file = Some(password(b"of the servers"));
    let told = async |tier: &Shared, words: &str| {
        let fleet = Fleet::without_waiting(tier.clone(), 1, |_| {}, |_| {}).await;
        eventually(words, async || fleet.sidecars[0].alerts().await.contains(words)).await;
    };
    let keys = "shared.sentinel_username and shared.sentinel_password_file";
    told(&tier, &format!("wants a login: set {keys}")).await;
    tier.sentinel_password_file = Some(password(b"of the servers"));
    told(&tier, &format!("refuses the login: check {keys}")).await;
    tier.sentinel_password_file = Some(password(b"of-the-sentinels"));
    let fleet = Fleet::with(tier.clone(), 1, |_| {}, |_| {}).await;
    assert_eq!(fleet.sidecars[0].client.batch("t", &["1"]).await.ids(), ["1"]);
    tier.sentinel = Some("another".to_owned());
    told(&tier, "knows no master of the name in shared.sentinel").await;
    let mut plain = shared(vec![sentinel.address()]);
    plain.password_file = Some(password(b"of-the-sentinels"));
    told(&plain, "the server does not know EXPIRE: is it Redis or Valkey, and no Sentinel?").await;
    tier.sentinel = Some("mymaster".to_owned());
    tier.url[0].address = NodeAddress::tcp("127.0.0.1", master.port.number());
    tier.sentinel_password_file = Some(password(b"of the servers"));
    told(&tier, "is no Sentinel").await;
}
