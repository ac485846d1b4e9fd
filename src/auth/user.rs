//! The user behind a credential, and what is said of it.

use std::fmt;

/// A user with a project and roles, or whatever else makes two tokens mean the same: a SHA-256 digest of what an identity
/// provider, or a verified token, says. Nothing of that can be read from it, and it is the same in all sidecars of a fleet.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserId(pub [u8; 32]);

/// The first eight hex digits.
impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "UserId({:08x}…)", u32::from_be_bytes([a, b, c, d]))
    }
}

/// What is said of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is this user's.
    User {
        /// The user.
        id: UserId,
        /// When the token ends, in Unix milliseconds, if it says so.
        ends: Option<u64>,
        /// Whether the identity provider vouches for the token now. A signature says only whose it is: the token may have been
        /// revoked.
        is_live: bool,
    },
    /// It is not valid.
    Refused,
    /// Nothing is known: the token is a caller by itself.
    Unknown,
}
