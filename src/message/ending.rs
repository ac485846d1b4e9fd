//! How an answer ended: whole, or cut short, and by whom.

use std::sync::{Arc, OnceLock};

/// Who or what cut an answer short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// The client disconnected, or reset the stream.
    Client,
    /// The client neither read nor sent for `limits.idle_timeout`.
    ClientTimeout,
    /// The endpoint broke off.
    Endpoint,
    /// The endpoint sent nothing for `upstream.idle_timeout`.
    EndpointTimeout,
    /// The time to drain had passed.
    Drain,
}

impl Abort {
    /// Its name in the access log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::ClientTimeout => "client-timeout",
            Self::Endpoint => "endpoint",
            Self::EndpointTimeout => "endpoint-timeout",
            Self::Drain => "drain",
        }
    }

    /// The status in the access log and in metrics of a request that got no answer. No client gets it.
    pub fn status(self) -> u16 {
        match self {
            Self::Client => 499,
            Self::ClientTimeout => 408,
            Self::Endpoint => 502,
            Self::EndpointTimeout => 504,
            Self::Drain => 503,
        }
    }

    /// Why a request got no answer.
    pub fn detail(self) -> &'static str {
        if self == Self::Client { "client-left" } else { self.name() }
    }
}

/// The end of an answer's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyEnd {
    /// Bytes of it that were given to the connection.
    pub bytes: u64,
    /// Who ended it before its end was seen.
    pub aborted: Option<Abort>,
}

/// To be called once, when a body has ended or is dropped.
pub type OnEnd = Box<dyn FnOnce(BodyEnd) + Send>;

/// Why sidelink itself has cut off a connection. The connection sets it before its requests are dropped.
#[derive(Clone, Debug, Default)]
pub struct CutOff(Arc<OnceLock<Abort>>);

impl CutOff {
    /// The connection is cut off for this reason. A second one changes nothing.
    pub fn set(&self, reason: Abort) {
        let _ = self.0.set(reason);
    }

    /// Who ends a request that is dropped now: the client, unless the connection was cut off.
    pub fn by(&self) -> Abort {
        self.0.get().copied().unwrap_or(Abort::Client)
    }
}
