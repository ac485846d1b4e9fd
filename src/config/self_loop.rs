//! Whether an endpoint is a listener of this very process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use super::endpoint::Endpoint;

/// Whether whoever connects to `endpoint` gets to `listener`. A resolver is asked only where the ports are the same.
pub(super) fn is_self(endpoint: &Endpoint, listener: SocketAddr) -> bool {
    if listener.port() == 0 || listener.port() != endpoint.port() {
        return false;
    }
    let here = listener.ip().to_canonical();
    addresses(endpoint).into_iter().any(|ip| here == ip || (here.is_unspecified() && is_of_this_machine(ip)))
}

/// What the endpoint's host comes to. To connect to the unspecified address is to connect to this machine.
fn addresses(endpoint: &Endpoint) -> Vec<IpAddr> {
    let this_machine = || vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let host = endpoint.authority.host().trim_end_matches('.');
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) if ip.is_unspecified() => this_machine(),
        Ok(ip) => vec![ip],
        Err(_) if host == "localhost" || host.ends_with(".localhost") => this_machine(),
        // A name that is not known leads nowhere, so not here either.
        Err(_) => (host, endpoint.port())
            .to_socket_addrs()
            .map(|found| found.map(|address| address.ip().to_canonical()).collect())
            .unwrap_or_default(),
    }
}

/// Only addresses of this machine's own can be bound.
fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}
