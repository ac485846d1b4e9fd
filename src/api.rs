//! The endpoint's interface: names of paths, parameters, fields and headers; reading requests ([`request`]) and answers
//! ([`answer`]), and writing calls. A newcomer starts at [`request::Batch`]. May use the leaves alone.
//!
//! Source: the service's public API reference, "batch obtaining download links".

pub mod answer;
pub mod id;
pub mod request;

use http::HeaderName;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

/// The path of the batch route ("accessorys" is the service's own spelling).
pub const PATH: &str = "/v2/servicerequest/accessorys/access-urls";
/// The parent of the batch route, and of each id's route `{ACCESSORIES}/{id}`.
pub const ACCESSORIES: &str = "/v2/servicerequest/accessorys";
/// Query parameter and body field of the ids.
pub const IDS: &str = "accessory_ids";
/// Query parameter and body field of the ids' group.
pub const GROUP: &str = "group_id";
/// The error code of failed validation, which comes with a 200.
pub const VALIDATION_FAILED: &str = "OSM.01010001";
/// The most characters of an id.
pub const ID_CHARS: usize = 64;
/// The most characters of a group.
pub const GROUP_CHARS: usize = 32;

/// Header of an IAM token.
pub const TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
/// Header of the session token of temporary access keys.
pub const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-security-token");
/// Header of a signed request's date, `20261124T151707Z`.
pub const SDK_DATE: HeaderName = HeaderName::from_static("x-sdk-date");
/// Header in which a signed request states its body's hash, or that the body is not signed.
pub const SDK_CONTENT: HeaderName = HeaderName::from_static("x-sdk-content-sha256");
/// Header of the account that signs, for global services.
pub const DOMAIN_ID: HeaderName = HeaderName::from_static("x-domain-id");
/// Header of the project that signs, for regional services.
pub const PROJECT_ID: HeaderName = HeaderName::from_static("x-project-id");
/// Header of the enterprise project that an answer may depend on.
pub const ENTERPRISE_PROJECT_ID: HeaderName = HeaderName::from_static("x-enterprise-project-id");
/// Header of the language of an answer.
pub const LANGUAGE: HeaderName = HeaderName::from_static("x-language");
/// Header of the time zone of an answer.
pub const TIME_ZONE: HeaderName = HeaderName::from_static("x-time-zone");
/// Header of the site that an answer is for.
pub const SITE: HeaderName = HeaderName::from_static("x-site");
/// Header of a request's id.
pub use crate::message::headers::REQUEST_ID;
/// W3C Trace Context header of the client's trace and span.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// W3C Trace Context header of what tracing systems add to it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Request headers that may change an answer: their values are part of the scope.
pub const SCOPE_HEADERS: [HeaderName; 6] = [LANGUAGE, TIME_ZONE, SITE, DOMAIN_ID, PROJECT_ID, ENTERPRISE_PROJECT_ID];

/// Characters that are percent-encoded: all but `A-Z a-z 0-9 - _ . ~`, as in the service's signing rules.
pub(crate) const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The most bytes of a token, and of a header of `callers.scope_headers`.
pub const TOKEN_BYTES: usize = 5000;

/// The most bytes of a credential or scope header, where that is not [`TOKEN_BYTES`]. The reference says 32 of all of them; an
/// id of a domain or project is 32 hex digits, or a UUID of 36 characters.
static HEADER_BYTES: [(HeaderName, usize); 6] =
    [(LANGUAGE, 32), (TIME_ZONE, 32), (SITE, 32), (DOMAIN_ID, 64), (PROJECT_ID, 64), (ENTERPRISE_PROJECT_ID, 64)];

/// The most bytes of a credential or scope header of this name. An endpoint may end the connection on which a longer one
/// comes, with all calls on it.
pub fn header_bytes(name: &HeaderName) -> usize {
    HEADER_BYTES.iter().find(|(known, _)| known == name).map_or(TOKEN_BYTES, |(_, most)| *most)
}
