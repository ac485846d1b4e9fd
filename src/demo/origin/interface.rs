//! The names of the simulated endpoint's interface. Apart from the description that the proxy reads it by, so that neither can hide
//! the other's mistakes.
//!
//! Source: the service's public API reference, "batch obtaining download links".

use bytes::Bytes;
use http::HeaderName;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::api::id::{Group, shown};
use crate::api::request::Form;

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
/// Header of the language of an answer.
pub const LANGUAGE: HeaderName = HeaderName::from_static("x-language");
/// Header of the time zone of an answer.
pub const TIME_ZONE: HeaderName = HeaderName::from_static("x-time-zone");
/// Header of the site that an answer is for.
pub const SITE: HeaderName = HeaderName::from_static("x-site");

/// Characters that are percent-encoded: all but `A-Z a-z 0-9 - _ . ~`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The request target of a batch.
pub fn target<'a>(form: Form, group: &Group<'_>, ids: impl Iterator<Item = &'a str>) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
    let ids: Vec<String> = ids.map(encoded).collect();
    let mut pairs: Vec<String> = match form {
        Form::Body => return PATH.to_owned(),
        Form::Comma => vec![format!("{IDS}={}", ids.join(","))],
        Form::EncodedComma => vec![format!("{IDS}={}", ids.join("%2C"))],
        Form::Repeated => ids.iter().map(|id| format!("{IDS}={id}")).collect(),
        Form::Brackets => ids.iter().map(|id| format!("{IDS}[]={id}")).collect(),
    };
    pairs.extend(group.name().map(|group| format!("{GROUP}={}", encoded(shown(group)))));
    format!("{PATH}?{}", pairs.join("&"))
}

/// The body of a batch; empty for the query forms.
pub fn body<'a>(form: Form, group: &Group<'_>, ids: impl Iterator<Item = &'a str>) -> Bytes {
    if form != Form::Body {
        return Bytes::new();
    }
    let mut body = serde_json::Map::new();
    body.extend(group.to_json().map(|group| (GROUP.to_owned(), group)));
    body.insert(IDS.into(), ids.collect());
    serde_json::Value::Object(body).to_string().into()
}
