//! A tiny static program that tests run inside containers: what `exec` may do to the container's first process.
//!
//! | call | does | prints |
//! |---|---|---|
//! | `tracer wait` | sleeps until SIGTERM, then leaves with status 43 | `waiting`, `terminated` |
//! | `tracer exe PID` | reads `/proc/PID/exe` | the path |
//! | `tracer trace PID` | attaches with ptrace, stops, reads a word of memory, detaches | `traced` |
//! | `tracer term PID` | sends SIGTERM | `sent` |

use rustix::process::{Pid, Signal};
use std::process::ExitCode;
use std::time::Duration;
use wherry_tests::kernel;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["wait"] => {
            kernel::note_interrupts();
            println!("waiting");
            while !kernel::interrupted() {
                std::thread::sleep(Duration::from_millis(5));
            }
            println!("terminated");
            return ExitCode::from(43);
        }
        ["exe", pid] => std::fs::read_link(format!("/proc/{pid}/exe")).map(|path| path.display().to_string()),
        ["trace", pid] => number(pid).and_then(kernel::trace).map(|()| "traced".to_owned()),
        ["term", pid] => number(pid)
            .and_then(|pid| rustix::process::kill_process(pid, Signal::TERM).map_err(Into::into))
            .map(|()| "sent".to_owned()),
        _ => Err(std::io::Error::other(
            "usage: tracer wait | exe PID | trace PID | term PID",
        )),
    };
    match outcome {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("tracer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> std::io::Result<Pid> {
    text.parse()
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| std::io::Error::other("a process id is a positive number"))
}
