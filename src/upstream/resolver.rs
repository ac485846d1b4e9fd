//! Which addresses the endpoint's name has, and in which order they are tried.
//!
//! The address that answered last comes first, and one that failed comes last, so that an address that is of no use costs time
//! once. A name that stops resolving keeps its last addresses. While connections are in use the name is resolved again every few
//! seconds, so that connections to an address which the name has left can be given up.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tokio::time::{Instant, timeout};
use tower_service::Service;

/// How often the name is resolved again while connections are in use.
const INTERVAL: Duration = Duration::from_secs(3);
/// An address must be missing for so long, two resolutions at least, before the name counts as moved away from it: a name server
/// may answer with some of many addresses at a time.
const MISSING: Duration = Duration::from_secs(6);
/// Addresses that are remembered.
const MOST: usize = 64;

/// Resolves the name of the endpoint, or of the egress proxy. Clones share what they know.
#[derive(Clone)]
pub(super) struct Resolver {
    shared: Arc<Mutex<Known>>,
    /// How long a connection waits for a resolution.
    limit: Duration,
}

#[derive(Default)]
struct Known {
    name: Option<Name>,
    /// All addresses that the name has had lately, those of the last resolution first.
    addresses: Vec<Address>,
    /// The address that answered last.
    good: Option<IpAddr>,
    /// The address that was tried first when connecting, or the first answer, last failed.
    bad: Option<IpAddr>,
    /// The address that was last put first.
    first: Option<IpAddr>,
    /// When a resolution was last begun.
    begun: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Address {
    ip: IpAddr,
    /// Since when resolutions lack it.
    missing: Option<Instant>,
}

impl Known {
    /// The last addresses in the order in which they are to be tried. hyper-util fills in the port.
    fn in_order(&mut self) -> Vec<SocketAddr> {
        let mut present: Vec<IpAddr> = self.addresses.iter().filter(|a| a.missing.is_none()).map(|a| a.ip).collect();
        present.sort_by_key(|ip| {
            if Some(*ip) == self.good {
                0
            } else if Some(*ip) == self.bad {
                2
            } else {
                1
            }
        });
        self.first = present.first().copied();
        present.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect()
    }

    fn learn(&mut self, name: Name, resolved: Vec<IpAddr>) {
        let now = Instant::now();
        let gone = self.addresses.drain(..).filter(|address| !resolved.contains(&address.ip));
        let gone: Vec<_> = gone.map(|a| Address { missing: a.missing.or(Some(now)), ..a }).collect();
        self.addresses = resolved.into_iter().map(|ip| Address { ip, missing: None }).chain(gone).collect();
        self.addresses.truncate(MOST);
        self.name = Some(name);
    }
}

impl Resolver {
    pub(super) fn new(limit: Duration) -> Self {
        Self { shared: Arc::default(), limit }
    }

    /// Something has come from `address`.
    pub(super) fn answered(&self, address: SocketAddr) {
        let mut known = self.known();
        known.good = Some(address.ip());
        if known.bad == known.good {
            known.bad = None;
        }
    }

    /// Connecting failed, or a new connection ended before anything came: the address that was tried first comes last now.
    pub(super) fn failed(&self) {
        let mut known = self.known();
        known.bad = known.first;
        if known.good == known.bad {
            known.good = None;
        }
    }

    /// Whether the name no longer has `address`. Resolves it again in the background where that was done too long ago.
    pub(super) fn has_moved_from(&self, address: SocketAddr) -> bool {
        let mut known = self.known();
        let due = known.begun.is_none_or(|begun| begun.elapsed() >= INTERVAL);
        if due && let Some(name) = known.name.clone() {
            known.begun = Some(Instant::now());
            tokio::spawn(self.clone().look_up(name));
        }
        let found = known.addresses.iter().find(|known| known.ip == address.ip());
        found.is_some_and(|found| found.missing.is_some_and(|since| since.elapsed() >= MISSING))
    }

    /// The addresses of `name`; its last ones where it does not resolve now, or not in time.
    async fn resolve(self, name: Name) -> io::Result<std::vec::IntoIter<SocketAddr>> {
        self.known().begun = Some(Instant::now());
        // On its own, so that what comes late is not lost.
        let looked_up = timeout(self.limit, tokio::spawn(self.clone().look_up(name))).await;
        let addresses = self.known().in_order();
        if !addresses.is_empty() {
            return Ok(addresses.into_iter());
        }
        let error = match looked_up {
            Ok(Ok(Err(error))) => error,
            Ok(_) => io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "the name was not resolved in time"),
        };
        Err(error)
    }

    async fn look_up(self, name: Name) -> io::Result<()> {
        let resolved: Vec<IpAddr> = GaiResolver::new().call(name.clone()).await?.map(|address| address.ip()).collect();
        if !resolved.is_empty() {
            self.known().learn(name, resolved);
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn learn(resolver: &Resolver, ips: &[&str]) {
        let name = "name.invalid".parse().unwrap();
        resolver.known().learn(name, ips.iter().map(|ip| ip.parse().unwrap()).collect());
        resolver.known().begun = Some(Instant::now());
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
        let order = || resolver.known().in_order().iter().map(|address| address.ip().to_string()).collect::<Vec<_>>();
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
