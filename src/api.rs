//! The names of the endpoint's interface: path, parameters, fields and headers, in one place.
//!
//! Source: the service's public API reference, "batch obtaining download links".

pub mod answer;
pub mod id;
pub mod request;

use http::HeaderName;

/// The batch route, to the letter ("accessorys" is the service's own spelling).
pub const PATH: &str = "/v2/servicerequest/accessorys/access-urls";
/// Above the batch route, and above each id's own: the route of a single one is `{ACCESSORIES}/{id}`.
pub const ACCESSORIES: &str = "/v2/servicerequest/accessorys";
/// Query parameter and body field: the ids asked for.
pub const IDS: &str = "accessory_ids";
/// Query parameter and body field: the group that the ids belong to.
pub const GROUP: &str = "group_id";
/// The code, coming with a 200, that says parameters did not pass validation.
pub const VALIDATION_FAILED: &str = "OSM.01010001";
/// Most characters that an id may have.
pub const ID_CHARS: usize = 64;
/// Most characters that a group may have.
pub const GROUP_CHARS: usize = 32;

/// Header of an IAM token.
pub const TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
/// Header of the session token that goes with temporary access keys.
pub const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-security-token");
/// Header of a signed request's date, `20261124T151707Z`.
pub const SDK_DATE: HeaderName = HeaderName::from_static("x-sdk-date");
/// Header of what a signed request states in place of its body's hash.
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

/// Request headers that may change an answer, so that links never cross their values.
pub const SCOPE_HEADERS: [HeaderName; 6] = [LANGUAGE, TIME_ZONE, SITE, DOMAIN_ID, PROJECT_ID, ENTERPRISE_PROJECT_ID];

/// Most bytes of a token, and of a header that a configuration adds to scopes.
pub const TOKEN_BYTES: usize = 5000;

/// Most bytes of a credential or scope header, where that is not [`TOKEN_BYTES`]. The reference says 32 of all of them; an
/// id of a domain or project is 32 hex digits, or a UUID of 36 characters.
static HEADER_BYTES: [(HeaderName, usize); 6] =
    [(LANGUAGE, 32), (TIME_ZONE, 32), (SITE, 32), (DOMAIN_ID, 64), (PROJECT_ID, 64), (ENTERPRISE_PROJECT_ID, 64)];

/// Most bytes of a credential or scope header of this name. A longer one may have the endpoint end the connection that it
/// came on, with all that others have asked there.
pub fn header_bytes(name: &HeaderName) -> usize {
    HEADER_BYTES.iter().find(|(known, _)| known == name).map_or(TOKEN_BYTES, |(_, most)| *most)
}
