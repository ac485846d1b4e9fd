//! Calls whose ids the endpoint refuses to the caller: what that takes away, and what is remembered of it.

use super::{FetchContext, Inner, ItemResult, Wanted};
use crate::cache::Entry;
use crate::cache::freshness::{self, Deadlines};
use crate::cache::refusals::Refusal;
use crate::clock::Moment;
use crate::upstream::Answer;

impl Inner {
    /// A call for these batches, all of one caller, got a 401. That drops all that is kept for the caller; unless each batch
    /// came with cookies, which the call did not carry: then it makes the caller ask anew, and the answer to the batch as
    /// it was written decides ([`Inner::drop_caller`]).
    pub(super) fn unauthorized(&self, batches: &[&FetchContext]) {
        let Some(first) = batches.first() else { return };
        if batches.iter().all(|terms| terms.has_cookies) {
            self.callers.invalidate(&first.requester);
        } else {
            self.drop_caller(first, first.requester.caller_state.is_accepted());
        }
    }

    /// Drops all that is kept for the caller of `terms`, here and in the shared tier; `known`: it was accepted before.
    pub(super) fn drop_caller(&self, terms: &FetchContext, known: bool) {
        self.callers.drop_links(&terms.requester);
        if let (Some(tier), Some(share)) = (&self.tier, &terms.share) {
            tier.revoke(share, known);
        }
    }

    /// `answer` refuses these ids to the caller. Which of several is at fault is not known, so only the answer about one id
    /// alone is remembered (if `remember`), and only the loss of a link that the caller had makes it revalidate.
    pub(super) fn withdraw(&self, answer: &Answer, terms: &FetchContext, wanted: &[Wanted], remember: bool) {
        let refusals = self.cache.refusals();
        let alone = if let [alone] = wanted { Some(alone) } else { None };
        let had_link = alone.and_then(|alone| self.cache.peek(alone.key)).is_some_and(|kept| kept.text().is_some());
        if let Some(alone) = alone.filter(|_| remember && self.may_keep())
            && let Some(refusal) = self.refusal_to_remember(answer)
        {
            refusals.remember(alone.key, refusal, terms.requester.caller_state.is_accepted());
        }
        // Before they are forgotten: a call that files them meanwhile looks for this afterwards.
        wanted.iter().for_each(|wanted| refusals.refused(wanted.key, answer.sent));
        let now = self.clock.now();
        for wanted in wanted {
            // A call that was sent later has brought it: the endpoint has changed its mind since.
            let is_newer = |kept: Entry| kept.deadlines().age(now) < now.since(answer.sent);
            if !self.cache.peek(wanted.key).is_some_and(is_newer) {
                self.cache.forget(wanted.key);
            }
        }
        if had_link {
            self.callers.invalidate(&terms.requester);
        }
        if let (Some(tier), Some(share)) = (&self.tier, &terms.share) {
            tier.withdraw(share, wanted.iter().map(|wanted| wanted.id.clone()).collect());
        }
    }

    /// `answer` to a call for one id alone, if it may be remembered.
    fn refusal_to_remember(&self, answer: &Answer) -> Option<Refusal> {
        let policy = &self.config.freshness;
        let source = freshness::Source::read(&answer.headers, answer.sent);
        if source.forbids_storing(policy) || self.callers.varies_outside(&answer.headers) {
            return None;
        }
        let deadlines = Deadlines::absent(answer.sent, source.absence(policy));
        Refusal::new(answer.status, &answer.headers, &answer.body, deadlines)
    }

    /// A call sent at `sent` has brought `wanted`. An older refusal of one of them counts no more; what was refused to a
    /// later call is not kept.
    pub(super) fn forget_refused_since(&self, sent: Moment, wanted: &[Wanted], arrivals: &mut [ItemResult]) {
        let refusals = self.cache.refusals();
        if refusals.is_empty() {
            return;
        }
        for (wanted, arrival) in wanted.iter().zip(arrivals) {
            refusals.not_refused(wanted.key, sent);
            if let ItemResult::Link(_, deadlines) | ItemResult::LeftOut(deadlines) = arrival
                && deadlines.is_some()
                && refusals.is_refused_since(wanted.key, sent)
            {
                *deadlines = None;
                self.cache.forget(wanted.key);
            }
        }
    }
}
