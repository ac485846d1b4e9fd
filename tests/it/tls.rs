//! The endpoint is spoken to over TLS, HTTP/2 or HTTP/1.1 by ALPN, and only if its certificate is trusted; why one is not
//! stands in the log and never in an answer.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sidelink::app::App;
use sidelink::config::{Config, Endpoint};
use sidelink::demo::origin::Origin;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::process::Process;
use crate::support::{LOOPBACK, TestClient, config, origin_options};

/// A certificate authority of the moment.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

/// What an authority has issued.
pub struct Issued {
    pub certificate: Certificate,
    pub key: KeyPair,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Each of another name: by that an issuer is looked for.
        params.distinguished_name.push(DnType::CommonName, format!("authority {:x}", rand::random::<u64>()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub fn issue(&self, name: &str) -> Issued {
        self.issue_as(CertificateParams::new(vec![name.to_owned()]).unwrap())
    }

    fn issue_as(&self, params: CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        Issued { certificate: params.signed_by(&key, &self.issuer).unwrap(), key }
    }
}

/// Speaks TLS with this certificate; with `clients`, to clients with a certificate of that authority.
pub fn acceptor(clients: Option<&Authority>, issued: &Issued, alpn: &[&[u8]]) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.certificate.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(issued.key.serialize_der()));
    let mut tls = builder.with_single_cert(vec![issued.certificate.der().clone()], key).unwrap();
    tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(tls))
}

/// A simulated endpoint behind TLS, at `https://localhost:PORT`.
pub struct Secured {
    pub origin: Origin,
    pub port: u16,
}

impl Secured {
    /// With a certificate for its name, and without client certificates.
    pub async fn start(issued: &Issued, alpn: &[&[u8]]) -> Self {
        Self::for_clients_of(None, issued, alpn).await
    }

    /// Requires a certificate of this authority from clients.
    pub async fn for_clients_of(clients: Option<&Authority>, issued: &Issued, alpn: &[&[u8]]) -> Self {
        let origin = Origin::start(origin_options()).await.unwrap();
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (acceptor, served) = (acceptor(clients, issued, alpn), origin.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, served) = (acceptor.clone(), served.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        served.serve_connection(stream).await;
                    }
                });
            }
        });
        Self { origin, port }
    }

    pub fn config(&self) -> Config {
        let mut config = config(SocketAddr::from(([127, 0, 0, 1], 9)));
        config.upstream.endpoint = Endpoint::parse(&format!("https://localhost:{}", self.port)).unwrap();
        config
    }

    /// Runs the program itself in front of it, with these lines in `[upstream]`.
    async fn process(&self, files: &TempDir, more: &str, environment: &[(&str, &Path)]) -> Process {
        let endpoint = format!("endpoint = \"https://localhost:{}\"", self.port);
        let listen = "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"";
        let text = format!("{listen}\n[upstream]\n{endpoint}\n{more}\n[upstream.retry]\nattempts = 0\n");
        let path = write(files, "sidelink.toml", &text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidelink"));
        command.args(["serve", "--config"]).arg(path).env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
        Process::spawn(command.envs(environment.iter().copied())).await
    }

    /// A batch gets a 502 that does not say why, and the log has this reason.
    async fn is_refused(&self, files: &TempDir, more: &str, reason: &str) {
        let mut process = self.process(files, more, &[]).await;
        let reply = process.client.batch("t", &["1"]).await;
        assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (502, Some("SIDELINK.1001")));
        let answer = String::from_utf8_lossy(&reply.body).to_lowercase();
        assert!(!answer.contains("certificate") && !answer.contains("tls"), "{answer}");
        let line = process.says("no answer from the endpoint").await;
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
        assert!(self.origin.calls().is_empty());
    }
}

/// Writes a certificate for `localhost` that ends an hour before `days` have passed, and its key; returns the paths of both.
pub fn expiring(files: &TempDir, days: i64) -> (PathBuf, PathBuf) {
    let (now, key) = (time::OffsetDateTime::now_utc(), KeyPair::generate().unwrap());
    let mut made = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (made.not_before, made.not_after) = (now - time::Duration::days(30), now + time::Duration::hours(24 * days - 1));
    let cert = write(files, "tls.crt", &made.self_signed(&key).unwrap().pem());
    let key = write(files, "tls.key", &key.serialize_pem());
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    (cert, key)
}

/// A file, as an operator would lay it.
pub fn write(files: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = files.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn ca_file(files: &TempDir, authority: &Authority) -> String {
    format!("ca_file = '{}'", write(files, "ca.pem", &authority.pem()).display())
}

#[tokio::test]
async fn an_own_authority_is_trusted_over_http2_and_http1() {
    let (files, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    for alpn in [&[&b"h2"[..], b"http/1.1"][..], &[b"http/1.1"], &[]] {
        let secured = Secured::start(&authority.issue("localhost"), alpn).await;
        let mut config = secured.config();
        config.upstream.ca_file = Some(write(&files, "ca.pem", &authority.pem()));
        let app = App::start(config).await.unwrap();
        let client = TestClient::new(app.addresses()[0]);
        assert_eq!(client.batch("t", &["1"]).await.ids(), ["1"]);
        // HTTP/2 has no Host header on the wire.
        let calls = secured.origin.calls();
        assert_eq!(calls[0].headers.contains_key("host"), alpn.first() != Some(&&b"h2"[..]));
        assert_eq!(client.get("/v2/servicerequest/echo", &[]).await.status, 200);
    }
}

#[tokio::test]
async fn without_an_own_authority_the_platforms_are_trusted() {
    let (files, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let secured = Secured::start(&authority.issue("localhost"), &[]).await;
    let platform = write(&files, "platform.pem", &authority.pem());
    let process = secured.process(&files, "", &[("SSL_CERT_FILE", &platform)]).await;
    assert_eq!(process.client.batch("t", &["1"]).await.ids(), ["1"]);
}

#[tokio::test]
async fn an_endpoint_of_another_authority_is_a_502_and_the_log_says_why() {
    let files = tempfile::tempdir().unwrap();
    let secured = Secured::start(&Authority::new().issue("localhost"), &[]).await;
    secured.is_refused(&files, &ca_file(&files, &Authority::new()), "UnknownIssuer").await;
}

#[tokio::test]
async fn an_endpoint_of_another_name_is_a_502_and_the_log_says_why() {
    let (files, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let secured = Secured::start(&authority.issue("elsewhere.example"), &[]).await;
    secured.is_refused(&files, &ca_file(&files, &authority), "not valid for name").await;
}

#[tokio::test]
async fn an_endpoint_whose_certificate_has_expired_is_a_502_and_the_log_says_why() {
    let (files, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let secured = Secured::start(&authority.issue_as(params), &[]).await;
    secured.is_refused(&files, &ca_file(&files, &authority), "expired").await;
}

#[tokio::test]
async fn an_endpoint_that_asks_for_a_certificate_gets_the_one_configured() {
    let (files, authority, clients) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    for alpn in [&[&b"h2"[..]][..], &[]] {
        let secured = Secured::for_clients_of(Some(&clients), &authority.issue("localhost"), alpn).await;
        let issued = clients.issue("sidelink");
        let mut config = secured.config();
        config.upstream.ca_file = Some(write(&files, "ca.pem", &authority.pem()));
        config.upstream.client_cert = Some(write(&files, "client.pem", &issued.certificate.pem()));
        config.upstream.client_key = Some(write(&files, "client-key.pem", &issued.key.serialize_pem()));
        let app = App::start(config).await.unwrap();
        let client = TestClient::new(app.addresses()[0]);
        assert_eq!(client.batch("t", &["1"]).await.ids(), ["1"]);
        assert_eq!(client.get("/v2/servicerequest/echo", &[]).await.status, 200);
    }
}

#[tokio::test]
async fn without_a_certificate_such_an_endpoint_is_a_502_and_the_log_says_why() {
    let (files, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let secured = Secured::for_clients_of(Some(&Authority::new()), &authority.issue("localhost"), &[]).await;
    secured.is_refused(&files, &ca_file(&files, &authority), "CertificateRequired").await;
}

#[tokio::test]
async fn a_key_that_does_not_fit_its_certificate_is_named_at_the_start() {
    let (files, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let (one, other) = (authority.issue("sidelink"), authority.issue("sidelink"));
    let mut config = config(SocketAddr::from(([127, 0, 0, 1], 9)));
    config.upstream.client_cert = Some(write(&files, "client.pem", &one.certificate.pem()));
    config.upstream.client_key = Some(write(&files, "client-key.pem", &other.key.serialize_pem()));
    let error = App::start(config).await.err().unwrap().to_string();
    assert!(error.starts_with("upstream.client_key: does not fit"), "{error}");
}

#[test]
fn files_that_do_not_hold_what_they_should_are_named_with_their_line() {
    let (files, issued) = (tempfile::tempdir().unwrap(), Authority::new().issue("sidelink"));
    let empty = write(&files, "empty.pem", "").display().to_string();
    let broken = write(&files, "broken.pem", "-----BEGIN CERTIFICATE-----\nMARKED\n").display().to_string();
    let cert = write(&files, "client.pem", &issued.certificate.pem()).display().to_string();
    let key = write(&files, "client-key.pem", &issued.key.serialize_pem()).display().to_string();
    for (lines, line, key, message) in [
        (format!("ca_file = '{empty}'"), 3, "upstream.ca_file", "holds no certificate"),
        (format!("ca_file = '{broken}'"), 3, "upstream.ca_file", "is not in PEM format"),
        (format!("ca_file = '{}'", files.path().display()), 3, "upstream.ca_file", "is not a file"),
        (format!("client_cert = '{cert}'"), 3, "upstream.client_cert", "needs upstream.client_key"),
        (format!("client_key = '{key}'"), 3, "upstream.client_key", "needs upstream.client_cert"),
        (format!("client_cert = '{key}'\nclient_key = '{key}'"), 3, "upstream.client_cert", "holds no certificate"),
        (format!("client_cert = '{cert}'\nclient_key = '{cert}'"), 4, "upstream.client_key", "holds no private key"),
    ] {
        let errors = Config::parse(&format!("[upstream]\nendpoint = \"https://h\"\n{lines}\n")).unwrap_err();
        let found = &errors.errors[0];
        assert_eq!((errors.errors.len(), found.line, found.key.as_str()), (1, line, key), "{errors}");
        assert!(found.message.starts_with(message), "{errors}");
        assert!(!errors.to_string().contains("MARKED"), "{errors}");
    }
    let text = format!("[upstream]\nendpoint = \"https://h\"\nclient_cert = '{cert}'\nclient_key = '{key}'\n");
    let config = Config::parse(&text).unwrap();
    assert_eq!(Config::parse(&config.to_string()).unwrap().to_string(), config.to_string());
    let warned: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert!(warned.len() == 1 && warned[0].contains("everyone on this machine may read"), "{warned:?}");
}
