//! What a container must not be able to do, tried from inside as its root. Each attempt is a process of its own, so that
//! one that is killed for it counts as refused, too.
//!
//! ```text
//! escape          tries everything: a line each, `refused NAME: why` or `ESCAPED NAME: what`; the exit code says whether all were refused
//! escape NAME     tries one
//! ```
//! From the environment: `HOST_MARK`, a file of the host; `HOST_PID`, one of its processes; `HOST_SOCKET`, an abstract socket that
//! it listens on; `PORT`, a TCP port that was not declared (with the host's network); `HOST_NETWORK`, set with the host's network.

mod attempts;

use attempts::{ATTEMPTS, Verdict};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode};

const REFUSED: u8 = 0;
const ESCAPED: u8 = 10;
const ABSENT: u8 = 20;

fn main() -> ExitCode {
    match std::env::args().nth(1) {
        Some(name) => one(&name),
        None => all(),
    }
}

fn one(name: &str) -> ExitCode {
    let Some((_, attempt)) = ATTEMPTS.iter().find(|(known, _)| *known == name) else {
        eprintln!("escape: no attempt is called {name:?}");
        return ExitCode::from(2);
    };
    let (code, why) = match attempt() {
        Verdict::Refused(why) => (REFUSED, why),
        Verdict::Escaped(what) => (ESCAPED, what),
        Verdict::Absent(what) => (ABSENT, what),
    };
    println!("{}", why.replace('\n', " "));
    ExitCode::from(code)
}

fn all() -> ExitCode {
    let mut escaped = 0;
    for (name, _) in ATTEMPTS {
        let output = match Command::new("/proc/self/exe").arg(name).output() {
            Ok(output) => output,
            Err(error) => {
                println!("BROKEN {name}: {error}");
                escaped += 1;
                continue;
            }
        };
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let code = output.status.code().and_then(|code| u8::try_from(code).ok());
        match (code, output.status.signal()) {
            (Some(REFUSED), _) => println!("refused {name}: {said}"),
            (Some(ABSENT), _) => println!("absent {name}: {said}"),
            (Some(ESCAPED), _) => {
                println!("ESCAPED {name}: {said}");
                escaped += 1;
            }
            (_, Some(signal)) => println!("refused {name}: killed by signal {signal}"),
            _ => {
                println!(
                    "BROKEN {name}: {}: {}",
                    output.status,
                    String::from_utf8_lossy(&output.stderr).trim()
                );
                escaped += 1;
            }
        }
    }
    println!("{} attempts, {escaped} escaped", ATTEMPTS.len());
    if escaped == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
