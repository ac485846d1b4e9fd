//! Batch APIs, by their descriptions ([`BatchApi`]): reading requests ([`request`]) and answers ([`answer`]), and writing calls
//! ([`call`]). A newcomer starts at [`request::Batch`]. May use the leaves alone.

mod alike;
pub mod answer;
pub mod call;
pub mod envelope;
pub mod errors;
pub mod expiry;
pub mod id;
pub mod misfit;
pub mod request;

use http::HeaderName;

use crate::message::json;

pub use crate::config::batch::BatchApi;

/// Header of an IAM token.
pub const TOKEN: HeaderName = HeaderName::from_static("x-auth-token");
