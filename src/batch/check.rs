//! Shows an operator how the descriptions of a configuration read a recorded exchange: for `sidelink check --request --response`. No
//! credential's value is shown, and links without their query.

mod answer;
mod found;
mod request;

use std::fmt::{Display, Write as _};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Request, Response};

use crate::config::Config;
use crate::telemetry::metrics::Bypass;

/// What a configuration makes of a recorded exchange.
pub struct CheckedExchange {
    /// For people: a line for each thing, after its name.
    pub text: String,
    /// Whether it is a batch and, with an answer, every item could be kept.
    pub is_kept: bool,
}

/// Reads a recorded request, and the answer to it if there is one, as `config` describes them.
pub fn check(config: &Config, request: &Request<Bytes>, response: Option<Response<Bytes>>) -> CheckedExchange {
    let mut report = Report(String::new());
    let checked = request::check(config, request, &mut report);
    let is_kept = match (checked, response) {
        (None, _) => false,
        (Some(_), None) => {
            report.line("verdict", "a batch");
            true
        }
        (Some(batch), Some(response)) => answer::check(config, &batch, response, &mut report),
    };
    CheckedExchange { text: report.0, is_kept }
}

/// What is printed: names on the left, what they name on the right.
struct Report(String);

impl Report {
    fn line(&mut self, name: &str, text: impl Display) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{name:<12}{text}");
    }

    /// A line below an id.
    fn detail(&mut self, text: impl Display) {
        self.line("", format_args!("  {text}"));
    }

    fn forwarded(&mut self, reason: Bypass, why: &str) {
        self.line("verdict", format_args!("forwarded untouched ({}): {why}", reason.name()));
    }
}

/// A meaning, within a sentence.
fn lower(meaning: &str) -> String {
    let mut chars = meaning.chars();
    let first = chars.next().into_iter().flat_map(char::to_lowercase);
    first.chain(chars).collect::<String>().trim_end_matches('.').to_owned()
}

/// Of a body that is no JSON: whether its record has less of it than its Content-Length says.
fn shortage(headers: &HeaderMap, body: &[u8]) -> String {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    match length.filter(|length| *length > body.len()) {
        Some(length) => format!("; Content-Length says {length} bytes, and the file has {}", body.len()),
        None => String::new(),
    }
}
