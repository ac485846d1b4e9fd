//! The values of labels: closed sets, each value declared once with its meaning.

/// Declares the values of one label as an enum: `Variant = "value"`.
macro_rules! labels {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$doc:meta])+ $variant:ident = $value:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])+ $variant,)+
        }

        impl $name {
            /// Every value, in the order of the variants.
            pub const ALL: [Self; [$($value),+].len()] = [$(Self::$variant),+];

            /// The value, as it stands in metrics and logs.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)+
                }
            }
        }
    };
}

labels! {
    /// What became of one id of a batch.
    pub enum IdResult {
        /// From memory, fresh.
        Hit = "hit",
        /// From memory, past its freshness, for an endpoint that failed.
        Stale = "stale",
        /// From a flight that another batch had started.
        Joined = "joined",
        /// From the shared tier.
        Shared = "shared",
        /// From a call for this batch.
        Fetched = "fetched",
        /// Remembered as left out.
        Absent = "absent",
        /// Not to be had.
        Failed = "failed",
    }
}

/// The results of one batch's distinct ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally(pub(super) [u32; 7]);

impl Tally {
    /// Counts one id.
    pub fn add(&mut self, result: IdResult) {
        if let Some(count) = self.0.get_mut(result as usize) {
            *count += 1;
        }
    }

    /// The count of `result`.
    pub fn count(&self, result: IdResult) -> u32 {
        self.0.get(result as usize).copied().unwrap_or(0)
    }

    /// All ids.
    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }
}

labels! {
    /// How a batch was answered.
    pub enum Outcome {
        /// All from memory.
        Hit = "hit",
        /// Some from memory, some fetched or joined.
        Partial = "partial",
        /// None from memory.
        Miss = "miss",
        /// At least one link past its freshness.
        Stale = "stale",
        /// Forwarded untouched.
        Bypass = "bypass",
        /// An error, the endpoint's or sidelink's own.
        Error = "error",
    }
}

labels! {
    /// Which way a request went.
    pub enum Route {
        /// The batch route.
        Batch = "batch",
        /// Any other route of the endpoint.
        Passthrough = "passthrough",
    }
}

labels! {
    /// Why a batch is forwarded untouched.
    pub enum Bypass {
        /// No credential, or only empty ones.
        NoCredential = "no-credential",
        /// More than one credential.
        Credentials = "credentials",
        /// An `Authorization` of a scheme that sidelink does not know.
        Algorithm = "algorithm",
        /// Signed with a key that is not configured.
        UnknownKey = "unknown-key",
        /// Signed with a configured key, but the signature does not verify here: the endpoint judges it.
        Signature = "signature",
        /// Signed, but not over its body.
        UnsignedPayload = "unsigned-payload",
        /// A call without the batch's cookies was refused; the batch was forwarded with them.
        Cookie = "cookie",
        /// A browser's page on another origin, which wants the endpoint's own CORS headers.
        Origin = "origin",
        /// A `Range` header.
        Range = "range",
        /// A credential or scope header longer than the endpoint takes.
        HeaderTooLong = "header-too-long",
        /// Not readable as a batch.
        Unreadable = "unreadable",
        /// The answer does not match the ids asked for.
        Unmatched = "unmatched",
    }
}

labels! {
    /// What the breaker lets through.
    pub enum BreakerState {
        /// Every call.
        Closed = "closed",
        /// One probe.
        HalfOpen = "half_open",
        /// None.
        Open = "open",
    }
}

labels! {
    /// Why a link is passed on and not stored.
    pub enum Reason {
        /// Its life left is below `freshness.min_remaining`.
        UnderFloor = "under_floor",
        /// Signed, with an expiry that cannot be read or is further than ten years away.
        Unreadable = "unreadable_expiry",
        /// The endpoint's Cache-Control or Expires forbids it.
        NoStore = "no_store",
        /// The endpoint's Vary names something outside of the scope.
        Vary = "vary",
        /// The answer could not be matched to the ids asked for.
        Unmatched = "unmatched",
    }
}

labels! {
    /// The limits that shed.
    pub enum Limit {
        /// `limits.in_flight`
        InFlight = "in_flight",
        /// Half of `limits.in_flight`, for one caller.
        CallerInFlight = "caller_in_flight",
        /// `limits.waiters`
        Waiters = "waiters",
        /// `upstream.calls`, or half of it for one caller: no call could be made in time.
        Calls = "calls",
        /// `limits.exchanges`
        Exchanges = "exchanges",
        /// `limits.batch_bodies`
        BatchBodies = "batch_bodies",
        /// `limits.signed_bodies`
        SignedBodies = "signed_bodies",
    }
}

labels! {
    /// What is bounded in all, however many callers there are.
    pub enum Bounded {
        /// Client connections, by `limits.connections`.
        Connections = "connections",
        /// Ids being fetched, by `limits.in_flight`.
        InFlight = "in_flight",
        /// Batches waiting for a call, by `limits.waiters`.
        Waiters = "waiters",
        /// Requests on other routes, by `limits.exchanges`.
        Exchanges = "exchanges",
        /// Bytes of batches' bodies, by `limits.batch_bodies`.
        BatchBodies = "batch_bodies",
        /// Bytes of bodies held to be signed again, by `limits.signed_bodies`.
        SignedBodies = "signed_bodies",
        /// Calls under way, by `upstream.calls`.
        Calls = "calls",
    }
}

labels! {
    /// What a round trip to the shared tier is for.
    pub enum Operation {
        /// Links that memory lacks are looked up.
        Get = "get",
        /// Links that were fetched are written back.
        Put = "put",
        /// A lease on ids about to be fetched is asked for, waited for or given back.
        Lease = "lease",
        /// A purge or a revocation is made known to the fleet.
        Revoke = "revoke",
        /// Purges and revocations of others, and a Cluster's layout, are read while nobody asks.
        Sync = "sync",
    }
}

labels! {
    /// How the shared tier fails. Each costs hits, never an answer.
    pub enum Kind {
        /// No connection: refused, unreachable, name, certificate or credentials.
        Connect = "connect",
        /// No reply within `shared.timeout`.
        Timeout = "timeout",
        /// The connection broke before the reply was whole.
        Broken = "broken",
        /// An error for a reply: out of memory, read-only, no permission, or what is no reply at all.
        Reply = "reply",
        /// A value that does not open: altered, moved, or sealed with another secret. It counts as a miss.
        Unsealed = "unsealed",
        /// A value from before a purge, a revocation, or a loss of what the fleet knew of them. It counts as a miss.
        Revoked = "revoked",
        /// A value past its end, or from the future: its writer's clock, or this one, is off. It counts as a miss.
        Outlived = "outlived",
        /// Too much is being written already: what was fetched is not shared.
        Busy = "busy",
        /// What the fleet knew of purges was lost, went back, or was altered: what is there counts no more.
        Journal = "journal",
    }
}

labels! {
    /// What has become of a span.
    pub enum SpanResult {
        /// The collector has taken it.
        Exported = "exported",
        /// The collector has answered that it would not have it.
        Rejected = "rejected",
        /// The collector could not be reached, or refused.
        Failed = "failed",
        /// Too many waited to be exported.
        Dropped = "dropped",
    }
}
