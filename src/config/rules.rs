//! Rules between the keys of a configuration, and between the running configuration and a new one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use http::uri::Scheme;
use toml::de::DeTable;

use super::diagnostics::Diagnostics;
use super::listen::{ListenAddress, clash};
use super::{Config, Endpoint, render};

/// Reports broken rules, at a key of the file: the defaults keep the rules.
pub(super) fn check(config: &Config, document: &DeTable<'_>, report: &Diagnostics<'_>) {
    let wrong = |keys: &[&str], message: &str| {
        if let Some((key, at)) = keys.iter().find_map(|key| place(document, key).ok().map(|at| (key, at))) {
            report.add(at, key, message);
        }
    };
    let limits = &config.limits;
    if limits.in_flight / 2 < limits.batch_ids {
        let least = 2 * limits.batch_ids;
        let why = "one caller may use half of it, and a whole batch has to fit";
        let message = format!("limits.in_flight must be at least {least}, twice limits.batch_ids: {why}");
        wrong(&["limits.in_flight", "limits.batch_ids"], &message);
    }
    for (all, all_bytes, one, bytes) in [
        ("limits.batch_bodies", limits.batch_bodies, "limits.batch_body", limits.batch_body),
        ("limits.signed_bodies", limits.signed_bodies, "limits.signed_body", limits.signed_body),
    ] {
        if all_bytes < bytes {
            wrong(&[all, one], &format!("{all} must be at least {one}: one such body has to fit"));
        }
    }

    let admin = Some(config.admin.address).filter(|_| !report.has_error("admin.address"));
    if let Some(admin) = admin.map(ListenAddress::Tcp)
        && let Some(address) = config.listen.address.iter().find(|address| clash(address, &admin))
    {
        wrong(&["admin.address"], &format!("{admin} clashes with {address}, a listen.address"));
        if place(document, "admin.address").is_err() {
            wrong(&["listen.address"], &format!("{address} clashes with {admin}, the default of admin.address"));
        }
    }

    let is_elsewhere = |admin: &SocketAddr| !admin.ip().to_canonical().is_loopback();
    if config.admin.tls.is_none()
        && admin.is_some_and(|admin| is_elsewhere(&admin))
        && config.admin.token_file.is_some()
    {
        let message =
            "the token goes over the network in clear: [admin.tls], or TLS of a proxy before it, keeps it secret";
        if let Ok(at) = place(document, "admin.token_file") {
            report.warn(at, "admin.token_file", message);
        }
    }

    if config.admin.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
        && let Ok(at) = place(document, "admin.tls.client_ca")
    {
        let message = "sidelink healthcheck, explain and purge, and most probes, show no certificate, and are refused";
        report.warn(at, "admin.tls.client_ca", message);
    }

    if let Some(identity) = &config.callers.identity
        && let Some(server) = identity.server()
        && is_in_clear(server)
        && !is_in_clear(&config.upstream.endpoint)
    {
        let message = "must be https://, or http:// on this machine: whoever is on the way reads the tokens, or says whose they are";
        wrong(&[identity.server_key()], message);
    }

    let listeners: Vec<SocketAddr> = config.listen.address.iter().filter_map(ListenAddress::tcp).chain(admin).collect();
    let reaches_itself = |endpoint: &Endpoint| {
        *endpoint != Endpoint::stand_in() && listeners.iter().any(|listener| is_self(endpoint, *listener))
    };
    if reaches_itself(&config.upstream.endpoint) {
        wrong(&["upstream.endpoint"], "is this sidelink's own listener: requests would loop");
    }
    if let Some(identity) = &config.callers.identity
        && identity.server().is_some_and(reaches_itself)
    {
        wrong(&[identity.server_key()], "is this sidelink's own listener: it knows nobody's identity");
    }
    if config.trace.as_ref().is_some_and(|trace| reaches_itself(&trace.endpoint.server)) {
        wrong(&["trace.endpoint"], "is this sidelink's own listener: every span would cause another span");
    }
}

/// Whether what is sent there goes over a network in clear.
fn is_in_clear(server: &Endpoint) -> bool {
    server.scheme == Scheme::HTTP && !server.is_loopback()
}

/// Reports each immutable key that differs, except where its value could not be read and the default takes its place.
pub(super) fn check_immutable(running: &Config, config: &Config, document: &DeTable<'_>, report: &Diagnostics<'_>) {
    for ((key, before), (_, now)) in render::immutable(running).into_iter().zip(render::immutable(config)) {
        if before != now && !report.is_uncertain(&key) {
            let (Ok(at) | Err(at)) = place(document, &key);
            report.add(at, &key, "cannot change at run time: restart");
        }
    }
}

/// The byte of a key; for an absent key `Err`, with that of its table or else of the file's beginning.
fn place(document: &DeTable<'_>, key: &str) -> Result<usize, usize> {
    let (mut table, mut at) = (Some(document), 0);
    for name in key.split('.') {
        let found = table.and_then(|table| table.iter().find(|(known, _)| known.get_ref() == name));
        let (name, value) = found.ok_or(at)?;
        at = name.span().start;
        table = value.get_ref().as_table();
    }
    Ok(at)
}

/// Whether `endpoint` is `listener`. Names are resolved only where the ports are the same.
fn is_self(endpoint: &Endpoint, listener: SocketAddr) -> bool {
    if listener.port() == 0 || listener.port() != endpoint.port() {
        return false;
    }
    let here = listener.ip().to_canonical();
    addresses(endpoint).into_iter().any(|ip| here == ip || (here.is_unspecified() && is_of_this_machine(ip)))
}

/// The addresses of the endpoint's host, none where its name does not resolve. `localhost` (RFC 6761) and the unspecified
/// address mean this machine.
fn addresses(endpoint: &Endpoint) -> Vec<IpAddr> {
    let host = endpoint.authority.host().trim_end_matches('.').trim_start_matches('[').trim_end_matches(']');
    let host = if host.rsplit('.').next() == Some("localhost") { "0.0.0.0" } else { host };
    let found = (host, endpoint.port()).to_socket_addrs().into_iter().flatten();
    let addresses = found.flat_map(|address| match address.ip().to_canonical() {
        ip if ip.is_unspecified() => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        ip => vec![ip],
    });
    addresses.collect()
}

/// Only addresses of this machine can be bound.
fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}
