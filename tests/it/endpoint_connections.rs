//! While the endpoint answers a direct client, sidelink's batches are answered, whatever becomes of connections: a request
//! that was not processed is sent again on a new connection, one lost connection is one failure, and nobody's failures close
//! the way to the endpoint for others. A dead endpoint still fails fast.

mod addresses;
mod evidence;
mod kept;
mod streams;
