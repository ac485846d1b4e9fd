//! Detects an endpoint that is a listener of this process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use super::endpoint::Endpoint;

/// Whether `endpoint` is `listener`. Names are resolved only where the ports are the same.
pub(super) fn is_self(endpoint: &Endpoint, listener: SocketAddr) -> bool {
    if listener.port() == 0 || listener.port() != endpoint.port() {
        return false;
    }
    let here = listener.ip().to_canonical();
    addresses(endpoint).into_iter().any(|ip| here == ip || (here.is_unspecified() && is_of_this_machine(ip)))
}

/// The addresses of the endpoint's host. The unspecified address means this machine.
fn addresses(endpoint: &Endpoint) -> Vec<IpAddr> {
    let this_machine = || vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let host = endpoint.authority.host().trim_end_matches('.');
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(ip) if ip.is_unspecified() => this_machine(),
        Ok(ip) => vec![ip],
        Err(_) if host == "localhost" || host.ends_with(".localhost") => this_machine(),
        // A name that does not resolve is not this machine.
        Err(_) => (host, endpoint.port())
            .to_socket_addrs()
            .map(|found| found.map(|address| address.ip().to_canonical()).collect())
            .unwrap_or_default(),
    }
}

/// Only addresses of this machine can be bound.
fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}
