//! The files that a configuration is read from besides its own.

use std::path::Path;

use super::{Config, SecretSource};

impl Config {
    /// Every file that it names and that sidelink reads: a change of one is a change of the configuration.
    pub fn files(&self) -> Vec<&Path> {
        let secrets = self.callers.keys.iter().filter_map(|key| match &key.source {
            SecretSource::File(path) => Some(path.as_path()),
            SecretSource::Environment(_) => None,
        });
        let token = self.admin.token.as_ref().map(|token| token.file.as_path());
        let upstream = &self.upstream;
        let client = upstream.client.iter().flat_map(|client| [client.cert.as_path(), client.key.as_path()]);
        let proxy =
            upstream.proxy.iter().filter_map(|proxy| proxy.credentials.as_ref()).map(|(_, file)| file.as_path());
        let shared = self.shared.iter().flat_map(|shared| {
            // Whom it trusts is settled when its connections are first made.
            std::iter::once(shared.secret_file.as_path()).chain(shared.password_file.as_deref())
        });
        upstream
            .ca_file
            .as_deref()
            .into_iter()
            .chain(client)
            .chain(proxy)
            .chain(token)
            .chain(secrets)
            .chain(shared)
            .collect()
    }
}
