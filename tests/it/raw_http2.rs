//! Every frame on a connection has one defined outcome as well: the stream is answered or reset and the others go on, or the
//! connection ends by a GOAWAY that says why. No frame keeps a connection alive on which nothing is answered.

pub mod frames;
mod malformed;
mod pressure;
mod time;
mod to_http1;
