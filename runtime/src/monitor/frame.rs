//! The frames of the attach socket: `u8 kind, u32be length, payload`.
//!
//! Decoding is incremental and holds no payload: standard input is handed on as it arrives, so no length that a
//! client names sizes an allocation.

/// Length of a frame's header.
pub(crate) const HEADER: usize = 5;

/// Longest payload a client may announce. It bounds nothing in memory; a client that exceeds it speaks another
/// protocol.
pub(crate) const MAX_PAYLOAD: u32 = 1 << 20;

const STDIN: u8 = 0;
const RESIZE: u8 = 4;

/// Monitor to client: what the container wrote to its standard output (or its terminal).
pub(crate) const STDOUT: u8 = 1;
/// Monitor to client: what the container wrote to its standard error.
pub(crate) const STDERR: u8 = 2;
/// Monitor to client: the exit code, a `u32be`.
pub(crate) const EXIT: u8 = 3;

/// The header of a frame that the monitor sends.
pub(crate) fn header(kind: u8, length: u32) -> [u8; HEADER] {
    let [a, b, c, d] = length.to_be_bytes();
    [kind, a, b, c, d]
}

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input<'a> {
    /// Bytes for the container's standard input: a whole frame or a piece of one.
    Stdin(&'a [u8]),
    /// The container's standard input ends here.
    CloseStdin,
    /// The client's terminal has this size.
    Resize {
        /// Lines of the terminal.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
}

/// Why a client is dropped.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// No frame of this kind goes from a client to the monitor.
    #[error("attach: frame kind {0} is not known")]
    Kind(u8),
    /// The length does not fit the kind.
    #[error("attach: frame kind {kind} has length {length}")]
    Length {
        /// The frame's kind.
        kind: u8,
        /// The announced length.
        length: u32,
    },
}

/// The state between two reads from one client.
///
/// ```text
///           5 bytes, kind 0, length > 0
///  Header ------------------------------> Payload(Stdin)  --length bytes--> Header
///    |  \-- 5 bytes, kind 0, length 0 --> CloseStdin, Header
///    \----- 5 bytes, kind 4, length 4 --> Payload(Resize) --4 bytes-------> Header
/// ```
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// Bytes of a header or of a resize payload that have arrived.
    held: [u8; HEADER],
    held_length: usize,
    payload: Option<Payload>,
}

#[derive(Debug, Clone, Copy)]
enum Payload {
    Stdin { left: usize },
    Resize,
}

impl Decoder {
    /// Takes the next request from the front of `input`; `None` when `input` is used up.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Input<'a>>, FrameError> {
        loop {
            if input.is_empty() {
                return Ok(None);
            }
            match self.payload {
                None => {
                    if self.gather(input, HEADER) {
                        let [kind, length @ ..] = self.held;
                        match (kind, u32::from_be_bytes(length)) {
                            (STDIN, 0) => return Ok(Some(Input::CloseStdin)),
                            (STDIN, length @ 1..=MAX_PAYLOAD) => {
                                self.payload = Some(Payload::Stdin {
                                    left: length as usize,
                                });
                            }
                            (RESIZE, 4) => self.payload = Some(Payload::Resize),
                            (STDIN | RESIZE, length) => return Err(FrameError::Length { kind, length }),
                            (kind, _) => return Err(FrameError::Kind(kind)),
                        }
                    }
                }
                Some(Payload::Stdin { left }) => {
                    let (piece, rest) = input.split_at(left.min(input.len()));
                    *input = rest;
                    let left = left - piece.len();
                    self.payload = (left > 0).then_some(Payload::Stdin { left });
                    return Ok(Some(Input::Stdin(piece)));
                }
                Some(Payload::Resize) => {
                    if self.gather(input, 4) {
                        self.payload = None;
                        let [a, b, c, d, _] = self.held;
                        return Ok(Some(Input::Resize {
                            rows: u16::from_be_bytes([a, b]),
                            columns: u16::from_be_bytes([c, d]),
                        }));
                    }
                }
            }
        }
    }

    /// Moves bytes from `input` into `held`; true once there are `wanted`.
    fn gather(&mut self, input: &mut &[u8], wanted: usize) -> bool {
        let (piece, rest) = input.split_at((wanted - self.held_length).min(input.len()));
        self.held[self.held_length..][..piece.len()].copy_from_slice(piece);
        self.held_length += piece.len();
        *input = rest;
        let complete = self.held_length == wanted;
        if complete {
            self.held_length = 0;
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Clone)]
    enum Owned {
        Stdin(Vec<u8>),
        Close,
        Resize(u16, u16),
    }

    fn decode(pieces: &[&[u8]]) -> Result<Vec<Owned>, FrameError> {
        let mut decoder = Decoder::default();
        let mut all: Vec<Owned> = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            while let Some(request) = decoder.next(&mut input)? {
                match (request, all.last_mut()) {
                    (Input::Stdin(bytes), Some(Owned::Stdin(before))) => before.extend_from_slice(bytes),
                    (Input::Stdin(bytes), _) => all.push(Owned::Stdin(bytes.to_vec())),
                    (Input::CloseStdin, _) => all.push(Owned::Close),
                    (Input::Resize { rows, columns }, _) => all.push(Owned::Resize(rows, columns)),
                }
            }
        }
        Ok(all)
    }

    const SAMPLE: &[u8] =
        b"\x00\0\0\0\x03abc\x04\0\0\0\x04\0\x18\0\x50\x00\0\0\0\x02de\x00\0\0\0\x01f\x00\0\0\0\0\x04\0\0\0\x04\x01\0\x02\0";

    #[test]
    fn every_way_to_cut_the_stream_decodes_the_same() {
        let expected = vec![
            Owned::Stdin(b"abc".to_vec()),
            Owned::Resize(24, 80),
            Owned::Stdin(b"def".to_vec()),
            Owned::Close,
            Owned::Resize(256, 512),
        ];
        assert_eq!(decode(&[SAMPLE]).unwrap(), expected);
        for first in 0..=SAMPLE.len() {
            for second in first..=SAMPLE.len() {
                let cut = [&SAMPLE[..first], &SAMPLE[first..second], &SAMPLE[second..]];
                assert_eq!(decode(&cut).unwrap(), expected, "cut at {first} and {second}");
            }
        }
        let bytes: Vec<&[u8]> = SAMPLE.chunks(1).collect();
        assert_eq!(decode(&bytes).unwrap(), expected);
    }

    #[test]
    fn what_is_not_the_protocol_is_refused() {
        let table: [(&[u8], FrameError); 6] = [
            (b"\x01\0\0\0\x01x", FrameError::Kind(1)),
            (b"GET / HTTP/1.1", FrameError::Kind(b'G')),
            (b"\x04\0\0\0\x05", FrameError::Length { kind: 4, length: 5 }),
            (b"\x04\0\0\0\0", FrameError::Length { kind: 4, length: 0 }),
            (
                b"\x00\0\x10\0\x01",
                FrameError::Length {
                    kind: 0,
                    length: MAX_PAYLOAD + 1,
                },
            ),
            (
                b"\x00\xff\xff\xff\xff",
                FrameError::Length {
                    kind: 0,
                    length: u32::MAX,
                },
            ),
        ];
        for (bytes, expected) in table {
            assert_eq!(decode(&[bytes]).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_header_names_kind_and_length() {
        assert_eq!(header(STDOUT, 0x0102_0304), [1, 1, 2, 3, 4]);
        assert_eq!(header(EXIT, 4), [3, 0, 0, 0, 4]);
    }
}
