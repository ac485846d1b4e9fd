//! However low the limit of open files is, idle clients keep neither operators nor calls from their descriptors.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sidelink::demo::origin::Origin;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::process::{Files, Process};
use crate::support::eventually;
use crate::support::{TestClient, origin_options};

/// `sidelink serve` under this `ulimit`.
async fn limited(ulimit: &str, config: &Path) -> Process {
    let run = format!("ulimit {ulimit} && exec \"$0\" serve --config \"$1\"");
    Process::spawn(Command::new("sh").args(["-c", &run, env!("CARGO_BIN_EXE_sidelink")]).arg(config)).await
}

#[tokio::test]
async fn the_soft_limit_is_raised_so_that_idle_clients_delay_nobody() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let process = limited("-Sn 256", &Files::new(origin.address()).write("")).await;
    let mut idle = Vec::new();
    for _ in 0..600 {
        idle.push(TcpStream::connect(process.address).await.unwrap());
    }
    let answers = async {
        let new = TestClient::new(process.address);
        assert_eq!(new.batch("t", &["1"]).await.status, 200);
        assert_eq!(process.admin.get("/livez", &[]).await.status, 200);
    };
    timeout(Duration::from_secs(30), answers).await.unwrap();
    assert_eq!(process.metric("sidelink_limit{limit=\"connections\"}").await, 10_000.0);
}

#[tokio::test]
async fn under_a_low_hard_limit_fewer_clients_are_served_and_a_warning_has_the_numbers() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let mut process = limited("-n 256", &Files::new(origin.address()).write("")).await;
    let warning = process.says("the limit of open files is lower than the configured limits need").await;
    assert_eq!(
        (&warning["limit"], &warning["needed"], &warning["connections"]),
        (&256.into(), &12_384.into(), &128.into())
    );
    let status = process.admin.get("/status.json", &[]).await.json();
    let alert = &status["alerts"][0];
    assert_eq!((&alert["kind"], &alert["severity"]), (&"descriptors".into(), &"warning".into()), "{status}");
    let text = alert["text"].as_str().unwrap();
    assert!(
        ["128 connections", "in place of 10000", "256 files", "12384"].iter().all(|number| text.contains(number)),
        "{text}"
    );
    // Connected before the others come.
    assert_eq!(process.client.batch("t", &["1"]).await.status, 200);
    let mut idle = Vec::new();
    for _ in 0..600 {
        idle.push(TcpStream::connect(process.address).await.unwrap());
    }
    let used = "sidelink_limit_used{limit=\"connections\"}";
    eventually("as many are served as are allowed", async || process.metric(used).await == 128.0).await;
    assert_eq!(process.metric("sidelink_limit{limit=\"connections\"}").await, 128.0);
    // A miss needs a call, an operator's request a connection.
    assert_eq!(process.client.batch("t", &["2"]).await.status, 200);
    for _ in 0..20 {
        assert_eq!(TestClient::new(process.admin.address).get("/livez", &[]).await.status, 200);
    }
    assert!(!process.logged("a connection could not be accepted"));
}
