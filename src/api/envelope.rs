//! The envelope: the text around the items of an answer. Items are merged into it.

use bytes::Bytes;
use http::HeaderValue;
use serde_json::value::RawValue;

use super::json;
use crate::config::batch::BatchApi;

/// The text around the items of an answer, and its media type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Up to the first item.
    before: Box<str>,
    /// From the last one on.
    after: Box<str>,
    /// The answer's Content-Type.
    media_type: HeaderValue,
}

/// Bytes that the allocator adds to an envelope and its texts.
const ALLOCATIONS: usize = 64;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

impl Envelope {
    /// The envelope around `list`, a piece of `whole`.
    pub(super) fn around(whole: &str, list: &str, media_type: Option<&HeaderValue>) -> Option<Self> {
        let range = json::range_of(whole, list)?;
        let (before, after) = (whole.get(..=range.start)?, whole.get(range.end.checked_sub(1)?..)?);
        // A copy: the answer's own value would keep the buffer of all its headers in memory.
        let media_type = media_type.and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok()).unwrap_or(JSON);
        Some(Self { before: before.into(), after: after.into(), media_type })
    }

    /// The envelope that `api` names, if it names one.
    pub fn of(api: &BatchApi) -> Option<Self> {
        let text = api.items.envelope.as_deref()?;
        let whole: &RawValue = serde_json::from_str(text).ok()?;
        Self::around(whole.get(), json::find(whole, &api.items.at)?.get(), None)
    }

    /// An envelope of these parts, from another sidecar.
    pub(crate) fn from_parts(before: &str, after: &str, media_type: &[u8]) -> Option<Self> {
        let media_type = HeaderValue::from_bytes(media_type).ok()?;
        Some(Self { before: before.into(), after: after.into(), media_type })
    }

    /// The text before the items, that after them, and the media type.
    pub(crate) fn parts(&self) -> (&str, &str, &[u8]) {
        (&self.before, &self.after, self.media_type.as_bytes())
    }

    /// The Content-Type of answers in it.
    pub fn media_type(&self) -> &HeaderValue {
        &self.media_type
    }

    /// Bytes of memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + ALLOCATIONS + self.before.len() + self.after.len() + self.media_type.len()
    }

    /// The bytes before the items.
    pub(crate) fn head(&self) -> &[u8] {
        self.before.as_bytes()
    }

    /// The bytes after them.
    pub(crate) fn tail(&self) -> &[u8] {
        self.after.as_bytes()
    }

    /// The length of [`Self::merge`]'s body, in bytes; `items` is that of the items, with a comma each.
    pub(crate) fn merged_length(&self, items: usize) -> usize {
        self.before.len() + items.saturating_sub(1) + self.after.len()
    }

    /// Merges the items' texts into one body, in the order given.
    pub fn merge<'a>(&self, texts: impl Iterator<Item = &'a [u8]> + Clone) -> Bytes {
        let items = texts.clone().map(|text| text.len() + 1).sum();
        self.merge_sized(texts, |text, body| body.extend_from_slice(text), self.merged_length(items))
    }

    /// As [`Self::merge`], of items that `write` writes, for a body of a known length: a buffer that is not full would be copied when it
    /// becomes `Bytes`.
    pub(crate) fn merge_sized<I>(
        &self,
        items: impl Iterator<Item = I>,
        write: impl Fn(I, &mut Vec<u8>),
        length: usize,
    ) -> Bytes {
        let mut body = Vec::with_capacity(length);
        body.extend_from_slice(self.head());
        for (index, item) in items.enumerate() {
            if index > 0 {
                body.push(b',');
            }
            write(item, &mut body);
        }
        body.extend_from_slice(self.tail());
        Bytes::from(body)
    }
}
