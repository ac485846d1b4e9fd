//! A Cluster, also while it changes.

use super::journal::{purge_ids, sum};
use super::servers::{grant_documented_rights, password};
use super::{Fleet, Redis, SECRET, Sidecar, eventually, shared};
use crate::process::{Files, Process};
use crate::support::TestClient;

/// A node of a Cluster that has nothing yet.
async fn node() -> Redis {
    Redis::with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]).await
}

/// Three nodes of a Cluster.
pub async fn cluster() -> Vec<Redis> {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(node().await);
    }
    let addresses: Vec<String> = nodes.iter().map(|node| node.address().to_string()).collect();
    let created = std::process::Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&addresses)
        .args(["--cluster-replicas", "0", "--cluster-yes"])
        .output()
        .unwrap();
    assert!(created.status.success(), "{created:?}");
    nodes
}

#[tokio::test]
async fn a_cluster_of_three_nodes_shares_over_all_of_them() {
    let nodes = cluster().await;
    let mut tier = shared(vec![nodes[0].address()]);
    tier.cluster = true;
    let fleet = Fleet::with(tier, 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    let ids: Vec<String> = (0..60).map(|id| id.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let links = one.client.batch("t", &ids).await.links();
    let count = async || {
        let mut counts = Vec::new();
        for node in &nodes {
            counts.push(node.keys("l").await.len());
        }
        counts
    };
    eventually("all are shared", async || count().await.iter().sum::<usize>() == 60).await;
    assert!(count().await.iter().all(|count| *count > 0), "{:?}", count().await);
    const RELEASE: &str = r#"sidelink_shared_operations_total{operation="release"}"#;
    eventually("the leases are released", async || one.metric(RELEASE).await > 0.0).await;
    assert_eq!(one.failures("reply").await, 0.0, "by a script for each, as their slots differ");
    let reply = other.client.batch("t", &ids).await;
    assert_eq!((reply.links(), reply.header("cache-status")), (links, "sidelink; hit; detail=shared"));
    let headers = [("x-auth-token", "t")];
    one.client.send(http::Method::DELETE, "/v2/servicerequest/accessorys/7", &headers, "").await;
    eventually("purges reach all", async || {
        let asked = [("x-auth-token", "t"), ("cache-control", "only-if-cached")];
        other.client.get(&crate::support::query(&["7"]), &asked).await.status == 504
    })
    .await;
}

/// The journal and the one that continues it are in one slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_journal_is_continued_in_a_cluster_too() {
    let nodes = cluster().await;
    let mut tier = shared(vec![nodes[0].address()]);
    tier.cluster = true;
    let fleet = Fleet::with(tier, 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    for from in [0, 3500, 7000] {
        purge_ids(one, from, 3500).await;
        eventually("the fleet is told", async || one.metric("sidelink_shared_untold_records").await == 0.0).await;
    }
    eventually("it is continued", async || sum(&fleet, "sidelink_shared_journals_full_total").await == 1.0).await;
    a_purge_reaches(one, other).await;
    assert_eq!(sum(&fleet, r#"sidelink_shared_failures_total{kind="journal"}"#).await, 0.0, "nothing is lost");
    assert_eq!(sum(&fleet, "sidelink_shared_purges_merged_total").await, 0.0);
}

/// Purges everything at `one`, and waits until `other` hears it.
pub async fn a_purge_reaches(one: &Sidecar, other: &Sidecar) {
    let id = rand::random::<u32>().to_string();
    other.client.batch("t", &[&id]).await;
    let admin = TestClient::new(one.app.admin_address());
    let json = [("content-type", "application/json")];
    assert_eq!(admin.send(http::Method::POST, "/purge", &json, r#"{"all":true}"#).await.status, 200);
    let cached = [("x-auth-token", "t"), ("cache-control", "only-if-cached")];
    let is_gone = async || other.client.get(&crate::support::query(&[&id]), &cached).await.status == 504;
    eventually("the purge is heard", is_gone).await;
}

/// What one fetches, the other has from the tier.
pub async fn a_link_is_shared(one: &Sidecar, other: &Sidecar) {
    // In a Cluster a lease may end before its value is written at another node: the next id is shared.
    eventually("a link is shared", async || {
        let id = rand::random::<u32>().to_string();
        one.client.batch("t", &[&id]).await;
        other.client.batch("t", &[&id]).await.header("cache-status") == "sidelink; hit; detail=shared"
    })
    .await;
}

#[tokio::test]
async fn a_slot_that_is_being_moved_to_a_new_node_costs_no_round_trip() {
    let (nodes, newcomer) = (cluster().await, node().await);
    let (port, bus) = (newcomer.port.number().to_string(), newcomer.bus.number().to_string());
    nodes[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await;
    let all = || nodes.iter().chain([&newcomer]);
    for node in all() {
        let known = async || {
            let text = node.text(&["CLUSTER", "INFO"]).await;
            text.contains("cluster_known_nodes:4") && text.contains("cluster_state:ok")
        };
        eventually("the nodes know each other", known).await;
        grant_documented_rights(node, false).await;
    }
    let mut tier = shared(vec![nodes[0].address()]);
    tier.cluster = true;
    tier.username = Some("sidelink".into());
    tier.password_file = Some(password(b"PASSWORD"));
    let fleet = Fleet::with(tier, 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    a_link_is_shared(one, other).await;

    // The slot of the journal, which each look-up asks for. Its keys move first, and the slot in the end.
    let mut owner = None;
    for node in &nodes {
        if let [journal] = &node.keys("j").await[..] {
            owner = Some((node, journal.clone()));
        }
    }
    let (owner, journal) = owner.unwrap();
    let slot = owner.number(&["CLUSTER", "KEYSLOT", &journal]).await.to_string();
    let (from, to) = (owner.text(&["CLUSTER", "MYID"]).await, newcomer.text(&["CLUSTER", "MYID"]).await);
    newcomer.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from]).await;
    owner.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to]).await;
    a_link_is_shared(one, other).await;
    owner.ask(&["MIGRATE", "127.0.0.1", &port, &journal, "0", "5000"]).await;
    for _ in 0..3 {
        a_link_is_shared(one, other).await;
        a_purge_reaches(one, other).await;
        a_purge_reaches(other, one).await;
    }
    assert_eq!(newcomer.keys("j").await, [journal], "the slot is still being moved");
    for node in [&newcomer, owner].into_iter().chain(&nodes) {
        node.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]).await;
    }
    a_link_is_shared(one, other).await;
    a_purge_reaches(one, other).await;
    for sidecar in [one, other] {
        for kind in ["connect", "timeout", "broken", "reply", "journal"] {
            assert_eq!(sidecar.failures(kind).await, 0.0, "{kind}");
        }
    }
}

#[tokio::test]
async fn nodes_that_do_not_know_their_host_are_at_the_host_that_was_asked() {
    let nodes = cluster().await;
    for node in &nodes {
        // None has a hostname: it announces "?".
        node.ask(&["CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname"]).await;
    }
    let slots = format!("{:?}", nodes[0].ask(&["CLUSTER", "SLOTS"]).await);
    assert!(slots.contains("bulk-string('\"?\"')"), "{slots}");
    let mut tier = shared(vec![nodes[0].address()]);
    tier.cluster = true;
    let fleet = Fleet::with(tier, 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    for _ in 0..10 {
        a_link_is_shared(one, other).await;
    }
    a_purge_reaches(one, other).await;
}

/// Regression: the tier went on with the other nodes, and nothing said which one was down.
#[tokio::test]
async fn a_node_that_is_down_is_named_in_the_log_and_on_the_page_until_it_is_back() {
    let nodes = cluster().await;
    for node in &nodes {
        node.ask(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]).await;
    }
    let origin = sidelink::demo::origin::Origin::start(crate::support::origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let secret = files.directory.path().join("fleet-secret");
    std::fs::write(&secret, SECRET).unwrap();
    let url = format!("url = \"redis://{}\"\ncluster = true", nodes[0].address());
    let config = format!("[shared]\n{url}\nsecret_file = {secret:?}\ntimeout = \"300ms\"");
    let mut process = Process::start(&files.write(&config)).await;
    process.says("the shared tier is in use").await;
    let mut other = None;
    for node in &nodes {
        if node.keys("j").await.is_empty() {
            other = Some(node);
        }
    }
    let node = other.unwrap();
    node.signal("-STOP");
    let down = "a node of the shared tier is down";
    eventually("it is noticed", async || {
        process.client.batch("t", &[&rand::random::<u32>().to_string()]).await;
        let status = process.admin.get("/status.json", &[]).await.json();
        let alert = &status["alerts"][0];
        alert["title"] == "A node of the shared tier is down"
            && alert["text"].as_str().unwrap().starts_with(&format!("{}: ", node.address()))
    })
    .await;
    let line = process.says(down).await;
    assert_eq!(
        (line["server"].as_str().unwrap(), line["level"].as_str().unwrap()),
        (&*node.address().to_string(), "WARN")
    );
    node.signal("-CONT");
    let line = process.says("a node of the shared tier is in use again").await;
    assert_eq!(line["server"], node.address().to_string());
    let lines = process.log.iter().filter(|line| line["message"] == down);
    assert_eq!(lines.count(), 1);
}
