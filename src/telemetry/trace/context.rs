//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): a client's valid context goes on to the endpoint, within bounds.
//! It is no part of a scope.
//!
//! The SDK's `TraceContextPropagator` takes the first of several parents and the first line of a `tracestate`, accepts fields
//! of other lengths, and bounds neither header.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

use crate::message::headers::single;

/// W3C Trace Context header of the client's trace and span.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// W3C Trace Context header of what tracing systems add to it.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Length of a version 00 `traceparent`, and of what a later version begins with.
const PARENT_BYTES: usize = 55;
/// The longest `traceparent` of a later version that is passed on.
const LATER_PARENT_BYTES: usize = 256;
/// The longest `tracestate` that is passed on.
const STATE_BYTES: usize = 512;
/// Members longer than this are removed first where a `tracestate` is too long.
const LONG_MEMBER: usize = 128;

/// A valid trace context, within bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    parent: Option<HeaderValue>,
    /// The `tracestate`; only beside a parent.
    pub(super) state: Option<HeaderValue>,
}

impl TraceContext {
    /// The context in `headers`; empty without exactly one valid `traceparent`.
    pub fn read(headers: &HeaderMap) -> Self {
        match single(headers, &TRACEPARENT) {
            Some(parent) if parse(parent).is_some() => Self { parent: Some(parent.clone()), state: state(headers) },
            _ => Self::default(),
        }
    }

    /// As headers of a request.
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let parent = self.parent.clone().map(|parent| (TRACEPARENT, parent));
        parent.into_iter().chain(self.state.clone().map(|state| (TRACESTATE, state)))
    }

    /// The context of a span here, with the client's tracestate.
    pub(super) fn of(span: &SpanContext, state: Option<HeaderValue>) -> Self {
        let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags());
        Self { parent: HeaderValue::try_from(format!("00-{trace}-{id}-{flags:02x}")).ok(), state }
    }

    /// The sender's span, without its tracestate.
    pub(super) fn span_context(&self) -> Option<SpanContext> {
        parse(self.parent.as_ref()?)
    }

    /// The trace's 32 hex digits.
    pub fn id(&self) -> Option<&str> {
        self.parent.as_ref()?.to_str().ok()?.get(3..35)
    }
}

/// Replaces the trace context in a request's headers. A signed request stays as it is, since the signature may cover it.
pub fn pass_on(headers: &mut HeaderMap, context: &TraceContext) {
    if headers.contains_key(AUTHORIZATION) {
        return;
    }
    headers.remove(&TRACEPARENT);
    headers.remove(&TRACESTATE);
    headers.extend(context.headers());
}

/// A valid `traceparent`. Of the flags, those of versions 00 and 01 are kept: sampled and random.
fn parse(parent: &HeaderValue) -> Option<SpanContext> {
    let text = parent.to_str().ok()?;
    let (head, more) = text.split_at_checked(PARENT_BYTES)?;
    let fields: Vec<&str> = head.split('-').collect();
    let [version, trace, span, flags] = *fields.as_slice() else { return None };
    let is_hex = head.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    // A later version may have more fields.
    let is_later = version != "00" && more.starts_with('-') && text.len() <= LATER_PARENT_BYTES;
    if (version.len(), trace.len(), span.len()) != (2, 32, 16) || !is_hex || version == "ff" {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 3);
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    (context.is_valid() && (more.is_empty() || is_later)).then_some(context)
}

/// The members of all lines in one, shortened as the specification says (§3.3.1.5); `None` if one is not valid.
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let lines: Result<Vec<_>, _> = headers.get_all(&TRACESTATE).iter().map(HeaderValue::to_str).collect();
    let valid = lines.ok()?.join(",").parse::<TraceState>().ok()?.header();
    let mut members: Vec<&str> = valid.split(',').collect();
    let fits = |members: &[&str]| members.iter().map(|member| member.len() + 1).sum::<usize>() <= STATE_BYTES + 1;
    if !fits(&members) {
        members.retain(|member| member.len() <= LONG_MEMBER);
    }
    while !fits(&members) {
        members.pop();
    }
    // The SDK's type lets empty keys and values pass.
    let is_valid = |member: &&str| !member.starts_with('=') && !member.ends_with('=');
    HeaderValue::try_from(members.join(",")).ok().filter(|value| !value.is_empty() && members.iter().all(is_valid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(lines: &[(&'static str, &str)]) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        TraceContext::read(&headers).headers().collect()
    }

    fn parent(value: &str) -> bool {
        !read(&[("traceparent", value)]).is_empty()
    }

    /// The `tracestate` that these lines become beside a valid parent.
    fn states(lines: &[&str]) -> Option<String> {
        let mut all = vec![("traceparent", PARENT)];
        all.extend(lines.iter().map(|line| ("tracestate", *line)));
        read(&all).get(1).map(|(_, value)| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_valid_parent_is_passed_on() {
        assert!(parent(PARENT));
        assert!(parent(&PARENT.replacen("00", "cc", 1)), "a later version");
        assert!(parent(&format!("{}-what-comes-later", PARENT.replacen("00", "cc", 1))));
        for wrong in [
            "",
            "00",
            &PARENT.to_uppercase(),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &PARENT.replace('-', "_"),
            &format!("{PARENT}-01"),
            &format!("{}.more", PARENT.replacen("00", "cc", 1)),
            &format!("{}-{}", PARENT.replacen("00", "cc", 1), "a".repeat(LATER_PARENT_BYTES)),
            &PARENT[..54],
        ] {
            assert!(!parent(wrong), "{wrong}");
        }
        assert!(read(&[("traceparent", PARENT), ("traceparent", PARENT)]).is_empty(), "two parents are ambiguous");
    }

    #[test]
    fn a_state_goes_with_its_parent_in_one_line() {
        assert_eq!(states(&["a=1, b@c=2", "", "d=3 4"]).as_deref(), Some("a=1,b@c=2,d=3 4"));
        assert_eq!(states(&[]), None);
        assert!(read(&[("tracestate", "a=1")]).is_empty());
        assert!(read(&[("traceparent", "00"), ("tracestate", "a=1")]).is_empty());
        for wrong in ["a", "A=1", "a=", "=1", "a=b=c", "a=1,b", "a b=1", "_a=1"] {
            assert_eq!(states(&[wrong]), None, "{wrong}");
        }
    }

    #[test]
    fn a_state_is_bounded() {
        let members = |count| (0..count).map(|member| format!("m{member:02}=1234")).collect::<Vec<_>>().join(",");
        assert_eq!(states(&[&members(32)]), Some(members(32)));
        assert_eq!(states(&[&members(33)]), Some(members(32)));
        let long = format!("long={}", "x".repeat(200));
        let full = [format!("a={}", "x".repeat(120)), format!("b={}", "x".repeat(120)), long, "c=1".into()].join(",");
        assert_eq!(states(&[&full]).as_deref(), Some(full.as_str()), "as long as it fits");
        let over = states(&[&full, &format!("d={}", "x".repeat(120))]).unwrap();
        assert!(over.len() <= STATE_BYTES && !over.contains("long") && over.contains("c=1,d="), "{over}");
        let even = (0..6).map(|member| format!("m{member}={}", "x".repeat(120))).collect::<Vec<_>>().join(",");
        let shortened = states(&[&even]).unwrap();
        assert!(even.starts_with(&shortened) && shortened.len() == 4 * 123 + 3, "{shortened}");
    }
}
