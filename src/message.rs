//! Parts of HTTP messages: bodies, headers, `Cache-Control`, and an answer with what is counted of it. A leaf.

pub mod answered;
pub mod body;
pub mod cache_control;
pub mod headers;
