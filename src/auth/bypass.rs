//! Why a batch is forwarded untouched.

/// Why a batch is forwarded untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bypass {
    /// No credential, or only empty ones.
    NoCredential,
    /// More than one credential.
    Credentials,
    /// An `Authorization` of a scheme that sidelink does not know.
    Algorithm,
    /// Signed with a key that is not configured.
    UnknownKey,
    /// Signed with a configured key, but the signature does not verify here: the endpoint judges it.
    Signature,
    /// Signed, but not over its body.
    UnsignedPayload,
    /// A call without the batch's cookies was refused; the batch was forwarded with them.
    Cookie,
    /// A browser's page on another origin, which wants the endpoint's own CORS headers.
    Origin,
    /// A Range asks for a piece.
    Range,
    /// A credential or scope header is longer than the endpoint takes it.
    HeaderTooLong,
    /// Not readable as a batch.
    Unreadable,
    /// An answer that could not be matched to the ids asked for.
    Unmatched,
}

impl Bypass {
    /// Every reason, for metrics.
    pub const ALL: [Bypass; 12] = [
        Bypass::NoCredential,
        Bypass::Credentials,
        Bypass::Algorithm,
        Bypass::UnknownKey,
        Bypass::Signature,
        Bypass::UnsignedPayload,
        Bypass::Cookie,
        Bypass::Origin,
        Bypass::Range,
        Bypass::HeaderTooLong,
        Bypass::Unreadable,
        Bypass::Unmatched,
    ];

    /// Its name in metrics and in `Cache-Status`.
    pub fn name(self) -> &'static str {
        match self {
            Bypass::NoCredential => "no-credential",
            Bypass::Credentials => "credentials",
            Bypass::Algorithm => "algorithm",
            Bypass::UnknownKey => "unknown-key",
            Bypass::Signature => "signature",
            Bypass::UnsignedPayload => "unsigned-payload",
            Bypass::Cookie => "cookie",
            Bypass::Origin => "origin",
            Bypass::Range => "range",
            Bypass::HeaderTooLong => "header-too-long",
            Bypass::Unreadable => "unreadable",
            Bypass::Unmatched => "unmatched",
        }
    }
}
