//! A batch of which an answer had an item that matches no id asked for, and that is too large to be forwarded as it was
//! written: it is fetched whole in as many calls as it takes, and what they bring is passed on in one list. Nothing is kept.

use std::sync::Arc;

use http::Uri;

use super::{BatchRoute, Slots, distinct, respond};
use crate::api::answer;
use crate::api::request::Batch;
use crate::auth::Bypass;
use crate::error::{Error, NoAnswer};
use crate::fetch::{Cause, Failure, FetchContext, FlightResult, ItemResult, Wanted};
use crate::message::answered::Answered;

impl BatchRoute {
    /// Whether a batch, as its client wrote it, is no larger than a call of sidelink's own would be.
    pub(super) fn fits_one_call(&self, batch: &Batch<'_>, uri: &Uri) -> bool {
        let limits = &self.config.upstream;
        let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
        let ids = batch.ids.len();
        ids == 1 || (ids <= limits.ids_per_call && target <= limits.uri_bytes)
    }

    /// All items of all ids of a batch, in one list, call by call; or the answer of the first call that fails.
    pub(super) async fn fetch_whole(
        &self,
        batch: &Batch<'_>,
        terms: &Arc<FetchContext>,
        slots: &mut Slots<'_>,
    ) -> Answered {
        self.count_bypass(Bypass::Unmatched);
        let Some(ids) = distinct(batch, terms.scope, self.config.limits.batch_ids) else {
            return respond::own(Error::TooManyIds);
        };
        let wanted: Vec<Wanted> = ids.iter().map(|(id, key)| Wanted { id: Box::from(*id), key: *key }).collect();
        let landed = match self.fetch.fetch_apart(terms, &wanted, false).await {
            Ok(landed) => landed,
            Err(error) => return respond::own(error),
        };
        match items(&landed) {
            Ok(items) => {
                slots.count_fetched();
                let request_id = landed.first().and_then(|landed| landed.request_id.clone());
                respond::unmatched(items.into_iter(), request_id, &self.dress)
            }
            // A part of the batch that nobody here can read; passed on, it would pass for the whole.
            Err(failure) if failure.is_coded() => respond::own(Error::NoAnswer(NoAnswer::Unreadable)),
            Err(failure) => respond::failure(failure),
        }
    }
}

/// The items that calls have brought, in the order of the calls.
fn items(landed: &[FlightResult]) -> Result<Vec<&[u8]>, &Failure> {
    let mut items: Vec<&[u8]> = Vec::with_capacity(landed.len());
    let mut last: Option<&Arc<Failure>> = None;
    for landed in landed {
        match &landed.result {
            ItemResult::Link(text, _) => items.push(text.as_bytes()),
            ItemResult::LeftOut(_) => {}
            ItemResult::Failed(failure) => match &failure.cause {
                // Of the same call as the id before.
                Cause::Unmatched(_) if last.is_some_and(|last| Arc::ptr_eq(last, failure)) => {}
                Cause::Unmatched(unmatched) if !unmatched.is_coded() => {
                    items.extend(answer::items(&unmatched.body).into_iter().flatten());
                    last = Some(failure);
                }
                _ => return Err(failure),
            },
        }
    }
    Ok(items)
}
