//! The values of labels: closed sets, each value declared once with its meaning.

use http::StatusCode;

/// The values of one label.
pub trait Label: Copy + 'static {
    /// Every value, and how it stands in metrics and logs.
    const VALUES: &'static [(Self, &'static str)];

    /// Its place in [`Label::VALUES`].
    fn index(self) -> usize;
}

/// Declares each label as an enum of its values: `Variant = "value"`.
macro_rules! labels {
    ($($(#[$meta:meta])* pub enum $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $value:literal,)+ })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[doc = $doc])+ $variant,)+
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

            /// The value's meaning: its documentation.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_ascii_start(),)+
                }
            }
        }

        impl Label for $name {
            const VALUES: &'static [(Self, &'static str)] = &[$((Self::$variant, $value)),+];

            fn index(self) -> usize {
                self as usize
            }
        }
    )+};
}

labels! {
    /// The result of one id of a batch.
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
        /// Remembered as left out by the endpoint.
        Absent = "absent",
        /// Not available.
        Failed = "failed",
    }

    /// How a batch was answered.
    pub enum Outcome {
        /// All of its ids came from memory.
        Hit = "hit",
        /// Some of its ids came from memory; the others were fetched or joined.
        Partial = "partial",
        /// None of its ids came from memory.
        Miss = "miss",
        /// At least one link was stale, since the endpoint failed.
        Stale = "stale",
        /// It was forwarded as it came, and got the endpoint's own answer.
        Bypass = "bypass",
        /// It got an error, the endpoint's or sidelink's own.
        Error = "error",
    }

    /// The route of a request.
    pub enum Route {
        /// The batch route.
        Batch = "batch",
        /// Any other route of the endpoint.
        Passthrough = "passthrough",
    }

    /// Who has decided on an answer's status.
    pub enum Source {
        /// sidelink: a batch that it has merged, or an error of its own.
        Sidelink = "sidelink",
        /// The endpoint: its answer was passed on, or is given again.
        Endpoint = "endpoint",
    }

    /// The status of an answer: one that is documented for the API or for sidelink, or the class of any other.
    pub enum Code {
        /// 200
        Ok = "200",
        /// 204
        NoContent = "204",
        /// 206
        Partial = "206",
        /// Any other 2xx.
        Success = "2xx",
        /// 304
        NotModified = "304",
        /// Any other 3xx.
        Redirection = "3xx",
        /// 400
        BadRequest = "400",
        /// 401
        Unauthorized = "401",
        /// 403
        Forbidden = "403",
        /// 404
        NotFound = "404",
        /// 405
        MethodNotAllowed = "405",
        /// 413
        TooLarge = "413",
        /// 421
        Misdirected = "421",
        /// 429
        TooManyRequests = "429",
        /// The client has disconnected before there was an answer.
        ClientLeft = "499",
        /// Any other 4xx.
        ClientError = "4xx",
        /// 500
        Internal = "500",
        /// 502
        BadGateway = "502",
        /// 503
        Unavailable = "503",
        /// 504
        GatewayTimeout = "504",
        /// 508
        Loop = "508",
        /// Any other status.
        ServerError = "5xx",
    }

    /// How an attempt of a call has ended.
    pub enum AttemptResult {
        /// A 2xx or 3xx.
        Ok = "ok",
        /// A 4xx.
        ClientError = "client_error",
        /// A 5xx.
        ServerError = "server_error",
        /// No usable answer.
        NoAnswer = "no_answer",
        /// No answer within the deadline.
        Deadline = "deadline",
    }

    /// Why a batch is forwarded untouched.
    pub enum Bypass {
        /// It has no credential: no credential header of its API, and no signed `Authorization` where the API takes it.
        NoCredential = "no-credential",
        /// It has more than one credential.
        Credentials = "credentials",
        /// Its `Authorization` is of a scheme that sidelink does not know.
        Algorithm = "algorithm",
        /// It is signed with a key that is not configured.
        UnknownKey = "unknown-key",
        /// Its signature, by a configured key, does not verify here: the endpoint judges it.
        Signature = "signature",
        /// Its signature does not cover its body.
        UnsignedPayload = "unsigned-payload",
        /// A call without its cookies was refused, so it is forwarded with them.
        Cookie = "cookie",
        /// It has an `Origin`: a page in a browser needs the endpoint's own CORS headers.
        Origin = "origin",
        /// It has a `Range`.
        Range = "range",
        /// A credential or scope header is longer than the endpoint takes.
        HeaderTooLong = "header-too-long",
        /// It is not exactly a batch, as its API is described: its ids in the query or in a JSON body, and beside them only what the
        /// API allows.
        Unreadable = "unreadable",
        /// The list of ids in its body is empty.
        NoIds = "no-ids",
        /// Its body asks for something else than the API's `when` says.
        Condition = "condition",
        /// A call for a part of it got an error that concerns the ids of that call: the endpoint may answer the whole otherwise.
        Part = "part",
        /// A call for a part of it got a 200 without a list of items where its API has it, and that is no error by `errors`.
        NoList = "no-list",
        /// The endpoint's answer does not match its ids.
        Unmatched = "unmatched",
        /// The endpoint's answer is no JSON, or in a coding that cannot be undone.
        NotJson = "not-json",
    }

    /// The result of a call to the endpoint.
    pub enum CallResult {
        /// An answer that was read.
        Ok = "ok",
        /// A 4xx.
        ClientError = "client_error",
        /// A 5xx.
        ServerError = "server_error",
        /// A 200 that reports an error, or does not match the ids asked for.
        ErrorIn200 = "error_in_200",
        /// A status that is none of these.
        Unexpected = "unexpected",
        /// No usable answer.
        NoAnswer = "no_answer",
        /// No answer within the deadline.
        Deadline = "deadline",
        /// Refused by the breaker or a pause, before anything was sent.
        Refused = "refused",
    }

    /// The breaker's evidence.
    pub enum EvidenceKind {
        /// Callers whose calls failed.
        Callers = "callers",
        /// Sets of ids whose calls failed.
        IdSets = "id_sets",
        /// Failures to connect.
        FailedToConnect = "failed_to_connect",
        /// Connections lost.
        ConnectionsLost = "connections_lost",
        /// Answers of 502, 503 and 504.
        FailedAnswers = "failed_answers",
        /// Calls without an answer in time.
        NoAnswers = "no_answers",
        /// Sources refused while the breaker is closed for others.
        SourcesRefused = "sources_refused",
    }

    /// Why a fresh id is fetched again.
    pub enum Refetch {
        /// Refresh ahead.
        Refresh = "refresh",
        /// The caller has to be accepted again.
        Revalidate = "revalidate",
        /// The client's own cache directives.
        Client = "client",
        /// A call for a part of a batch got an error, so the batch is asked for as it was written.
        Part = "part",
        /// The items of a batch came in envelopes that differ, so it is fetched whole.
        Envelope = "envelope",
    }

    /// The target of a purge.
    pub enum PurgeTarget {
        /// Ids, by an operator.
        Ids = "ids",
        /// A group, by an operator.
        Group = "group",
        /// Everything, by an operator.
        All = "all",
        /// An id whose DELETE passed through.
        Delete = "delete",
    }

    /// Why an entry left memory.
    pub enum Eviction {
        /// To make room.
        Size = "size",
        /// Too old to be served, fresh or stale.
        Expired = "expired",
        /// Purged, or refused by the endpoint.
        Explicit = "explicit",
    }

    /// The state of a breaker: the calls that it lets through.
    pub enum BreakerState {
        /// Every call.
        Closed = "closed",
        /// One probe.
        HalfOpen = "half_open",
        /// None.
        Open = "open",
    }

    /// Why a link is passed on and not stored.
    pub enum Reason {
        /// Its life left is below `freshness.min_remaining`.
        UnderFloor = "under_floor",
        /// It has no link, and does not count as absent.
        NoLink = "no_link",
        /// Its expiry, in the URL or in a field, cannot be read or is further than ten years away.
        Unreadable = "unreadable_expiry",
        /// The endpoint's Cache-Control or Expires forbids it.
        NoStore = "no_store",
        /// The endpoint's Vary names something outside of the scope.
        Vary = "vary",
        /// The answer could not be matched to the ids asked for, or not be read.
        Unmatched = "unmatched",
    }

    /// The limits that refuse requests.
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

    /// The bounded resources of the process.
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
        /// Bytes of bodies that are signed again, by `limits.signed_bodies`.
        SignedBodies = "signed_bodies",
        /// Calls under way, by `upstream.calls`.
        Calls = "calls",
    }

    /// The use of a certificate.
    pub enum CertificateUse {
        /// `listen.tls.cert`: clients see it.
        Listen = "listen",
        /// `admin.tls.cert`: operators see it.
        Admin = "admin",
        /// `upstream.client_cert`: the endpoint sees it.
        Upstream = "upstream",
        /// `callers.identity.client_cert`: the identity provider sees it.
        Identity = "identity",
    }

    /// The purpose of a round trip to the shared tier.
    pub enum Operation {
        /// Look up links that are not in memory.
        Get = "get",
        /// Write links that were fetched.
        Put = "put",
        /// Acquire or await a lease on ids that are fetched.
        Lease = "lease",
        /// Renew leases whose calls are under way, or release those whose calls have ended.
        Release = "release",
        /// Announce a purge or a revocation to the fleet.
        Revoke = "revoke",
        /// Read purges and revocations of others, and a Cluster's layout, and check new connections, in the background.
        Sync = "sync",
    }

    /// How the shared tier failed. Each failure costs hits, never an answer.
    pub enum SharedFailure {
        /// No connection that batches can use: refused, unreachable, name, certificate, credentials, or a missing right.
        Connect = "connect",
        /// No reply within `shared.timeout`, also to the commands that a new connection is checked with.
        Timeout = "timeout",
        /// The connection broke before the reply was whole.
        Broken = "broken",
        /// An error for a reply: out of memory, read-only, no permission, or what is no reply at all.
        Reply = "reply",
        /// A value that does not open: altered, moved, or of another version. It counts as a miss.
        Unsealed = "unsealed",
        /// A value from before a purge, a revocation, or a loss of the journal. It counts as a miss.
        Revoked = "revoked",
        /// A value that is expired or from the future: the writer's clock or this one is wrong. It counts as a miss.
        Outlived = "outlived",
        /// A batch waited for ids that another sidecar was said to fetch, and got neither a link nor a lease.
        Denied = "denied",
        /// Too many writes are under way: fetched links are not shared.
        Busy = "busy",
        /// The fleet's journal of purges was lost, went back, or was altered: older values are ignored.
        Journal = "journal",
    }

    /// What was learned of a token.
    pub enum IdentityResult {
        /// Its user.
        User = "user",
        /// The identity provider says that it is not valid.
        Refused = "refused",
        /// The answer, or the token itself, lacks a field that makes a user, or has one that cannot be compared.
        Apart = "apart",
        /// It is no JSON Web Token that a key of the set verifies.
        Unverified = "unverified",
        /// Its signature verifies, but it has expired, is not valid yet, or states no expiry.
        Expired = "expired",
        /// Nothing: the identity provider is down or slow, or its answer cannot be used.
        Failed = "failed",
        /// Nothing: the identity provider refuses sidelink's own credentials.
        Credentials = "credentials",
        /// Not looked up: too many requests were in flight.
        Limited = "limited",
        /// Not looked up: too many requests about tokens that the endpoint has not accepted, per second or in flight.
        Unaccepted = "unaccepted",
        /// It was not asked for, since the identity provider fails.
        BreakerOpen = "breaker_open",
    }

    /// The result of a span's export.
    pub enum SpanResult {
        /// The collector accepted it.
        Exported = "exported",
        /// The collector rejected it.
        Rejected = "rejected",
        /// The collector could not be reached, or refused.
        Failed = "failed",
        /// The queue was full.
        Dropped = "dropped",
    }
}

impl IdResult {
    /// Whether the id was answered without a call for its batch: what counts as a hit in the hit rate.
    pub fn is_spared(self) -> bool {
        matches!(self, Self::Hit | Self::Stale | Self::Joined | Self::Shared)
    }
}

impl Code {
    /// Whether it is a 4xx or 5xx, or there was no answer.
    pub fn is_error(self) -> bool {
        self.name().starts_with(['4', '5'])
    }

    /// Whether it is a 5xx.
    pub fn is_server_error(self) -> bool {
        self.name().starts_with('5')
    }
}

impl From<StatusCode> for Code {
    fn from(status: StatusCode) -> Self {
        status.as_u16().into()
    }
}

impl From<u16> for Code {
    fn from(status: u16) -> Self {
        match status {
            200 => Code::Ok,
            204 => Code::NoContent,
            206 => Code::Partial,
            304 => Code::NotModified,
            400 => Code::BadRequest,
            401 => Code::Unauthorized,
            403 => Code::Forbidden,
            404 => Code::NotFound,
            405 => Code::MethodNotAllowed,
            413 => Code::TooLarge,
            421 => Code::Misdirected,
            429 => Code::TooManyRequests,
            499 => Code::ClientLeft,
            500 => Code::Internal,
            502 => Code::BadGateway,
            503 => Code::Unavailable,
            504 => Code::GatewayTimeout,
            508 => Code::Loop,
            other => match other / 100 {
                2 => Code::Success,
                3 => Code::Redirection,
                4 => Code::ClientError,
                _ => Code::ServerError,
            },
        }
    }
}
