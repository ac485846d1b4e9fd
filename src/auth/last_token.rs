//! The token that a connection has shown last, so that its hash is computed once and not for every request.

use constant_time_eq::constant_time_eq;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::Caller;

/// Bytes of the longest token that is remembered, for each of `limits.connections`.
const LONGEST: usize = 2048;

/// The last token of one connection, with its caller. A connection mostly shows one token; where it shows several, as behind another
/// proxy, each change costs a copy of the token beside its hash.
#[derive(Default)]
pub struct LastToken(Mutex<Option<Remembered>>);

struct Remembered {
    token: Zeroizing<Box<[u8]>>,
    /// Identifies the key of the hash that gave `caller`: the [`super::Callers`] of another endpoint have another key.
    key_id: u128,
    caller: Caller,
}

impl LastToken {
    /// The caller of `token` under the hash key of `key_id`: `hash`, unless the connection's last token was the same. Compares in
    /// constant time: behind another proxy a connection shows the tokens of several clients, and no client may find out the token
    /// of another by timing.
    pub(super) fn caller(&self, token: &[u8], key_id: u128, hash: impl FnOnce() -> Caller) -> Caller {
        let mut last = self.0.lock();
        if let Some(last) = &*last
            && last.key_id == key_id
            && constant_time_eq(&last.token, token)
        {
            return last.caller;
        }
        let caller = hash();
        *last = (token.len() <= LONGEST).then(|| Remembered { token: Zeroizing::new(token.into()), key_id, caller });
        caller
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_hashed_when_it_or_the_key_changes_and_is_never_taken_for_another() {
        let last = LastToken::default();
        let mut hashed = 0;
        let mut caller = |token: &str, key_id: u128| {
            let hash = || {
                hashed += 1;
                Caller::of_test(key_id << 64 | token.bytes().map(u128::from).sum::<u128>())
            };
            (last.caller(token.as_bytes(), key_id, hash), hashed)
        };
        let long = "t".repeat(LONGEST + 1);
        let expected =
            |token: &str, key_id: u128| Caller::of_test(key_id << 64 | token.bytes().map(u128::from).sum::<u128>());
        for (token, key_id, hashes) in [
            ("a", 1, 1),
            ("a", 1, 1),
            ("b", 1, 2),
            ("b", 2, 3),
            ("bb", 2, 4),
            ("b", 2, 5),
            ("", 2, 6),
            ("", 2, 6),
            (&long, 2, 7),
            (&long, 2, 8),
            ("", 2, 9),
        ] {
            assert_eq!(caller(token, key_id), (expected(token, key_id), hashes), "{token} {key_id}");
        }
    }
}
