//! A process is ready while it serves. A signal to stop loses no request: what is in flight is finished, clients are told, and
//! the process ends in time.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::Duration;

use http::StatusCode;
use sidelink::demo::origin::Origin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load::{Load, Transport};
use crate::process::{Files, Process, signal};
use crate::support::{eventually, origin_options, query, raw};

const CUT_OFF: &str = "limits.drain has passed: remaining connections are closed";

async fn before_an_endpoint(more: &str) -> (Origin, Files, Process) {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let process = Process::start(&files.write(more)).await;
    (origin, files, process)
}

fn request(ids: &[&str]) -> String {
    format!("GET {} HTTP/1.1\r\nhost: sidelink\r\nx-auth-token: t\r\n\r\n", query(ids))
}

/// One answer's head and body.
async fn answer(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    while !text.ends_with("]}") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1, "closed after {text:?}");
        text.push(byte[0] as char);
    }
    text
}

#[tokio::test]
async fn a_signal_to_stop_finishes_what_is_in_flight_and_tells_idle_clients() {
    let (origin, _files, mut process) = before_an_endpoint("").await;
    assert_eq!(process.admin.get("/readyz", &[]).await.status, 200);
    process.client.batch("t", &["1"]).await;
    let mut idle = TcpStream::connect(process.address).await.unwrap();
    idle.write_all(request(&["1"]).as_bytes()).await.unwrap();
    assert!(!answer(&mut idle).await.contains("connection: close"));
    origin.hold();
    let mut busy = TcpStream::connect(process.address).await.unwrap();
    busy.write_all(request(&["1", "2"]).as_bytes()).await.unwrap();
    origin.arrived(2).await;

    process.signal("TERM");
    process.says("draining").await;
    // This client has not been told yet, and may ask for another second.
    idle.write_all(request(&["1"]).as_bytes()).await.unwrap();
    assert!(answer(&mut idle).await.contains("connection: close"));
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    eventually("it no longer listens", async || TcpStream::connect(process.address).await.is_err()).await;
    assert_eq!(process.admin.get("/readyz", &[]).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(process.admin.get("/livez", &[]).await.status, 200);
    assert!(process.metric("sidelink_connections").await > 0.0, "operators see it to the end");
    origin.release();
    assert!(answer(&mut busy).await.contains("connection: close"));
    assert_eq!(process.exit().await, Some(0));
}

#[tokio::test]
async fn what_is_in_flight_after_limits_drain_is_cut_off() {
    let (origin, _files, mut process) = before_an_endpoint("limits.drain = \"300ms\"").await;
    origin.hold();
    let mut busy = TcpStream::connect(process.address).await.unwrap();
    busy.write_all(request(&["1"]).as_bytes()).await.unwrap();
    origin.arrived(1).await;
    process.signal("INT");
    process.says("draining").await;
    assert_eq!(process.exit().await, Some(0));
    assert!(process.logged(CUT_OFF));
    let mut rest = Vec::new();
    let _ = busy.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() {
    let (origin, _files, mut process) = before_an_endpoint("limits.drain = \"1h\"").await;
    origin.hold();
    let mut busy = TcpStream::connect(process.address).await.unwrap();
    busy.write_all(request(&["1"]).as_bytes()).await.unwrap();
    origin.arrived(1).await;
    process.signal("TERM");
    process.says("draining").await;
    process.signal("TERM");
    assert_eq!(process.exit().await, Some(1));
}

#[tokio::test]
async fn the_port_is_free_for_the_next_process_at_once() {
    let (_origin, files, mut process) = before_an_endpoint("").await;
    // sidelink closes first, so the system keeps the connection in TIME_WAIT for a minute.
    let close = request(&["1"]).replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    assert!(raw(process.address, close.as_bytes()).await.starts_with("HTTP/1.1 200"));
    let text = files.text("").replacen("127.0.0.1:0", &process.address.to_string(), 1);
    process.signal("TERM");
    assert_eq!(process.exit().await, Some(0));
    std::fs::write(files.path(), text).unwrap();
    let next = Process::start(&files.path()).await;
    assert_eq!(next.address, process.address);
    assert_eq!(next.client.batch("t", &["1"]).await.ids(), ["1"]);
}

#[tokio::test]
async fn systemd_is_notified_of_each_step() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let path = files.directory.path().join("notify");
    // In the abstract namespace there is no file, and the name begins with a zero byte, written as @.
    let name = format!("sidelink-test-{}", std::process::id());
    let by_name = SocketAddr::from_abstract_name(&name).unwrap();
    for (socket, address) in [
        (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap()),
        (UnixDatagram::bind_addr(&by_name).unwrap(), &format!("@{name}")),
    ] {
        let notified = Notified(socket);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidelink"));
        command.args(["serve", "--config"]).arg(files.write("")).env("NOTIFY_SOCKET", address);
        let mut process = Process::spawn(&mut command).await;
        let serving = format!("READY=1\nSTATUS=serving {} before http://{}\n", process.address, origin.address());
        assert_eq!(notified.next(), serving);
        process.signal("HUP");
        let reloading = notified.next();
        let at = reloading.strip_prefix("RELOADING=1\nSTATUS=reloading the configuration\nMONOTONIC_USEC=").unwrap();
        assert!(at.trim_end().parse::<u64>().unwrap() > 0);
        assert_eq!(notified.next(), serving);
        files.write("cache.capacity = \"one\"");
        process.signal("HUP");
        assert!(notified.next().starts_with("RELOADING=1"));
        let refused = notified.next();
        assert!(refused.starts_with("READY=1\nSTATUS=serving ") && refused.contains("refused"), "{refused}");
        assert!(refused.contains("cache.capacity"), "{refused}");
        process.signal("TERM");
        assert_eq!(notified.next(), "STOPPING=1\nSTATUS=draining: answering what is in flight\n");
        assert_eq!(process.exit().await, Some(0));
    }
}

/// What a service manager is told.
struct Notified(UnixDatagram);

impl Notified {
    fn next(&self) -> String {
        self.0.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut bytes = [0; 1024];
        let length = self.0.recv(&mut bytes).unwrap();
        format!("{}\n", String::from_utf8(bytes[..length].to_vec()).unwrap().trim_end())
    }
}

#[tokio::test]
async fn the_watchdog_is_fed_while_tasks_run_and_not_by_a_process_that_is_stopped() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let path = files.directory.path().join("notify");
    let notified = Notified(UnixDatagram::bind(&path).unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidelink"));
    command.args(["serve", "--config"]).arg(files.write("")).env("NOTIFY_SOCKET", &path);
    let process = Process::spawn(command.env("WATCHDOG_USEC", "200000")).await;
    assert!(notified.next().starts_with("READY=1"));
    for _ in 0..5 {
        assert_eq!(notified.next(), "WATCHDOG=1\n");
    }
    process.signal("STOP");
    notified.0.set_nonblocking(true).unwrap();
    while notified.0.recv(&mut [0; 1024]).is_ok() {}
    notified.0.set_nonblocking(false).unwrap();
    notified.0.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(notified.0.recv(&mut [0; 1024]).is_err(), "a stopped process feeds it");
}

#[tokio::test]
async fn the_first_process_of_a_container_handles_signals() {
    // To the first process of a namespace, a signal without a handler does nothing.
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child"]);
        command
    };
    if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: pid namespaces are not allowed on this machine");
        return;
    }
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let mut command = unshare();
    command.args([env!("CARGO_BIN_EXE_sidelink"), "serve", "--config"]).arg(files.write(""));
    let mut process = Process::spawn(&mut command).await;
    let outside = process.id();
    let children = std::fs::read_to_string(format!("/proc/{outside}/task/{outside}/children")).unwrap();
    let sidelink: u32 = children.trim().parse().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{sidelink}/status")).unwrap();
    assert!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")), "{status}");
    signal(sidelink, "HUP");
    process.says("the configuration was reloaded").await;
    signal(sidelink, "TERM");
    assert_eq!(process.exit().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_reload_no_refused_configuration_and_no_drain_loses_a_request() {
    let (_origin, files, mut process) = before_an_endpoint("log.access = false").await;
    let load = Load::start(&[Transport::Tcp(process.address)]);
    load.goes_on(200).await;
    files.write("log.access = false\nfreshness.max = \"5m\"\nupstream.calls = 8\nlimits.connections = 500");
    process.signal("HUP");
    process.says("the configuration was reloaded").await;
    load.goes_on(200).await;
    files.write("log.access = false\nfreshness.max = \"forever\"");
    process.signal("HUP");
    process.says("the configuration was refused; the previous one stays in effect").await;
    load.goes_on(200).await;
    load.may_end();
    process.signal("TERM");
    load.all_told().await;
    assert_eq!(process.exit().await, Some(0));
    assert!(!process.logged(CUT_OFF), "clients that were told close by themselves");
}

#[tokio::test]
async fn requests_are_served_by_as_many_threads_as_configured() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    // One thread is the main thread. At any time there may be one more, for blocking work; its name is the same.
    for (threads, expected) in [(1, 0..=1), (4, 4..=5)] {
        let process = Process::start(&files.write(&format!("runtime.threads = {threads}"))).await;
        assert_eq!(process.client.batch("t", &["1"]).await.status, 200);
        let tasks = std::fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
        let name =
            |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.unwrap().path().join("comm"));
        let names: Vec<String> = tasks.filter_map(|task| name(task).ok()).collect();
        let workers = names.iter().filter(|name| name.starts_with("tokio-rt-worker")).count();
        assert!(expected.contains(&workers), "{names:?}");
    }
}
