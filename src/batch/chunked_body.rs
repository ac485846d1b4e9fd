//! A large body, merged in chunks as it is sent.
//!
//! A client that asks and does not read makes sidelink keep its body for `limits.idle_timeout`, on each stream of each
//! connection. A merged copy of a thousand links is half a megabyte; the entries it is merged from are in memory once.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec::IntoIter;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::api::envelope::Envelope;
use crate::cache::answers::WholeAnswer;
use crate::cache::{Entry, Item};
use crate::clock::Moment;
use crate::message;
use crate::message::body::{stream, whole};

/// The most bytes of a body that is merged at once, and of a chunk of a larger one.
pub(super) const CHUNK: usize = 64 << 10;

/// A body that is merged as it is sent.
pub(super) struct ChunkedBody {
    source: Source,
    /// When the batch is answered.
    now: Moment,
    remaining: usize,
}

enum Source {
    Entries {
        /// Entries with an item, and whether each is new ([`Entry::item`]).
        entries: IntoIter<(Entry, bool)>,
        envelope: Arc<Envelope>,
        has_begun: bool,
    },
    Answer {
        answer: Arc<WholeAnswer>,
        /// Where the next chunk begins in its body.
        from: usize,
    },
}

impl ChunkedBody {
    /// The items of `entries` in `envelope`, in their order, of so many bytes in all.
    pub(super) fn of_entries(
        envelope: Arc<Envelope>,
        entries: impl Iterator<Item = (Entry, bool)>,
        length: usize,
        now: Moment,
    ) -> Self {
        let entries: Vec<_> = entries.filter(|(entry, _)| entry.text().is_some()).collect();
        let source = Source::Entries { entries: entries.into_iter(), envelope, has_begun: false };
        Self { source, now, remaining: length }
    }

    /// The body of a whole answer, with what is left of its countdowns.
    pub(super) fn of_answer(answer: Arc<WholeAnswer>, now: Moment) -> Self {
        let remaining = answer.body(now).len();
        Self { source: Source::Answer { answer, from: 0 }, now, remaining }
    }

    /// As the body of a reply: at once, if it is one chunk.
    pub(super) fn into_body(mut self) -> message::body::Body {
        if self.remaining <= CHUNK { whole(self.next_chunk()) } else { stream(self) }
    }

    fn next_chunk(&mut self) -> Bytes {
        let chunk = match &mut self.source {
            Source::Answer { answer, from } => {
                // What is left of its text may be longer than what is left of the body, in which numbers have fewer digits.
                let most = if self.remaining <= CHUNK { usize::MAX } else { CHUNK };
                let (chunk, next) = answer.body(self.now).part(*from, most);
                *from = next;
                chunk
            }
            Source::Entries { entries, envelope, has_begun } => {
                let mut chunk = Vec::with_capacity(self.remaining.min(CHUNK));
                if !std::mem::replace(has_begun, true) {
                    chunk.extend_from_slice(envelope.head());
                    if entries.as_slice().is_empty() {
                        chunk.extend_from_slice(envelope.tail());
                    }
                }
                // A comma goes with the item before it.
                while let Some(item) = next_item(entries, self.now) {
                    if !chunk.is_empty() && chunk.len() + item.len() >= CHUNK {
                        break;
                    }
                    item.write(&mut chunk);
                    entries.next();
                    let is_last = entries.as_slice().is_empty();
                    chunk.extend_from_slice(if is_last { envelope.tail() } else { b"," });
                }
                chunk
            }
        };
        self.remaining = self.remaining.saturating_sub(chunk.len());
        Bytes::from(chunk)
    }
}

fn next_item(entries: &IntoIter<(Entry, bool)>, now: Moment) -> Option<Item<'_>> {
    let (entry, is_new) = entries.as_slice().first()?;
    entry.item(now, *is_new)
}

impl Body for ChunkedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        Poll::Ready((!this.is_end_stream()).then(|| Ok(Frame::data(this.next_chunk()))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Entries { entries, has_begun, .. } => *has_begun && entries.as_slice().is_empty(),
            Source::Answer { answer, from } => answer.body(self.now).ends_at(*from),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;
    use crate::cache::freshness::Deadlines;
    use crate::clock::Clock;

    proptest! {
        #[test]
        fn the_chunks_are_the_body_that_is_merged_at_once(lengths in proptest::collection::vec(1_usize..100_000, 1..12)) {
            let now = Clock::simulated(0).now();
            let deadlines = Deadlines::absent(now, Duration::from_secs(1));
            let envelope = Arc::new(Envelope::of(&crate::api::BatchApi::preset("huawei-osm").unwrap()).unwrap());
            let texts: Vec<String> = lengths.iter().map(|length| "x".repeat(*length)).collect();
            let entries = texts.iter().map(|text| (Entry::new(Some(text), deadlines), false));
            let length = envelope.merged_length(lengths.iter().map(|length| length + 1).sum());
            let mut body = ChunkedBody::of_entries(Arc::clone(&envelope), entries, length, now);
            let mut whole = Vec::new();
            let mut remaining = body.size_hint().exact().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            while !body.is_end_stream() {
                let chunk = runtime.block_on(body.frame()).unwrap().unwrap().into_data().unwrap();
                prop_assert!(!chunk.is_empty() && chunk.len() <= CHUNK.max(100_000) + envelope.merged_length(0));
                remaining -= chunk.len() as u64;
                prop_assert_eq!(body.size_hint().exact(), Some(remaining));
                whole.extend_from_slice(&chunk);
            }
            prop_assert!(runtime.block_on(body.frame()).is_none());
            prop_assert_eq!(remaining, 0);
            prop_assert_eq!(&whole[..], &envelope.merge(texts.iter().map(|text| text.as_bytes()))[..]);
        }
    }
}
