//! A DELETE that passes through with success: what is kept of its id counts no more, in any scope.

use std::borrow::Cow;
use std::sync::Arc;

use http::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use tracing::debug;

use crate::api;
use crate::cache::purges::{Purges, Target};
use crate::clock::Clock;
use crate::metrics::Metrics;

/// Purges what was deleted.
pub struct Deletions {
    purges: Arc<Purges>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Deletions {
    /// Leaves its marks in `purges`.
    pub fn new(purges: Arc<Purges>, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self { purges, clock, metrics }
    }

    /// The endpoint has answered the deletion of `ids` with `status`. Only with success is anything purged, or everyone could
    /// take everyone's links away.
    pub(super) async fn answered(&self, ids: &[String], status: StatusCode) {
        if ids.is_empty() || !status.is_success() {
            return;
        }
        self.purges.purge(ids.iter().map(|id| Target::Id(id)), &self.clock).await;
        self.metrics.purges.with_label_values(&["delete"]).inc();
        debug!("an id was deleted; its links are purged");
    }
}

/// The ids that a request deletes; none, if it is no deletion. A comma may be an id's own or stand between ids, as it does
/// in a download: the whole counts, and each part.
pub(super) fn ids<B>(request: &Request<B>) -> Vec<String> {
    if request.method() != Method::DELETE {
        return Vec::new();
    }
    let path = request.uri().path();
    let path = path.strip_suffix('/').unwrap_or(path);
    let Some((parent, last)) = path.rsplit_once('/') else { return Vec::new() };
    if decode(parent).is_none_or(|parent| parent != api::ACCESSORIES) {
        return Vec::new();
    }
    let parts = last.split(',').filter(|_| last.contains(','));
    parts.chain([last]).filter_map(decode).filter(|id| !id.is_empty()).map(Cow::into_owned).collect()
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_a_deletion_are_read_from_its_path() {
        let ids = |method: Method, target: &str| ids(&Request::builder().method(method).uri(target).body(()).unwrap());
        let delete = |target| ids(Method::DELETE, target);
        assert_eq!(delete("/v2/servicerequest/accessorys/7"), ["7"]);
        assert_eq!(delete("/v2/servicerequest/accessorys/a%2Fb%2Cc/?x=1"), ["a/b,c"]);
        assert_eq!(delete("http://h/v2/servicerequest/%61ccessorys/7"), ["7"]);
        assert_eq!(delete("/v2/servicerequest/accessorys/1,2"), ["1", "2", "1,2"]);
        for other in [
            "/v2/servicerequest/accessorys",
            "/v2/servicerequest/accessorys/",
            "/v2/servicerequest/accessorys/7/image",
            "/v2/servicerequest/cases/7",
            "/",
        ] {
            assert!(delete(other).is_empty(), "{other}");
        }
        assert!(ids(Method::GET, "/v2/servicerequest/accessorys/7").is_empty());
    }
}
