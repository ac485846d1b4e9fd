//! Batch APIs: the description of a batch endpoint. It is data, read by `api`: where ids are in a request, items in an answer, and
//! expiries in an item.

mod path;
mod pointer;

use http::{HeaderName, Method};
use serde_json::Value;

pub use path::PathPattern;
pub use pointer::Pointer;

/// The description of one batch API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchApi {
    /// Its name: the label `api` of metrics and log lines.
    pub name: Box<str>,
    /// The method of its batches, GET or POST. A POST that is described is a read: it may be sent again.
    pub method: Method,
    /// The path of its batches. Captures are part of the scope.
    pub path: PathPattern,
    /// Where a request has its ids.
    pub ids: Ids,
    /// The query parameter, or the member of a body's object, that names a group of ids: a purge may name the group.
    pub group: Option<Box<str>>,
    /// The only other query parameters, or members of a body's object, that a batch may have; `None`: any, as part of the scope.
    pub parameters: Option<Vec<Box<str>>>,
    /// Values that a body must have, else the request is no batch.
    pub when: Vec<(Pointer, Value)>,
    /// Where an answer has its items.
    pub items: Items,
    /// Where an item says when its link expires. The earliest of all that are there counts; where none is, the link is read.
    pub expires: Vec<ExpirySource>,
    /// An item that has this, and not null, is no link: it counts as absent, and is answered with its text.
    pub absent: Option<Pointer>,
    /// The headers that say who asks; all of them together are the credential. One at least must be there.
    pub credentials: Vec<HeaderName>,
    /// Whether a request that is signed by SDK-HMAC-SHA256 with one of `[[callers.keys]]` says who asks as well.
    pub signed: bool,
    /// Headers that may change an answer.
    pub scope_headers: Vec<HeaderName>,
    /// The most bytes of a credential or scope header, where the endpoint limits them. A longer one is forwarded apart.
    pub header_bytes: Vec<(HeaderName, usize)>,
    /// Lists in a body whose order does not matter.
    pub unordered: Vec<Pointer>,
    /// The most ids of one call.
    pub ids_per_call: usize,
    /// The shape of its errors.
    pub errors: ErrorShape,
    /// The path of a DELETE that deletes the id in the capture `{id}`.
    pub delete: Option<PathPattern>,
}

/// Where a request has its ids: in the query, in the body, or in either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The query parameter.
    pub query: Option<Box<str>>,
    /// How the query may list them.
    pub styles: Vec<Style>,
    /// The list in the body.
    pub body: Option<Pointer>,
    /// In an element of the list that is an object: its id. `None`: elements are strings.
    pub key: Option<Pointer>,
    /// Whether ids may be integers too, in the body and in answers.
    pub numbers: bool,
    /// The most characters of an id; a request with a longer one is forwarded untouched.
    pub chars: usize,
}

/// How a query lists ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `ids=1&ids=2`
    Repeated,
    /// `ids=1,2`
    Comma,
    /// `ids[]=1&ids[]=2`
    Brackets,
}

/// Where an answer has its items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Items {
    /// The list, or the object whose members are the items.
    pub at: Pointer,
    /// The id of an item; `None` (written `*`): the item is the member of an object with its id as name.
    pub key: Option<Pointer>,
    /// The link of an item.
    pub link: Option<Pointer>,
    /// The envelope that answers are given in, a JSON text with an empty list or object at `at`; `None`: the endpoint's own, which
    /// has to be the same for all items of an answer.
    pub envelope: Option<Box<str>>,
}

/// Where an item says when its link expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpirySource {
    /// In the URL of the link.
    Link,
    /// In a field: RFC 3339, or a number (below 10⁹ seconds from now, below 10¹¹ Unix seconds, else Unix milliseconds).
    Field(Pointer),
}

/// The shape of an API's errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorShape {
    /// An answer with status 200 that has this, and not null, is an error.
    pub code: Option<Pointer>,
    /// Codes there that are about the request, and not about permission.
    pub of_request: Vec<Box<str>>,
    /// The body of an error of sidelink's own: a JSON text in whose strings `{code}`, `{message}`, `{status}` and `{request_id}` are
    /// replaced; a string that is `{status}` alone becomes a number.
    pub body: Box<str>,
    /// Its media type.
    pub media_type: Box<str>,
}
