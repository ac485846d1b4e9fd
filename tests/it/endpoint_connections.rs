//! While the endpoint answers a direct client, sidelink's batches are answered, however connections end: a request that was not
//! processed is sent again on a new connection, one lost connection is one failure, and one source's failures open the breaker for no
//! other. Calls to a dead endpoint still fail fast.

mod addresses;
mod evidence;
mod reused;
mod streams;
