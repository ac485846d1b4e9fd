//! What HTTP/2's frames tell a connection's clock (RFC 9113 §4.1, §6).
//!
//! A client of HTTP/2 can keep a connection busy with frames that are about the connection alone: pings, settings, windows,
//! priorities, frames that nobody knows. None of them is a sign that anyone is being served. So frames are followed in both
//! directions, past hyper, which stays the one to judge them.

/// Bytes before a frame's payload.
const HEAD: usize = 9;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

/// Where one direction of a connection is in its frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; HEAD],
    /// How much of the head is here.
    read: usize,
    /// How much of the payload is not.
    left: usize,
    /// Of the frame whose payload is being read.
    kind: u8,
    flags: u8,
    in_headers: bool,
    heads: usize,
}

impl Frames {
    /// Follows `bytes`, the next of its direction; whether the payload of a DATA frame was among them.
    pub(super) fn watch(&mut self, mut bytes: &[u8]) -> bool {
        let mut data = false;
        while let Some((&byte, after)) = bytes.split_first() {
            if self.left == 0 {
                if let Some(place) = self.head.get_mut(self.read) {
                    *place = byte;
                }
                self.read += 1;
                bytes = after;
                if self.read == HEAD {
                    self.begin();
                }
                continue;
            }
            let taken = self.left.min(bytes.len());
            data |= self.kind == DATA;
            self.left -= taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.left == 0 {
                self.end();
            }
        }
        data
    }

    /// The number of the request's head that has begun and is not over, if one has. Until it is, nothing else may be sent
    /// (§4.3).
    pub(super) fn open_head(&self) -> Option<usize> {
        self.in_headers.then_some(self.heads)
    }

    fn begin(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        (self.kind, self.flags, self.read) = (kind, flags, 0);
        if kind == HEADERS {
            self.in_headers = true;
            self.heads = self.heads.wrapping_add(1);
        }
        if self.left == 0 {
            self.end();
        }
    }

    fn end(&mut self) {
        if matches!(self.kind, HEADERS | CONTINUATION) && self.flags & END_HEADERS != 0 {
            self.in_headers = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// Whether there was data, and whether a head is open at the end; in whatever pieces the bytes come.
    fn watched(frames: &[Vec<u8>]) -> (bool, bool) {
        let bytes = frames.concat();
        let in_pieces = |size| {
            let mut frames = Frames::default();
            let data = bytes.chunks(size).fold(false, |data, piece| frames.watch(piece) | data);
            (data, frames.open_head().is_some())
        };
        let whole = in_pieces(bytes.len().max(1));
        for size in 1..bytes.len() {
            assert_eq!(in_pieces(size), whole, "in pieces of {size}");
        }
        whole
    }

    #[test]
    fn data_is_told_from_all_else() {
        assert!(watched(&[frame(4, 0, &[]), frame(DATA, 1, b"x")]).0);
        // Settings, a ping, a window, a priority, one that nobody knows, data without any.
        for other in [frame(4, 0, &[0; 6]), frame(6, 0, &[0; 8]), frame(8, 0, &[0; 4]), frame(2, 0, &[0; 5])] {
            assert_eq!(watched(&[other.clone(), other]), (false, false));
        }
        assert_eq!(watched(&[frame(0xfa, 0, &[0; 300]), frame(DATA, 1, &[])]), (false, false));
    }

    #[test]
    fn a_head_is_open_from_its_first_frame_to_the_flag_that_ends_it() {
        assert_eq!(watched(&[frame(HEADERS, END_HEADERS, b"abc")]), (false, false));
        assert_eq!(watched(&[frame(HEADERS, 0, b"abc"), frame(CONTINUATION, 0, b"d")]), (false, true));
        assert_eq!(watched(&[frame(HEADERS, 0, &[]), frame(CONTINUATION, END_HEADERS, &[])]), (false, false));
        let mut frames = Frames::default();
        frames.watch(&frame(HEADERS, END_HEADERS, b"abc"));
        frames.watch(&frame(HEADERS, 0, b"abc"));
        assert_eq!(frames.open_head(), Some(2));
        let cut = frame(HEADERS, END_HEADERS, b"abc");
        assert_eq!(watched(&[cut[..10].to_vec()]), (false, true));
    }
}
