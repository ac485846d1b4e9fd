//! Every address of the endpoint's name is tried, and a name that moves to another address is followed. Each test runs the program
//! with its own /etc/hosts, in a mount namespace.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::flaky_endpoint::{Act, Flaky, OTHER_ROUTE, serves};
use crate::process::Process;
use crate::support::Reply;
use crate::tls::write;

/// The endpoint's name.
const NAME: &str = "endpoint.test";

/// A running program that sees this name.
struct Named {
    process: Process,
    hosts: PathBuf,
    _files: TempDir,
}

impl Named {
    /// Before `http://endpoint.test:PORT`, with these lines in `[upstream]`.
    async fn start(addresses: &[&str], port: u16, more: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let hosts = write(&files, "hosts", &hosts_file(addresses));
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[upstream]\nendpoint = \"http://{NAME}:{port}\"\n{more}\n"
        );
        let path = write(&files, "sidelink.toml", &text);
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--mount", "sh", "-c", r#"mount --bind "$1" /etc/hosts && shift && exec "$@""#, "sh"]);
        command.arg(&hosts).args([env!("CARGO_BIN_EXE_sidelink"), "serve", "--config"]).arg(path);
        Self { process: Process::spawn(&mut command).await, hosts, _files: files }
    }

    /// The name has these addresses from now on. The file stays the same one: another would not be seen.
    fn moves_to(&self, addresses: &[&str]) {
        std::fs::write(&self.hosts, hosts_file(addresses)).unwrap();
    }

    async fn batch(&self, id: &str) -> Reply {
        self.process.client.batch("t", &[id]).await
    }

    async fn gets(&self, id: &str) {
        let reply = self.batch(id).await;
        assert!(serves(&reply, "t", &[id]), "{id}: {reply:?}");
    }
}

fn hosts_file(addresses: &[&str]) -> String {
    addresses.iter().fold("127.0.0.1 localhost\n".to_owned(), |text, address| text + address + " " + NAME + "\n")
}

/// Serves at this address and port, and closes each connection after its answer.
async fn closing(address: &str, port: u16) -> Flaky {
    Flaky::on(TcpListener::bind((address, port)).await.unwrap(), |_| async { Act::AnswerAndClose })
}

async fn keeping(address: &str, port: u16) -> Flaky {
    Flaky::on(TcpListener::bind((address, port)).await.unwrap(), |_| async { Act::Answer })
}

/// An address that drops SYNs: the queue of its listener is full.
struct BlackHole {
    port: u16,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    async fn start(address: &str) -> Self {
        let address: IpAddr = address.parse().unwrap();
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
        socket.bind(SocketAddr::new(address, 0)).unwrap();
        let listener = socket.listen(0).unwrap();
        let at = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(connected) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(at)).await {
            queued.push(connected.unwrap());
            assert!(queued.len() < 16, "the queue does not fill");
        }
        Self { port: at.port(), _listener: listener, _queued: queued }
    }
}

#[tokio::test]
async fn an_address_that_swallows_connections_does_not_hide_the_next_one() {
    let black_hole = BlackHole::start("127.0.0.2").await;
    let endpoint = closing("127.0.0.3", black_hole.port).await;
    // Half of it for each address.
    let timeout = "connect_timeout = \"6s\"";
    let named = Named::start(&["127.0.0.2", "127.0.0.3"], black_hole.port, timeout).await;
    named.gets("first").await;
    // The address that has answered is tried first from now on.
    let began = Instant::now();
    for batch in 0..3 {
        named.gets(&format!("id-{batch}")).await;
    }
    let reply = named.process.client.get(OTHER_ROUTE, &[]).await;
    assert_eq!(reply.status, 200);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(endpoint.connections(), 5);
}

#[tokio::test]
async fn an_ipv6_address_that_swallows_connections_does_not_hide_the_ipv4_one() {
    if TcpListener::bind("[::1]:0").await.is_err() {
        println!("this machine has no IPv6");
        return;
    }
    let black_hole = BlackHole::start("::1").await;
    let _endpoint = closing("127.0.0.3", black_hole.port).await;
    let named = Named::start(&["::1", "127.0.0.3"], black_hole.port, "").await;
    for batch in 0..3 {
        named.gets(&format!("id-{batch}")).await;
    }
}

#[tokio::test]
async fn addresses_that_refuse_do_not_hide_the_one_that_serves() {
    let endpoint = closing("127.0.0.9", 0).await;
    let port = endpoint.address.port();
    let named = Named::start(&["127.0.0.6", "127.0.0.7", "127.0.0.8", "127.0.0.9"], port, "").await;
    for batch in 0..5 {
        named.gets(&format!("id-{batch}")).await;
    }
}

#[tokio::test]
async fn an_address_that_is_lost_is_replaced_by_another_of_the_same_name() {
    // The first resets every connection that was kept, and then refuses new ones.
    let listener = TcpListener::bind("127.0.0.10:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let first = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(listener);
        let body = format!(
            r#"{{"accessory_urls":[{{"accessory_id":"first","accessory_url":"{}"}}]}}"#,
            crate::flaky_endpoint::link("t", "first")
        );
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut buffer = [0; 4096];
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await;
        tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await;
        stream.set_zero_linger().unwrap();
    });
    let endpoint = keeping("127.0.0.11", port).await;
    let named = Named::start(&["127.0.0.10", "127.0.0.11"], port, "").await;
    named.gets("first").await;
    for batch in 0..5 {
        named.gets(&format!("id-{batch}")).await;
    }
    first.await.unwrap();
    assert!(endpoint.count(|asked| !asked.ids.is_empty()) >= 5);
}

#[tokio::test]
async fn a_name_that_moves_is_followed_and_no_batch_fails() {
    let old = keeping("127.0.0.4", 0).await;
    let port = old.address.port();
    let new = keeping("127.0.0.5", port).await;
    let named = Named::start(&["127.0.0.4"], port, "max_connection_age = \"1s\"").await;
    named.gets("before").await;
    assert_eq!(named.process.client.get(OTHER_ROUTE, &[]).await.status, 200);
    named.moves_to(&["127.0.0.5"]);
    let is_followed = || new.count(|asked| !asked.ids.is_empty()) > 0 && new.count(|asked| asked.ids.is_empty()) > 0;
    let began = Instant::now();
    for batch in 0.. {
        if is_followed() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(15), "the old address is still asked");
        named.gets(&format!("id-{batch}")).await;
        assert_eq!(named.process.client.get(OTHER_ROUTE, &[]).await.status, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let asked_before = old.count(|asked| !asked.ids.is_empty());
    for batch in 0..10 {
        named.gets(&format!("moved-{batch}")).await;
    }
    assert_eq!(old.count(|asked| !asked.ids.is_empty()), asked_before);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_for_a_while_keeps_its_last_address() {
    let endpoint = closing("127.0.0.12", 0).await;
    let port = endpoint.address.port();
    let named = Named::start(&["127.0.0.12"], port, "").await;
    named.gets("before").await;
    named.moves_to(&[]);
    for batch in 0..6 {
        named.gets(&format!("lost-{batch}")).await;
    }
}
