//! Every frame on an HTTP/2 connection has one defined outcome: the stream is answered or reset and the other streams go on,
//! or the connection ends with a GOAWAY that says why. No frame keeps a connection alive on which nothing is answered.

pub mod frames;
mod malformed;
mod pressure;
mod time;
mod to_http1;
