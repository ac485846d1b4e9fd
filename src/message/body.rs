//! The one body type of everything that is sent: bytes in memory, or a stream.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};

use super::ending::OnEnd;

/// Most bytes that are still read of a refused request, so that its sender gets to read the refusal (RFC 9112 §9.6).
pub(crate) const DRAIN_BYTES: usize = 1 << 20;
/// The longest that they are read for.
pub(crate) const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Why a streamed body ended early. Not a boxed error: through a future, the lifetime in its type gets lost.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its sender, or the connection, broke off.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// A simulated body broke off.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Ended by sidelink, for this reason.
    #[error("{0}")]
    Ended(&'static str),
    /// Not at all.
    #[error(transparent)]
    Never(#[from] std::convert::Infallible),
}

/// A body that is sent, to a client or to the endpoint.
pub struct Body {
    content: Content,
    on_end: Option<OnEnd>,
}

enum Content {
    /// In memory.
    Whole(Full<Bytes>),
    /// Frame by frame.
    Stream(UnsyncBoxBody<Bytes, BodyError>),
}

impl Body {
    /// Whether it is all in memory.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.content, Content::Whole(_))
    }

    /// Has `on_end` called by the connection that sends this body, when it has ended.
    pub(crate) fn set_on_end(&mut self, on_end: OnEnd) {
        self.on_end = Some(on_end);
    }

    /// What to call when it has ended.
    pub(crate) fn take_on_end(&mut self) -> Option<OnEnd> {
        self.on_end.take()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.get_mut().content {
            Content::Whole(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Content::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(body) => body.is_end_stream(),
            Content::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(body) => body.size_hint(),
            Content::Stream(body) => body.size_hint(),
        }
    }
}

/// A body of these bytes.
pub fn whole(bytes: Bytes) -> Body {
    Body { content: Content::Whole(Full::new(bytes)), on_end: None }
}

/// A body that streams.
pub fn stream<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    Body { content: Content::Stream(body.map_err(Into::into).boxed_unsync()), on_end: None }
}

/// Reads and discards, within bounds, the rest of a refused request's body in the background.
pub fn drain<B>(body: B)
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Send,
{
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(tokio::time::timeout(DRAIN_TIME, async move {
        let mut body = pin!(Limited::new(body.map_err(|_| std::fmt::Error), DRAIN_BYTES));
        while let Some(Ok(_)) = body.frame().await {}
    }));
}
