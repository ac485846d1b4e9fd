//! The identity provider is trusted by its own certificate authority, and may ask for a certificate of sidelink's. It may be behind an
//! egress proxy, which sees no token over TLS.

use sidelink::config::{Endpoint, IdentityConfig, Url};
use sidelink::demo::origin::iam::Iam;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::{Asker, FAILED, World};
use crate::egress::{EgressProxy, OPEN};
use crate::support::LOOPBACK;
use crate::tls::{Authority, acceptor, write};

/// The IAM behind TLS, for clients with a certificate of `clients`; its port.
async fn behind_tls(iam: &Iam, authority: &Authority, clients: &Authority) -> u16 {
    let (acceptor, listener) =
        (acceptor(Some(clients), &authority.issue("localhost"), &[]), TcpListener::bind(LOOPBACK).await.unwrap());
    let (port, iam) = (listener.local_addr().unwrap().port(), iam.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, iam) = (acceptor.clone(), iam.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    iam.serve_connection(stream).await;
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn only_a_provider_that_is_trusted_is_asked_and_it_sees_sidelinks_certificate() {
    let world = World::keystone(|_, _| {}).await;
    let (authority, clients, files) = (Authority::new(), Authority::new(), TempDir::new().unwrap());
    let port = behind_tls(&world.iam, &authority, &clients).await;
    let issued = clients.issue("sidelink");
    let mut config = IdentityConfig::blank();
    config.introspect = Some(Url::parse(&format!("https://localhost:{port}/v3/auth/tokens")).unwrap());
    config.timeout = std::time::Duration::from_secs(20);
    config.ca_file = Some(write(&files, "ca.pem", &authority.pem()));
    config.client_cert = Some(write(&files, "client.pem", &issued.certificate.pem()));
    config.client_key = Some(write(&files, "client-key.pem", &issued.key.serialize_pem()));
    let token = world.token("anna");
    let proxy = EgressProxy::start(OPEN, ([127, 0, 0, 1], port).into()).await;
    let behind = Endpoint::parse(&format!("http://{}", proxy.address)).unwrap();
    let by_proxy = IdentityConfig { proxy: Some(behind), ..config.clone() };
    let user = Asker::new(&by_proxy, &world.clock).user(&token).await;
    let heads = proxy.heads();
    assert!(heads[0].starts_with(&format!("CONNECT localhost:{port} HTTP/1.1\r\n")), "{heads:?}");
    assert!(heads.len() == 1 && !heads[0].contains(&token), "{heads:?}");

    let asker = Asker::new(&config, &world.clock);
    assert_eq!(asker.user(&token).await, user);
    assert!(asker.identities.trust_is_unchanged(&config));

    let anonymous = IdentityConfig { client_cert: None, client_key: None, ..config.clone() };
    assert_eq!(Asker::new(&anonymous, &world.clock).ask(&token).await, FAILED);
    let before = world.iam.requests();
    write(&files, "ca.pem", &Authority::new().pem());
    assert!(!asker.identities.trust_is_unchanged(&config), "the file has changed");
    assert_eq!(Asker::new(&config, &world.clock).ask(&token).await, FAILED);
    assert_eq!(world.iam.requests(), before, "who is not trusted sees no token");
}
