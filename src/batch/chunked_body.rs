//! A large answer, put together as it is sent.
//!
//! Whoever asks and does not read has sidelink hold an answer for `limits.idle_timeout`, on each of a hundred streams of
//! each connection. A copy of a thousand links is half a megabyte; what they were copied from is in memory once.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec::IntoIter;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::api::answer::{HEAD, TAIL};
use crate::cache::Entry;

/// Bytes of an answer that is put together at once, and of a piece of any other.
pub(super) const PIECE: usize = 64 << 10;

/// Where an item's text lies.
#[derive(Clone)]
pub(super) enum Text {
    /// In what is kept, which has one.
    Entry(Entry),
    /// In what has just been brought.
    Brought(Arc<str>),
}

impl Text {
    fn bytes(&self) -> &[u8] {
        match self {
            Text::Entry(kept) => kept.text().unwrap_or_default(),
            Text::Brought(text) => text.as_bytes(),
        }
    }
}

/// The answer's body.
pub(super) struct ChunkedBody {
    texts: IntoIter<Text>,
    left: usize,
    begun: bool,
}

impl ChunkedBody {
    /// Of these items, in this order.
    pub(super) fn new(texts: Vec<Text>) -> Self {
        let commas = texts.len().saturating_sub(1);
        let left = HEAD.len() + texts.iter().map(|text| text.bytes().len()).sum::<usize>() + commas + TAIL.len();
        Self { texts: texts.into_iter(), left, begun: false }
    }

    /// Bytes that are yet to come.
    pub(super) fn length(&self) -> usize {
        self.left
    }

    fn next(&mut self) -> Bytes {
        let mut piece = Vec::with_capacity(self.left.min(PIECE));
        if !std::mem::replace(&mut self.begun, true) {
            piece.extend_from_slice(HEAD);
        }
        // A comma goes with the item before it.
        while let Some(text) = self.texts.as_slice().first() {
            if !piece.is_empty() && piece.len() + text.bytes().len() >= PIECE {
                break;
            }
            piece.extend_from_slice(text.bytes());
            self.texts.next();
            piece.extend_from_slice(if self.texts.as_slice().is_empty() { TAIL } else { b"," });
        }
        self.left = self.left.saturating_sub(piece.len());
        Bytes::from(piece)
    }
}

impl Body for ChunkedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        Poll::Ready((!this.is_end_stream()).then(|| Ok(Frame::data(this.next()))))
    }

    fn is_end_stream(&self) -> bool {
        self.texts.as_slice().is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;
    use crate::api::answer::merge;

    proptest! {
        #[test]
        fn pieces_come_to_what_is_put_together_at_once(lengths in proptest::collection::vec(1_usize..100_000, 1..12)) {
            let texts: Vec<Arc<str>> = lengths.iter().map(|length| "x".repeat(*length).into()).collect();
            let mut pieces = ChunkedBody::new(texts.iter().cloned().map(Text::Brought).collect());
            let mut whole = Vec::new();
            let mut left = pieces.size_hint().exact().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            while !pieces.is_end_stream() {
                let piece = runtime.block_on(pieces.frame()).unwrap().unwrap().into_data().unwrap();
                prop_assert!(!piece.is_empty() && piece.len() <= PIECE.max(100_000) + HEAD.len() + TAIL.len());
                left -= piece.len() as u64;
                prop_assert_eq!(pieces.size_hint().exact(), Some(left));
                whole.extend_from_slice(&piece);
            }
            prop_assert!(runtime.block_on(pieces.frame()).is_none());
            prop_assert_eq!(left, 0);
            prop_assert_eq!(&whole[..], &merge(texts.iter().map(|text| text.as_bytes()))[..]);
        }
    }
}
