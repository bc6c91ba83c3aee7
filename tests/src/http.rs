//! Just enough HTTP/1.1 for tests: a server whose handler sees whole requests and may stream its answer, and a client
//! that makes one request on one connection. Both bound what they read.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The longest line and the most headers of a message.
const MAX_LINE: u64 = 16 * 1024;
const MAX_HEADERS: usize = 100;
/// The longest body that is read into memory.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// A request as the server's handler sees it.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `PATCH`, ...
    pub method: String,
    /// The path without the query, percent-encoding as it came.
    pub path: String,
    /// The query's pairs, decoded, in order.
    pub query: Vec<(String, String)>,
    /// Header names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Request {
    /// The first header of that name (given in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The first query parameter of that name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

/// An answer: of a handler, or as the client received it.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Further headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer with a body of that content type.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            body: body.into(),
        }
    }

    /// The first header of that name (given in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// The open end of a streamed answer: each write is one chunk.
#[derive(Debug)]
pub struct Stream<'a>(&'a mut TcpStream);

impl Stream<'_> {
    /// Sends one chunk. The error says that the client has gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.0.write_all(&chunk)
    }

    /// Whether the client has closed its side; waits at most `patience` to find out.
    pub fn closed_within(&self, patience: Duration) -> bool {
        let _ = self
            .0
            .set_read_timeout(Some(patience.max(Duration::from_millis(1))));
        matches!(self.0.peek(&mut [0]), Ok(0))
    }
}

/// Writes a streamed answer as it goes.
pub type Streaming = Box<dyn FnOnce(&mut Stream<'_>) -> Result<()>>;

/// What a handler does with a request.
pub enum Answer {
    /// The whole answer.
    Whole(Response),
    /// A chunked answer of status 200 with this content type, written by the function as it goes.
    Streamed(&'static str, Streaming),
}

type Handler = dyn Fn(Request) -> Answer + Send + Sync;

/// A server on a loopback port, one thread for each connection; dropping it closes everything.
pub struct Server {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Server {
    /// Listens on `address` (port 0: any) and answers with `handler`.
    pub fn start(address: &str, handler: impl Fn(Request) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind(address)?;
        let server = Self {
            address: listener.local_addr()?,
            stopping: Arc::default(),
            open: Arc::default(),
        };
        let (stopping, open) = (Arc::clone(&server.stopping), Arc::clone(&server.open));
        let handler: Arc<Handler> = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let Ok(copy) = stream.try_clone() else { continue };
                if let Ok(mut open) = open.lock() {
                    open.retain(|stream| stream.peer_addr().is_ok());
                    open.push(copy);
                }
                let handler = Arc::clone(&handler);
                std::thread::spawn(move || {
                    let _ = converse(&stream, &*handler);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // The accepting thread looks at the flag when it is woken by a connection.
        let _ = TcpStream::connect(self.address);
        if let Ok(open) = self.open.lock() {
            for stream in open.iter() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

fn converse(stream: &TcpStream, handler: &Handler) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let head_only = request.method == "HEAD";
        let close = request
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        match handler(request) {
            Answer::Whole(response) => write_response(&mut writer, &response, head_only)?,
            Answer::Streamed(kind, write) => {
                write!(
                    writer,
                    "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncache-control: no-cache, private\r\n\
                     transfer-encoding: chunked\r\n\r\n"
                )?;
                write(&mut Stream(&mut writer))?;
                writer.write_all(b"0\r\n\r\n")?;
                stream.set_read_timeout(None)?;
            }
        }
        if close {
            break;
        }
    }
    Ok(())
}

fn write_response(writer: &mut impl Write, response: &Response, head_only: bool) -> Result<()> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", response.status, reason(response.status));
    let given = |name: &str| response.header(name).is_some();
    if !given("content-length") {
        head.push_str(&format!("content-length: {}\r\n", response.body.len()));
    }
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut message = (head + "\r\n").into_bytes();
    if !head_only {
        message.extend_from_slice(&response.body);
    }
    writer.write_all(&message)
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        206 => "Partial Content",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        422 => "Unprocessable Entity",
        _ => "Status",
    }
}

fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    reader.by_ref().take(MAX_LINE).read_line(&mut line)?;
    if !line.ends_with('\n') && !line.is_empty() {
        return Err(Error::new(ErrorKind::InvalidData, "a line is too long or cut"));
    }
    Ok(line.trim_end().to_owned())
}

fn headers(reader: &mut impl BufRead) -> Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            return Ok(headers);
        }
        if headers.len() == MAX_HEADERS {
            return Err(Error::new(ErrorKind::InvalidData, "too many headers"));
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

fn chunked(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(reader)?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
            .map_err(|_| Error::new(ErrorKind::InvalidData, "a bad chunk"))?;
        if body.len() + size > MAX_BODY {
            return Err(Error::new(ErrorKind::InvalidData, "the body is too long"));
        }
        let start = body.len();
        body.resize(start + size, 0);
        reader.read_exact(&mut body[start..])?;
        line(reader)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

fn sized(reader: &mut impl BufRead, length: &str) -> Result<Vec<u8>> {
    let length: usize = length
        .parse()
        .map_err(|_| Error::new(ErrorKind::InvalidData, "a bad content-length"))?;
    if length > MAX_BODY {
        return Err(Error::new(ErrorKind::InvalidData, "the body is too long"));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn read_request(reader: &mut impl BufRead) -> Result<Option<Request>> {
    let first = line(reader)?;
    if first.is_empty() {
        return Ok(None);
    }
    let mut words = first.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(Error::new(ErrorKind::InvalidData, "not a request"));
    };
    let headers = headers(reader)?;
    let body = match find(&headers, "content-length") {
        Some(length) => sized(reader, length)?,
        None if find(&headers, "transfer-encoding").is_some() => chunked(reader)?,
        None => Vec::new(),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect();
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query,
        headers,
        body,
    }))
}

/// Percent-decoding, `+` for a space; what is no valid escape stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes
            .get(at + 1..at + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], escape.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (b'+', _) => {
                decoded.push(b' ');
                at += 1;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// One request on a connection of its own. `patience` bounds the connect and each read.
pub fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
    patience: Duration,
) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut message = format!("{method} {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        message.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = body {
        message.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    message.push_str("\r\n");
    stream.write_all(message.as_bytes())?;
    stream.write_all(body.unwrap_or_default())?;

    let mut reader = BufReader::new(stream);
    let first = line(&mut reader)?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status =
        status.ok_or_else(|| Error::new(ErrorKind::InvalidData, format!("not an answer: {first:?}")))?;
    let headers = self::headers(&mut reader)?;
    let body = if method == "HEAD" || status == 204 {
        Vec::new()
    } else if find(&headers, "transfer-encoding").is_some() {
        chunked(&mut reader)?
    } else if let Some(length) = find(&headers, "content-length") {
        sized(&mut reader, length)?
    } else {
        let mut body = Vec::new();
        reader.take(MAX_BODY as u64).read_to_end(&mut body)?;
        body
    };
    Ok(Response {
        status,
        headers,
        body,
    })
}

/// A GET with a bearer token or without, on a connection of its own.
pub fn get(address: SocketAddr, target: &str, token: Option<&str>, patience: Duration) -> Result<Response> {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer
        .iter()
        .map(|bearer| ("authorization", bearer.as_str()))
        .collect();
    request(address, "GET", target, &headers, None, patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_whole_and_answers_come_back_whole_or_streamed() {
        let server = Server::start("127.0.0.1:0", |request| {
            if request.path == "/stream" {
                return Answer::Streamed(
                    "text/plain",
                    Box::new(|stream| {
                        stream.send(b"one ")?;
                        stream.send(b"two")
                    }),
                );
            }
            let text = format!(
                "{} {:?} {}",
                request.method,
                request.query,
                String::from_utf8_lossy(&request.body)
            );
            Answer::Whole(Response::new(201, "text/plain", text))
        })
        .expect("start");
        let patience = Duration::from_secs(5);
        let whole = super::request(
            server.address(),
            "POST",
            "/a?x=%3Dy&z",
            &[],
            Some(b"body"),
            patience,
        )
        .expect("request");
        assert_eq!(
            (whole.status, &whole.body[..]),
            (201, &br#"POST [("x", "=y"), ("z", "")] body"#[..])
        );
        let streamed = get(server.address(), "/stream", None, patience).expect("get");
        assert_eq!((streamed.status, &streamed.body[..]), (200, &b"one two"[..]));
    }
}
