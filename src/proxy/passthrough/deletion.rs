//! A DELETE that passes through with success purges its id in every scope of its API.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use tokio::time::timeout;

use super::Passthrough;
use crate::api::{BatchApi, answer};
use crate::auth::Callers;
use crate::cache::purges::Target;
use crate::message::body::{Body, stream};
use crate::telemetry::log::events;
use crate::telemetry::metrics::PurgeTarget;

/// The most bytes of an answer to a successful deletion.
const MOST_BYTES: usize = 64 << 10;

/// The deletion of an id of an API.
pub(super) struct Deletion {
    id: String,
    api: Arc<BatchApi>,
}

impl Passthrough {
    /// Purges what the endpoint has answered the deletion of with success; else any client could purge any link. An error may
    /// come with a 200, so the body is read; it is returned as it came.
    pub(super) async fn purge_deleted(&self, deletions: &[Deletion], status: StatusCode, body: Incoming) -> Body {
        if deletions.is_empty() || !status.is_success() {
            return stream(body);
        }
        let (mut frames, mut body) = (Vec::new(), body);
        let read = timeout(self.config.upstream.idle_timeout, read(&mut frames, &mut body)).await;
        if let Ok(Some(text)) = read {
            for Deletion { id, api } in deletions.iter().filter(|deletion| !answer::is_error(&deletion.api, &text)) {
                self.cache.purges().purge([Target::OfApi { api: &api.name, id }], &self.clock).await;
                self.metrics.purges.of(PurgeTarget::Delete).inc();
                events::IdDeleted { api: &api.name }.log();
            }
        }
        if frames.is_empty() {
            return stream(body);
        }
        stream(StreamBody::new(futures_util::stream::iter(frames).chain(BodyStream::new(body))))
    }
}

/// Reads a body to its end. `None`: it breaks off, or is longer than [`MOST_BYTES`].
async fn read(frames: &mut Vec<Result<Frame<Bytes>, hyper::Error>>, body: &mut Incoming) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame.as_ref().ok().and_then(Frame::data_ref) {
            text.extend_from_slice(data);
        }
        let goes_on = frame.is_ok() && text.len() <= MOST_BYTES;
        frames.push(frame);
        if !goes_on {
            return None;
        }
    }
    Some(text)
}

impl Passthrough {
    /// What a request deletes: none if it is no deletion, an id of each API that has its path.
    pub(super) fn deletions<B>(&self, request: &Request<B>) -> Vec<Deletion> {
        if request.method() != Method::DELETE {
            return Vec::new();
        }
        let of_api = |callers: &Arc<Callers>| {
            let id = id(callers.api(), request.uri().path())?;
            Some(Deletion { id, api: Arc::clone(callers.api()) })
        };
        self.callers.iter().filter_map(of_api).collect()
    }
}

/// The id that a DELETE of `path` deletes, if it deletes one of `api`.
fn id(api: &BatchApi, path: &str) -> Option<String> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let pattern = api.delete.as_ref()?;
    // Servers take a percent-encoded path for the same.
    let decoded = || path.split('/').map(decode).collect::<Option<Vec<_>>>();
    let id = pattern.capture(path, "id").and_then(decode);
    let id = id.or_else(|| {
        let segments = decoded()?;
        // A slash in a segment would make two of it.
        let is_whole = !segments.iter().any(|segment| segment.contains('/'));
        is_whole.then(|| pattern.capture(&segments.join("/"), "id").map(|id| Cow::Owned(id.to_owned())))?
    })?;
    (1..=api.ids.chars).contains(&id.chars().count()).then(|| id.into_owned())
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_deletion_is_read_from_its_path() {
        let api = BatchApi::preset("huawei-osm").unwrap();
        let delete = |target: &str| id(&api, target.parse::<http::Uri>().unwrap().path());
        assert_eq!(delete("/v2/servicerequest/accessorys/7").unwrap(), "7");
        assert_eq!(delete("/v2/servicerequest/accessorys/a%2Fb%2Cc/?x=1").unwrap(), "a/b,c");
        assert_eq!(delete("http://h/v2/servicerequest/%61ccessorys/7").unwrap(), "7");
        let too_long = format!("/v2/servicerequest/accessorys/{}", "1,".repeat(1000));
        for other in [
            too_long.as_str(),
            "/v2/servicerequest/accessorys",
            "/v2/servicerequest/accessorys/",
            "/v2/servicerequest/accessorys/7/image",
            "/v2/servicerequest/cases/7",
            "/",
        ] {
            assert_eq!(delete(other), None, "{other}");
        }
    }

    #[test]
    fn an_error_may_come_with_any_status_and_is_known_by_the_code_of_its_api() {
        let mut api = BatchApi::preset("huawei-osm").unwrap();
        assert!(answer::is_error(&api, br#"{"error_code":"OSM.01010001","error_msg":"x"}"#));
        for body in [&b""[..], b"{}", b"[]", b"ok", br#"{"id":"7"}"#, br#"{"error_code":null}"#] {
            assert!(!answer::is_error(&api, body), "{body:?}");
        }
        api.errors.code = Some("/error/code".parse().unwrap());
        assert!(answer::is_error(&api, br#"{"error":{"code":"NOPE"}}"#));
        assert!(!answer::is_error(&api, br#"{"error_code":"OSM.01010001"}"#));
    }
}
