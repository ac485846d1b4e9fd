//! The names of the endpoint's interface: path, parameters, fields and headers, in one place.
//!
//! Source: the service's public API reference, "batch obtaining download links".

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
/// Header of the endpoint's name for a request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C Trace Context header of the client's trace and span.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// W3C Trace Context header of what tracing systems add to it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Request headers that may change an answer, so that links never cross their values.
pub const SCOPE_HEADERS: [HeaderName; 6] = [
    HeaderName::from_static("x-language"),
    HeaderName::from_static("x-time-zone"),
    HeaderName::from_static("x-site"),
    DOMAIN_ID,
    PROJECT_ID,
    HeaderName::from_static("x-enterprise-project-id"),
];
