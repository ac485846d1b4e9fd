//! The limit of open file descriptors: each connection takes one, and a process that has none left accepts nobody and calls nobody.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::ADMIN_CONNECTIONS;
use crate::admin::DescriptorsShort;
use crate::config::{Config, Limits};
use crate::telemetry::log::events;

/// Descriptors for everything but connections of clients, of operators, to the endpoint and to the identity provider: files, the shared tier, the collector,
/// name servers.
const OTHERS: u64 = 64;

/// Raises the soft limit, which shells and service managers set to 1024 for the sake of programs that use select(2), to the hard one.
///
/// # Errors
/// The system does not allow it.
pub fn raise_limit() -> Result<(), Errno> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
}

/// Lowers `limits.connections` of `config` where the limit is lower than all of its limits need: at most half of the descriptors are
/// kept in reserve, so that operators are answered and calls are made whatever clients do. Logs it and returns the numbers.
pub(super) fn fit(config: &mut Config) -> Option<DescriptorsShort> {
    let limit = getrlimit(Resource::Nofile).current?;
    let calls = config.upstream.calls + config.callers.identity.as_ref().map_or(0, |identity| identity.requests);
    let connections = connections(&config.limits, calls, limit);
    let configured = config.limits.connections;
    if connections >= configured {
        return None;
    }
    let needed = needed(&config.limits, calls);
    events::DescriptorsShort { limit, needed, connections }.log();
    config.limits.connections = connections;
    Some(DescriptorsShort { limit, needed, connections, configured })
}

fn reserved(limits: &Limits, calls: usize) -> u64 {
    (limits.exchanges + calls + ADMIN_CONNECTIONS) as u64 + OTHERS
}

fn needed(limits: &Limits, calls: usize) -> u64 {
    limits.connections as u64 + reserved(limits, calls)
}

/// The connections of clients that `limit` descriptors have room for; `limits.connections` at most, and one at least.
fn connections(limits: &Limits, calls: usize, limit: u64) -> usize {
    let left = limit - reserved(limits, calls).min(limit / 2);
    usize::try_from(left).unwrap_or(usize::MAX).clamp(1, limits.connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_half_of_the_descriptors_are_kept_in_reserve() {
        let limits = Limits { connections: 10_000, exchanges: 2000, ..Limits::default() };
        for (limit, expected) in [
            (0, 1),
            (1, 1),
            (256, 128),
            (1024, 512),
            (4768, 2384),
            (5000, 2616),
            (12_383, 9999),
            (12_384, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(connections(&limits, 256, limit), expected, "{limit}");
        }
        assert_eq!(needed(&limits, 256), 12_384);
    }
}
