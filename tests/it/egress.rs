//! With `upstream.proxy`, all requests to the endpoint go through that proxy's tunnel. A fault of the proxy is a failure to connect,
//! and its reason is in the log alone.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use sidelink::app::App;
use sidelink::config::{Config, Endpoint, Secret, StoredSecret};
use sidelink::demo::origin::Origin;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{LOOPBACK, TestClient, config, origin_options};
use crate::tls::{Authority, Secured, write};

/// An HTTP proxy that knows CONNECT and nothing else, and remembers the heads that it was sent.
pub struct EgressProxy {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl EgressProxy {
    /// Answers with this head. After a 200 the tunnel leads to `target`, for any requested authority.
    pub async fn start(answer: &'static str, target: SocketAddr) -> Self {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let (mut stream, mut head) = (BufReader::new(stream), String::new());
                    while !head.ends_with("\r\n\r\n") {
                        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    seen.lock().unwrap().push(head);
                    let _ = stream.write_all(answer.as_bytes()).await;
                    if answer.is_empty() {
                        // No answer; the connection stays open until the other side closes it.
                        let _ = stream.read_line(&mut String::new()).await;
                    }
                    if answer.starts_with("HTTP/1.1 200") {
                        let mut onward = TcpStream::connect(target).await.unwrap();
                        let _ = copy_bidirectional(&mut stream, &mut onward).await;
                    }
                });
            }
        });
        Self { address, heads }
    }

    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    fn named_in(&self, config: &mut Config) {
        let address = Endpoint::parse(&format!("http://{}", self.address)).unwrap();
        config.upstream.proxy = Some(address);
    }
}

pub const OPEN: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

#[tokio::test]
async fn batches_and_other_routes_reach_an_https_endpoint_through_the_proxy() {
    let (files, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let secured = Secured::start(&authority.issue("localhost"), &[b"h2", b"http/1.1"]).await;
    let proxy = EgressProxy::start(OPEN, SocketAddr::from(([127, 0, 0, 1], secured.port))).await;
    let mut config = secured.config();
    config.upstream.ca_file = Some(write(&files, "ca.pem", &authority.pem()));
    proxy.named_in(&mut config);
    let app = App::start(config).await.unwrap();
    let client = TestClient::new(app.addresses()[0]);
    assert_eq!(client.batch("MARKED", &["1"]).await.ids(), ["1"]);
    let upload = client.send(http::Method::POST, "/v2/servicerequest/echo", &[], vec![b'x'; 300_000]).await;
    assert_eq!(upload.status, 200);
    // One tunnel for HTTP/2, which has the batches, and one for HTTP/1.1, which has the rest.
    let heads = proxy.heads();
    assert_eq!(heads.len(), 2);
    for head in heads {
        assert!(head.starts_with(&format!("CONNECT localhost:{} HTTP/1.1\r\n", secured.port)), "{head}");
        assert!(!head.contains("MARKED") && !head.to_lowercase().contains("authorization"), "{head}");
    }
}

#[tokio::test]
async fn the_proxy_resolves_the_name_and_the_port_defaults_to_the_schemes() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let proxy = EgressProxy::start(OPEN, origin.address()).await;
    let mut config = config(origin.address());
    config.upstream.endpoint = Endpoint::parse("http://nowhere.invalid").unwrap();
    proxy.named_in(&mut config);
    let app = App::start(config).await.unwrap();
    assert_eq!(TestClient::new(app.addresses()[0]).batch("t", &["1"]).await.ids(), ["1"]);
    assert!(proxy.heads()[0].starts_with("CONNECT nowhere.invalid:80 HTTP/1.1\r\n"), "{:?}", proxy.heads());
}

#[tokio::test]
async fn the_proxys_credentials_go_to_the_proxy_alone() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let proxy = EgressProxy::start(OPEN, origin.address()).await;
    let mut config = config(origin.address());
    proxy.named_in(&mut config);
    let secret = Secret::new(b"user:pass".to_vec());
    config.upstream.proxy_credentials_file = Some(StoredSecret { secret, source: "proxy-credentials".into() });
    assert!(!format!("{config:?}{config}").contains("user:pass"));
    let app = App::start(config).await.unwrap();
    assert_eq!(TestClient::new(app.addresses()[0]).batch("t", &["1"]).await.ids(), ["1"]);
    assert!(proxy.heads()[0].contains("Proxy-Authorization: Basic dXNlcjpwYXNz\r\n"), "{:?}", proxy.heads());
    assert!(!origin.calls()[0].headers.contains_key("proxy-authorization"));
}

#[tokio::test]
async fn a_proxy_that_gives_no_tunnel_is_a_502_and_not_bypassed() {
    for answer in [
        "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 6\r\n\r\nMARKED",
        "HTTP/1.1 502 Bad Gateway\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "\0",
        "",
    ] {
        let origin = Origin::start(origin_options()).await.unwrap();
        let proxy = EgressProxy::start(answer, origin.address()).await;
        let mut config = config(origin.address());
        config.upstream.connect_timeout = std::time::Duration::from_millis(500);
        config.upstream.retry.attempts = 1;
        proxy.named_in(&mut config);
        let app = App::start(config).await.unwrap();
        let reply = TestClient::new(app.addresses()[0]).batch("t", &["1"]).await;
        assert_eq!(
            (reply.status.as_u16(), reply.json()["error_code"].as_str()),
            (502, Some("SIDELINK.1001")),
            "{answer}"
        );
        let text = String::from_utf8_lossy(&reply.body).to_lowercase();
        assert!(!text.contains("marked") && !text.contains("tunnel") && !text.contains("proxy"), "{text}");
        // A failure to connect is tried again.
        assert_eq!(proxy.heads().len(), 2, "{answer}");
        assert!(origin.calls().is_empty());
    }
}

#[tokio::test]
async fn a_proxy_that_cannot_be_reached_is_a_502() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let gone = TcpListener::bind(LOOPBACK).await.unwrap().local_addr().unwrap();
    let mut config = config(origin.address());
    let address = Endpoint::parse(&format!("http://{gone}")).unwrap();
    config.upstream.proxy = Some(address);
    let app = App::start(config).await.unwrap();
    let reply = TestClient::new(app.addresses()[0]).batch("t", &["1"]).await;
    assert_eq!(reply.status, 502);
    assert!(origin.calls().is_empty());
}

#[test]
fn a_proxy_is_configured_with_its_credentials_in_a_file() {
    let files = tempfile::tempdir().unwrap();
    let credentials = write(&files, "credentials", "user:pass\n").display().to_string();
    let nonsense = write(&files, "nonsense", "MARKED\n").display().to_string();
    let text = |lines: &str| format!("[upstream]\nendpoint = \"https://h\"\n{lines}\n");
    let proxy = "proxy = \"http://proxy.internal:3128\"";
    let config = Config::parse(&text(&format!("{proxy}\nproxy_credentials_file = '{credentials}'"))).unwrap();
    assert_eq!(Config::parse(&config.to_string()).unwrap().to_string(), config.to_string());
    for (lines, line, key, message) in [
        ("proxy = \"https://h:3128\"".to_owned(), 3, "upstream.proxy", "must begin with http://"),
        ("proxy = \"http://user:MARKED@h:3128\"".to_owned(), 3, "upstream.proxy", "must not carry a user"),
        (
            format!("proxy_credentials_file = '{credentials}'"),
            3,
            "upstream.proxy_credentials_file",
            "needs upstream.proxy",
        ),
        (
            format!("{proxy}\nproxy_credentials_file = '{nonsense}'"),
            4,
            "upstream.proxy_credentials_file",
            "must hold USER:PASSWORD",
        ),
    ] {
        let errors = Config::parse(&text(&lines)).unwrap_err();
        let found = &errors.errors[0];
        assert_eq!((errors.errors.len(), found.line, found.key.as_str()), (1, line, key), "{errors}");
        assert!(found.message.starts_with(message), "{errors}");
        assert!(!errors.to_string().contains("MARKED"), "{errors}");
    }
}
