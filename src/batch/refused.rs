//! A batch of one id that the endpoint has refused lately: it gets the same answer again.

use super::{BatchRoute, Slot, Slots, respond};
use crate::api::request::Batch;
use crate::auth::Scope;
use crate::clock::Moment;
use crate::fetch::CacheRequirements;
use crate::message::answered::Answered;

impl BatchRoute {
    /// The endpoint's answer to a call for this batch's only id, where it has refused it lately. It needs no acceptance of
    /// the caller: it gives nothing away, and the caller had it before.
    pub(super) fn remembered_refusal(
        &self,
        batch: &Batch<'_>,
        scope: Scope,
        slots: &Slots<'_>,
        demand: &CacheRequirements,
        now: Moment,
    ) -> Option<Answered> {
        let ([Slot { had: None, .. }], [id, ..]) = (slots.slots.as_slice(), batch.ids.as_slice()) else { return None };
        let marks = self.cache.purges().of_group(batch.group.name());
        let refusal = self.cache.refusals().look_up(scope.key(id), id, &marks, now)?;
        demand.allows_refusal(&refusal.deadlines, now).then(|| respond::refused(&refusal))
    }
}
