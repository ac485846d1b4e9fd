//! Calls that the endpoint refuses: the entries that sidelink drops then, and the refusals that it remembers. `fetch::calls` comes
//! here with a 401, with refusals, and with links that may end earlier refusals; `batch::forward` comes with a 401 to a batch that
//! was forwarded with its cookies.
//!
//! | the endpoint answers | the caller | the entries | the shared tier |
//! |---|---|---|---|
//! | 401 (`unauthorized`) | must be accepted again, at each API | all entries of the credential are dropped | revokes the caller, if it was accepted here or the tier has its acceptance; and the credential's callers at other APIs that were accepted here |
//! | 401, and each batch of the call had cookies | must be accepted again | stay until the forwarded batch gets a 401 too (`drop_caller_entries`) | stays as it is |
//! | 403, or "no permission" (`forget_refused`) | must be accepted again if the call was for one id, which had a link | those of the call's ids are dropped; the refusal of one id alone is remembered | deletes those of the call's ids |
//!
//! The client gets the endpoint's refusal as it came. A batch that shared a call with others, except one that got a 401, is first
//! fetched once more by a call of its own; a batch with cookies is first forwarded as it was written.

use super::{FetchContext, Fetcher, KeyedId};
use crate::auth::{Caller, Identity};
use crate::cache::Entry;
use crate::cache::freshness::{AnswerFreshness, Deadlines};
use crate::cache::refusals::Refusal;
use crate::clock::Moment;
use crate::upstream::Answer;

impl Fetcher {
    /// Drops all entries of the caller after a 401 to a call. If each batch of the call `had_cookies`, which the call did not
    /// carry, the caller only has to be accepted again: the batch is forwarded as it was written, and the answer to it decides
    /// ([`Fetcher::drop_caller_entries`]).
    pub(super) fn unauthorized(&self, context: &FetchContext, had_cookies: bool) {
        if had_cookies {
            self.callers.refuse(&context.identity);
        } else {
            self.drop_caller_entries(context, context.identity.is_accepted());
        }
    }

    /// Drops all entries of the caller's credential after a 401, here and in the shared tier; `was_accepted`: the endpoint had accepted
    /// the caller before.
    pub(crate) fn drop_caller_entries(&self, context: &FetchContext, was_accepted: bool) {
        let others = self.callers.drop_entries(&context.identity);
        if let (Some(tier), Some(scope)) = (&self.tier, &context.tier_scope) {
            tier.revoke(scope, was_accepted);
            others.iter().for_each(|names| tier.revoke_named(names));
        }
    }

    /// Forgets these ids, which `answer` refuses to the caller. Which of several ids is at fault is not known, so only the
    /// answer to one id alone is remembered (if `remember`), and only the loss of a link that the caller had invalidates it.
    pub(super) fn forget_refused(&self, answer: &Answer, context: &FetchContext, ids: &[KeyedId], remember: bool) {
        let refusals = &self.cache.refusals;
        let alone = if let [alone] = ids { Some(alone) } else { None };
        let had_link = alone.and_then(|alone| self.cache.peek(alone.key)).is_some_and(|entry| !entry.is_absent());
        if let Some(alone) = alone.filter(|_| remember && self.may_store())
            && let Some(refusal) = self.refusal_to_remember(context.identity.caller, answer)
        {
            refusals.remember(alone.key, refusal, context.identity.is_accepted());
        }
        // What the endpoint says to a caller of a user that it has not accepted may concern that caller alone, such as a key that was
        // switched off.
        if !self.callers.may_share(&context.identity) {
            return;
        }
        // Before the entries are forgotten: a call that stores them meanwhile looks for this afterwards.
        ids.iter().for_each(|id| refusals.note_refused(id.key, answer.sent));
        let now = self.clock.now();
        for id in ids {
            // An entry of a call that was sent later stays: the endpoint has changed its mind since.
            let is_newer = |entry: Entry| entry.deadlines().age(now) < now.since(answer.sent);
            if !self.cache.peek(id.key).is_some_and(is_newer) {
                self.cache.remove(id.key, &context.identity);
            }
        }
        if had_link {
            self.callers.invalidate(&context.identity);
        }
        if let (Some(tier), Some(scope)) = (&self.tier, &context.tier_scope) {
            tier.withdraw(scope, ids.iter().map(KeyedId::in_tier).collect());
        }
    }

    /// The refusal that `answer` is, if it may be remembered.
    fn refusal_to_remember(&self, caller: Caller, answer: &Answer) -> Option<Refusal> {
        let policy = &self.config.freshness;
        let source = AnswerFreshness::read(&answer.headers, answer.sent);
        if source.forbids_storing(policy) || self.callers.varies_outside(&answer.headers) {
            return None;
        }
        let deadlines = Deadlines::absent(answer.sent, source.absence(policy));
        Refusal::new(caller, answer.status, &answer.headers, &answer.body, deadlines)
    }

    /// Settles what a call sent at `sent` brought against refusals: it ends older refusals of its ids; an id that was refused
    /// to a later call is not stored.
    pub(super) fn settle_refusals(&self, sent: Moment, caller: &Identity, ids: &[KeyedId], entries: &mut [Entry]) {
        let refusals = &self.cache.refusals;
        if refusals.is_empty() {
            return;
        }
        for (id, entry) in ids.iter().zip(entries) {
            refusals.note_accepted(id.key, sent);
            if entry.deadlines().is_stored() && refusals.is_refused_since(id.key, sent) {
                *entry = entry.not_stored();
                self.cache.remove(id.key, caller);
            }
        }
    }
}
