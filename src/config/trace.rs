//! `[trace]`: where spans go, and which.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING, USER_AGENT};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Uri};

use super::Endpoint;
use super::pem;
use super::reader::{Found, Section};
use super::report::Report;
use super::secret::{self, Secret};

/// Where OTLP over HTTP takes spans, on a collector of which no path is named.
const PATH: &str = "/v1/traces";
/// Characters of a service's name.
const NAME_CHARS: usize = 128;

/// `[trace]`. There is none by default.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The collector.
    pub endpoint: Endpoint,
    /// Where on it. Default `/v1/traces`.
    pub path: PathAndQuery,
    /// Share of the traces begun here that are sampled, 0 to 1. Who brings a trace has decided already. Default 1.
    pub sample: f64,
    /// `service.name`, of 1 to 128 characters. Default `sidelink`.
    pub service_name: String,
    /// The longest that one attempt to export may take, 1 ms to 1 min. Default 5 s.
    pub timeout: Duration,
    /// PEM file of certificate authorities that replaces the platform's. None by default.
    pub ca_file: Option<PathBuf>,
    /// `[[trace.headers]]`: what the collector is sent besides; no name twice. None by default.
    pub headers: Vec<TraceHeader>,
}

/// One table of `[[trace.headers]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceHeader {
    /// Its name.
    pub name: HeaderName,
    /// Its value, as it was read with the configuration.
    pub secret: Secret,
    /// Where.
    pub file: PathBuf,
}

impl TraceHeader {
    /// Its value, which no debug output shows.
    pub fn value(&self) -> HeaderValue {
        // Never fails: what is read is visible ASCII.
        let mut value = HeaderValue::from_bytes(self.secret.expose()).unwrap_or_else(|_| HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }
}

impl Trace {
    /// The defaults, for a collector at `endpoint`.
    pub fn at(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            path: PathAndQuery::from_static(PATH),
            sample: 1.0,
            service_name: "sidelink".to_owned(),
            timeout: Duration::from_secs(5),
            ca_file: None,
            headers: Vec::new(),
        }
    }

    /// Where spans are brought.
    pub fn uri(&self) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.endpoint.scheme.clone());
        parts.authority = Some(self.endpoint.authority.clone());
        parts.path_and_query = Some(self.path.clone());
        Uri::from_parts(parts).unwrap_or_default()
    }
}

/// Reads a collector's URL; a message says what is wrong with it, without a word of it: it may carry a password.
fn collector(text: &str) -> Result<(Endpoint, PathAndQuery), String> {
    let uri: Uri = text.parse().map_err(|error| format!("not a URL: {error}"))?;
    if uri.query().is_some() || text.contains('#') {
        return Err("must not have a query or fragment; what a collector wants to know goes into trace.headers".into());
    }
    let path = match uri.path() {
        "" | "/" => PathAndQuery::from_static(PATH),
        path => path.parse().map_err(|error| format!("not a path: {error}"))?,
    };
    let origin = text.strip_suffix(uri.path()).unwrap_or(text);
    Ok((Endpoint::parse(origin)?, path))
}

/// The whole table, if it stands in the file; also the place of its endpoint there.
pub(super) fn read<'a, 'i>(section: &mut Section<'a, 'i>, report: &mut Report<'_>) -> Option<(Trace, Found<'a, 'i>)> {
    let found = section.find("endpoint");
    let stand_in = Endpoint { scheme: Scheme::HTTP, authority: http::uri::Authority::from_static("stand-in.invalid") };
    let mut trace = Trace::at(stand_in);
    section.share("sample", &mut trace.sample, 0.0..=1.0, report);
    let name = section.find("service_name");
    let bounds = Duration::from_millis(1)..=Duration::from_secs(60);
    section.duration("timeout", &mut trace.timeout, bounds, report);
    let ca_file = section.find("ca_file");
    for mut table in section.tables("headers", report) {
        trace.headers.extend(header(&mut table, &trace.headers, report));
        table.finish(report);
    }
    if !section.is_there() {
        return None;
    }
    if let Some(found) = name {
        let text = found.text(report, "a service's name").unwrap_or(&trace.service_name).to_owned();
        if text.is_empty() || text.chars().count() > NAME_CHARS || text.chars().any(char::is_control) {
            found.wrong(report, format!("must be a service's name: 1 to {NAME_CHARS} characters, none of control"));
        }
        trace.service_name = text;
    }
    section.require("endpoint", report);
    let found = found?;
    let text = found.text(report, "a URL such as \"http://127.0.0.1:4318\"")?;
    match collector(text) {
        Ok((endpoint, path)) => (trace.endpoint, trace.path) = (endpoint, path),
        Err(message) => {
            found.wrong(report, message);
            return None;
        }
    }
    if let Some(found) = ca_file
        && let Some(path) = found.text(report, "a file's path").map(PathBuf::from)
    {
        match pem::certificates(&path) {
            _ if trace.endpoint.scheme != Scheme::HTTPS => found.wrong(report, "is of use with https:// only"),
            Ok(_) => trace.ca_file = Some(path),
            Err(message) => found.wrong(report, message),
        }
    }
    Some((trace, found))
}

/// One table of `[[trace.headers]]`; `others` are those before it.
fn header(table: &mut Section<'_, '_>, others: &[TraceHeader], report: &mut Report<'_>) -> Option<TraceHeader> {
    let (name, file) = (table.find("name"), table.find("value_file"));
    if !table.is_there() {
        return None;
    }
    table.require("name", report);
    table.require("value_file", report);
    let name = name.and_then(|found| {
        let text = found.text(report, "a header's name")?;
        let Ok(name) = text.parse::<HeaderName>() else {
            found.wrong(report, format!("\"{}\" is not a header's name", text.escape_debug()));
            return None;
        };
        if [HOST, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, USER_AGENT].contains(&name) {
            found.wrong(report, format!("{name} is set by sidelink itself"));
        } else if others.iter().any(|other| other.name == name) {
            found.wrong(report, format!("names {name} twice"));
        }
        Some(name)
    });
    let (secret, file) = file.and_then(|found| {
        let path = Path::new(found.text(report, "a file's path")?);
        match secret::line_of_file(path) {
            Ok((secret, everyones)) => {
                if everyones {
                    report.warn(found.span.start, &found.key, &super::file::too_open(path));
                }
                Some((secret, path.to_owned()))
            }
            Err(message) => {
                found.wrong(report, message);
                None
            }
        }
    })?;
    Some(TraceHeader { name: name?, secret, file })
}
