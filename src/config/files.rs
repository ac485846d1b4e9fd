//! The files that a configuration is read from besides its own.

use std::path::{Path, PathBuf};

use super::{Config, SecretSource};

impl Config {
    /// Every file that it names and that sidelink reads: a change of one is a change of the configuration.
    pub fn files(&self) -> Vec<&Path> {
        let secrets = self.callers.keys.iter().filter_map(|key| match &key.source {
            SecretSource::File(path) => Some(path.as_path()),
            SecretSource::Environment(_) => None,
        });
        let tls = self.listen.tls.iter().flat_map(|tls| [Some(&tls.cert), Some(&tls.key), tls.client_ca.as_ref()]);
        let tls = tls.flatten().map(PathBuf::as_path);
        let token = self.admin.token.as_ref().map(|token| token.file.as_path());
        let upstream = &self.upstream;
        let client = upstream.client.iter().flat_map(|client| [client.cert.as_path(), client.key.as_path()]);
        let proxy =
            upstream.proxy.iter().filter_map(|proxy| proxy.credentials.as_ref()).map(|(_, file)| file.as_path());
        let shared = self.shared.iter().flat_map(|shared| {
            // Whom it trusts is settled when its connections are first made.
            std::iter::once(shared.secret_file.as_path()).chain(shared.password_file.as_deref())
        });
        let trace = self.trace.iter().flat_map(|trace| &trace.headers).map(|header| header.file.as_path());
        upstream
            .ca_file
            .as_deref()
            .into_iter()
            .chain(client)
            .chain(proxy)
            .chain(token)
            .chain(secrets)
            .chain(shared)
            .chain(trace)
            .chain(tls)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_key_that_names_a_file_is_known_here() {
        let shipped = include_str!("../../config/sidelink.toml");
        let pairs = shipped.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = "));
        let keys: Vec<&str> = pairs.filter(|(_, value)| value.starts_with("\"/")).map(|(key, _)| key).collect();
        // Another one belongs into `Config::files` first, and then here.
        let upstream = ["ca_file", "client_cert", "client_key", "proxy_credentials_file"];
        let [listen, admin, callers] = [&["cert", "key", "client_ca"][..], &["token_file"], &["secret_key_file"]];
        let shared = ["secret_file", "password_file", "ca_file"];
        let trace = ["ca_file", "value_file"];
        assert_eq!(keys, [listen, admin, &upstream, callers, &shared, &trace].concat());
    }
}
