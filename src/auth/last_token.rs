//! The token that a connection has shown last with its caller, so that they are looked up once and not for every request.

use std::sync::atomic::Ordering;

use constant_time_eq::constant_time_eq;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::{Caller, Identity};

/// Bytes of the longest token that is remembered, for each of `limits.connections`.
const LONGEST: usize = 2048;
/// A caller is looked up after this many uses, so that it counts as seen.
const USES: u32 = 16;

/// The last token of one connection, with its identity. A connection mostly shows one token; where it shows several, as behind
/// another proxy, each change costs a copy of the token beside its hash.
#[derive(Default)]
pub struct LastToken(Mutex<Option<Remembered>>);

struct Remembered {
    token: Zeroizing<Box<[u8]>>,
    /// Identifies the key of the hash that gave the caller: the [`super::Callers`] of another endpoint have another key.
    key_id: u128,
    identity: Identity,
    /// The number of changes of callers' states before the identity was looked up.
    changes: u64,
    uses: u32,
}

impl LastToken {
    /// The identity of `token`: that of the connection's last token if it was the same, under the hash key of `key_id`, and no
    /// caller's state has changed since ([`super::CallerStates::changes`]). Otherwise what `look_up` gives; it is told the caller,
    /// where that is known without hashing the token. Compares in constant time: behind another proxy a connection shows the tokens
    /// of several clients, and no client may find out the token of another by timing.
    pub(super) fn identity(
        &self,
        token: &[u8],
        key_id: u128,
        changes: u64,
        look_up: impl FnOnce(Option<Caller>) -> Identity,
    ) -> Identity {
        let mut last = self.0.lock();
        let is_same = |last: &&mut Remembered| last.key_id == key_id && constant_time_eq(&last.token, token);
        if let Some(last) = last.as_mut().filter(is_same) {
            // A revocation counts as a change once all states are updated; the state itself knows earlier.
            let version = last.identity.caller_state.entries_version.load(Ordering::Acquire);
            if last.changes == changes && version == last.identity.entries_version && last.uses < USES {
                last.uses += 1;
            } else {
                last.identity = look_up(Some(last.identity.caller));
                (last.changes, last.uses) = (changes, 1);
            }
            return last.identity.clone();
        }
        let identity = look_up(None);
        let token = (token.len() <= LONGEST).then(|| Zeroizing::new(token.into()));
        *last = token.map(|token| Remembered { token, key_id, identity: identity.clone(), changes, uses: 1 });
        identity
    }
}
