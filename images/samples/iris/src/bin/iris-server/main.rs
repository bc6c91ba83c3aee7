//! `iris-server`: answers iris predictions over HTTP/1.1 from the model file.
//!
//! | request | answer |
//! |---|---|
//! | `GET /healthz` | `ok` |
//! | `GET /predict?sepal_length=5.1&...` | JSON: class, version, probabilities |
//! | `POST /predict` with the same four names as a JSON object or a form | the same |
//! | `GET /metadata` (version 2) | JSON: how the model was trained |
//!
//! Environment: `MODEL` (default `/model`), `LISTEN` (default `0.0.0.0:8080`).

mod stop;

use iris::VERSION;
use iris::forest::Forest;
use iris::measurements::{CLASSES, FEATURES};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// A request line or header longer than this is answered 431.
const MAX_LINE: u64 = 4096;
/// More headers than this are answered 431.
const MAX_HEADERS: usize = 64;
/// A body longer than this is answered 413: four numbers need less.
const MAX_BODY: usize = 4096;
/// A client that says nothing for this long has gone.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    stop::on_signals();
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("iris-server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), String> {
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let path = setting("MODEL", "/model");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("read the model {path}: {error}"))?;
    let forest = Arc::new(Forest::parse(&text).map_err(|error| format!("{path}: {error}"))?);
    let address = setting("LISTEN", "0.0.0.0:8080");
    let listener = TcpListener::bind(&address).map_err(|error| format!("listen on {address}: {error}"))?;
    println!(
        "iris-server {VERSION}: {} trees, listening on {address}",
        forest.training.trees
    );
    for stream in listener.incoming() {
        // A connection that failed before it was accepted is the client's loss alone.
        let Ok(stream) = stream else { continue };
        let forest = Arc::clone(&forest);
        // Without a thread for it the connection is dropped; the client sees a reset and asks again.
        let _ = std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            let _ = converse(stream, &forest);
        });
    }
    Ok(())
}

/// Answers requests on one connection until the client closes it, asks for that, or errs.
fn converse(stream: TcpStream, forest: &Forest) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let (answer, keep) = match read_request(&mut reader)? {
            None => return Ok(()),
            Some(Ok(request)) => (answer(&request, forest), request.keep),
            Some(Err(refusal)) => (refusal, false),
        };
        let connection = if keep { "keep-alive" } else { "close" };
        write!(
            writer,
            "HTTP/1.1 {}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: {connection}\r\n\r\n{}",
            answer.status,
            answer.kind,
            answer.body.len(),
            answer.body
        )?;
        if !keep {
            return Ok(());
        }
    }
}

struct Request {
    method: String,
    target: String,
    body: String,
    keep: bool,
}

struct Answer {
    status: &'static str,
    kind: &'static str,
    body: String,
}

impl Answer {
    fn json(body: String) -> Self {
        Self {
            status: "200 OK",
            kind: "application/json",
            body: body + "\n",
        }
    }

    fn error(status: &'static str, message: &str) -> Self {
        let body = format!(
            "{{\"error\": \"{}\"}}\n",
            message.replace(['\\', '"'], "'").replace(char::is_control, " ")
        );
        Self {
            status,
            kind: "application/json",
            body,
        }
    }
}

/// One line without its end; `None` when it is longer than [`MAX_LINE`].
fn read_line(reader: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    reader.by_ref().take(MAX_LINE).read_line(&mut line)?;
    if !line.ends_with('\n') && !line.is_empty() {
        return Ok(None);
    }
    Ok(Some(line.trim_end().to_owned()))
}

/// The next request; `None` at the end of the connection, `Err` for one that is refused unread.
fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Result<Request, Answer>>> {
    let too_long = || {
        Ok(Some(Err(Answer::error(
            "431 Request Header Fields Too Large",
            "a line is too long",
        ))))
    };
    let Some(first) = read_line(reader)? else {
        return too_long();
    };
    if first.is_empty() {
        return Ok(None);
    }
    let mut words = first.split(' ');
    let (Some(method), Some(target), Some(protocol)) = (words.next(), words.next(), words.next()) else {
        return Ok(Some(Err(Answer::error("400 Bad Request", "not an HTTP request"))));
    };
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        body: String::new(),
        keep: protocol == "HTTP/1.1",
    };
    let mut length = 0;
    for count in 0.. {
        let Some(line) = read_line(reader)? else {
            return too_long();
        };
        if line.is_empty() {
            break;
        }
        if count == MAX_HEADERS {
            return too_long();
        }
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = match value.parse::<usize>() {
                Ok(length) if length <= MAX_BODY => length,
                _ => {
                    return Ok(Some(Err(Answer::error(
                        "413 Content Too Large",
                        "the body is too long",
                    ))));
                }
            };
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(Some(Err(Answer::error(
                "411 Length Required",
                "send a content-length",
            ))));
        } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
            request.keep = false;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(Ok(request)))
}

fn answer(request: &Request, forest: &Forest) -> Answer {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    match (request.method.as_str(), path) {
        ("GET", "/healthz") => Answer {
            status: "200 OK",
            kind: "text/plain",
            body: "ok\n".to_owned(),
        },
        ("GET", "/predict") => predict(query, forest),
        ("POST", "/predict") => predict(&request.body, forest),
        #[cfg(feature = "v2")]
        ("GET", "/metadata") => metadata(forest),
        (_, "/healthz" | "/predict") => Answer::error("405 Method Not Allowed", "GET, or POST to /predict"),
        _ => Answer::error("404 Not Found", "there are /predict and /healthz"),
    }
}

/// The four lengths from `name=value` pairs or a flat JSON object: both are names and numbers with marks between.
fn lengths(text: &str) -> Result<[f32; 4], String> {
    let mut lengths = [None; 4];
    let mut words = text
        .split(|mark: char| "{}&=,:\" \t\r\n".contains(mark))
        .filter(|word| !word.is_empty());
    while let Some(name) = words.next() {
        let feature = FEATURES
            .iter()
            .position(|known| *known == name)
            .ok_or_else(|| format!("unknown name {name}"))?;
        let value = words
            .next()
            .and_then(|word| word.parse::<f32>().ok())
            .filter(|value| value.is_finite());
        lengths[feature] = Some(value.ok_or_else(|| format!("{name} needs a number"))?);
    }
    let mut complete = [0.0; 4];
    for (feature, length) in lengths.into_iter().enumerate() {
        complete[feature] = length.ok_or_else(|| format!("{} is missing", FEATURES[feature]))?;
    }
    Ok(complete)
}

fn predict(text: &str, forest: &Forest) -> Answer {
    let lengths = match lengths(text) {
        Ok(lengths) => lengths,
        Err(error) => return Answer::error("400 Bad Request", &error),
    };
    let probabilities = forest.probabilities(&lengths);
    let class = Forest::class(&probabilities);
    let shares: Vec<String> = CLASSES
        .iter()
        .zip(probabilities)
        .map(|(class, share)| format!("\"{class}\": {share:.4}"))
        .collect();
    let confidence = confidence(&probabilities);
    Answer::json(format!(
        "{{\"class\": \"{class}\", \"version\": {VERSION}, \"probabilities\": {{{}}}{confidence}}}",
        shares.join(", ")
    ))
}

/// Version 2 says how far the best class is ahead of the second.
#[cfg(feature = "v2")]
fn confidence(probabilities: &[f32; 3]) -> String {
    let mut sorted = *probabilities;
    sorted.sort_by(|a, b| b.total_cmp(a));
    format!(", \"confidence\": {:.4}", sorted[0] - sorted[1])
}

#[cfg(not(feature = "v2"))]
fn confidence(_: &[f32; 3]) -> &'static str {
    ""
}

/// Version 2 describes its model.
#[cfg(feature = "v2")]
fn metadata(forest: &Forest) -> Answer {
    let training = forest.training;
    Answer::json(format!(
        "{{\"name\": \"iris\", \"version\": {VERSION}, \"model\": {{\"version\": {}, \"trees\": {}, \"depth\": {}}}, \
         \"features\": {FEATURES:?}, \"classes\": {CLASSES:?}}}",
        training.version, training.trees, training.depth
    ))
}
