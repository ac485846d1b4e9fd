//! `[trace]`: which spans are exported, and where to.

use std::path::PathBuf;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING, USER_AGENT};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue};

use super::declare::section;
use super::endpoint::{Endpoint, Url};
use super::kind::{MILLISECOND, MINUTE, SECOND, certificates, duration, secret_file, share, string_of, text};
use super::secret::{self, StoredSecret};
use super::table::TableVisitor;

/// The default path of OTLP over HTTP.
const PATH: &str = "/v1/traces";

section! {
    /// `[trace]`. There is none by default.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Trace: pub fn at(endpoint: Endpoint) {
        /// The collector, over OTLP/HTTP with protobuf; the default path is /v1/traces.
        pub endpoint: Url = Url { server: endpoint, path: PathAndQuery::from_static(PATH) }, text("a URL such as \"http://127.0.0.1:4318\"", collector).required("http://127.0.0.1:4318");
        /// Share of the traces that begin here that are sampled; a client's traceparent decides for its own trace.
        pub sample: f64 = 1.0, share(0.0..=1.0);
        /// The `service.name` of exported spans.
        pub service_name: String = "sidelink".to_owned(), string_of("a service's name: 1 to 128 characters, none of control", is_service_name);
        /// PEM file of certificate authorities for https://, instead of the platform's.
        pub ca_file: Option<PathBuf> = None, certificates().read_once().optional("/etc/sidelink/collector-ca.pem");
        /// The longest that one attempt to export may take.
        pub timeout: Duration = 5 * SECOND, duration(MILLISECOND..=MINUTE);
        /// A header of each export, and the file that holds its value; one table for each.
        pub headers: Vec<TraceHeader> = Vec::new() => list(TraceHeader::blank, TraceHeader::visit);
    }
}

section! {
    /// One table of `[[trace.headers]]`.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct TraceHeader: pub(super) fn blank() {
        /// Its name.
        pub name: HeaderName = HeaderName::from_static("stand-in"), text("a header's name", header_name).required("authorization");
        /// File that holds its value and nothing else.
        pub value_file: StoredSecret = StoredSecret::default(), secret_file(secret::line_of_file).required("/etc/sidelink/collector-authorization");
    }
}

impl TraceHeader {
    /// Visits each key of a table; `before` are the tables above it.
    fn visit(&mut self, before: &[Self], table: &mut TableVisitor<'_>) {
        self.keys(table);
        if let Some(found) = table.find("name")
            && before.iter().any(|other| other.name == self.name)
        {
            found.wrong(format!("names {} twice", self.name));
        }
    }

    /// Its value, marked as sensitive.
    pub fn value(&self) -> HeaderValue {
        self.value_file.secret.header_value()
    }
}

impl Trace {
    /// Visits each key, and reports what does not fit together.
    pub(super) fn visit(&mut self, table: &mut TableVisitor<'_>) {
        self.keys(table);
        if let Some(found) = table.find("ca_file").filter(|_| self.endpoint.server.scheme != Scheme::HTTPS) {
            found.wrong("needs an endpoint with https://");
        }
    }
}

/// Reads a collector's URL. A message does not repeat it: it may contain a password.
fn collector(text: &str) -> Result<Url, String> {
    if text.contains(['?', '#']) {
        return Err("must not have a query or fragment; use trace.headers for what the collector needs".into());
    }
    let mut url = Url::parse(text)?;
    if url.path == "/" {
        url.path = PathAndQuery::from_static(PATH);
    }
    Ok(url)
}

fn is_service_name(text: &str) -> bool {
    (1..=128).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| format!("\"{}\" is not a header's name", text.escape_debug()))?;
    if [HOST, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, USER_AGENT].contains(&name) {
        return Err(format!("{name} is set by sidelink itself"));
    }
    Ok(name)
}
