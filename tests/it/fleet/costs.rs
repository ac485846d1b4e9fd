//! What a batch and a link cost the server, as docs/FLEET.md has it.

use super::{Fleet, Redis, eventually};

/// The number that follows `name` in a section of INFO.
pub async fn info(redis: &Redis, section: &str, name: &str) -> u64 {
    let info = redis.text(&["INFO", section]).await;
    let number = info.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.split(',').next().unwrap());
    number.map_or(0, |number| number.trim().parse().unwrap())
}

/// Calls of each command, those in scripts included, and bytes received.
async fn received(redis: &Redis) -> Vec<u64> {
    let mut counts = Vec::new();
    for command in ["set", "del", "eval", "mget", "get", "pexpire"] {
        counts.push(info(redis, "commandstats", &format!("cmdstat_{command}:calls=")).await);
    }
    counts.push(info(redis, "stats", "total_net_input_bytes:").await);
    counts
}

#[tokio::test]
async fn a_batch_of_20_that_nobody_has_costs_the_server_44_commands_and_a_link_728_bytes() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(&redis, 1).await;
    let client = &fleet.sidecars[0].client;
    let links = async |count| {
        let is_so = async || redis.keys("l").await.len() == count && redis.keys("f").await.is_empty();
        eventually("they are shared, and their leases released", is_so).await;
    };
    client.batch("t", &["0"]).await;
    links(1).await;

    let ids: Vec<String> = (100..120).map(|id| id.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let before = received(&redis).await;
    client.batch("t", &ids).await;
    links(21).await;
    let after = received(&redis).await;
    let spent: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    println!("set, del, eval, mget, get, pexpire, bytes: {spent:?}");
    // A lease and a link for each, and the acceptance; two looks, and one in the script that releases.
    assert_eq!(spent[..6], [41, 1, 1, 3, 0, 0]);
    // With 2 KB of the test's own, and whatever looks into the journal come between.
    assert!(spent[6] < 23_000, "{spent:?}");

    for key in redis.keys("l").await {
        let memory = redis.number(&["MEMORY", "USAGE", &key]).await;
        println!("{key}: {memory} bytes");
        assert!(memory <= 728, "{memory}");
    }
}
