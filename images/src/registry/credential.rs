//! docker's credential helpers: programs `docker-credential-NAME` that keep logins elsewhere than in a file.
//!
//! A helper gets its input on standard input and answers on standard output; what it answers is bounded, and one that does not
//! end is ended. Secrets go through pipes only, never into arguments or the environment.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::auth::Login;

/// The most that is read of an answer. Tokens of cloud registries reach 8 KB.
const MAX_ANSWER: u64 = 64 * 1024;
/// A helper may have to ask its own service, or a person.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The key under which docker's tools keep a registry's login.
pub(crate) fn server(registry: &str) -> &str {
    match registry {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => "https://index.docker.io/v1/",
        other => other,
    }
}

/// Asks for the login of `registry`; none when the helper has none.
pub(crate) fn get(helper: &str, registry: &str) -> Result<Option<Login>, String> {
    let (ok, answer) = run(helper, "get", server(registry).as_bytes())?;
    if !ok {
        // What docker's own helpers say on standard output; other failures are failures.
        let said = String::from_utf8_lossy(&answer);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(format!("{} failed: {}", program(helper), one_line(&said)));
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|_| format!("{}: its answer is not the JSON of a login", program(helper)))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Login::Identity { token: answer.secret },
        _ => Login::Password {
            user: answer.username,
            secret: answer.secret,
        },
    }))
}

/// Gives it a login to keep.
pub(crate) fn store(helper: &str, registry: &str, user: &str, secret: &str) -> Result<(), String> {
    let input = serde_json::json!({"ServerURL": server(registry), "Username": user, "Secret": secret});
    finish(helper, run(helper, "store", input.to_string().as_bytes())?)
}

/// Makes it forget a login.
pub(crate) fn erase(helper: &str, registry: &str) -> Result<(), String> {
    finish(helper, run(helper, "erase", server(registry).as_bytes())?)
}

fn finish(helper: &str, (ok, answer): (bool, Vec<u8>)) -> Result<(), String> {
    match ok {
        true => Ok(()),
        false => Err(format!(
            "{} failed: {}",
            program(helper),
            one_line(&String::from_utf8_lossy(&answer))
        )),
    }
}

fn program(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

fn one_line(text: &str) -> String {
    let line = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(200).collect()
}

/// Runs it with one verb. Whether it ended well, and what it said.
fn run(helper: &str, verb: &str, input: &[u8]) -> Result<(bool, Vec<u8>), String> {
    let name = program(helper);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if helper.is_empty() || helper.len() > 64 || !helper.bytes().all(plain) {
        return Err(format!("credential helper {helper:?} is not the name of one"));
    }
    let mut child = Command::new(&name)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("{name}: {e}"))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    if let Some(mut stdin) = stdin {
        // One that does not read its input will say so by its status.
        let _ = stdin.write_all(input);
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    if let Some(stdout) = stdout {
        // Its own thread: a grandchild may hold the pipe longer than the helper lives.
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stdout.take(MAX_ANSWER).read_to_end(&mut bytes);
            let _ = sender.send(bytes);
        });
    }
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(LOOK),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{name} does not end within {} s", PATIENCE.as_secs()));
            }
        }
    };
    let left = end.saturating_duration_since(Instant::now());
    let answer = receiver.recv_timeout(left).unwrap_or_default();
    Ok((status.success(), answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_that_are_none_are_named() {
        for (helper, said) in [
            ("", "is not the name"),
            ("../evil", "is not the name"),
            ("a b", "is not the name"),
            (
                "that-nobody-has",
                "docker-credential-that-nobody-has: No such file",
            ),
        ] {
            let error = get(helper, "x").unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(server("docker.io"), "https://index.docker.io/v1/");
        assert_eq!(server("ghcr.io"), "ghcr.io");
    }
}
