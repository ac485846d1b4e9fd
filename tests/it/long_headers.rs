//! A client with headers beyond the endpoint's limit harms no other caller, although a real server closes the whole HTTP/2
//! connection because of one such request.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sidelink::app::App;
use sidelink::config::Endpoint;
use sidelink::demo::origin::Origin;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::support::{LOOPBACK, TestClient, config, origin_options, query, value_of};
use crate::tls::{Authority, write};

const CALLERS: usize = 10;

/// Debian's nginx in front of an endpoint, with TLS and HTTP/2.
struct Nginx {
    child: Child,
    port: u16,
}

impl Nginx {
    async fn start(files: &TempDir, authority: &Authority, origin: &Origin) -> Self {
        let issued = authority.issue("localhost");
        let certificate = write(files, "nginx.pem", &issued.certificate.pem());
        let key = write(files, "nginx-key.pem", &issued.key.serialize_pem());
        let port = TcpListener::bind(LOOPBACK).unwrap().local_addr().unwrap().port();
        let (folder, certificate, key) = (files.path().display(), certificate.display(), key.display());
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {folder}/{kind};"))
            .concat();
        let text = format!(
            "daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{}}
             http {{ access_log off; {temporary}
             server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {certificate}; ssl_certificate_key {key};
             location / {{ proxy_pass http://{}; }} }} }}",
            origin.address()
        );
        let file = write(files, "nginx.conf", &text);
        let mut command = Command::new("nginx");
        command.arg("-p").arg(files.path()).arg("-c").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        let nginx = Self { child: command.spawn().expect("nginx is installed"), port };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(begin.elapsed() < Duration::from_secs(30), "nginx does not start");
            sleep(Duration::from_millis(20)).await;
        }
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Regression: nginx closed the connection that all calls share, every batch in flight failed, and the breaker opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_header_fails_no_other_callers_call_at_nginx_over_http2() {
    let (files, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut options = origin_options();
    options.delay = Duration::from_millis(200);
    let origin = Origin::start(options).await.unwrap();
    let nginx = Nginx::start(&files, &authority, &origin).await;
    let mut config = config(origin.address());
    config.upstream.endpoint = Endpoint::parse(&format!("https://localhost:{}", nginx.port)).unwrap();
    config.upstream.ca_file = Some(write(&files, "ca.pem", &authority.pem()));
    // A retry would hide a lost connection.
    config.upstream.retry.attempts = 0;
    let app = App::start(config).await.unwrap();
    let client = TestClient::new(app.addresses()[0]);

    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (client, over, answered) = (client.clone(), Arc::clone(&over), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut batch = 0;
                while !over.load(Ordering::Relaxed) {
                    let (token, id) = (format!("caller-{caller}"), format!("{caller}-{batch}"));
                    assert_eq!(client.batch(&token, &[&id]).await.ids(), [id]);
                    answered.fetch_add(1, Ordering::Relaxed);
                    batch += 1;
                }
            })
        })
        .collect();
    origin.arrived(2 * CALLERS).await;
    for (name, bytes) in [("x-language", 12_000), ("x-auth-token", 40_000)].repeat(3) {
        let long = "x".repeat(bytes);
        let mut headers = vec![(name, long.as_str())];
        headers.extend((name != "x-auth-token").then_some(("x-auth-token", "made-up")));
        let reply = client.get(&query(&["1"]), &headers).await;
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=header-too-long", "{name}");
        assert_eq!(reply.status, 400, "nginx's own answer: {reply:?}");
        sleep(Duration::from_millis(150)).await;
    }
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no batch of another caller fails");
    }
    assert!(answered.load(Ordering::Relaxed) >= 3 * CALLERS);
    let page = TestClient::new(app.admin_address()).get("/metrics", &[]).await;
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(page.contains("sidelink_breaker_state{state=\"closed\"} 1\n"), "{page}");
    assert_eq!(value_of("sidelink_upstream_calls_total{result=\"no_answer\"}", &page), 0.0);
}
