//! Which addresses the endpoint's name has, and in which order they are tried.
//!
//! The address that answered last comes first, so that an unreachable one costs time once. A name that stops resolving keeps
//! its last addresses. While connections are in use the name is resolved again every few seconds, so that connections to an
//! address which the name has left can be given up.

use std::collections::VecDeque;
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
/// In so many resolutions in a row an address must be missing before the name counts as moved away from it: a name server may
/// answer with some of many addresses at a time.
const MISSING: usize = 3;

/// Resolves the name of the endpoint, or of the egress proxy. Clones share what they know.
#[derive(Clone)]
pub(super) struct Resolver {
    shared: Arc<Mutex<Known>>,
    /// How long a resolution may take.
    limit: Duration,
}

#[derive(Default)]
struct Known {
    name: Option<Name>,
    /// The addresses of the last resolutions that succeeded, newest last.
    recent: VecDeque<Vec<IpAddr>>,
    /// The address that a connection was last made to.
    good: Option<IpAddr>,
    resolved: Option<Instant>,
}

impl Resolver {
    pub(super) fn new(limit: Duration) -> Self {
        Self { shared: Arc::default(), limit }
    }

    /// A connection to `address` was made.
    pub(super) fn connected(&self, address: SocketAddr) {
        self.known().good = Some(address.ip());
    }

    /// Whether the name no longer has `address`. Resolves it again in the background where that was done too long ago.
    pub(super) fn has_moved_from(&self, address: SocketAddr) -> bool {
        let mut known = self.known();
        let due = known.resolved.is_none_or(|resolved| resolved.elapsed() >= INTERVAL);
        if due && let Some(name) = known.name.clone() {
            known.resolved = Some(Instant::now());
            let resolver = self.clone();
            tokio::spawn(async move { resolver.resolve(name).await });
        }
        known.recent.len() >= MISSING && !known.recent.iter().flatten().any(|ip| *ip == address.ip())
    }

    /// The addresses of `name`, the last good one first.
    async fn resolve(&self, name: Name) -> io::Result<Vec<SocketAddr>> {
        let resolved = match timeout(self.limit, GaiResolver::new().call(name.clone())).await {
            Ok(resolved) => resolved.map(|addresses| addresses.map(|address| address.ip()).collect::<Vec<_>>()),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the name was not resolved in time")),
        };
        let mut known = self.known();
        known.resolved = Some(Instant::now());
        known.name = Some(name);
        let addresses = match resolved {
            Ok(addresses) if !addresses.is_empty() => {
                known.recent.push_back(addresses.clone());
                if known.recent.len() > MISSING {
                    known.recent.pop_front();
                }
                addresses
            }
            failed => match known.recent.back() {
                Some(last) => last.clone(),
                None => failed?,
            },
        };
        let (mut first, others): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|ip| Some(*ip) == known.good);
        first.extend(others);
        // hyper-util fills in the port.
        Ok(first.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect())
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
        let resolver = self.clone();
        Box::pin(async move { Ok(resolver.resolve(name).await?.into_iter()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(recent: &[&[&str]]) -> Resolver {
        let resolver = Resolver::new(Duration::from_secs(1));
        let parse = |answer: &&[&str]| answer.iter().map(|ip| ip.parse().unwrap()).collect();
        resolver.known().recent = recent.iter().map(parse).collect();
        resolver.known().resolved = Some(Instant::now());
        resolver
    }

    #[tokio::test]
    async fn a_name_has_moved_from_an_address_that_several_resolutions_in_a_row_lack() {
        let address: SocketAddr = "127.0.0.4:80".parse().unwrap();
        assert!(!with(&[&["127.0.0.5"]]).has_moved_from(address), "one resolution is not enough");
        assert!(!with(&[&["127.0.0.4"], &["127.0.0.5"], &["127.0.0.6"]]).has_moved_from(address));
        assert!(with(&[&["127.0.0.5"], &["127.0.0.5"], &["127.0.0.5"]]).has_moved_from(address));
    }

    #[tokio::test]
    async fn the_last_good_address_comes_first_and_a_name_that_does_not_resolve_keeps_its_addresses() {
        let resolver = with(&[&["127.0.0.4", "127.0.0.5"]]);
        resolver.connected("127.0.0.5:443".parse().unwrap());
        let name = "name.invalid".parse().unwrap();
        let addresses = resolver.resolve(name).await.unwrap();
        assert_eq!(addresses, ["127.0.0.5:0".parse().unwrap(), "127.0.0.4:0".parse().unwrap()]);
        let unknown = Resolver::new(Duration::from_secs(1)).resolve("name.invalid".parse().unwrap()).await;
        assert!(unknown.is_err(), "a name that never resolved has no addresses");
    }
}
