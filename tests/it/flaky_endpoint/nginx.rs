//! A real nginx as the endpoint, over HTTP/2 or HTTP/1.1. It listens on a Unix socket, so that no port has to be guessed; a
//! `Wire` leads there.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::tls::{Authority, write};

/// A running nginx; killed when dropped.
pub struct Nginx {
    child: Child,
    pub socket: PathBuf,
    pub ca_file: PathBuf,
    files: TempDir,
}

impl Nginx {
    /// It ends each connection after so many requests, and answers a batch of one id.
    pub async fn start(keepalive_requests: usize, is_http2: bool) -> Self {
        let (files, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let issued = authority.issue("localhost");
        let (cert, key) = (
            write(&files, "cert.pem", &issued.certificate.pem()),
            write(&files, "key.pem", &issued.key.serialize_pem()),
        );
        let ca_file = write(&files, "ca.pem", &authority.pem());
        let socket = files.path().join("nginx.sock");
        let directory = files.path().display();
        let protocol = if is_http2 { "http2" } else { "" };
        let item = r#"{"accessory_id":"$arg_accessory_ids","accessory_url":"https://bucket.test/$http_x_auth_token/$arg_accessory_ids"}"#;
        let text = format!(
            r#"daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log; events {{ }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    server {{
        listen unix:{socket} ssl {protocol};
        ssl_certificate {cert}; ssl_certificate_key {key};
        keepalive_requests {keepalive_requests};
        location / {{ default_type application/json; return 200 '{{"accessory_urls":[{item}]}}'; }}
    }}
}}"#,
            socket = socket.display(),
            cert = cert.display(),
            key = key.display(),
        );
        let path = write(&files, "nginx.conf", &text);
        let child = Command::new(program())
            .arg("-p")
            .arg(files.path())
            .arg("-c")
            .arg(path)
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed (scripts/tools.sh)");
        let mut nginx = Self { child, socket, ca_file, files };
        nginx.listens().await;
        nginx
    }

    async fn listens(&mut self) {
        let listening = async {
            while UnixStream::connect(&self.socket).await.is_err() {
                assert!(self.child.try_wait().unwrap().is_none(), "nginx ended: {}", self.log("error.log"));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), listening).await.expect("nginx listens");
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.files.path().join(name)).unwrap_or_default()
    }

    /// Requests that it has answered, and those of them that it did not answer with a 200.
    pub fn answered(&self) -> (usize, usize) {
        let log = self.log("access.log");
        let refused = log.lines().filter(|line| !line.contains("\" 200 ")).count();
        (log.lines().count(), refused)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// From `PATH`, or where distributions put it.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let found =
        std::env::split_paths(&path).chain(known).map(|folder| folder.join("nginx")).find(|file| file.is_file());
    found.unwrap_or_else(|| PathBuf::from("nginx"))
}
