//! One body type for whatever goes out: bytes at hand, or a stream.

use std::error::Error;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Either, Full};

/// Why a streamed body ended early.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// A body that is sent, to a client or to the endpoint.
pub type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, BodyError>>;

/// A body of these bytes.
pub fn whole(bytes: Bytes) -> Body {
    Either::Left(Full::new(bytes))
}

/// A body that comes piece by piece.
pub fn stream<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    Either::Right(body.map_err(Into::into).boxed_unsync())
}
