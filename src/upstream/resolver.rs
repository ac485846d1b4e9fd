//! The addresses of the endpoint's name, in the order in which they are tried.
//!
//! The address that answered last comes first, and one that failed comes last. A name that stops resolving keeps its last
//! addresses. While connections are in use the name is resolved again every few seconds, so that connections to an address that
//! the name no longer has can be closed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tower::Service;

/// How often the name is resolved again while connections are in use.
const INTERVAL: Duration = Duration::from_secs(3);
/// How long an address must be missing, from two resolutions at least, before connections to it are closed: a name server may
/// answer with a part of many addresses at a time.
const MISSING: Duration = Duration::from_secs(6);
/// Most addresses that are remembered.
const MOST: usize = 64;

/// Resolves the name of the endpoint, or of the egress proxy. Clones share their state.
#[derive(Clone)]
pub(super) struct Resolver {
    known: Arc<Mutex<Known>>,
    /// How long a connection waits for a resolution.
    limit: Duration,
}

#[derive(Default)]
struct Known {
    name: Option<Name>,
    /// Recent addresses of the name, those of the last resolution first.
    addresses: Vec<ResolvedAddress>,
    /// The last address from which a byte came.
    good: Option<IpAddr>,
    /// The address that was tried first when a connection last failed, or ended before its first byte.
    bad: Option<IpAddr>,
    /// The address that the last connection tried first.
    first: Option<IpAddr>,
    /// When the last resolution began.
    begun: Option<Instant>,
}

struct ResolvedAddress {
    ip: IpAddr,
    /// When resolutions stopped containing it.
    missing: Option<Instant>,
}

impl Known {
    /// The addresses of the last resolution in the order in which they are to be tried. hyper-util fills in the port.
    fn in_order(&mut self) -> Vec<SocketAddr> {
        let present = self.addresses.iter().filter(|address| address.missing.is_none());
        let mut present: Vec<_> = present.map(|address| SocketAddr::new(address.ip, 0)).collect();
        present.sort_by_key(|address| (Some(address.ip()) != self.good, Some(address.ip()) == self.bad));
        self.first = present.first().map(SocketAddr::ip);
        present
    }

    fn learn(&mut self, name: Name, resolved: Vec<IpAddr>) {
        let now = Instant::now();
        let mut missing = std::mem::take(&mut self.addresses);
        missing.retain(|address| !resolved.contains(&address.ip));
        missing.iter_mut().for_each(|address| address.missing = address.missing.or(Some(now)));
        self.addresses = resolved.into_iter().map(|ip| ResolvedAddress { ip, missing: None }).chain(missing).collect();
        self.addresses.truncate(MOST);
        self.name = Some(name);
    }
}

impl Resolver {
    pub(super) fn new(limit: Duration) -> Self {
        Self { known: Arc::default(), limit }
    }

    /// `address` has sent a byte.
    pub(super) fn answered(&self, address: SocketAddr) {
        let mut known = self.known.lock();
        known.good = Some(address.ip());
        known.bad = known.bad.filter(|bad| *bad != address.ip());
    }

    /// Connecting failed, or a new connection ended before its first byte: the address that was tried first becomes the last.
    pub(super) fn failed(&self) {
        let mut known = self.known.lock();
        known.bad = known.first;
        known.good = known.good.filter(|good| Some(*good) != known.bad);
    }

    /// Whether the name no longer has `address`. Resolves the name in the background where the last resolution is too old.
    pub(super) fn has_moved_from(&self, address: SocketAddr) -> bool {
        let mut known = self.known.lock();
        let is_due = known.begun.is_none_or(|begun| begun.elapsed() >= INTERVAL);
        if is_due && let Some(name) = known.name.clone() {
            known.begun = Some(Instant::now());
            tokio::spawn(self.clone().look_up(name));
        }
        let address = known.addresses.iter().find(|known| known.ip == address.ip());
        address.and_then(|address| address.missing).is_some_and(|since| since.elapsed() >= MISSING)
    }

    /// The addresses of `name`: the last ones where it does not resolve now, or not in time.
    pub(super) async fn resolve(self, name: Name) -> io::Result<std::vec::IntoIter<SocketAddr>> {
        self.known.lock().begun = Some(Instant::now());
        // A task of its own, so that a late result is not lost.
        let looked_up = timeout(self.limit, tokio::spawn(self.clone().look_up(name))).await;
        let addresses = self.known.lock().in_order();
        if !addresses.is_empty() {
            return Ok(addresses.into_iter());
        }
        Err(match looked_up {
            Ok(Ok(Err(error))) => error,
            Ok(_) => io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "the name was not resolved in time"),
        })
    }

    async fn look_up(self, name: Name) -> io::Result<()> {
        let resolved: Vec<IpAddr> = GaiResolver::new().call(name.clone()).await?.map(|address| address.ip()).collect();
        if !resolved.is_empty() {
            self.known.lock().learn(name, resolved);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn learn(resolver: &Resolver, ips: &[&str]) {
        let name = "name.invalid".parse().unwrap();
        resolver.known.lock().learn(name, ips.iter().map(|ip| ip.parse().unwrap()).collect());
        resolver.known.lock().begun = Some(Instant::now());
    }

    fn address(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 443)
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_has_moved_from_an_address_that_is_missing_for_a_while() {
        let resolver = Resolver::new(Duration::from_secs(1));
        learn(&resolver, &["127.0.0.4"]);
        learn(&resolver, &["127.0.0.5"]);
        learn(&resolver, &["127.0.0.6"]);
        assert!(!resolver.has_moved_from(address("127.0.0.4")), "several answers at once are one");
        advance(MISSING).await;
        learn(&resolver, &["127.0.0.5"]);
        assert!(resolver.has_moved_from(address("127.0.0.4")));
        assert!(!resolver.has_moved_from(address("127.0.0.5")), "it came back in time");
    }

    #[tokio::test]
    async fn the_address_that_answered_comes_first_and_one_that_failed_last() {
        let resolver = Resolver::new(Duration::from_secs(1));
        learn(&resolver, &["127.0.0.4", "127.0.0.5", "127.0.0.6"]);
        let order =
            || resolver.known.lock().in_order().iter().map(|address| address.ip().to_string()).collect::<Vec<_>>();
        resolver.answered(address("127.0.0.5"));
        assert_eq!(order(), ["127.0.0.5", "127.0.0.4", "127.0.0.6"]);
        resolver.failed();
        assert_eq!(order(), ["127.0.0.4", "127.0.0.6", "127.0.0.5"], "also if it was good before");
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_keeps_its_addresses() {
        let resolver = Resolver::new(Duration::from_secs(5));
        assert!(resolver.clone().resolve("name.invalid".parse().unwrap()).await.is_err(), "it never resolved");
        learn(&resolver, &["127.0.0.4"]);
        let addresses = resolver.resolve("name.invalid".parse().unwrap()).await.unwrap();
        assert_eq!(addresses.collect::<Vec<_>>(), ["127.0.0.4:0".parse().unwrap()]);
    }
}
