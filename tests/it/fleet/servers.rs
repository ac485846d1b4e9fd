//! Kinds of servers: none yet, with an ACL, with TLS, at a Unix socket.

use sidelink::config::{NodeAddress, Secret, StoredSecret};

use super::split::OTHER_SECRET;
use super::{Fleet, Port, Redis, eventually, shared};

#[tokio::test]
async fn a_start_without_the_server_works_and_the_server_is_used_once_it_is_up() {
    let port = Port::reserve();
    let tier = shared(vec![port.address()]);
    let fleet = Fleet::without_waiting(tier, 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    assert_eq!(one.client.batch("t", &["1"]).await.ids(), ["1"]);
    assert_eq!(other.client.batch("t", &["1"]).await.ids(), ["1"]);
    assert_eq!(fleet.origin.batch_calls(), 2);
    let redis = Redis::at(port, &[]).await;
    fleet.comes_to_share(&redis).await;
}

pub fn password(text: &[u8]) -> StoredSecret {
    StoredSecret { secret: Secret::new(text.to_vec()), source: "password".into() }
}

/// Makes the ACL user of FLEET.md, with the password `PASSWORD`: that of servers, or that of Sentinels.
pub async fn grant_documented_rights(redis: &Redis, of_sentinel: bool) {
    let page = include_str!("../../../docs/FLEET.md");
    let mut users = page.lines().filter(|line| line.starts_with("user sidelink "));
    let user = users.find(|line| line.contains("+sentinel|") == of_sentinel).unwrap();
    let mut command = vec!["ACL", "SETUSER"];
    command.extend(user.split(' ').skip(1));
    redis.ask(&command).await;
}

#[tokio::test]
async fn an_acl_user_with_the_documented_permissions_suffices() {
    let redis = Redis::start().await;
    grant_documented_rights(&redis, false).await;
    redis.ask(&["ACL", "SETUSER", "default", "-@all", "+ping", "+client"]).await;
    let mut tier = shared(vec![redis.address()]);
    tier.username = Some("sidelink".into());
    tier.password_file = Some(password(b"PASSWORD"));
    let fleet = Fleet::with(tier.clone(), 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    one.client.batch("t", &["1"]).await;
    let headers = [("x-auth-token", "t")];
    one.client.send(http::Method::DELETE, "/v2/servicerequest/accessorys/2", &headers, "").await;
    let shared_at_last = async || {
        let status = other.client.batch("t", &["1"]).await.header("cache-status").to_owned();
        status == "sidelink; hit; detail=shared" || status == "sidelink; hit"
    };
    eventually("it is shared", shared_at_last).await;
    let mut apart = tier.clone();
    apart.secret_file.secret = vec![Secret::new(OTHER_SECRET.as_bytes().to_vec())];
    let other_fleet = Fleet::with(apart, 1, |_| {}, |_| {}).await;
    eventually("another fleet is seen", async || one.metric("sidelink_shared_other_fleets").await == 1.0).await;
    assert_eq!((one.failures("reply").await, other_fleet.sidecars[0].failures("reply").await), (0.0, 0.0));

    tier.password_file = Some(password(b"WRONG"));
    let refused = Fleet::without_waiting(tier, 1, |_| {}, |_| {}).await;
    assert_eq!(refused.sidecars[0].client.batch("t", &["1"]).await.ids(), ["1"]);
    eventually("it is refused", async || refused.sidecars[0].failures("connect").await > 0.0).await;
}

#[tokio::test]
async fn over_tls_only_a_trusted_server_is_used() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let ca = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (ca, cert, key) = (file("ca", ca), file("cert", certificate.pem()), file("key", key.serialize_pem()));
    let port = Port::reserve();
    let arguments = [
        "--tls-port",
        &port.number().to_string(),
        "--tls-auth-clients",
        "no",
        "--tls-ca-cert-file",
        ca.to_str().unwrap(),
        "--tls-cert-file",
        cert.to_str().unwrap(),
        "--tls-key-file",
        key.to_str().unwrap(),
    ];
    let redis = Redis::with(&arguments).await;
    let mut tier = shared(vec![port.address()]);
    tier.url[0].tls = true;
    tier.ca_file = Some(ca);
    let fleet = Fleet::with(tier.clone(), 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    one.client.batch("t", &["1"]).await;
    eventually("it is shared", async || redis.keys("l").await.len() == 1).await;
    assert_eq!(other.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit; detail=shared");

    let other_ca = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    tier.ca_file = Some(file("other", other_ca.cert.pem()));
    let distrustful = Fleet::without_waiting(tier, 1, |_| {}, |_| {}).await;
    eventually("it is refused", async || distrustful.sidecars[0].failures("connect").await > 0.0).await;
    assert_eq!(distrustful.sidecars[0].client.batch("t", &["1"]).await.ids(), ["1"]);
}

#[tokio::test]
async fn a_server_at_a_unix_socket_is_shared_in_the_database_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let redis = Redis::with(&["--unixsocket", socket.to_str().unwrap()]).await;
    let mut tier = shared(vec![NodeAddress::Unix(socket)]);
    tier.url[0].database = 3;
    let fleet = Fleet::with(tier, 2, |_| {}, |_| {}).await;
    let [one, other] = &fleet.sidecars[..] else { panic!() };
    one.client.batch("t", &["1"]).await;
    let links = async || redis.text(&["INFO", "keyspace"]).await.contains("db3:keys=4");
    eventually("it is shared in database 3 alone", links).await;
    assert_eq!(redis.number(&["DBSIZE"]).await, 0);
    assert_eq!(other.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit; detail=shared");
}
