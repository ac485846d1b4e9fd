//! A successor takes over while clients connect: none is refused, and none loses its answer.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sidelink::demo::origin::Origin;

use crate::load::{Load, Transport};
use crate::process::{Files, Process};
use crate::support::{TestClient, eventually, origin_options};

/// `sidelink serve` with these sockets, for clients and for operators, as systemd passes them.
async fn with_sockets(config: &Path, clients: &TcpListener, operators: &TcpListener) -> Process {
    let run = "exec 3<&0 4<&2 0</dev/null 2>/dev/null
        LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=clients:admin exec \"$0\" serve --config \"$1\"";
    let passed = |socket: &TcpListener| OwnedFd::from(socket.try_clone().unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", run, env!("CARGO_BIN_EXE_sidelink")]).arg(config);
    Process::spawn(command.stdin(passed(clients)).stderr(passed(operators))).await
}

/// Waits until operators' requests reach a process that is ready, and no longer the one that drains.
async fn operators_reach_the_successor(admin: SocketAddr) {
    let is_ready = async || TestClient::new(admin).try_get("/readyz").await.is_some_and(|reply| reply.status == 200);
    let mut ready = 0;
    eventually("operators reach the successor", async || {
        ready = if is_ready().await { ready + 1 } else { 0 };
        ready == 20
    })
    .await;
}

#[tokio::test]
async fn sockets_of_the_service_manager_pass_from_process_to_process_and_nothing_is_lost() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let config = files.write("");
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (clients, operators) = (bind(), bind());
    let address = clients.local_addr().unwrap();
    let mut running = with_sockets(&config, &clients, &operators).await;
    assert_eq!((running.address, running.admin.address), (address, operators.local_addr().unwrap()));
    let load = Load::start(&[Transport::Tcp(address)]);
    for _ in 0..3 {
        load.goes_on(200).await;
        let successor = with_sockets(&config, &clients, &operators).await;
        running.signal("TERM");
        assert_eq!(running.exit().await, Some(0));
        running = successor;
    }
    // Nobody accepts for a while.
    running.signal("TERM");
    assert_eq!(running.exit().await, Some(0));
    let mut last = with_sockets(&config, &clients, &operators).await;
    load.goes_on(200).await;
    load.may_end();
    last.signal("TERM");
    load.all_told().await;
    assert_eq!(last.exit().await, Some(0));
}

/// So that a purge reaches the process that goes on.
#[tokio::test]
async fn a_process_that_drains_leaves_operators_to_its_successor() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (clients, operators) = (bind(), bind());
    let config = files.write("");
    let mut drained = with_sockets(&config, &clients, &operators).await;
    // What it drains for: a batch that the endpoint does not answer yet.
    origin.update(|options| options.delay = Duration::from_secs(60));
    let client = drained.client.clone();
    let waiting = tokio::spawn(async move { client.batch("t", &["1"]).await });
    let in_flight = "sidelink_limit_used{limit=\"in_flight\"}";
    eventually("it is under way", async || drained.metric(in_flight).await == 1.0).await;
    let successor = with_sockets(&config, &clients, &operators).await;
    drained.signal("TERM");
    drained.says("draining").await;
    operators_reach_the_successor(operators.local_addr().unwrap()).await;
    assert_eq!(successor.metric(in_flight).await, 0.0);
    assert!(!drained.logged("stopped"), "{:#?}", drained.log);
    assert!(!waiting.is_finished(), "{:?}", waiting.await);
    waiting.abort();
}

#[tokio::test]
async fn with_reuse_port_a_successor_listens_beside_the_process_that_it_replaces() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let mut old = Process::start(&files.write("listen.reuse_port = true")).await;
    let taken = |reuse_port: bool| {
        let text = files.text(&format!("listen.reuse_port = {reuse_port}"));
        let text = text.replacen("127.0.0.1:0", &old.address.to_string(), 1);
        std::fs::write(files.path(), text.replacen("127.0.0.1:0", &old.admin.address.to_string(), 1)).unwrap();
    };
    taken(false);
    let mut refused = Command::new(env!("CARGO_BIN_EXE_sidelink"));
    let refused = refused.args(["serve", "--config"]).arg(files.path()).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("end what listens there"));
    taken(true);
    let new = Process::start(&files.path()).await;
    assert_eq!((new.address, new.admin.address), (old.address, old.admin.address));
    old.signal("TERM");
    assert_eq!(old.exit().await, Some(0));
    for _ in 0..50 {
        assert_eq!(TestClient::new(new.address).batch("t", &["1"]).await.status, 200);
    }
}

#[tokio::test]
async fn a_passed_descriptor_that_is_no_socket_is_refused_with_its_number() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let config = Files::new(origin.address());
    let run = "exec 3</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve --config \"$1\"";
    let mut command = Command::new("sh");
    let refused = command.args(["-c", run, env!("CARGO_BIN_EXE_sidelink")]).arg(config.write("")).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.starts_with("sidelink: LISTEN_FDS: ") && told.contains("fd 3"), "{told}");
}
