//! Listeners, their TLS and the operators' listener do not clash, and the endpoint is none of them.

use sidelink::config::Config;

use super::errors_of;

#[test]
fn the_endpoint_is_not_sidelink_itself() {
    let of = |endpoint: &str, listener: &str| {
        let text = format!("[upstream]\nendpoint = \"{endpoint}\"\n[listen]\naddress = \"{listener}\"");
        Config::parse(&text).map(drop).map_err(|errors| errors.to_string())
    };
    for (endpoint, listener) in [
        ("http://127.0.0.1:9000", "127.0.0.1:9000"),
        ("http://localhost:9000", "127.0.0.1:9000"),
        ("http://LOCALHOST.:9000", "[::1]:9000"),
        ("http://127.0.0.1:9000", "0.0.0.0:9000"),
        ("http://0.0.0.0:9000", "127.0.0.1:9000"),
        ("http://[::ffff:127.0.0.1]:9000", "127.0.0.1:9000"),
        ("http://[::1]:9000", "[::]:9000"),
        ("http://10.0.0.1", "10.0.0.1:80"),
        ("https://10.0.0.1", "10.0.0.1:443"),
        ("http://localhost:8081", "127.0.0.1:9000"),
        ("http://localhost:8081", "unix:/run/sidelink.sock"),
        ("http://[::]:9000", "[::1]:9000"),
        ("http://127.0.0.1:9000", "[::]:9000"),
    ] {
        let error = of(endpoint, listener).expect_err(endpoint);
        assert!(error.starts_with("configuration:2: upstream.endpoint: is this sidelink's own"), "{error}");
    }
    for (endpoint, listener) in [
        ("http://127.0.0.1:9000", "127.0.0.1:9001"),
        ("http://127.0.0.1:9000", "127.0.0.2:9000"),
        ("http://10.0.0.1:9000", "127.0.0.1:9000"),
        // A documentation address, which is not this machine's.
        ("http://192.0.2.1:9000", "0.0.0.0:9000"),
        ("http://127.0.0.1:9000", "unix:/run/9000"),
    ] {
        assert_eq!(of(endpoint, listener), Ok(()), "{endpoint} behind {listener}");
    }
}

#[test]
fn the_endpoint_is_not_sidelink_under_this_machines_name() {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let name = name.trim();
    if std::net::ToSocketAddrs::to_socket_addrs(&(name, 9000)).is_err() {
        eprintln!("SKIPPED: this machine does not know its own name");
        return;
    }
    let text = format!("[upstream]\nendpoint = \"http://{name}:9000\"\n[listen]\naddress = \"0.0.0.0:9000\"");
    let error = Config::parse(&text).expect_err(name).to_string();
    assert!(error.contains("upstream.endpoint: is this sidelink's own"), "{error}");
}

#[test]
fn listeners_are_read_key_by_key() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(at("crt"), made.cert.pem()).unwrap();
    std::fs::write(at("key"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(at("other"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    std::fs::write(at("empty"), "").unwrap();
    let tls = |cert: &str, key: &str| format!("[listen.tls]\ncert = \"{}\"\nkey = \"{}\"", at(cert), at(key));
    let with_ca = format!("{}\nclient_ca = \"{}\"", tls("crt", "key"), at("empty"));
    let good =
        format!("[listen]\naddress = [\"unix:/run/s\", \"[::1]:0\"]\nunix_mode = \"0666\"\n{}", tls("crt", "key"));
    let config = Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n{good}")).unwrap();
    assert_eq!((config.listen.unix_mode, config.listen.address[0].to_string().as_str()), (0o666, "unix:/run/s"));
    assert!(config.warnings[0].to_string().contains("listen.tls.key: everyone on this machine may read"));
    assert_eq!(Config::parse(&config.to_string()).unwrap().listen, config.listen);
    for (rest, line, key, message) in [
        ("[listen]\naddress = \"unix:run/s\"".to_owned(), 4, "listen.address", "absolute path"),
        (format!("[listen]\naddress = \"unix:/{}\"", "x".repeat(100)), 4, "listen.address", "96 bytes at most"),
        ("[listen]\naddress = [\"unix:/s\", \"unix:/s\"]".to_owned(), 4, "listen.address", "clashes with unix:/s"),
        ("[listen]\nunix_mode = 660".to_owned(), 4, "listen.unix_mode", "must be an octal mode"),
        ("[listen]\nunix_mode = \"0668\"".to_owned(), 4, "listen.unix_mode", "must be an octal mode"),
        ("[listen]\nunix_mode = \"1777\"".to_owned(), 4, "listen.unix_mode", "must be an octal mode"),
        ("[listen.tls]\ncert = \"/c\"".to_owned(), 3, "listen.tls.key", "is missing"),
        (tls("none", "key"), 4, "listen.tls.cert", "cannot be read"),
        (tls("empty", "key"), 4, "listen.tls.cert", "holds no certificate"),
        (tls("empty", "key").replace("listen", "admin"), 4, "admin.tls.cert", "holds no certificate"),
        (tls("crt", "crt"), 5, "listen.tls.key", "holds no private key"),
        (tls("crt", "other"), 5, "listen.tls.key", "does not go with the certificate"),
        (with_ca, 6, "listen.tls.client_ca", "holds no certificate"),
    ] {
        let errors = Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n{rest}")).expect_err(&rest).errors;
        assert_eq!(errors.len(), 1, "{rest}: {errors:?}");
        assert_eq!((errors[0].line, errors[0].key.as_str()), (line, key), "{errors:?}");
        assert!(errors[0].message.contains(message), "{errors:?}");
    }
}

#[test]
fn listeners_do_not_clash() {
    for (rest, line, key) in [
        ("[listen]\naddress = [\n\"127.0.0.1:1\",\n\"127.0.0.1:1\"]", 6, "listen.address"),
        ("[listen]\naddress = [\"0.0.0.0:1\",\n\"127.0.0.1:1\"]", 5, "listen.address"),
        ("[listen]\naddress = \"127.0.0.1:8081\"", 4, "listen.address"),
        ("[admin]\naddress = \"0.0.0.0:8080\"", 4, "admin.address"),
    ] {
        let errors = errors_of(rest);
        assert!(matches!(&errors[..], [(at, name, _)] if *at == line && name == key), "{rest}: {errors:?}");
    }
    let free_ports = "[listen]\naddress = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\n[admin]\naddress = \"127.0.0.1:0\"";
    assert!(Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n{free_ports}")).is_ok());
}

#[test]
fn a_certificate_that_has_expired_or_soon_will_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    for (days, warning) in [
        (-1, Some("the certificate has expired at ")),
        (13, Some("the certificate expires in 12 days, at ")),
        (15, None),
    ] {
        let (cert, key) = crate::tls::expiring(&directory, days);
        let text = format!(
            "[upstream]\nendpoint = \"https://h\"\nclient_cert = {cert:?}\nclient_key = {key:?}\n[listen.tls]\ncert = {cert:?}\nkey = {key:?}"
        );
        let warnings = Config::parse(&text).unwrap().warnings;
        let mut keys: Vec<&str> = warnings.iter().map(|warning| warning.key.as_str()).collect();
        keys.sort_unstable();
        match warning {
            Some(warning) => {
                assert_eq!(keys, ["listen.tls.cert", "upstream.client_cert"], "{warnings:?}");
                assert!(warnings.iter().all(|found| found.message.starts_with(warning)), "{warnings:?}");
            }
            None => assert_eq!(keys, [""; 0], "{warnings:?}"),
        }
    }
}

#[test]
fn a_token_that_goes_over_the_network_in_clear_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "the-token-of-an-operator").unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for (address, is_clear) in [("127.0.0.1:1", false), ("[::1]:1", false), ("0.0.0.0:1", true), ("10.0.0.7:1", true)] {
        let text =
            format!("[upstream]\nendpoint = \"http://h\"\n[admin]\naddress = \"{address}\"\ntoken_file = {token:?}");
        let warnings = Config::parse(&text).unwrap().warnings;
        let clear: Vec<usize> =
            warnings.iter().filter(|found| found.message.contains("in clear")).map(|found| found.line).collect();
        assert_eq!(clear, if is_clear { vec![5] } else { vec![] }, "{address}");
    }
}

/// A key that is pasted where its file's name belongs.
#[test]
fn a_private_key_in_place_of_its_files_name_is_refused_and_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let cert = directory.path().join("crt");
    std::fs::write(&cert, made.cert.pem()).unwrap();
    let key = made.signing_key.serialize_pem();
    for table in ["listen.tls", "admin.tls"] {
        let text = format!("[upstream]\nendpoint = \"http://h\"\n[{table}]\ncert = {cert:?}\nkey = \"\"\"{key}\"\"\"");
        let told = Config::parse(&text).expect_err(table).to_string();
        assert!(told.contains(&format!("{table}.key: ")), "{told}");
        assert!(key.lines().all(|line| !told.contains(line)), "{told}");
    }
}
