//! The endpoint is spoken to over TLS, HTTP/2 or HTTP/1.1 by ALPN, and only if its certificate is trusted.

use std::io::Write;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sidelink::app::App;
use sidelink::config::{Config, Endpoint};
use sidelink::origin::Origin;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{LOOPBACK, TestClient, config, origin_options};

/// A simulated endpoint behind TLS; its CA's certificate in PEM, and a configuration that points at it.
async fn endpoint(alpn: &[&[u8]]) -> (Origin, String, Config) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();

    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();

    let origin = Origin::start(origin_options()).await.unwrap();
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let mut config = config(listener.local_addr().unwrap());
    let port = listener.local_addr().unwrap().port();
    config.upstream.endpoint = Endpoint::parse(&format!("https://localhost:{port}")).unwrap();
    let (acceptor, served) = (TlsAcceptor::from(Arc::new(tls)), origin.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                let served = served.clone();
                tokio::spawn(async move { served.serve_connection(stream).await });
            }
        }
    });
    (origin, authority_certificate.pem(), config)
}

#[tokio::test]
async fn an_own_authority_is_trusted_over_http2_and_http1() {
    for alpn in [&[&b"h2"[..], b"http/1.1"][..], &[b"http/1.1"], &[]] {
        let (origin, authority, mut config) = endpoint(alpn).await;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(authority.as_bytes()).unwrap();
        config.upstream.ca_file = Some(file.path().to_owned());
        let app = App::start(config).await.unwrap();
        let client = TestClient::new(app.addresses()[0]);
        assert_eq!(client.batch("t", &["1"]).await.ids(), ["1"]);
        // HTTP/2 has no Host header on the wire.
        assert_eq!(origin.calls()[0].headers.contains_key("host"), alpn.first() != Some(&&b"h2"[..]));
        assert_eq!(client.get("/v2/servicerequest/echo", &[]).await.status, 200);
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_trusted_is_a_502_that_does_not_say_why() {
    let (origin, _, mut config) = endpoint(&[]).await;
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(other.cert.pem().as_bytes()).unwrap();
    config.upstream.ca_file = Some(file.path().to_owned());
    let app = App::start(config).await.unwrap();
    let reply = TestClient::new(app.addresses()[0]).batch("t", &["1"]).await;
    assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (502, Some("SIDELINK.1001")));
    assert!(!String::from_utf8_lossy(&reply.body).to_lowercase().contains("certificate"));
    assert!(origin.calls().is_empty());
}

#[tokio::test]
async fn a_file_without_a_certificate_is_named_at_the_start() {
    let (_, _, mut config) = endpoint(&[]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    config.upstream.ca_file = Some(file.path().to_owned());
    let error = App::start(config).await.err().unwrap().to_string();
    assert!(error.starts_with("upstream.ca_file: ") && error.ends_with("holds no certificate"), "{error}");
}
