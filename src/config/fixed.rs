//! What a reload cannot change: it was settled when sidelink started.

use toml::de::DeTable;

use super::Config;
use super::report::Report;

/// Reports each key by which `config` would have to change what is settled in `running`; not one whose value could not be
/// read, since the default then stands in its place.
pub(super) fn check(running: &Config, config: &Config, document: &DeTable<'_>, report: &mut Report<'_>) {
    let fixed = [
        ("listen.address", running.listen.address != config.listen.address),
        ("listen.unix_mode", running.listen.unix_mode != config.listen.unix_mode),
        // Clients that were let in without would stay.
        ("listen.tls", running.listen.tls.is_some() != config.listen.tls.is_some()),
        ("admin.address", running.admin.address != config.admin.address),
        ("log.format", running.log.format != config.log.format),
    ];
    for (key, differs) in fixed {
        if differs && !report.doubts(key) {
            report.add(place(document, key), key, "cannot change at run time: restart");
        }
    }
}

/// Where a key stands; where it does not, its table or, without that, the file's beginning.
fn place(document: &DeTable<'_>, key: &str) -> usize {
    let (mut table, mut at) = (document, 0);
    for name in key.split('.') {
        let Some((found, value)) = table.iter().find(|(known, _)| known.get_ref() == name) else { break };
        at = found.span().start;
        match value.get_ref().as_table() {
            Some(inner) => table = inner,
            None => break,
        }
    }
    at
}
