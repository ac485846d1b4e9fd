//! Which user a caller is, as long as that is known.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::scope::Scope;
use super::user::{Owner, TokenStatus, UserId};
use super::{CallerState, Callers, Identity};
use crate::clock::Moment;
use crate::config::{CallerKey, CallersConfig, IdentityConfig};
use crate::telemetry::metrics::IdentityResult;

/// Milliseconds after which a caller is looked up again of whom there was no answer.
const UNKNOWN_FOR: u64 = 5000;
/// The share of its validity, as a divisor, in which a caller's user is looked up again in the background.
const RENEW_IN_LAST: u64 = 5;

/// The user that a caller is.
pub(crate) struct Membership {
    /// The user.
    pub(crate) id: UserId,
    /// The scope of the user's requests without scope headers: a hash of the user under a key of this process.
    pub(super) scope: Scope,
    /// The same for all callers of the user.
    pub(crate) owner: Arc<Owner>,
    /// Whether the identity provider says that the token is active: then an acceptance of any caller of the user counts for this one.
    pub(super) is_active: bool,
    /// When it expires.
    pub(super) until: Moment,
}

impl Membership {
    /// The user's short hash, like that of a caller.
    pub(crate) fn short(&self) -> u32 {
        self.scope.short()
    }
}

/// The result of looking up a caller's user.
pub(super) struct CachedUser {
    /// The number of the configuration under which it was looked up.
    config: u64,
    /// The last result. A failed look-up keeps `Refused`.
    result: IdentityResult,
    /// `None`: it is its own caller.
    pub(super) membership: Option<Arc<Membership>>,
    /// When it is looked up again in the background.
    renewal: Moment,
    /// When it expires.
    until: Moment,
}

impl CachedUser {
    /// Whether the caller is a user at `now`.
    fn is_user(&self, now: Moment) -> bool {
        self.membership.is_some() && now.is_before(self.until)
    }
}

/// Why a caller has no user.
pub(crate) struct NoUser {
    /// A value of the label `result` of `identity_requests_total`, `unauthorized` or `not_asked`.
    pub(crate) reason: &'static str,
    /// The reason in a sentence.
    pub(crate) why: &'static str,
    /// Milliseconds until the next batch looks the user up again; `None`: not before the endpoint accepts the caller.
    pub(crate) left: Option<u64>,
}

/// Whether a caller's user must be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserLookup {
    /// No: it is cached, or the endpoint refuses the caller.
    NotNeeded,
    /// Soon: what is cached is still valid.
    InBackground,
    /// Before the caller is answered.
    First,
}

/// The part of the configuration that says which callers are one user, with a number: what was looked up under another one does not
/// count.
#[derive(Default)]
pub(super) struct UserConfig {
    identity: Option<IdentityConfig>,
    keys: Vec<CallerKey>,
    /// How long a look-up is valid.
    revalidate: Duration,
    number: u64,
}

impl UserConfig {
    /// The number of this configuration: that of the last one, if it was the same.
    pub(super) fn number(&mut self, config: &CallersConfig) -> u64 {
        if self.identity != config.identity || self.keys != config.keys || self.revalidate != config.revalidate {
            *self = Self {
                identity: config.identity.clone(),
                keys: config.keys.clone(),
                revalidate: config.revalidate,
                number: self.number + 1,
            };
        }
        self.number
    }
}

impl Callers {
    /// What is cached of a caller's user.
    pub(super) fn cached_user(&self, state: &CallerState) -> Option<Arc<CachedUser>> {
        state.cached_user.load_full().filter(|cached| cached.config == self.user_config)
    }

    /// Whether the caller's user must be looked up.
    pub(crate) fn user_lookup(&self, identity: &Identity, now: Moment) -> UserLookup {
        if identity.caller_state.is_refused.load(Ordering::Acquire) {
            return UserLookup::NotNeeded;
        }
        match self.cached_user(&identity.caller_state) {
            // It was looked up since the caller was identified: as if it were not known, so that the caller is identified again.
            Some(cached) if cached.is_user(now) && identity.membership.is_none() => UserLookup::First,
            Some(cached) if now.is_before(cached.renewal) => UserLookup::NotNeeded,
            Some(cached) if now.is_before(cached.until) => UserLookup::InBackground,
            _ => UserLookup::First,
        }
    }

    /// Whether the caller's user is known.
    pub(crate) fn knows_user(&self, identity: &Identity, now: Moment) -> bool {
        self.cached_user(&identity.caller_state).is_some_and(|cached| cached.is_user(now))
    }

    /// Postpones the renewal, so that only one request starts it.
    pub(crate) fn postpone_renewal(&self, identity: &Identity, now: Moment) {
        let state = &identity.caller_state;
        let Some(cached) = self.cached_user(state) else { return };
        let renewal = now.after(UNKNOWN_FOR);
        let cached = CachedUser { membership: cached.membership.clone(), renewal, ..*cached };
        state.cache_user(cached, || self.is_current(identity));
    }

    /// Applies the status of a caller's token, which was looked up at `asked`. It is valid no longer than the token, and than an
    /// acceptance.
    pub(crate) fn learn(&self, identity: &Identity, status: TokenStatus, asked: Moment) {
        let (state, now) = (&identity.caller_state, self.clock.now());
        let settled = asked.after(self.revalidate);
        let was_refused = self.cached_user(state).is_some_and(|cached| cached.result == IdentityResult::Refused);
        match status {
            TokenStatus::User { id, expires, is_active } => {
                let expires =
                    expires.map_or(Moment::NEVER, |wall| Moment { wall, ..now.after(wall.saturating_sub(now.wall)) });
                let until = expires.min(settled);
                let valid = until.left(asked);
                let renewal = asked.after(valid - valid / RENEW_IN_LAST);
                let membership = self.membership(id, is_active, until);
                if self.set_user(state, membership, renewal, || self.is_current(identity)) && is_active {
                    // The identity provider knows the token, so it may use the cache of accepted callers.
                    self.caller_states.insert_accepted(identity.caller, state);
                }
            }
            // Others who looked it up at the same time were told so as well, and have dropped the entries.
            TokenStatus::NoUser(IdentityResult::Refused) if !self.is_current(identity) => {}
            // What it has brought since it was said first, the endpoint has given to it alone.
            TokenStatus::NoUser(refused @ IdentityResult::Refused) if was_refused => {
                self.set_no_user(identity, refused, settled);
            }
            TokenStatus::NoUser(refused @ IdentityResult::Refused) => {
                let no_user = Arc::new(self.no_user(refused, settled));
                let drop_entries = |state: &CallerState| {
                    self.caller_states.drop_entries(state, now, Some(&no_user));
                };
                self.each_state(identity, drop_entries);
            }
            TokenStatus::NoUser(apart @ IdentityResult::Apart) => self.set_no_user(identity, apart, settled),
            TokenStatus::NoUser(reason) => {
                if !self.knows_user(identity, now) {
                    let reason = if was_refused { IdentityResult::Refused } else { reason };
                    self.set_no_user(identity, reason, now.after(UNKNOWN_FOR));
                }
            }
        }
    }

    /// The membership in this user, until then.
    pub(super) fn membership(&self, id: UserId, is_active: bool, until: Moment) -> Membership {
        let scope = self.scope_of_user(id);
        Membership { id, scope, owner: self.caller_states.owner_of(scope), is_active, until }
    }

    /// Caches a caller's user, to be renewed at `renewal`, if `condition` holds; returns whether it does.
    pub(super) fn set_user(
        &self,
        state: &CallerState,
        membership: Membership,
        renewal: Moment,
        condition: impl FnOnce() -> bool,
    ) -> bool {
        let before = self.cached_user(state).and_then(|cached| cached.membership.clone());
        let is_same = before.is_some_and(|before| before.scope == membership.scope);
        let until = membership.until;
        let membership = Some(Arc::new(membership));
        let (config, result) = (self.user_config, IdentityResult::User);
        let cached = CachedUser { config, result, membership, renewal, until };
        let is_cached = state.cache_user(cached, condition);
        if is_cached && !is_same {
            self.caller_states.changed();
        }
        is_cached
    }

    /// Caches that a caller is its own caller, for this reason, until then.
    fn set_no_user(&self, identity: &Identity, reason: IdentityResult, until: Moment) {
        let state = &identity.caller_state;
        let had_user = self.cached_user(state).is_some_and(|cached| cached.membership.is_some());
        if state.cache_user(self.no_user(reason, until), || self.is_current(identity)) && had_user {
            self.caller_states.changed();
        }
    }

    fn no_user(&self, reason: IdentityResult, until: Moment) -> CachedUser {
        CachedUser { config: self.user_config, result: reason, membership: None, renewal: until, until }
    }

    /// For an operator: the short hash of a caller's user, the number of its callers, and the milliseconds until it must be looked up
    /// again, if it must.
    pub(crate) fn user_now(&self, identity: &Identity, now: Moment) -> Option<(u32, usize, Option<u64>)> {
        let membership = identity.membership.as_ref()?;
        let callers = self.caller_states.users(now).get(&membership.scope).copied().unwrap_or_default();
        let left = (membership.until != Moment::NEVER).then(|| membership.until.left(now));
        Some((membership.short(), callers, left))
    }

    /// For an operator: why a caller has no user; `None` if it has one.
    pub(crate) fn why_no_user(&self, identity: &Identity, now: Moment) -> Option<NoUser> {
        if identity.membership.is_some() {
            return None;
        }
        if identity.caller_state.is_refused.load(Ordering::Acquire) {
            let why = "The endpoint has refused it with a 401, and not accepted it since.";
            return Some(NoUser { reason: "unauthorized", why, left: None });
        }
        let cached = self.cached_user(&identity.caller_state).filter(|cached| cached.membership.is_none());
        Some(match cached {
            Some(cached) => NoUser {
                reason: cached.result.name(),
                why: cached.result.meaning(),
                left: Some(cached.until.left(now)),
            },
            None => {
                let why = "It has not been looked up, or what was learned has expired.";
                NoUser { reason: "not_asked", why, left: Some(0) }
            }
        })
    }

    /// `identity` without a membership that has expired.
    pub(super) fn without_expired_user(&self, identity: Identity, now: Moment) -> Identity {
        let has_expired = |identity: &Identity| {
            identity.membership.as_ref().is_some_and(|membership| !now.is_before(membership.until))
        };
        if !has_expired(&identity) {
            return identity;
        }
        // It may have been renewed since the connection remembered the identity.
        let renewed = self.identity(identity.caller, identity.caller_state, identity.signer);
        if !has_expired(&renewed) {
            return renewed;
        }
        let scope = self.scope_of(renewed.caller, renewed.entries_version);
        Identity { membership: None, scope, ..renewed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::tests::{at, headers, identify};
    use crate::auth::{CallerStates, Scope, UserId};

    const ONE: UserId = UserId([1; 32]);
    const OTHER: UserId = UserId([2; 32]);
    const UNKNOWN: TokenStatus = TokenStatus::NoUser(IdentityResult::Failed);
    const INACTIVE: TokenStatus = TokenStatus::NoUser(IdentityResult::Refused);

    fn callers() -> Callers {
        at("http://h", Arc::new(CallerStates::new([7; 16])), &CallersConfig::default())
    }

    fn caller(callers: &Callers, token: &str) -> Identity {
        identify(callers, &headers(&[("x-auth-token", token)])).ok().unwrap()
    }

    fn scope(callers: &Callers, token: &str) -> Scope {
        caller(callers, token).scope
    }

    fn is_accepted(callers: &Callers, token: &str) -> bool {
        !callers.must_revalidate(&caller(callers, token), callers.clock.now())
    }

    /// The endpoint takes it.
    fn accept(callers: &Callers, token: &str) -> bool {
        let caller = caller(callers, token);
        callers.accept(&caller, callers.clock.now(), caller.caller_state.invalidations())
    }

    fn learn(callers: &Callers, token: &str, status: TokenStatus) {
        let caller = caller(callers, token);
        callers.learn(&caller, status, callers.clock.now());
    }

    fn user(id: UserId) -> TokenStatus {
        TokenStatus::User { id, expires: None, is_active: true }
    }

    fn due(callers: &Callers, token: &str) -> UserLookup {
        callers.user_lookup(&caller(callers, token), callers.clock.now())
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_of_one_user_share_and_those_of_others_do_not() {
        let callers = callers();
        let alone = scope(&callers, "a");
        for (token, status) in [("a", user(ONE)), ("b", user(ONE)), ("c", user(OTHER)), ("d", UNKNOWN)] {
            assert_eq!(due(&callers, token), UserLookup::First);
            learn(&callers, token, status);
            assert_eq!(due(&callers, token), UserLookup::NotNeeded);
        }
        assert!(scope(&callers, "a") == scope(&callers, "b") && scope(&callers, "a") != alone);
        assert!(scope(&callers, "a") != scope(&callers, "c") && scope(&callers, "c") != scope(&callers, "d"));
        assert!(Arc::ptr_eq(caller(&callers, "a").owner(), caller(&callers, "b").owner()));
        assert!(!is_accepted(&callers, "a") && accept(&callers, "a"), "the endpoint has to take one of them");
        assert!(is_accepted(&callers, "b") && !is_accepted(&callers, "c") && !is_accepted(&callers, "d"));
        callers.invalidate(&caller(&callers, "b"));
        assert!(!is_accepted(&callers, "a"));
    }

    /// Regression: such a batch was answered as that of its own caller, and asked for what its user had.
    #[tokio::test(start_paused = true)]
    async fn a_caller_that_was_identified_just_before_its_user_was_known_is_identified_again() {
        let callers = callers();
        let early = caller(&callers, "a");
        learn(&callers, "a", user(ONE));
        let now = callers.clock.now();
        assert_eq!(callers.user_lookup(&early, now), UserLookup::First);
        assert!(callers.knows_user(&early, now));
        assert_eq!(callers.user_lookup(&caller(&callers, "a"), now), UserLookup::NotNeeded);
    }

    #[tokio::test(start_paused = true)]
    async fn a_signature_says_whose_a_token_is_and_accepts_it_not() {
        let callers = callers();
        learn(&callers, "a", TokenStatus::User { id: ONE, expires: None, is_active: false });
        assert!(caller(&callers, "a").membership.is_some() && !is_accepted(&callers, "a"));
        learn(&callers, "b", TokenStatus::User { id: ONE, expires: None, is_active: false });
        assert!(!callers.may_share(&caller(&callers, "a")), "nor are the user's stale links its");
        assert!(accept(&callers, "a"));
        assert!(is_accepted(&callers, "a") && callers.may_share(&caller(&callers, "a")));
        assert!(!is_accepted(&callers, "b") && !callers.may_share(&caller(&callers, "b")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_token_is_its_user_no_more_and_the_others_are_until_the_endpoint_takes_it_again() {
        let callers = callers();
        for token in ["a", "b"] {
            learn(&callers, token, user(ONE));
            assert!(accept(&callers, token));
        }
        let (refused, shared) = (caller(&callers, "a"), scope(&callers, "b"));
        callers.drop_entries(&refused);
        assert!(scope(&callers, "a") != shared && !is_accepted(&callers, "a"));
        assert!(scope(&callers, "b") == shared && is_accepted(&callers, "b"));
        // Nobody else's word counts, not even one that was under way.
        assert_eq!(due(&callers, "a"), UserLookup::NotNeeded);
        learn(&callers, "a", user(ONE));
        callers.learn(&refused, user(ONE), callers.clock.now());
        assert!(scope(&callers, "a") != shared && !is_accepted(&callers, "a"));
        assert!(accept(&callers, "a"));
        assert_eq!(due(&callers, "a"), UserLookup::First);
        learn(&callers, "a", user(ONE));
        assert!(scope(&callers, "a") == shared);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_the_identity_provider_refuses_is_a_caller_by_itself_that_is_not_asked_about_for_a_while() {
        let callers = callers();
        learn(&callers, "a", user(ONE));
        let shared = scope(&callers, "a");
        learn(&callers, "a", INACTIVE);
        assert!(scope(&callers, "a") != shared && !is_accepted(&callers, "a"));
        assert!(accept(&callers, "a"));
        assert!(scope(&callers, "a") != shared && is_accepted(&callers, "a"), "the endpoint takes it");
        assert_eq!(due(&callers, "a"), UserLookup::NotNeeded);
        tokio::time::advance(Duration::from_secs(300)).await;
        assert_eq!(due(&callers, "a"), UserLookup::First);
    }

    #[tokio::test(start_paused = true)]
    async fn a_word_is_good_no_longer_than_its_token_lives_and_than_an_acceptance_is() {
        let callers = callers();
        let ends = callers.clock.now().wall + 100_000;
        learn(&callers, "a", TokenStatus::User { id: ONE, expires: Some(ends), is_active: true });
        learn(&callers, "b", user(ONE));
        let shared = scope(&callers, "b");
        tokio::time::advance(Duration::from_secs(80)).await;
        assert_eq!(due(&callers, "a"), UserLookup::InBackground);
        callers.postpone_renewal(&caller(&callers, "a"), callers.clock.now());
        assert_eq!(due(&callers, "a"), UserLookup::NotNeeded, "somebody else asks");
        tokio::time::advance(Duration::from_secs(5)).await;
        learn(&callers, "a", UNKNOWN);
        assert!(scope(&callers, "a") == shared, "what was said before is good still");
        tokio::time::advance(Duration::from_secs(15)).await;
        assert!(scope(&callers, "a") != shared);
        assert_eq!(due(&callers, "a"), UserLookup::First);
        assert!(scope(&callers, "b") == shared);
        tokio::time::advance(Duration::from_secs(140)).await;
        assert_eq!(due(&callers, "b"), UserLookup::InBackground);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(scope(&callers, "b") != shared, "callers.revalidate is 5 minutes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_remembers_its_caller_sees_a_new_word_and_the_end_of_one() {
        use crate::auth::LastToken;
        use crate::auth::tests::identify_on;

        let (callers, last) = (callers(), LastToken::default());
        let list = headers(&[("x-auth-token", "a")]);
        let seen = || identify_on(&last, &callers, &list).unwrap();
        assert!(seen().membership.is_none());
        learn(&callers, "a", user(ONE));
        assert!(seen().membership.is_some());
        tokio::time::advance(Duration::from_secs(290)).await;
        learn(&callers, "a", user(ONE));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(seen().membership.is_some(), "it was renewed");
        tokio::time::advance(Duration::from_secs(290)).await;
        assert!(seen().membership.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_remembers_its_caller_sees_another_configuration_of_users() {
        use crate::auth::LastToken;
        use crate::auth::tests::identify_on;

        let (before, last) = (callers(), LastToken::default());
        let list = headers(&[("x-auth-token", "a")]);
        learn(&before, "a", user(ONE));
        assert!(identify_on(&last, &before, &list).unwrap().membership.is_some());
        let config = CallersConfig { identity: Some(IdentityConfig::blank()), ..CallersConfig::default() };
        let after = at("http://h", Arc::clone(&before.caller_states), &config);
        assert!(identify_on(&last, &after, &list).unwrap().membership.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_that_is_valid_for_longer_than_another_configuration_allows_does_not_count_there() {
        let before = callers();
        learn(&before, "a", user(ONE));
        let config = CallersConfig { revalidate: Duration::from_secs(10), ..CallersConfig::default() };
        let after = at("http://h", Arc::clone(&before.caller_states), &config);
        assert_eq!(due(&after, "a"), UserLookup::First);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_inactive_still_keeps_what_the_endpoint_gave_to_it_since() {
        let callers = callers();
        learn(&callers, "a", user(ONE));
        learn(&callers, "a", INACTIVE);
        let alone = scope(&callers, "a");
        assert!(accept(&callers, "a"));
        learn(&callers, "a", INACTIVE);
        learn(&callers, "a", UNKNOWN);
        learn(&callers, "a", INACTIVE);
        assert!(scope(&callers, "a") == alone && is_accepted(&callers, "a"));
        // Active in between: the next one is a change.
        learn(&callers, "a", user(ONE));
        learn(&callers, "a", INACTIVE);
        assert!(scope(&callers, "a") != alone && !is_accepted(&callers, "a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_makes_no_user_is_looked_up_again_late_and_one_of_which_nothing_was_learned_soon() {
        let callers = callers();
        learn(&callers, "a", TokenStatus::NoUser(IdentityResult::Apart));
        learn(&callers, "b", TokenStatus::NoUser(IdentityResult::Unverified));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!((due(&callers, "a"), due(&callers, "b")), (UserLookup::NotNeeded, UserLookup::First));
    }

    #[tokio::test(start_paused = true)]
    async fn an_inactive_token_that_several_looked_up_loses_its_entries_once() {
        let callers = callers();
        let asked = [caller(&callers, "a"), caller(&callers, "a")];
        callers.learn(&asked[0], INACTIVE, callers.clock.now());
        let alone = scope(&callers, "a");
        callers.learn(&asked[1], INACTIVE, callers.clock.now());
        assert!(scope(&callers, "a") == alone);
    }
}
