//! Every log event: level, message and fields, declared once. No other file calls the macros of `tracing`.
//!
//! **To add a log line, add it to `events!`** under the target (the module) that logs it, and run `make docs`. The doc comment is the event's
//! meaning on docs/LOGGING.md. A message is a fixed text; a field is never a secret, a query, an id or a link.

use std::fmt::Arguments;

use tracing::Level;

use crate::message::ending::Abort;

/// One event, as docs/LOGGING.md shows it.
pub struct Event {
    /// The level.
    pub level: Level,
    /// The target: the module that logs it.
    pub target: &'static str,
    /// The message.
    pub message: &'static str,
    /// Names of the fields, with a meaning where the event's own does not say it.
    pub fields: &'static [(&'static str, &'static str)],
    /// The meaning of the event.
    pub meaning: &'static str,
}

/// Writes one line.
macro_rules! log_event {
    ($self:ident, $target:literal, [$level:ident], $message:literal, [$($field:ident)*]) => {
        tracing::event!(target: $target, Level::$level, $($field = $self.$field,)* $message)
    };
    ($self:ident, $target:literal, [$level:ident or $worse:ident if $is_worse:ident], $message:literal, $fields:tt) => {
        if $self.$is_worse() {
            log_event!($self, $target, [$worse], $message, $fields);
        } else {
            log_event!($self, $target, [$level], $message, $fields);
        }
    };
}

/// Declares each event, by target, as `LEVEL "message" Name { field: Type, … }`: a struct whose `log` writes the line. With
/// `LEVEL or WORSE if condition` the level depends on a method of the struct.
macro_rules! events {
    ($($target:literal {
        $($(#[doc = $meaning:literal])+ $level:ident $(or $worse:ident if $is_worse:ident)? $message:literal $name:ident $(<$life:lifetime>)? {
            $($(#[doc = $doc:literal])* $field:ident: $type:ty,)*
        })+
    })+) => {
        $($(
            $(#[doc = $meaning])+
            pub(crate) struct $name $(<$life>)? {
                $($(#[doc = $doc])* pub(crate) $field: $type,)*
            }

            impl $(<$life>)? $name $(<$life>)? {
                pub(crate) fn log(self) {
                    log_event!(self, $target, [$level $(or $worse if $is_worse)?], $message, [$($field)*]);
                }
            }
        )+)+

        /// Every event.
        pub const EVENTS: &[Event] = &[$($(Event {
            level: Level::$level,
            target: $target,
            message: $message,
            fields: &[$((stringify!($field), concat!("" $(, $doc)*))),*],
            meaning: concat!($($meaning),+),
        }),+),+];
    };
}

events! {
    "access" {
        /// One for each request, when its answer has ended, whole or cut short, or the request has ended without one; `WARN` for a status of 400 or more and for an answer that was cut short, unless the client did that. Fields without a value, and counts of 0, are left out.
        INFO or WARN if is_failure "request" Access<'a> {
            /// The request's method.
            method: &'a str,
            /// The path without the query: at most 1024 bytes; characters beyond ASCII are percent-encoded.
            path: &'a str,
            /// The answer's status. Without an answer: 499 if the client disconnected, 408 if it sent nothing for `limits.idle_timeout`, 503 if the time to drain had passed.
            status: u16,
            /// `batch` or `passthrough`.
            route: &'a str,
            /// The name of the batch API, as in `sidelink_batches_total`; left out where `route` is not `batch`.
            api: Option<&'a str>,
            /// `hit`, `partial`, `miss`, `stale`, `bypass` or `error`, as in `sidelink_batches_total`.
            outcome: &'a str,
            /// The time from the request's head to the end of the answer.
            milliseconds: f64,
            /// The part of it, before the answer's head, that was spent waiting for the endpoint: for calls, and for flights that other batches started; on other routes for the answer's head. Left out where the endpoint was not asked.
            waited_milliseconds: Option<f64>,
            /// The code of sidelink's own error ([ERRORS.md](ERRORS.md)), why a batch was forwarded untouched (as in `sidelink_bypass_total`), `refused` for a remembered refusal of one id, or why there was no answer: `client-left`, `client-timeout` or `drain`.
            detail: Option<&'a str>,
            /// Who cut the answer short, or the wait for it: `client`, which disconnected or reset the stream; `client-timeout`, it neither read nor sent for `limits.idle_timeout`; `endpoint`, which broke off; `endpoint-timeout`, it sent nothing for `upstream.idle_timeout`; `drain`, sidelink ended and `limits.drain` had passed. Left out of whole answers.
            aborted: Option<&'a str>,
            /// The client's address; left out for a Unix socket. Behind another proxy, that proxy's.
            client: Option<&'a str>,
            /// The client's `User-Agent`: at most 256 bytes; characters beyond ASCII are percent-encoded.
            user_agent: Option<&'a str>,
            /// Bytes of the answer's body that were given to the client's connection, of an answer that was cut short as well. Left out without an answer.
            bytes: Option<u64>,
            /// `X-Request-Id` of the answer, unless it is longer than 128 bytes.
            request_id: Option<&'a str>,
            /// The client's own `X-Request-Id` (1 to 128 of `A-Za-z0-9._-`), where the answer has another one: the request was forwarded untouched, or the client disconnected.
            client_request_id: Option<&'a str>,
            /// The trace of the request: that of its `traceparent`, if it is valid (W3C Trace Context); with `[trace]`, else the one that begins here.
            trace_id: Option<&'a str>,
            /// The caller's short hash, eight hex digits: the same for the same caller while the process runs, and useless as a credential. Of batches whose caller is known.
            caller: Option<String>,
            /// The short hash of the user that the caller is, likewise, where `callers.identity` or `callers.keys` says so: the same for all tokens of that user.
            user: Option<String>,
            /// Distinct ids of the batch.
            ids: Option<u32>,
            /// Ids from memory, fresh.
            hit: Option<u32>,
            /// Ids from memory, past their freshness, because the endpoint failed.
            stale: Option<u32>,
            /// Ids from a flight that another batch started.
            joined: Option<u32>,
            /// Ids from the shared tier.
            shared: Option<u32>,
            /// Ids from a call for this batch.
            fetched: Option<u32>,
            /// Ids that are remembered as left out by the endpoint.
            absent: Option<u32>,
            /// Ids that are not available.
            failed: Option<u32>,
        }
    }
    "sidelink::app" {
        /// sidelink listens. `tls` says whether its TCP addresses use TLS.
        INFO "serving" Serving<'a> { endpoint: Arguments<'a>, addresses: &'a str, tls: bool, admin: Arguments<'a>, }
        /// Fewer file descriptors are allowed (`ulimit -Hn`, `LimitNOFILE=`) than the configured limits need. At most `connections` clients are served at a time, so that some are left for operators and calls.
        WARN "the limit of open files is lower than the configured limits need" DescriptorsShort { limit: u64, needed: u64, connections: usize, }
        /// Shutdown has begun: sidelink is not ready and accepts no new connections.
        INFO "draining" Draining {}
        /// Shutdown is complete.
        INFO "stopped" Stopped {}
        /// Someone sent a second SIGTERM or SIGINT during the drain.
        WARN "second signal: exiting without draining" SecondSignal {}
        /// The new configuration is in effect.
        INFO "the configuration was reloaded" ConfigReloaded<'a> { file: &'a str, }
        /// What was kept under the description from before is not found under the new one (`batch`, without limits and the shape of errors).
        INFO "the description of a batch API has changed; its links are fetched again" DescriptionChanged<'a> { api: &'a str, }
        /// The configuration works, but not as intended.
        WARN "the configuration has a warning" ConfigWarning<'a> { file: &'a str, reason: &'a str, }
        /// One for each error, with file, line and key.
        ERROR "the configuration has an error" ConfigError<'a> { reason: &'a str, }
        /// `errors` is the number of errors.
        ERROR "the configuration was refused; the previous one stays in effect" ConfigRefused<'a> { file: &'a str, errors: usize, }
        /// A bug: report it.
        ERROR "reloading failed: a bug in sidelink" ReloadFailed<'a> { reason: Arguments<'a>, }
        /// systemd does not answer.
        DEBUG "the service manager could not be notified" NotifyFailed<'a> { reason: Arguments<'a>, }
    }
    "sidelink::server" {
        /// Raise `limits.drain` if this happens at every shutdown.
        INFO "limits.drain has passed: remaining connections are closed" DrainTimeout {}
        /// Most often sidelink is out of file descriptors.
        WARN "a connection could not be accepted" AcceptFailed<'a> { reason: Arguments<'a>, suppressed: u64, }
        /// The client sent something that is not HTTP, was too slow, or disconnected.
        DEBUG "a client's connection ended early" ConnectionFailed<'a> { reason: Arguments<'a>, }
        /// HTTP/2 only: for `limits.idle_timeout` the client left no room for the next 16 KiB.
        DEBUG "a stalled stream was reset" StreamStalled {}
    }
    "sidelink::upstream" {
        /// Connecting, TLS or the exchange failed, or a call took longer than `upstream.deadline`. `reason` has all causes ([RUNBOOK.md](RUNBOOK.md#what-a-reason-means)).
        WARN "no answer from the endpoint" NoAnswer<'a> { reason: &'a str, suppressed: u64, }
        /// The connection ended after the answer's head.
        WARN "the endpoint's answer broke off" AnswerBrokenOff<'a> { reason: &'a str, suppressed: u64, }
        /// The answer is complete, but broken JSON, longer than `upstream.answer_bytes`, or in a coding that cannot be undone; or its head is ambiguous: lengths that differ, a transfer coding other than `chunked`, an upgrade.
        WARN "the endpoint's answer cannot be used" AnswerUnusable<'a> { reason: &'a str, suppressed: u64, }
        /// A 5xx in answer to a call.
        WARN "the endpoint answers with an error" ServerError { status: u16, suppressed: u64, }
        /// Two accepted callers got a 503 with `Retry-After` for different ids.
        WARN "the endpoint asks several callers to pause; all calls pause" AllPaused { seconds: f64, suppressed: u64, }
        /// Logged once (RFC 9113 §7, `HTTP_1_1_REQUIRED`). Lasts until sidelink restarts, or a reload changes `[upstream]`.
        INFO "the endpoint requires HTTP/1.1: calls no longer use HTTP/2" Http1Required {}
        /// `closed`, `open` or `half_open`. When the breaker opens, `reason` is the last failure and the numbers are the evidence ([METRICS.md](METRICS.md), `sidelink_breaker_evidence`).
        WARN "the breaker changed state" BreakerChanged<'a> {
            before: &'a str, now: &'a str, reason: &'a str, callers: usize, id_sets: usize, failed_to_connect: usize,
            connections_lost: usize, failed_answers: usize, no_answers: usize,
        }
    }
    "sidelink::fetch" {
        /// A 429, or a 503 with `Retry-After`, in answer to a call of the batch API `api`. `caller` is the short hash of the access line.
        WARN "the endpoint throttles a caller; its calls pause" CallerPaused<'a> { api: &'a str, caller: Arguments<'a>, status: u16, seconds: f64, suppressed: u64, }
        /// Logged once for each batch API, `api`.
        WARN "the endpoint's Cache-Control or Expires forbids storing its links: every batch is fetched, unless freshness.honour_no_store is false" NotStored<'a> { api: &'a str, }
        /// Logged once for each batch API, `api`. A misspelt place in `batch.expires` may be the reason: `sidelink check --request --response` shows what a recorded item has.
        WARN "a link says nowhere when it ends, neither in its URL nor where batch.expires says: it is kept for freshness.unsigned" NoExpiry<'a> { api: &'a str, }
        /// A 200 to a call of the batch API `api` that is no error by `batch.errors`. `place` is `batch.items.at`.
        WARN "the endpoint's answer has no list of items" NoList<'a> { api: &'a str, place: Arguments<'a>, suppressed: u64, }
        /// A bug: report it. The call's batches got a 502.
        ERROR "a call ended without a result" CallLost { ids: usize, }
    }
    "sidelink::auth" {
        /// `reason` is most often a secret key that differs or a clock that is wrong. The endpoint decides about the request.
        WARN "a signature made with a key of callers.keys does not verify; the request is forwarded untouched" SignatureUnverified<'a> { reason: &'a str, suppressed: u64, }
    }
    "sidelink::proxy" {
        /// Logged once. Not for requests of the Go SDK, which does not sign the Host.
        WARN "a request is signed over a Host that is not the endpoint's, with an access key that is not in callers.keys: the endpoint will refuse it; configure the key, or have clients sign for the endpoint's host" SignedForOtherHost {}
        /// A DELETE passed through with success; `api` is the API whose `delete` path it had.
        DEBUG "an id was deleted; its links are purged" IdDeleted<'a> { api: &'a str, }
    }
    "sidelink::batch" {
        /// A batch that could not be split; `api` and `reason` as in `sidelink_bypass_total`.
        DEBUG "forwarded untouched" Bypassed<'a> { api: &'a str, reason: &'a str, }
    }
    "sidelink::identity" {
        /// The token, and any other until it answers, is a caller of its own. `reason` tells the failure and nothing of an answer.
        WARN "the identity provider does not say whose a token is" IdentityFailed<'a> { reason: &'a str, suppressed: u64, }
        /// Such tokens are callers of their own. `reason` names the field that is missing: choose others by `callers.identity.identity`.
        WARN "an answer of the identity provider lacks what makes a user" IdentityIncomplete<'a> { reason: &'a str, suppressed: u64, }
        /// Such JSON Web Tokens are callers of their own. `reason` names the claim of `callers.identity.claims` that is missing, or says that no key verifies them: made-up tokens, or a set of keys that is another issuer's or lacks a new key.
        WARN "a token does not prove whose it is" IdentityUnproven<'a> { reason: &'a str, suppressed: u64, }
        /// Renew what `callers.identity.token_file` or `client_file` names, or give it the right to ask for others' tokens.
        WARN "the identity provider refuses sidelink's own credentials" IdentityCredentials { status: u16, suppressed: u64, }
        /// Logged once, when requests have failed in a row. New tokens are callers of their own meanwhile; `seconds` is the first pause.
        WARN "the identity provider fails; it is not asked for a while" IdentityBreakerOpened<'a> { reason: &'a str, seconds: f64, }
        /// It is asked again.
        INFO "the identity provider answers again" IdentityBack {}
    }
    "sidelink::shared" {
        /// At the start, and after each outage.
        INFO "the shared tier is in use" SharedUp {}
        /// Logged once per outage, and again for each other reason. `reason` says what to change, if anything.
        WARN "the shared tier is down; sidelink continues without it and reconnects" SharedDown<'a> { reason: &'a str, }
        /// Once until it is back, and every five minutes at most. The other nodes of the Cluster are used; where the fleet's journal is on this one, the tier is down.
        WARN "a node of the shared tier is down" SharedNodeDown<'a> { server: Arguments<'a>, reason: &'a str, suppressed: u64, }
        /// After each line that says it is down.
        INFO "a node of the shared tier is in use again" SharedNodeUp<'a> { server: Arguments<'a>, }
        /// Every five minutes at most. `code` is the first word of the error: `OOM`, the server is full; `MISCONF`, it cannot write to its disk; `NOREPLICAS`, it lacks replicas. [RUNBOOK](RUNBOOK.md#what-a-code-means) has what to do.
        WARN "the shared tier refuses a command" SharedRefusal<'a> { server: Arguments<'a>, command: &'a str, code: &'a str, suppressed: u64, }
        /// Logged once, until a lease is granted again; one batch tries every 30 seconds. `waits` is the number of batches in a row that waited for another sidecar's links and got neither a link nor a lease: the server is wrong, or the endpoint takes longer than `shared.lease_wait`.
        WARN "the shared tier grants no leases: ids are fetched without them" LeasesDenied { waits: u32, }
        /// Said again every five minutes while it lasts. `fleet` is the fingerprint of this sidecar's fleet, `others` are those of other fleets that use the same server, database and prefix. What to compare: [FLEET.md](FLEET.md#is-it-one-fleet).
        WARN "another fleet uses the shared tier under the same prefix; neither sees the other's links and purges" SharedSplit<'a> { fleet: Arguments<'a>, others: &'a str, }
        /// The other fleet has not been seen for 15 seconds.
        INFO "no other fleet uses the shared tier under the same prefix any more" SharedSplitOver {}
        /// Over 4096 purges and revocations waited to be told to the fleet, or this sidecar missed more of them than the shared tier keeps. Links that it covers are fetched again.
        WARN "purges and revocations were merged into one purge of everything" SharedMerged {}
        /// At the end of the process, or after a reload that changes the shared tier: the server did not take them. Other sidecars may serve what was purged until it ends by itself. Purge again elsewhere.
        WARN "purges and revocations were not told to the fleet, and are lost" SharedUntold { records: usize, }
    }
    "sidelink::telemetry" {
        /// `lines` before this one: the reader of standard output did not keep up, or standard output did not take them.
        WARN "log lines were dropped" LogDropped { lines: u64, }
        /// The collector is down, slow, or refuses them; `spans` were lost.
        WARN "spans could not be exported" SpansFailed<'a> { reason: &'a str, spans: u64, suppressed: u64, }
        /// The collector accepted the other spans of the same export.
        WARN "the collector rejected spans" SpansRejected { spans: u64, suppressed: u64, }
    }
    "sidelink::admin" {
        /// By an operator, of every API; `ids` is the number of ids.
        INFO "purged by id" PurgedIds { ids: usize, }
        /// By an operator; `ids` is the number of ids of this `api`.
        INFO "purged by id of one API" PurgedApiIds<'a> { api: &'a str, ids: usize, }
        /// By an operator.
        INFO "purged by group" PurgedGroup {}
        /// By an operator; `links` is the number of links.
        INFO "purged everything" PurgedAll { links: u64, }
    }
}

impl Access<'_> {
    fn is_failure(&self) -> bool {
        match self.aborted {
            None => self.status >= 400,
            Some(by) => by != Abort::Client.name() || (self.status >= 400 && self.status != Abort::Client.status()),
        }
    }
}

/// The generated part of docs/LOGGING.md.
pub fn reference() -> String {
    let mut text = String::new();
    for event in EVENTS.iter().filter(|event| event.target == "access") {
        let Event { level, target, message, fields, meaning } = event;
        text += &format!("## The access line\n\n`{level}`, message `{message}`, target `{target}`.{meaning}\n\n");
        text += "| field | meaning |\n|---|---|\n";
        text.extend(fields.iter().map(|(field, meaning)| format!("| `{field}` |{meaning} |\n")));
    }
    text += "\n## Events\n\n| target | level | message | fields | meaning |\n|---|---|---|---|---|\n";
    for event in EVENTS.iter().filter(|event| event.target != "access") {
        let Event { level, target, message, fields, meaning } = event;
        let fields: Vec<String> = fields.iter().map(|(field, _)| format!("`{field}`")).collect();
        text += &format!("| `{target}` | `{level}` | {message} | {} |{meaning} |\n", fields.join(", "));
    }
    text
}
