//! The access line of a request: written when its answer has ended, or when the request has without an answer.

use std::net::IpAddr;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use http_body::Body as _;
use percent_encoding::{CONTROLS, percent_encode};
use tokio::time::Instant;

use super::router::Connection;
use crate::api::BatchApi;
use crate::config::AccessLines;
use crate::message::ending::{Abort, BodyEnd};
use crate::message::headers::{REQUEST_ID, REQUEST_ID_BYTES, client_request_id};
use crate::message::reply::{Detail, Reply, ReplyInfo};
use crate::telemetry::log::events;
use crate::telemetry::metrics::{IdResult, Outcome, Route};
use crate::telemetry::trace::{RequestSpan, TraceContext};

/// The most bytes of a path that are logged: a target may take all of a head.
const PATH_BYTES: usize = 1024;
/// The most bytes of a client's name that are logged.
const USER_AGENT_BYTES: usize = 256;

/// What the access line of a request says of the request itself.
pub(super) struct Line {
    method: Method,
    path: String,
    route: Route,
    /// The name of the batch API, on the batch route.
    api: Option<Box<str>>,
    began: Instant,
    client: Option<IpAddr>,
    user_agent: Option<String>,
    client_request_id: Option<HeaderValue>,
    trace: TraceContext,
}

/// What it says of the answer.
struct Answer<'a> {
    status: u16,
    outcome: Outcome,
    detail: Option<&'a str>,
    request_id: Option<&'a str>,
    bytes: Option<u64>,
    aborted: Option<Abort>,
    /// How the reply came about, if there was one.
    info: Option<&'a ReplyInfo>,
}

/// Whether the access log may get a line of a request that is answered so. Only its end tells of a stream that was cut short.
pub(super) fn may_log(lines: AccessLines, reply: &Reply) -> bool {
    match lines {
        AccessLines::All => true,
        AccessLines::Errors => is_error(reply.response.status().as_u16()) || !reply.response.body().is_whole(),
        AccessLines::Off => false,
    }
}

fn is_error(status: u16) -> bool {
    status >= 400
}

impl Line {
    pub(super) fn of(
        head: &Parts,
        connection: &Connection,
        (route, api): (Route, Option<&BatchApi>),
        began: Instant,
        trace: &RequestSpan,
    ) -> Self {
        let user_agent = head.headers.get(USER_AGENT).map(|agent| shown(agent.as_bytes(), USER_AGENT_BYTES));
        Self {
            method: head.method.clone(),
            path: shown(head.uri.path().as_bytes(), PATH_BYTES),
            route,
            api: api.map(|api| api.name.clone()),
            began,
            client: connection.client,
            user_agent,
            client_request_id: client_request_id(&head.headers).cloned(),
            trace: trace.context(&head.headers),
        }
    }

    /// Logs the line of a request that ends without an answer.
    pub(super) fn log_unanswered(&self, abort: Abort) {
        self.log(&Answer {
            status: abort.status(),
            outcome: Outcome::Error,
            detail: Some(abort.detail()),
            request_id: None,
            bytes: None,
            aborted: Some(abort),
            info: None,
        });
    }

    /// Has the line logged when the body of `reply` has ended, where `lines` wants it then.
    pub(super) fn log_at_end(self, reply: &mut Reply, lines: AccessLines) {
        let (info, status, headers) = (reply.info, reply.response.status(), reply.response.headers());
        let request_id = headers.get(REQUEST_ID).filter(|id| id.len() <= REQUEST_ID_BYTES).cloned();
        // hyper may drop a body as soon as all of its announced bytes are there, and sends none of some answers.
        let is_bodiless =
            self.method == Method::HEAD || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
        let announced = reply.response.body().size_hint().exact().or_else(|| {
            let length = headers.get(CONTENT_LENGTH)?;
            length.to_str().ok()?.parse().ok()
        });
        let status = status.as_u16();
        reply.response.body_mut().set_on_end(Box::new(move |BodyEnd { bytes, aborted }| {
            let aborted = aborted.filter(|_| !is_bodiless && announced != Some(bytes));
            if lines == AccessLines::Errors && !is_error(status) && aborted.is_none() {
                return;
            }
            self.log(&Answer {
                status,
                outcome: info.outcome,
                detail: info.detail.map(Detail::name),
                request_id: request_id.as_ref().and_then(|id| id.to_str().ok()),
                bytes: Some(bytes),
                aborted,
                info: Some(&info),
            });
        }));
    }

    fn log(&self, answer: &Answer<'_>) {
        let Answer { status, outcome, detail, request_id, bytes, aborted, info } = answer;
        let client_request_id = self.client_request_id.as_ref().and_then(|id| id.to_str().ok());
        let milliseconds = |span: Duration| (span.as_secs_f64() * 1_000_000.0).round() / 1000.0;
        let tally = info.map(|info| info.tally).unwrap_or_default();
        let some = |count: u32| Some(count).filter(|count| *count > 0);
        let count = |result| some(tally.count(result));
        events::Access {
            method: self.method.as_str(),
            path: &self.path,
            status: *status,
            route: self.route.name(),
            api: self.api.as_deref(),
            outcome: outcome.name(),
            milliseconds: milliseconds(self.began.elapsed()),
            waited_milliseconds: info.and_then(|info| info.waited).map(milliseconds),
            detail: *detail,
            aborted: aborted.map(Abort::name),
            client: self.client.map(|client| client.to_string()).as_deref(),
            user_agent: self.user_agent.as_deref(),
            bytes: *bytes,
            request_id: *request_id,
            client_request_id: client_request_id.filter(|id| *request_id != Some(*id)),
            trace_id: self.trace.id(),
            caller: info.and_then(|info| info.caller).map(|caller| format!("{caller:08x}")),
            user: info.and_then(|info| info.user).map(|user| format!("{user:08x}")),
            ids: some(tally.total()),
            hit: count(IdResult::Hit),
            stale: count(IdResult::Stale),
            joined: count(IdResult::Joined),
            shared: count(IdResult::Shared),
            fetched: count(IdResult::Fetched),
            absent: count(IdResult::Absent),
            failed: count(IdResult::Failed),
        }
        .log();
    }
}

/// A client's text as it is logged, in ASCII: other characters may steer a terminal or reverse the text's direction.
fn shown(text: &[u8], most: usize) -> String {
    let mut shown = percent_encode(text, CONTROLS).to_string();
    shown.truncate(most);
    shown
}
