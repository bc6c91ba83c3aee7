//! HTTP/1.1 as a server speaks it, and no more: requests in, answers out, over a stream that may be hostile.
//!
//! What always holds: a request's head has [`MAX_HEAD`] bytes, [`MAX_FIELDS`] fields and [`HEAD_TIME`] to arrive; a body comes
//! in pieces the caller asks for, at no less than [`SLOWEST`] once its grace is over; two ways to say a body's length are refused.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// The longest head. Cookies and tokens of real clients stay below 8 KB.
const MAX_HEAD: usize = 16 * 1024;
/// The most header fields.
const MAX_FIELDS: usize = 64;
/// From a head's first byte to its last.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Between requests on one connection.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// Without one byte either way.
const STALL_TIME: Duration = Duration::from_secs(15);
/// Bytes per second below which a body is a drip, not a transfer. The slowest real links are ten times that.
const SLOWEST: u64 = 200;
/// A transfer may hang this long in all before its pace counts.
const GRACE: Duration = Duration::from_secs(60);
/// A longer chunk-size line is refused.
const MAX_CHUNK_LINE: usize = 256;
/// What is left of a body that nobody wants is read up to here, to keep the connection.
const MAX_DRAIN: u64 = 64 * 1024;
/// Read size.
const BUFFER: usize = 64 * 1024;

/// What a connection runs over.
pub(super) trait Stream: Read + Write + Send {
    /// Limits the next read.
    fn read_within(&self, time: Duration) -> io::Result<()>;
    /// Limits the next write.
    fn write_within(&self, time: Duration) -> io::Result<()>;
}

impl Stream for std::net::TcpStream {
    fn read_within(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))
    }
    fn write_within(&self, time: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(time))
    }
}

impl Stream for std::os::unix::net::UnixStream {
    fn read_within(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))
    }
    fn write_within(&self, time: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(time))
    }
}

/// How a body's end is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// This many bytes are left.
    Length(u64),
    /// This many bytes are left of the chunk; before the first chunk there was no line end to step over.
    Chunk { left: u64, first: bool },
    /// All of it was read.
    Done,
    /// It is not what it says: where the next request begins is not known.
    Lost,
}

/// A request without its body.
#[derive(Debug)]
pub(super) struct Head {
    /// `GET`, `PUT`, ...
    pub(super) method: String,
    /// The path, as sent.
    pub(super) path: String,
    query: String,
    fields: Vec<(String, String)>,
    framing: Framing,
    /// Whether the connection ends with the answer.
    pub(super) close: bool,
    expects_continue: bool,
}

impl Head {
    /// A field's value; of one sent twice, the first.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    /// A query parameter, decoded.
    pub(super) fn query(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| unescape(value)).flatten()
        })
    }
}

/// Undoes percent-encoding; none where it is broken or not UTF-8.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Why a connection ends without an answer, or with one only.
#[derive(Debug)]
pub(super) enum Broken {
    /// The peer left or stalled.
    Gone,
    /// It does not speak HTTP as served here: this status, then the end.
    Refused(u16, &'static str),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Broken::Gone
    }
}

/// One connection.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Connection {
    pub(super) fn new(stream: Box<dyn Stream>) -> Connection {
        Connection {
            stream,
            buffer: Vec::new(),
            start: 0,
            end: 0,
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER];
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let got = loop {
            match self.stream.read(&mut self.buffer[self.end..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.end += got;
        Ok(got)
    }

    /// Reads the next request's head. None when the peer is done.
    pub(super) fn head(&mut self) -> Result<Option<Head>, Broken> {
        let mut begun = (self.end > self.start).then(Instant::now);
        if begun.is_none() {
            // An idle connection needs no buffer.
            self.buffer = Vec::new();
            (self.start, self.end) = (0, 0);
        }
        loop {
            let bytes = &self.buffer[self.start..self.end];
            if !bytes.is_empty()
                && let Some((head, used)) = parse_head(bytes)?
            {
                self.start += used;
                return Ok(Some(head));
            }
            if bytes.len() >= MAX_HEAD {
                return Err(Broken::Refused(431, "the request's head is too long"));
            }
            let time = match begun {
                None => IDLE_TIME,
                Some(begun) => HEAD_TIME.saturating_sub(begun.elapsed()),
            };
            if time.is_zero() {
                return Err(Broken::Refused(408, "the request's head takes too long"));
            }
            self.stream.read_within(time)?;
            match self.fill() {
                Ok(0) if begun.is_none() => return Ok(None),
                Ok(0) => return Err(Broken::Gone),
                Ok(_) => {
                    begun.get_or_insert_with(Instant::now);
                }
                Err(_) if begun.is_none() => return Ok(None),
                Err(_) => return Err(Broken::Refused(408, "the request's head takes too long")),
            }
        }
    }

    /// The body of the request whose head was read.
    pub(super) fn body<'a>(&'a mut self, head: &mut Head) -> Body<'a> {
        let waiting = std::mem::take(&mut head.expects_continue);
        let framing = std::mem::replace(&mut head.framing, Framing::Done);
        Body {
            connection: self,
            framing,
            waiting,
            pace: Pace::new(),
        }
    }

    /// Sends an answer. `body` is none for HEAD and for statuses without one; then `length` is what a GET would have had.
    pub(super) fn answer(&mut self, answer: &mut Answer, is_head: bool, close: bool) -> io::Result<()> {
        let mut text = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
        for (name, value) in &answer.fields {
            text.push_str(name);
            text.push_str(": ");
            // No answer's field is worth a second line.
            text.extend(value.chars().filter(|c| !c.is_control()));
            text.push_str("\r\n");
        }
        let length = match &answer.body {
            Payload::Bytes(bytes) => bytes.len() as u64,
            Payload::File { length, .. } | Payload::Nothing { length } => *length,
        };
        if !matches!(answer.status, 204 | 304) {
            text.push_str(&format!("Content-Length: {length}\r\n"));
        }
        if close {
            text.push_str("Connection: close\r\n");
        }
        text.push_str("\r\n");
        self.stream.write_within(STALL_TIME)?;
        let mut head = text.into_bytes();
        match &mut answer.body {
            _ if is_head => self.stream.write_all(&head)?,
            Payload::Bytes(bytes) => {
                head.append(bytes);
                self.stream.write_all(&head)?;
            }
            Payload::Nothing { .. } => self.stream.write_all(&head)?,
            Payload::File { file, length } => {
                self.stream.write_all(&head)?;
                let mut left = *length;
                let mut pace = Pace::new();
                let mut buffer = vec![0; BUFFER];
                while left > 0 {
                    let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
                    let got = file.read(&mut buffer[..most])?;
                    if got == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.write_paced(&buffer[..got], &mut pace)?;
                    left -= got as u64;
                }
            }
        }
        self.stream.flush()
    }

    /// Reads the rest of a body away, once the answer is sent. False when the connection is of no more use.
    pub(super) fn drain(&mut self, rest: Rest) -> bool {
        if rest.framing == Framing::Lost || rest.waiting && rest.framing != Framing::Done {
            return false;
        }
        let mut body = Body {
            connection: self,
            framing: rest.framing,
            waiting: rest.waiting,
            pace: Pace::new(),
        };
        let mut left = MAX_DRAIN;
        let mut sink = [0; 4096];
        loop {
            match body.read(&mut sink) {
                Ok(0) => return true,
                Ok(n) if (n as u64) < left => left -= n as u64,
                _ => return false,
            }
        }
    }

    fn write_paced(&mut self, mut bytes: &[u8], pace: &mut Pace) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    pace.moved(sent)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Whether a transfer is fast enough to be one.
struct Pace {
    begun: Instant,
    bytes: u64,
}

impl Pace {
    fn new() -> Pace {
        Pace {
            begun: Instant::now(),
            bytes: 0,
        }
    }

    fn moved(&mut self, bytes: usize) -> io::Result<()> {
        self.bytes += bytes as u64;
        self.check(self.begun.elapsed())
    }

    fn check(&self, elapsed: Duration) -> io::Result<()> {
        match elapsed.checked_sub(GRACE) {
            Some(late) if self.bytes < SLOWEST * late.as_secs() => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

/// What is left of a body after its request was judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rest {
    framing: Framing,
    waiting: bool,
}

impl Rest {
    /// Whether the connection has to end with the answer: too much would have to be read first, or the peer waits to be told to
    /// send and will be out of step.
    pub(super) fn closes(self) -> bool {
        match self.framing {
            Framing::Done | Framing::Length(0) => false,
            Framing::Lost => true,
            Framing::Length(left) => self.waiting || left > MAX_DRAIN,
            Framing::Chunk { .. } => self.waiting,
        }
    }
}

/// A request's body, read piece by piece.
pub(super) struct Body<'a> {
    connection: &'a mut Connection,
    framing: Framing,
    waiting: bool,
    pace: Pace,
}

impl Body<'_> {
    /// What the peer may still send of a body that nobody wants any more.
    pub(super) fn rest(self) -> Rest {
        Rest {
            framing: self.framing,
            waiting: self.waiting,
        }
    }

    /// Reads a small body whole; none when it is longer than `limit`.
    pub(super) fn whole(&mut self, limit: u64) -> io::Result<Option<Vec<u8>>> {
        if matches!(self.framing, Framing::Length(length) if length > limit) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.by_ref().take(limit + 1).read_to_end(&mut bytes)?;
        Ok((bytes.len() as u64 <= limit).then_some(bytes))
    }

    fn buffered(&mut self) -> io::Result<&[u8]> {
        if self.connection.start == self.connection.end {
            self.connection.stream.read_within(STALL_TIME)?;
            if self.connection.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(&self.connection.buffer[self.connection.start..self.connection.end])
    }

    /// A line of the chunked coding, without its end.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            let byte = self.buffered()?[0];
            self.connection.start += 1;
            match byte {
                // A bare line feed is where two readers of one stream may part ways.
                b'\n' if line.pop() == Some(b'\r') => return Ok(line),
                b'\n' => return Err(io::ErrorKind::InvalidData.into()),
                _ if line.len() >= MAX_CHUNK_LINE => return Err(io::ErrorKind::InvalidData.into()),
                byte => line.push(byte),
            }
        }
    }

    fn next_chunk(&mut self, first: bool) -> io::Result<u64> {
        if !first && !self.line()?.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let size = chunk_size(&self.line()?).ok_or(io::ErrorKind::InvalidData)?;
        if size == 0 {
            for _ in 0..MAX_FIELDS {
                if self.line()?.is_empty() {
                    return Ok(0);
                }
            }
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(size)
    }
}

/// The hexadecimal size at the head of a chunk; extensions are stepped over.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|b| *b == b';').next()?.trim_ascii();
    if digits.is_empty() || digits.len() > 15 {
        return None;
    }
    digits.iter().try_fold(0, |size, digit| {
        Some(size * 16 + u64::from(char::from(*digit).to_digit(16)?))
    })
}

impl Read for Body<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if std::mem::take(&mut self.waiting) && self.framing != Framing::Done {
            self.connection.stream.write_within(STALL_TIME)?;
            self.connection
                .stream
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let left = loop {
            match self.framing {
                Framing::Done | Framing::Length(0) => {
                    self.framing = Framing::Done;
                    return Ok(0);
                }
                Framing::Lost => return Err(io::ErrorKind::InvalidData.into()),
                Framing::Length(left) => break left,
                Framing::Chunk { left, .. } if left > 0 => break left,
                Framing::Chunk { first, .. } => {
                    self.framing = Framing::Lost;
                    self.framing = match self.next_chunk(first)? {
                        0 => Framing::Done,
                        left => Framing::Chunk { left, first: false },
                    };
                }
            }
        };
        let bytes = self.buffered()?;
        let got = bytes
            .len()
            .min(out.len())
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        out[..got].copy_from_slice(&bytes[..got]);
        self.connection.start += got;
        self.framing = match self.framing {
            Framing::Chunk { .. } => Framing::Chunk {
                left: left - got as u64,
                first: false,
            },
            _ => Framing::Length(left - got as u64),
        };
        self.pace.moved(got)?;
        Ok(got)
    }
}

/// Reads a head from the bytes so far. None while it is not all there.
fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Broken> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let used = match request.parse(bytes) {
        Ok(httparse::Status::Complete(used)) if used <= MAX_HEAD => used,
        Ok(httparse::Status::Complete(_)) => {
            return Err(Broken::Refused(431, "the request's head is too long"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Broken::Refused(431, "too many header fields")),
        Err(_) => return Err(Broken::Refused(400, "not an HTTP request")),
    };
    let (method, target) = (
        request.method.unwrap_or_default(),
        request.path.unwrap_or_default(),
    );
    let fields: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|f| {
            (
                f.name.to_owned(),
                String::from_utf8_lossy(f.value).trim().to_owned(),
            )
        })
        .collect();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut head = Head {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        fields,
        framing: Framing::Done,
        close: request.version == Some(0),
        expects_continue: false,
    };
    let mut lengths = head
        .fields
        .iter()
        .filter(|(n, _)| n.eq_ignore_ascii_case("content-length"));
    let length = match (lengths.next(), lengths.next()) {
        (None, _) => None,
        (Some((_, value)), None) if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => Some(
            value
                .parse::<u64>()
                .map_err(|_| Broken::Refused(413, "the body is too long"))?,
        ),
        _ => return Err(Broken::Refused(400, "content-length is not one number")),
    };
    let codings = head
        .fields
        .iter()
        .filter(|(n, _)| n.eq_ignore_ascii_case("transfer-encoding"));
    // HTTP/1.0 does not know it, and who sits in between may believe either.
    if codings.count() > usize::from(request.version == Some(1)) {
        return Err(Broken::Refused(400, "transfer-encoding where it cannot be"));
    }
    head.framing = match (head.field("transfer-encoding"), length) {
        (None, None) => Framing::Done,
        (None, Some(length)) => Framing::Length(length),
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => {
            Framing::Chunk { left: 0, first: true }
        }
        (Some(_), None) => {
            return Err(Broken::Refused(
                501,
                "only the chunked transfer coding is understood",
            ));
        }
        (Some(_), Some(_)) => return Err(Broken::Refused(400, "both content-length and transfer-encoding")),
    };
    if head
        .field("connection")
        .is_some_and(|v| v.split(',').any(|o| o.trim().eq_ignore_ascii_case("close")))
    {
        head.close = true;
    }
    head.expects_continue = head
        .field("expect")
        .is_some_and(|v| v.eq_ignore_ascii_case("100-continue"));
    Ok(Some((head, used)))
}

/// An answer.
pub(super) struct Answer {
    /// Its status.
    pub(super) status: u16,
    fields: Vec<(&'static str, String)>,
    body: Payload,
}

enum Payload {
    Bytes(Vec<u8>),
    File { file: Box<dyn Read + Send>, length: u64 },
    Nothing { length: u64 },
}

impl Answer {
    pub(super) fn new(status: u16) -> Answer {
        Answer {
            status,
            fields: Vec::new(),
            body: Payload::Nothing { length: 0 },
        }
    }

    pub(super) fn field(mut self, name: &'static str, value: impl ToString) -> Answer {
        self.fields.push((name, value.to_string()));
        self
    }

    pub(super) fn bytes(mut self, bytes: Vec<u8>) -> Answer {
        self.body = Payload::Bytes(bytes);
        self
    }

    pub(super) fn file(mut self, file: impl Read + Send + 'static, length: u64) -> Answer {
        self.body = Payload::File {
            file: Box::new(file),
            length,
        };
        self
    }

    pub(super) fn json(self, value: &serde_json::Value) -> Answer {
        let mut bytes = value.to_string().into_bytes();
        bytes.push(b'\n');
        self.field("Content-Type", "application/json").bytes(bytes)
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn sent(bytes: &[u8]) -> (Connection, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        (Connection::new(Box::new(ours)), theirs)
    }

    #[test]
    fn heads_and_bodies_on_one_connection() {
        let (mut connection, mut peer) = sent(
            b"GET /v2/?a=%2Fb&n=1 HTTP/1.1\r\nHost: x\r\nRANGE: bytes=0-\r\n\r\n\
              PUT /p HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello\
              PATCH /q HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
              3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: t\r\n\r\n",
        );
        let mut get = connection.head().unwrap().unwrap();
        assert_eq!((get.method.as_str(), get.path.as_str()), ("GET", "/v2/"));
        assert_eq!(
            (
                get.query("a").as_deref(),
                get.query("n").as_deref(),
                get.query("z")
            ),
            (Some("/b"), Some("1"), None)
        );
        assert_eq!(get.field("range"), Some("bytes=0-"));
        let rest = connection.body(&mut get).rest();
        assert!(!get.close && !rest.closes() && connection.drain(rest));
        let mut put = connection.head().unwrap().unwrap();
        let mut body = connection.body(&mut put);
        assert_eq!(body.whole(5).unwrap().unwrap(), b"hello");
        assert!(!body.rest().closes());
        let mut patch = connection.head().unwrap().unwrap();
        assert!(patch.close);
        let mut body = connection.body(&mut patch);
        assert_eq!(body.whole(100).unwrap().unwrap(), b"abcde");
        assert!(!body.rest().closes());
        assert!(connection.head().unwrap().is_none());
        connection
            .answer(&mut Answer::new(200).bytes(b"x".to_vec()), false, true)
            .unwrap();
        drop(connection);
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
        );
    }

    #[test]
    fn what_is_refused() {
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS + 1));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_HEAD));
        for (bytes, status) in [
            (
                "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                400,
            ),
            (
                "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            ("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
            (
                "GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                413,
            ),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            (
                "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
                400,
            ),
            ("PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
            ("\x16\x03\x01\x02\x00\x01", 400),
            (many.as_str(), 431),
            (long.as_str(), 431),
        ] {
            let (mut connection, _peer) = sent(bytes.as_bytes());
            let refused = connection.head().err();
            assert!(
                matches!(refused, Some(Broken::Refused(s, _)) if s == status),
                "{bytes:.60} {refused:?}"
            );
        }
        let (mut cut, _peer) = sent(b"GET / HT");
        assert!(matches!(cut.head(), Err(Broken::Gone)));
    }

    #[test]
    fn bodies_that_lie() {
        for bytes in [
            "PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\nshort",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n",
            // What stands behind the lie would be a request.
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        ] {
            let (mut connection, _peer) = sent(bytes.as_bytes());
            let mut head = connection.head().unwrap().unwrap();
            let mut body = connection.body(&mut head);
            assert!(body.whole(100).is_err(), "{bytes}");
            let rest = body.rest();
            assert!(!connection.drain(rest), "{bytes}");
        }
        let (mut connection, _peer) = sent(b"PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello");
        let mut head = connection.head().unwrap().unwrap();
        assert!(connection.body(&mut head).whole(4).unwrap().is_none());
    }

    #[test]
    fn a_drip_is_not_a_transfer() {
        let pace = |bytes, seconds| {
            Pace {
                begun: Instant::now(),
                bytes,
            }
            .check(Duration::from_secs(seconds))
            .is_ok()
        };
        assert!(pace(0, 60) && pace(1, 59) && pace(SLOWEST * 40, 100));
        assert!(!pace(SLOWEST * 39, 100) && !pace(10_000, 3600));
    }

    #[test]
    fn percent_encoding() {
        for (text, wanted) in [
            ("a%3Ab+c", Some("a:b c")),
            ("%4", None),
            ("%zz", None),
            ("%ff", None),
            ("", Some("")),
        ] {
            assert_eq!(unescape(text).as_deref(), wanted, "{text}");
        }
    }
}
