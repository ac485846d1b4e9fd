//! Parts of HTTP messages: bodies and how they end, places in JSON, headers, `Cache-Control`, and a reply with what is counted of it.
//! A leaf: any module may import it.

pub mod body;
pub mod cache_control;
pub mod ending;
pub mod header_filter;
pub mod headers;
pub(crate) mod json;
pub mod recorded;
pub mod reply;
