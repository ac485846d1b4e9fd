//! Clients connect over TCP, TLS and Unix sockets, several at once. Their credentials tell them apart, not the listener. A
//! socket's file is replaced only if nobody listens, and a certificate changes without a restart.

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use sidelink::app::App;
use sidelink::config::{Config, ListenAddress, Tls};
use sidelink::demo::origin::Origin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::load::{Load, Stream, Transport, Version, tls};
use crate::process::{Files, Process};
use crate::raw_http2::frames;
use crate::support::{LOOPBACK, TestClient, config, origin_options, query};

/// Signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A new certificate for `localhost`, and its key, in PEM.
    fn certificate(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Writes a new certificate and its key into `directory`.
    fn issue(&self, directory: &Path) -> Tls {
        let (cert, key) = self.certificate();
        let tls = Tls { cert: directory.join("tls.crt"), key: directory.join("tls.key"), client_ca: None };
        std::fs::write(&tls.cert, cert).unwrap();
        std::fs::write(&tls.key, key).unwrap();
        std::fs::set_permissions(&tls.key, PermissionsExt::from_mode(0o600)).unwrap();
        tls
    }

    /// A client that trusts this authority, and shows a certificate if it has one.
    fn client(&self, certificate: Option<&(String, String)>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match certificate {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        }
    }
}

/// Asks for one id over HTTP/1.1, and closes.
async fn ask(stream: &mut (impl Stream + ?Sized), token: &str) -> std::io::Result<String> {
    let target = query(&["1"]);
    let request = format!("GET {target} HTTP/1.1\r\nhost: x\r\nx-auth-token: {token}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

async fn start(change: impl FnOnce(&mut Config)) -> (Origin, Result<App, String>) {
    let origin = Origin::start(origin_options()).await.unwrap();
    let mut config = config(origin.address());
    change(&mut config);
    let app = App::start(config).await.map_err(|error| error.to_string());
    (origin, app)
}

#[tokio::test]
async fn all_listeners_serve_the_same_links_to_the_same_callers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidelink.sock");
    let (origin, app) = start(|config| {
        config.listen.address = vec![LOOPBACK.into(), ListenAddress::Unix(path.clone()), LOOPBACK.into()];
    })
    .await;
    let app = app.unwrap();
    for address in app.addresses() {
        assert_eq!(TestClient::new(address).batch("t", &["1"]).await.ids(), ["1"]);
    }
    let hit = ask(&mut UnixStream::connect(&path).await.unwrap(), "t").await.unwrap();
    assert!(hit.contains("cache-status: sidelink; hit"), "{hit}");
    assert_eq!(origin.calls().len(), 1);
    // A client of the socket has the rights of its credential only.
    let other = ask(&mut UnixStream::connect(&path).await.unwrap(), "another").await.unwrap();
    assert!(other.contains("fwd=miss"), "{other}");
    app.drain().await;
    assert!(!path.exists(), "the socket's file goes with it");
}

#[tokio::test]
async fn a_socket_has_the_mode_that_is_configured() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidelink.sock");
    for mode in [0o600, 0o660, 0o666] {
        let (_origin, app) = start(|config| {
            config.listen.address = vec![ListenAddress::Unix(path.clone())];
            config.listen.unix_mode = mode;
        })
        .await;
        let file = std::fs::symlink_metadata(&path).unwrap();
        assert!(file.file_type().is_socket() && file.mode() & 0o777 == mode, "{:o}", file.mode());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left there");
        app.unwrap().drain().await;
    }
}

#[tokio::test]
async fn a_socket_is_replaced_only_if_nobody_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sidelink.sock");
    let at = async || start(|config| config.listen.address = vec![ListenAddress::Unix(path.clone())]).await.1;

    // Of a process that has died.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let app = at().await.unwrap();
    assert!(ask(&mut UnixStream::connect(&path).await.unwrap(), "t").await.unwrap().starts_with("HTTP/1.1 200"));

    // One that is in use stays in use.
    assert!(at().await.err().unwrap().contains("another process listens there"));
    assert!(ask(&mut UnixStream::connect(&path).await.unwrap(), "t").await.unwrap().starts_with("HTTP/1.1 200"));

    // Another process has replaced the file: this one must not remove it.
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    app.drain().await;
    assert!(path.exists());
    std::fs::remove_file(&path).unwrap();

    // A file, and a link to one.
    let victim = directory.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    for linked in [false, true] {
        if linked {
            symlink(&victim, &path).unwrap();
        } else {
            std::fs::copy(&victim, &path).unwrap();
        }
        assert!(at().await.err().unwrap().ends_with("is no socket; it is left alone"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "precious");
}

#[tokio::test]
async fn tls_speaks_both_versions_and_nothing_in_the_clear() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (_origin, app) = start(|config| config.listen.tls = Some(authority.issue(directory.path()))).await;
    let app = app.unwrap();
    let address = app.addresses()[0];
    let load = Load::start(&[Transport::Tls(address, Arc::new(authority.client(None)))]);
    load.goes_on(50).await;
    let untrusting = Authority::new();
    assert!(tls(address, untrusting.client(None)).await.is_err());
    let mut plain = TcpStream::connect(address).await.unwrap();
    assert!(!ask(&mut plain, "t").await.unwrap_or_default().contains("HTTP/1.1 2"));
    load.may_end();
    app.drain().await;
    load.all_told().await;
}

#[tokio::test]
async fn with_a_client_authority_a_certificate_of_it_is_required() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let client_ca = directory.path().join("client-ca.pem");
    std::fs::write(&client_ca, &clients.pem).unwrap();
    let (_origin, app) = start(|config| {
        config.listen.tls = Some(Tls { client_ca: Some(client_ca), ..authority.issue(directory.path()) });
    })
    .await;
    let app = app.unwrap();
    let asks = async |certificate: Option<(String, String)>| {
        // In TLS 1.3 a client learns with its first read that it is not let in.
        let mut stream = tls(app.addresses()[0], authority.client(certificate.as_ref())).await?;
        ask(&mut stream, "t").await
    };
    assert!(asks(Some(clients.certificate())).await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(asks(Some(others.certificate())).await.is_err());
    assert!(asks(None).await.is_err());
}

/// Operators from elsewhere show a token, and see which links are asked for.
#[tokio::test]
async fn operators_are_served_over_tls_as_well_and_commands_trust_the_certificate_of_their_configuration() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let Tls { cert, key, .. } = authority.issue(directory.path());
    let token = directory.path().join("token");
    std::fs::write(&token, "the-token-of-an-operator").unwrap();
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let tables = format!("admin.token_file = {token:?}\n[admin.tls]\ncert = {cert:?}\nkey = {key:?}");
    let mut process = Process::start(&files.write(&tables)).await;
    let address = process.admin.address;
    let get = async |head: &str| {
        let mut stream = tls(address, authority.client(None)).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: sidelink.example\r\n{head}connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).lines().next().unwrap().to_owned()
    };
    assert_eq!(get("").await, "HTTP/1.1 401 Unauthorized");
    assert_eq!(get("authorization: Bearer the-token-of-an-operator\r\n").await, "HTTP/1.1 200 OK");
    assert!(process.admin.try_get("/livez").await.is_none(), "in clear");

    let text =
        files.text(&tables).replace("admin.address = \"127.0.0.1:0\"", &format!("admin.address = \"{address}\""));
    std::fs::write(files.path(), text).unwrap();
    let healthcheck = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sidelink"));
        command.args(["healthcheck", "--config"]).arg(files.path()).output().unwrap()
    };
    assert_eq!(healthcheck().status.code(), Some(0), "{:?}", healthcheck());
    // Another certificate of the same authority is not the one that the process shows.
    let other = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(files.path()).unwrap();
    let Tls { cert: other_cert, key: other_key, .. } = authority.issue(other.path());
    let text = text.replace(cert.to_str().unwrap(), other_cert.to_str().unwrap());
    std::fs::write(
        files.directory.path().join("other.toml"),
        text.replace(key.to_str().unwrap(), other_key.to_str().unwrap()),
    )
    .unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sidelink"));
    let refused =
        command.args(["purge", "--all", "--config"]).arg(files.directory.path().join("other.toml")).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("another certificate than admin.tls.cert"));

    // Connections in clear would stay.
    files.write(&tables.replace("[admin.tls]", "[trace]").replace("cert =", "# cert =").replace("key =", "# key ="));
    process.says("the configuration was refused; the previous one stays in effect").await;
    let said = process
        .log
        .iter()
        .filter_map(|line| line["reason"].as_str())
        .any(|said| said.contains("admin.tls: cannot change"));
    assert!(said, "{:#?}", process.log);

    process.signal("TERM");
    assert_eq!(process.exit().await, Some(0));
}

#[tokio::test]
async fn a_new_certificate_for_operators_is_shown_without_a_signal_and_one_that_cannot_be_used_is_not() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let (before, after) = (Authority::new(), Authority::new());
    let Tls { cert, key, .. } = before.issue(files.directory.path());
    let mut process = Process::start(&files.write(&format!("[admin.tls]\ncert = {cert:?}\nkey = {key:?}"))).await;
    let address = process.admin.address;
    tls(address, before.client(None)).await.unwrap();
    after.issue(files.directory.path());
    process.says("the configuration was reloaded").await;
    assert!(tls(address, before.client(None)).await.is_err(), "the old certificate is still shown");
    let mut stream = tls(address, after.client(None)).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut page = Vec::new();
    stream.read_to_end(&mut page).await.unwrap();
    let series = "sidelink_tls_certificate_expiry_timestamp_seconds{use=\"admin\"} 67090118400\n";
    assert!(String::from_utf8(page).unwrap().contains(series));

    // A key of another certificate changes nothing.
    std::fs::write(&key, before.certificate().1).unwrap();
    process.says("the configuration was refused; the previous one stays in effect").await;
    let mut reasons = process.log.iter().filter_map(|line| line["reason"].as_str());
    assert!(reasons.any(|said| said.contains("admin.tls.key: does not go with the certificate")), "{:?}", process.log);
    tls(address, after.client(None)).await.unwrap();
}

#[tokio::test]
async fn a_metric_says_when_the_certificate_ends() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (_origin, app) = start(|config| config.listen.tls = Some(authority.issue(directory.path()))).await;
    let app = app.unwrap();
    let admin = TestClient::new(app.admin_address());
    let page = String::from_utf8(admin.get("/metrics", &[]).await.body.to_vec()).unwrap();
    // As rcgen makes them: until 4096.
    let expiry = |of: &str| {
        let series = format!("sidelink_tls_certificate_expiry_timestamp_seconds{{use=\"{of}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&series)).unwrap().to_owned()
    };
    assert_eq!([expiry("listen"), expiry("admin"), expiry("upstream")], ["67090118400", "0", "0"]);
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (_origin, app) = start(|config| {
        config.listen.tls = Some(authority.issue(directory.path()));
        config.limits.header_timeout = Duration::from_millis(200);
        config.limits.connections = 2;
    })
    .await;
    let app = app.unwrap();
    let address = app.addresses()[0];
    let mut slow = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    for stream in &mut slow {
        // A record's head, and no more.
        stream.write_all(&[22, 3, 1, 1, 0]).await.unwrap();
    }
    // They use all connections until their time is over.
    let mut patient = tls(address, authority.client(None)).await.unwrap();
    assert!(ask(&mut patient, "t").await.unwrap().starts_with("HTTP/1.1 200"));
    for mut stream in slow {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_a_new_certificate_costs_no_request_and_needs_no_signal() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let (before, after) = (Authority::new(), Authority::new());
    let socket = files.directory.path().join("sidelink.sock");
    let table = |tls: &Tls| {
        let (cert, key) = (tls.cert.display(), tls.key.display());
        files.text(&format!("log.access = false\n[listen.tls]\ncert = \"{cert}\"\nkey = \"{key}\"")).replacen(
            "\"127.0.0.1:0\"",
            &format!("[\"127.0.0.1:0\", \"unix:{}\"]", socket.display()),
            1,
        )
    };
    std::fs::write(files.path(), table(&before.issue(files.directory.path()))).unwrap();
    let mut process = Process::start(&files.path()).await;
    let address = process.address;
    let load = Load::start(&[Transport::Tls(address, Arc::new(before.client(None))), Transport::Unix(socket.clone())]);
    load.goes_on(100).await;
    assert!(tls(address, after.client(None)).await.is_err());
    after.issue(files.directory.path());
    process.says("the configuration was reloaded").await;
    load.goes_on(100).await;
    assert!(tls(address, before.client(None)).await.is_err());
    Transport::Tls(address, Arc::new(after.client(None))).connect(Version::Http2).await;

    // A key of another certificate changes nothing.
    std::fs::write(files.directory.path().join("tls.key"), before.certificate().1).unwrap();
    process.says("the configuration was refused; the previous one stays in effect").await;
    let said =
        process.log.iter().filter_map(|line| line["reason"].as_str()).find(|said| said.contains("listen.tls.key"));
    assert!(said.unwrap().contains(":7: listen.tls.key: does not go with the certificate"), "{said:?}");
    tls(address, after.client(None)).await.unwrap();
    load.goes_on(100).await;
    load.may_end();
    process.signal("TERM");
    load.all_told().await;
    assert_eq!(process.exit().await, Some(0));
    assert!(!socket.exists());
}

/// What a TLS client that offers these protocols gets for these bytes: what was negotiated, and all that it reads.
async fn over_tls(
    address: SocketAddr,
    authority: &Authority,
    offered: &[&[u8]],
    sent: &[u8],
) -> std::io::Result<(Option<Vec<u8>>, Vec<u8>)> {
    let mut client = authority.client(None);
    client.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
    let mut stream = tls(address, client).await?;
    let negotiated = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    stream.write_all(sent).await?;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("it ends");
    Ok((negotiated, answer))
}

#[tokio::test]
async fn the_protocol_that_tls_has_negotiated_is_the_one_that_is_spoken() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let certificate = authority.issue(directory.path());
    let (origin, app) = start(|config| config.listen.tls = Some(certificate)).await;
    let app = app.unwrap();
    let address = app.addresses()[0];
    let http1 = format!("GET {} HTTP/1.1\r\nhost: x\r\nx-auth-token: t\r\nconnection: close\r\n\r\n", query(&["1"]));
    let request = frames::block(&frames::get("/v2/servicerequest/echo"));
    let request = frames::frame(frames::HEADERS, frames::END_HEADERS | frames::END_STREAM, 1, &request);
    let [settings, goaway] = [(frames::SETTINGS, &[][..]), (frames::GOAWAY, &[0; 8])]
        .map(|(kind, payload)| frames::frame(kind, 0, 0, payload));
    let http2 = [frames::PREFACE, &settings, &request, &goaway].concat();
    let negotiated = |name: &[u8]| Some(name.to_vec());
    // As it should be; a client that offers nothing speaks HTTP/1.1 (RFC 9113 §3.3).
    for (offered, expected) in [(&[&b"http/1.1"[..]][..], negotiated(b"http/1.1")), (&[], None)] {
        let (protocol, answer) = over_tls(address, &authority, offered, http1.as_bytes()).await.unwrap();
        assert_eq!((protocol, answer.starts_with(b"HTTP/1.1 200 ")), (expected, true));
    }
    let (protocol, answer) = over_tls(address, &authority, &[b"h2", b"http/1.1"], &http2).await.unwrap();
    assert_eq!(protocol, negotiated(b"h2"));
    assert!(String::from_utf8_lossy(&answer).contains(r#""target":"/v2/servicerequest/echo""#), "{answer:?}");
    // The other one than was negotiated, either way.
    for (offered, sent) in [(&[&b"http/1.1"[..]][..], &http2[..]), (&[], &http2), (&[b"h2"], http1.as_bytes())] {
        let answer = over_tls(address, &authority, offered, sent).await.map(|(_, answer)| answer).unwrap_or_default();
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.contains("servicerequest") && !text.contains("accessory_urls"), "{offered:?}: {text}");
    }
    // None that is known.
    let refused = over_tls(address, &authority, &[b"h3", b"spdy/3"], http1.as_bytes()).await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(origin.calls().len(), 1);
}
